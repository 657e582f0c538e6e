//! Bit-parallel distances of eight pairs at once, one per lane, of up to eight words.

use std::marker::PhantomData;

use pulp::{Arch, NullaryFnOnce};

use super::edits::Edits;
use super::simd::{LaneWork, Lanes, dispatch};
use super::symbol::Symbol;
use super::vector::{Column, LANES, Vector, bit_planes};

/// The longest pattern this kernel takes, in 64-row words.
pub(super) const MAX_WORDS: usize = 8;

/// Buffers that live as long as a batch.
#[derive(Default)]
pub(super) struct Scratch<T> {
    text: Vec<[T; LANES]>,
    pattern: Vec<[T; LANES]>,
    /// Bit planes of the patterns: the highest plane of every word, then the next.
    planes: Vec<Vector>,
}

/// `(pattern, text)` of one lane; the pattern is the shorter and not empty.
pub(super) type Pair<'a, T> = (&'a [T], &'a [T]);

/// Distances of up to eight pairs with texts in order of length and patterns of at most `MAX_WORDS` words.
pub(super) fn distances<E: Edits, T: Symbol>(
    arch: Arch,
    pairs: &[Pair<'_, T>],
    scratch: &mut Scratch<T>,
) -> [u32; LANES] {
    let words = pairs
        .iter()
        .map(|pair| pair.0.len().div_ceil(64))
        .max()
        .unwrap_or(1);
    arch.dispatch(Prepare {
        pairs,
        words,
        scratch,
    });
    let run = Run {
        pairs,
        words,
        scratch,
        edits: PhantomData::<E>,
    };
    dispatch(arch, run)
}

struct Prepare<'a, 'b, T> {
    pairs: &'a [Pair<'b, T>],
    words: usize,
    scratch: &'a mut Scratch<T>,
}

impl<T: Symbol> NullaryFnOnce for Prepare<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self {
            pairs,
            words,
            scratch,
        } = self;
        let longest = pairs.last().map_or(0, |pair| pair.1.len());
        interleave(pairs.iter().map(|pair| pair.1), longest, &mut scratch.text);
        interleave(
            pairs.iter().map(|pair| pair.0),
            words * 64,
            &mut scratch.pattern,
        );
        // Bits that no symbol has need no plane.
        let union = |sequence: &[T]| sequence.iter().fold(0, |bits, symbol| bits | symbol.bits());
        let used = pairs
            .iter()
            .fold(0, |bits, pair| bits | union(pair.0) | union(pair.1));
        let planes = (u64::BITS - used.leading_zeros()).max(1) as usize;
        let width = planes.next_power_of_two().max(8);
        scratch.planes.clear();
        scratch.planes.resize(words * planes, Vector::ZERO);
        let mut encoded = [Vector::ZERO; 32];
        for (index, word) in scratch.pattern.chunks_exact(64).take(words).enumerate() {
            bit_planes(|row| widen(&word[row & 63]), width, &mut encoded);
            for plane in 0..planes {
                scratch.planes[plane * words + index] = encoded[(planes - 1 - plane) & 31];
            }
        }
    }
}

struct Run<'a, 'b, E, T> {
    pairs: &'a [Pair<'b, T>],
    words: usize,
    scratch: &'a Scratch<T>,
    edits: PhantomData<E>,
}

impl<E: Edits, T: Symbol> LaneWork for Run<'_, '_, E, T> {
    type Output = [u32; LANES];

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> Self::Output {
        match self.words {
            2 => self.sized::<L, 2>(l),
            3 => self.sized::<L, 3>(l),
            4 => self.sized::<L, 4>(l),
            5 => self.sized::<L, 5>(l),
            6 => self.sized::<L, 6>(l),
            7 => self.sized::<L, 7>(l),
            _ => self.sized::<L, MAX_WORDS>(l),
        }
    }
}

