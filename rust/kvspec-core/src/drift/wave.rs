//! Bit-parallel distance of one long pair, inside a band.
//!
//! The matrix is cut into strips of 512 rows. In a strip lane `l` holds rows `64 l .. 64 l + 64` and runs `LAG` text
//! columns behind lane `l - 1`, so that the horizontal difference leaving one lane enters the next `LAG` steps later: a
//! wavefront, with all lanes busy however few pairs there are.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::Arch;

use super::edits::Edits;
use super::simd::{LaneWork, Lanes, dispatch};
use super::symbol::Symbol;
use super::vector::{Column, Differences, LANES, Vector, bit_planes};

/// Rows of one strip.
pub(super) const STRIP: usize = 64 * LANES;

/// Columns between neighbouring lanes: enough to hide the way from one lane to the next.
const LAG: usize = 4;

/// One in every byte.
const ONES: u64 = u64::MAX / 255;

/// Columns between the first and the last lane.
const TAIL: usize = LAG * (LANES - 1);

/// A pair in renamed symbols: the pattern (shorter) uses `0..absent`, the text also `absent`.
pub(super) struct Renamed<E> {
    arch: Arch,
    pattern: Vec<u32>,
    /// `staggered[t][l]` is text symbol `t - LAG l`, `absent` where there is none.
    staggered: Vec<[u32; LANES]>,
    cols: usize,
    absent: u32,
    edits: PhantomData<E>,
}

impl<E: Edits> Renamed<E> {
    /// `pattern` is not empty and not longer than `text`.
    pub(super) fn new<T: Symbol>(arch: Arch, pattern: &[T], text: &[T]) -> Self {
        let (pattern, text, absent) = T::rename(pattern, text);
        let cols = text.len();
        let mut padded = vec![absent; cols + 2 * TAIL];
        padded[TAIL..TAIL + cols].copy_from_slice(&text);
        let staggered = padded
            .windows(TAIL + 1)
            .map(|window| std::array::from_fn(|lane| window[TAIL - LAG * lane]))
            .collect();
        Self {
            arch,
            pattern,
            staggered,
            cols,
            absent,
            edits: PhantomData,
        }
    }

    /// The cost of the cheapest path that stays within the band of paths of cost `limit`: the distance where that
    /// is at most `limit`, an upper bound of it otherwise. `limit` is at least the difference of the lengths.
    pub(super) fn within(&self, limit: usize) -> usize {
        self.strips(self.pattern.len(), self.cols, limit)
    }

    /// A guess of the distance from the two beginnings, meant to be a little too high.
    pub(super) fn guess(&self) -> usize {
        let (rows, cols) = (self.pattern.len(), self.cols);
        let sample = STRIP.min(rows);
        let found = self.strips(sample, sample, usize::MAX);
        found * rows / sample * 17 / 16 + 64 + (cols - rows)
    }

    /// `within` for the first `rows` and `cols` of the pair.
    fn strips(&self, rows: usize, cols: usize, limit: usize) -> usize {
        // A path that reaches cell (i, j) costs at least |j - i| + |(cols - j) - (rows - i)|.
        let slack = limit.saturating_sub(cols - rows) / 2;
        let (left, right) = (slack, slack.saturating_add(cols - rows));

        // across[j] is the difference of columns j and j + 1 on the last row of the strip above: 1 for +1, 2 for -1.
        // Right of the band it stays as in row 0, a bound: walking along a row is a path.
        let edge = E::EDGE;
        let mut across = vec![edge; cols];
        // The value at the left end of the strip's first row, and the column of that.
        let (mut corner, mut start) = (0_i64, 0);
        let mut top = 0;
        loop {
            let bottom = (top + STRIP).min(rows);
            let (from, to) = (
                top.saturating_sub(left).min(cols),
                bottom.saturating_add(right).min(cols),
            );
            corner += across[start..from]
                .iter()
                .map(|&code| signed(code))
                .sum::<i64>();
            start = from;
            let along: i64 = across[from..to].iter().map(|&code| signed(code)).sum();
            let column = dispatch(
                self.arch,
                Strip {
                    pattern: &self.pattern[top..bottom],
                    staggered: &self.staggered,
                    absent: self.absent,
                    from,
                    across: &mut across[from..to],
                    edits: PhantomData::<E>,
                },
            );
            if bottom == rows {
                let left_rows = |lane: usize| (bottom - top).saturating_sub(lane * 64);
                let down: i64 = (0..LANES)
                    .map(|lane| column.sum(lane, left_rows(lane)))
                    .sum();
                return E::distance(rows, cols, corner + along + down);
            }
            corner += i64::from(edge) * STRIP as i64;
            top = bottom;
        }
    }
}

/// One strip over the columns `from .. from + across.len()` of the text. `across` enters as the horizontal differences
/// above the strip and leaves as those at its last row. Returns every lane's vertical differences behind the last column.
struct Strip<'a, E> {
    pattern: &'a [u32],
    staggered: &'a [[u32; LANES]],
    absent: u32,
    from: usize,
    across: &'a mut [u8],
    edits: PhantomData<E>,
}

