//! Bit-parallel distances of eight pairs at once, one per lane, whose shorter sequence fits one word. The rows that
//! match a text symbol are found by comparing it with the whole pattern, which takes one to four instructions and no
//! preparation.

use std::marker::PhantomData;

use pulp::Arch;

use super::edits::Edits;
use super::lanes::Pair;
use super::simd::{LaneWork, Lanes, dispatch};
use super::symbol::Symbol;
use super::vector::{Column, LANES, Vector};

/// The longest pattern this kernel takes.
pub(super) const LONGEST: usize = 64;

/// Buffers that live as long as a batch.
#[derive(Default)]
pub(super) struct Scratch {
    /// Lane `l` of entry `j` has a bit for every row of pair `l` that matches its text symbol `j`.
    matches: Vec<Vector>,
}

/// Text symbols taken at a time, so that what is found about them stays in the first-level cache.
const BLOCK: usize = 256;

/// Distances of up to eight pairs with texts in order of length and patterns of at most `LONGEST` symbols.
pub(super) fn distances<E: Edits, T: Symbol>(
    arch: Arch,
    pairs: &[Pair<'_, T>],
    scratch: &mut Scratch,
) -> [u32; LANES] {
    scratch.matches.resize(BLOCK, Vector::ZERO);
    let short = Short {
        pairs,
        matches: &mut scratch.matches,
        edits: PhantomData::<E>,
    };
    dispatch(arch, short)
}

struct Short<'a, 'b, E, T> {
    pairs: &'a [Pair<'b, T>],
    matches: &'a mut [Vector],
    edits: PhantomData<E>,
}

impl<E: Edits, T: Symbol> LaneWork for Short<'_, '_, E, T> {
    type Output = [u32; LANES];

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> Self::Output {
        let Self { pairs, matches, .. } = self;
        let mut column = E::Column::<L>::start(l);
        let above = E::above_first(l);
        let mut distances = [0; LANES];
        let longest = pairs.last().map_or(0, |pair| pair.1.len());
        let mut ended = 0;
        for start in (0..longest).step_by(BLOCK) {
            for (lane, (pattern, text)) in pairs.iter().enumerate().skip(ended) {
                let stretch = &text[start..text.len().min(start + BLOCK)];
                let lane = lane & (LANES - 1);
                match pattern.len().div_ceil(16) {
                    _ if T::BITS == 8 => find_bytes(l, pattern, stretch, lane, matches),
                    1 => find_words::<L, T, 1>(l, pattern, stretch, lane, matches),
                    2 => find_words::<L, T, 2>(l, pattern, stretch, lane, matches),
                    3 => find_words::<L, T, 3>(l, pattern, stretch, lane, matches),
                    _ => find_words::<L, T, 4>(l, pattern, stretch, lane, matches),
                }
            }
            let mut done = 0;
            // A lane is read off when its own text ends and computes on what is left over from earlier texts after.
            while let Some((pattern, text)) = pairs.get(ended) {
                let stop = (text.len() - start).min(BLOCK);
                for &rows in &matches[done..stop] {
                    column.step(l, l.not(l.load(rows)), above);
                }
                done = stop;
                if text.len() - start > BLOCK {
                    break;
                }
                let below = column.store(l).sum(ended & (LANES - 1), pattern.len());
                let along = i64::from(E::EDGE) * text.len() as i64;
                let distance = E::distance(pattern.len(), text.len(), along + below);
                distances[ended & (LANES - 1)] = distance as u32;
                ended += 1;
            }
        }
        distances
    }
}

#[inline(always)]
fn find_bytes<L: Lanes, T: Symbol>(
    l: L,
    pattern: &[T],
    text: &[T],
    lane: usize,
    matches: &mut [Vector],
) {
    let mut block = [0; LONGEST];
    for (slot, symbol) in block.iter_mut().zip(pattern) {
        *slot = symbol.bits() as u8;
    }
    for (row, symbol) in matches.iter_mut().zip(text) {
        row.0[lane] = l.equal_bytes(&block, symbol.bits() as u8);
    }
}

#[inline(always)]
fn find_words<L: Lanes, T: Symbol, const BLOCKS: usize>(
    l: L,
    pattern: &[T],
    text: &[T],
    lane: usize,
    matches: &mut [Vector],
) {
    let mut blocks = [[0; 16]; BLOCKS];
    for (slot, symbol) in blocks.as_flattened_mut().iter_mut().zip(pattern) {
        *slot = symbol.bits() as u32;
    }
    for (row, symbol) in matches.iter_mut().zip(text) {
        let mut found = 0;
        for (at, block) in blocks.iter().enumerate() {
            found |= l.equal_words(block, symbol.bits() as u32) << (16 * at);
        }
        row.0[lane] = found;
    }
}