impl<E: Edits, T: Symbol> Run<'_, '_, E, T> {
    #[inline(always)]
    fn sized<L: Lanes, const WORDS: usize>(self, l: L) -> [u32; LANES] {
        let mut columns = [E::Column::<L>::start(l); WORDS];
        let mut distances = [0; LANES];
        let mut done = 0;
        for (lane, (pattern, text)) in self.pairs.iter().enumerate() {
            // Texts are in order of length: a lane is read off when its own text ends and computes on unread after.
            let stretch = &self.scratch.text[done..text.len()];
            advance::<L, E, T, WORDS>(l, &self.scratch.planes, stretch, &mut columns);
            done = text.len();
            let rows = |word: usize| pattern.len().saturating_sub(word * 64);
            let below: i64 = columns
                .iter()
                .enumerate()
                .map(|(word, column)| column.store(l).sum(lane, rows(word)))
                .sum();
            let along = i64::from(E::EDGE) * text.len() as i64;
            let distance = E::distance(pattern.len(), text.len(), along + below);
            distances[lane] = distance as u32;
        }
        distances
    }
}

/// Lays sequences side by side: `out[i][lane]` is symbol `i` of sequence `lane`. What lies behind the end of a sequence
/// is left over from earlier calls and never read off.
#[inline(always)]
fn interleave<'a, T: Symbol>(
    sequences: impl Iterator<Item = &'a [T]> + Clone,
    length: usize,
    out: &mut Vec<[T; LANES]>,
) {
    if out.len() < length {
        out.resize(length, [T::default(); LANES]);
    }
    // Whole blocks of eight symbols from eight sequences are transposed in registers, the rest one by one.
    let shared = sequences.clone().map(<[T]>::len).min().unwrap_or(0);
    let blocks = if sequences.clone().count() == LANES {
        shared / LANES
    } else {
        0
    };
    for (block, target) in out.chunks_exact_mut(LANES).enumerate().take(blocks) {
        let mut square = [[T::default(); LANES]; LANES];
        for (row, sequence) in square.iter_mut().zip(sequences.clone()) {
            row.copy_from_slice(&sequence[block * LANES..][..LANES]);
        }
        target.copy_from_slice(&T::transpose(square));
    }
    for (lane, sequence) in sequences.enumerate() {
        let rest = &sequence[blocks * LANES..];
        for (row, &symbol) in out[blocks * LANES..].iter_mut().zip(rest) {
            row[lane] = symbol;
        }
    }
}

#[inline(always)]
fn widen<T: Symbol>(symbols: &[T; LANES]) -> Vector {
    let mut out = Vector::ZERO;
    for (lane, symbol) in out.0.iter_mut().zip(symbols) {
        *lane = symbol.bits();
    }
    out
}

/// Repeats a block for every word. The compiler would leave longer loops rolled and keep the state in memory.
macro_rules! unroll {
    ($count:expr, |$index:ident| $body:block) => {
        unroll!(@ $count, $index, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $count:expr, $index:ident, $body:block, $($value:literal)*) => {
        $(if $value < $count {
            let $index = $value;
            $body
        })*
    };
}

/// Runs all lanes over a stretch of text.
#[inline(always)]
fn advance<L: Lanes, E: Edits, T: Symbol, const WORDS: usize>(
    l: L,
    planes: &[Vector],
    text: &[[T; LANES]],
    columns: &mut [E::Column<L>; WORDS],
) {
    let count = planes.len() / WORDS;
    let mut state = *columns;
    for &symbols in text {
        // The symbol moves left plane by plane, so that its top bit is the one to compare.
        let mut bits = l.shl(
            if T::BITS == 8 {
                l.widen_bytes(u64::from_le_bytes(
                    symbols.map(|symbol| symbol.bits() as u8),
                ))
            } else {
                l.widen(symbols.map(|symbol| symbol.bits() as u32))
            },
            64 - count,
        );
        let mut differ = [l.load(Vector::ZERO); WORDS];
        for plane in planes.chunks_exact(WORDS) {
            let bit = l.spread(bits);
            bits = l.double(bits);
            unroll!(WORDS, |word| {
                differ[word] = l.or(differ[word], l.xor(l.load(plane[word]), bit));
            });
        }
        let mut above = E::above_first(l);
        unroll!(WORDS, |word| {
            above = state[word].step(l, differ[word], above);
        });
    }
    *columns = state;
}
