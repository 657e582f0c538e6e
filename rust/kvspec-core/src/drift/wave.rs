//! Bit-parallel edit distance of one long pair, inside a band.
//!
//! The matrix is cut into strips of 512 rows. In a strip lane `l` holds rows `64 l .. 64 l + 64` and runs `LAG` text
//! columns behind lane `l - 1`, so that the horizontal difference leaving one lane enters the next `LAG` steps later: a
//! wavefront, with all lanes busy however few pairs there are.

use pulp::{Arch, NullaryFnOnce};

use super::symbol::Symbol;
use super::vector::{Column, LANES, Vector, bit_planes};

/// Rows of one strip.
pub(super) const STRIP: usize = 64 * LANES;

/// Columns between neighbouring lanes: enough to hide the way from one lane to the next.
const LAG: usize = 4;

/// Columns between the first and the last lane.
const TAIL: usize = LAG * (LANES - 1);

/// A pair in renamed symbols: the pattern (shorter) uses `0..absent`, the text also `absent`.
pub(super) struct Renamed {
    arch: Arch,
    pattern: Vec<u32>,
    /// `staggered[t][l]` is text symbol `t - LAG l`, `absent` where there is none.
    staggered: Vec<[u32; LANES]>,
    cols: usize,
    absent: u32,
}

impl Renamed {
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
        }
    }

    /// The cost of the cheapest edit that stays within the band of paths of cost `limit`: the edit distance where it
    /// is at most `limit`, an upper bound of it otherwise. `limit` is at least the difference of the lengths.
    pub(super) fn within(&self, limit: usize) -> usize {
        self.strips(self.pattern.len(), self.cols, limit)
    }

    /// A guess of the edit distance from the two beginnings, meant to be a little too high.
    pub(super) fn guess(&self) -> usize {
        let (rows, cols) = (self.pattern.len(), self.cols);
        let sample = STRIP.min(rows);
        let found = self.strips(sample, sample, sample);
        found * rows / sample * 17 / 16 + 64 + (cols - rows)
    }

    /// `within` for the first `rows` and `cols` of the pair.
    fn strips(&self, rows: usize, cols: usize, limit: usize) -> usize {
        // A path that reaches cell (i, j) costs at least |j - i| + |(cols - j) - (rows - i)|.
        let slack = limit.saturating_sub(cols - rows) / 2;
        let (left, right) = (slack, slack.saturating_add(cols - rows));

        // across[j] is D[r][j + 1] - D[r][j] on the last row of the strip above: 1 for +1, 2 for -1. Row 0 is D[0][j] = j.
        let mut across = vec![1_u8; cols];
        // D at the left end of the strip's first row, and how far the strip above reached.
        let (mut corner, mut start, mut end) = (0_i64, 0, cols);
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
            // Right of the band above no value is known; walking along its last row is a path, so +1 is an upper bound.
            if end < to {
                across[end..to].fill(1);
            }
            (start, end) = (from, to);
            let along: i64 = across[from..to].iter().map(|&code| signed(code)).sum();
            let column = self.arch.dispatch(Strip {
                pattern: &self.pattern[top..bottom],
                staggered: &self.staggered,
                absent: self.absent,
                from,
                across: &mut across[from..to],
            });
            if bottom == rows {
                let left_rows = |lane: usize| (bottom - top).saturating_sub(lane * 64);
                let down: i64 = (0..LANES)
                    .map(|lane| column.sum(lane, left_rows(lane)))
                    .sum();
                return (corner + along + down) as usize;
            }
            corner += STRIP as i64;
            top = bottom;
        }
    }
}

/// One strip over the columns `from .. from + across.len()` of the text. `across` enters as the horizontal differences
/// above the strip and leaves as those at its last row. Returns every lane's vertical differences behind the last column.
struct Strip<'a> {
    pattern: &'a [u32],
    staggered: &'a [[u32; LANES]],
    absent: u32,
    from: usize,
    across: &'a mut [u8],
}