impl<E: Edits> LaneWork for Strip<'_, E> {
    type Output = Differences;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> Differences {
        let needed = planes_for(self.absent);
        let planes = encode(self.pattern, needed.next_power_of_two().max(8));
        // Fewer planes are fewer instructions; eight suffice for nearly all text once the symbols are renamed.
        match needed {
            5 => self.sized::<L, 5>(l, &planes),
            6 => self.sized::<L, 6>(l, &planes),
            7 => self.sized::<L, 7>(l, &planes),
            8 => self.sized::<L, 8>(l, &planes),
            10 => self.sized::<L, 10>(l, &planes),
            12 => self.sized::<L, 12>(l, &planes),
            16 => self.sized::<L, 16>(l, &planes),
            _ => self.sized::<L, 32>(l, &planes),
        }
    }
}

/// Planes to compare symbols `0..=absent` in: one of the sizes that the kernel is compiled for.
fn planes_for(absent: u32) -> usize {
    let bits = (u32::BITS - absent.leading_zeros()) as usize;
    let sizes = [5, 6, 7, 8, 10, 12, 16];
    sizes.into_iter().find(|&size| size >= bits).unwrap_or(32)
}

impl<E: Edits> Strip<'_, E> {
    #[inline(always)]
    fn sized<L: Lanes, const PLANES: usize>(self, l: L, planes: &[Vector; 32]) -> Differences {
        let mut wave = Wave::<L, E::Column<L>, PLANES> {
            l,
            planes: std::array::from_fn(|plane| l.load(planes[PLANES - 1 - plane])),
            column: E::Column::<L>::start(l),
            ring: [0; LAG],
        };
        let cols = self.across.len();
        let steps = &self.staggered[self.from..][..cols + TAIL];
        let absent = self.absent;
        // While the text enters and leaves, some lanes stand outside the strip.
        let full = TAIL.min(cols)..cols;
        wave.advance_edge(steps, absent, self.across, 0..full.start);
        wave.advance(steps, self.across, full.clone());
        wave.advance_edge(steps, absent, self.across, full.end..cols + TAIL);
        wave.column.store(l)
    }
}

struct Wave<L: Lanes, C, const PLANES: usize> {
    l: L,
    /// The highest plane first.
    planes: [L::Word; PLANES],
    column: C,
    /// What left each lane in the last `LAG` steps, as one byte a lane, moved up to the lane that takes it.
    ring: [u64; LAG],
}

impl<L: Lanes, C: Column<L>, const PLANES: usize> Wave<L, C, PLANES> {
    /// One step of all lanes. `entering` is the horizontal difference above the first lane; returns the one below the
    /// last.
    #[inline(always)]
    fn step(&mut self, t: usize, symbols: [u32; LANES], entering: u8) -> u8 {
        let l = self.l;
        let mut bits = l.shl(l.widen(symbols), 64 - PLANES);
        let mut differ = l.load(Vector::ZERO);
        for &plane in &self.planes {
            differ = l.or(differ, l.xor(plane, l.spread(bits)));
            bits = l.double(bits);
        }
        let above = self.ring[t % LAG] | u64::from(entering);
        // Bytes of 1 are +1, bytes of 2 are -1.
        let (plus, minus) = (above & ONES, (above >> 1) & ONES);
        let above = (l.widen_bytes(plus), l.widen_bytes(minus));
        let (plus, minus) = self.column.step(l, differ, above);
        let leaving = l.to_bytes(l.or(plus, l.double(minus)));
        self.ring[t % LAG] = leaving << 8;
        (leaving >> 56) as u8
    }

    /// Runs steps in which every lane is inside the strip; in step `t` lane `l` is at column `t - LAG l`.
    #[inline(always)]
    fn advance(&mut self, steps: &[[u32; LANES]], across: &mut [u8], range: Range<usize>) {
        for t in range {
            across[t - TAIL] = self.step(t, steps[t], across[t]);
        }
    }

    /// Runs steps in which some lanes are outside the strip. Before it they see a symbol that matches nothing and no
    /// difference from above, which leaves the first column as it is; behind it they keep what they have.
    #[inline(always)]
    fn advance_edge(
        &mut self,
        steps: &[[u32; LANES]],
        absent: u32,
        across: &mut [u8],
        range: Range<usize>,
    ) {
        let l = self.l;
        for t in range {
            let inside = |lane: usize| (lane * LAG..across.len() + lane * LAG).contains(&t);
            let symbols =
                std::array::from_fn(|lane| if inside(lane) { steps[t][lane] } else { absent });
            let mask = Vector(std::array::from_fn(
                |lane| if inside(lane) { u64::MAX } else { 0 },
            ));
            let before = self.column;
            let leaving = self.step(t, symbols, across.get(t).copied().unwrap_or(0));
            self.column = C::select(l, l.load(mask), self.column, before);
            if let Some(done) = t.checked_sub(TAIL) {
                across[done] = leaving;
            }
        }
    }
}

fn signed(code: u8) -> i64 {
    i64::from(code & 1) - i64::from(code >> 1)
}

/// Bit planes of up to 512 rows: lane `l` holds rows `64 l .. 64 l + 64`.
#[inline(always)]
fn encode(pattern: &[u32], width: usize) -> [Vector; 32] {
    let mut rows = [Vector::ZERO; 64];
    for (lane, symbols) in pattern.chunks(64).enumerate() {
        for (row, &symbol) in rows.iter_mut().zip(symbols) {
            row.0[lane] = u64::from(symbol);
        }
    }
    let mut planes = [Vector::ZERO; 32];
    bit_planes(|row| rows[row & 63], width, &mut planes);
    planes
}