impl NullaryFnOnce for Strip<'_> {
    type Output = Column;

    #[inline(always)]
    fn call(self) -> Column {
        let needed = (u32::BITS - self.absent.leading_zeros()) as usize;
        let planes = encode(self.pattern, needed.next_power_of_two().max(8));
        // Fewer planes are fewer instructions; eight suffice for nearly all text once the symbols are renamed.
        match needed {
            0..=5 => self.run::<5>(&planes),
            6 => self.run::<6>(&planes),
            7 => self.run::<7>(&planes),
            8 => self.run::<8>(&planes),
            9 | 10 => self.run::<10>(&planes),
            11 | 12 => self.run::<12>(&planes),
            13..=16 => self.run::<16>(&planes),
            _ => self.run::<32>(&planes),
        }
    }
}

impl Strip<'_> {
    #[inline(always)]
    fn run<const PLANES: usize>(self, planes: &[Vector; 32]) -> Column {
        let mut wave = Wave::<PLANES> {
            planes: std::array::from_fn(|plane| planes[plane]),
            absent: Vector::splat(u64::from(self.absent)),
            column: Column::START,
            ring: [0; LAG],
        };
        let cols = self.across.len();
        let steps = &self.staggered[self.from..][..cols + TAIL];
        // While the text enters and leaves, some lanes stand outside the strip.
        let full = TAIL.min(cols)..cols;
        wave.advance::<true>(steps, self.across, 0..full.start);
        wave.advance::<false>(steps, self.across, full.clone());
        wave.advance::<true>(steps, self.across, full.end..cols + TAIL);
        wave.column
    }
}

struct Wave<const PLANES: usize> {
    planes: [Vector; PLANES],
    absent: Vector,
    column: Column,
    /// What left each lane in the last `LAG` steps, as one byte a lane, moved up to the lane that takes it.
    ring: [u64; LAG],
}

impl<const PLANES: usize> Wave<PLANES> {
    /// Runs some steps; in step `t` lane `l` is at column `t - LAG l`. `EDGE` steps have lanes outside the strip: before
    /// it they see a symbol that matches nothing and no difference from above, which leaves the first column as it is;
    /// behind it they keep what they have.
    #[inline(always)]
    fn advance<const EDGE: bool>(
        &mut self,
        steps: &[[u32; LANES]],
        across: &mut [u8],
        range: std::ops::Range<usize>,
    ) {
        let Self {
            planes,
            absent,
            mut column,
            mut ring,
        } = *self;
        for t in range {
            let mut symbols = Vector::widen(steps[t]);
            let inside = |lane: usize| (lane * LAG..across.len() + lane * LAG).contains(&t);
            let mask = Vector(std::array::from_fn(
                |lane| if inside(lane) { u64::MAX } else { 0 },
            ));
            if EDGE {
                symbols = symbols.select(absent, mask);
            }
            let mut differ = Vector::ZERO;
            for (plane, &bits) in planes.iter().enumerate() {
                differ = differ | (bits ^ symbols.shl(63 - plane as u32).spread());
            }
            let entering = if EDGE {
                across.get(t).copied().unwrap_or(0)
            } else {
                across[t]
            };
            let above = Vector::from_bytes(ring[t % LAG] | u64::from(entering));
            let before = column;
            let (plus, minus) = column.step(!differ, (above & Vector::splat(1), above.shr(1)));
            if EDGE {
                column.plus = column.plus.select(before.plus, mask);
                column.minus = column.minus.select(before.minus, mask);
            }
            let leaving = (plus | minus.shl(1)).to_bytes();
            ring[t % LAG] = leaving << 8;
            if let Some(done) = t.checked_sub(TAIL) {
                across[done] = (leaving >> 56) as u8;
            }
        }
        (self.column, self.ring) = (column, ring);
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
