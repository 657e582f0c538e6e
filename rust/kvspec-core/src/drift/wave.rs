//! Bit-parallel edit distance of one long pair, inside a band.
//!
//! The matrix is cut into strips of 512 rows. In a strip lane `l` holds rows `64 l .. 64 l + 64` and runs one text
//! column behind lane `l - 1`, so that the horizontal difference leaving one lane enters the next a step later: a
//! wavefront, with all lanes busy however few pairs there are.

use pulp::{Arch, NullaryFnOnce};

use super::symbol::Symbol;
use super::vector::{Column, LANES, Vector, bit_planes};

/// Rows of one strip.
pub(super) const STRIP: usize = 64 * LANES;

/// A pair in renamed symbols: the pattern (shorter) uses `0..absent`, the text also `absent`.
pub(super) struct Renamed {
    arch: Arch,
    pattern: Vec<u32>,
    text: Vec<u32>,
    absent: u32,
}

impl Renamed {
    /// `pattern` is not empty and not longer than `text`.
    pub(super) fn new<T: Symbol>(arch: Arch, pattern: &[T], text: &[T]) -> Self {
        let (pattern, text, absent) = T::rename(pattern, text);
        Self {
            arch,
            pattern,
            text,
            absent,
        }
    }

    /// The cost of the cheapest edit that stays within the band of paths of cost `limit`: the edit distance where it
    /// is at most `limit`, an upper bound of it otherwise. `limit` is at least the difference of the lengths.
    pub(super) fn within(&self, limit: usize) -> usize {
        self.strips(&self.pattern, &self.text, limit)
    }

    /// A guess of the edit distance from the two beginnings, meant to be a little too high.
    pub(super) fn guess(&self) -> usize {
        let (rows, cols) = (self.pattern.len(), self.text.len());
        let sample = STRIP.min(rows);
        let found = self.strips(&self.pattern[..sample], &self.text[..sample], sample);
        found * rows / sample * 17 / 16 + 64 + (cols - rows)
    }

    fn strips(&self, pattern: &[u32], text: &[u32], limit: usize) -> usize {
        let (rows, cols) = (pattern.len(), text.len());
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
                pattern: &pattern[top..bottom],
                text: &text[from..to],
                absent: self.absent,
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

/// One strip over its stretch of text. `across` enters as the horizontal differences above the strip and leaves as those
/// at its last row. Returns every lane's vertical differences behind the last column.
struct Strip<'a> {
    pattern: &'a [u32],
    text: &'a [u32],
    absent: u32,
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
            0..=5 => wavefront::<5>(&planes, self),
            6 => wavefront::<6>(&planes, self),
            7 => wavefront::<7>(&planes, self),
            8 => wavefront::<8>(&planes, self),
            9 | 10 => wavefront::<10>(&planes, self),
            11 | 12 => wavefront::<12>(&planes, self),
            13..=16 => wavefront::<16>(&planes, self),
            _ => wavefront::<32>(&planes, self),
        }
    }
}

#[inline(always)]
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
    bit_planes(&rows, width)
}

#[inline(always)]
fn wavefront<const PLANES: usize>(planes: &[Vector; 32], strip: Strip<'_>) -> Column {
    let Strip {
        text,
        across,
        absent,
        ..
    } = strip;
    let planes: [Vector; PLANES] = std::array::from_fn(|plane| planes[plane]);
    let absent = u64::from(absent);
    let cols = text.len();
    let mut column = Column::START;
    // A lane that the text has not reached yet sees a symbol that matches nothing and no difference from above, which
    // leaves the first column as it is.
    let mut symbols = Vector::splat(absent);
    let mut carry = Vector::ZERO;
    let equal = |symbols: Vector| {
        let mut differ = Vector::ZERO;
        for (plane, &bits) in planes.iter().enumerate() {
            differ = differ | (bits ^ symbols.spread(plane as u32));
        }
        !differ
    };
    for step in 0..cols {
        symbols = symbols.push(u64::from(text[step]));
        let above = carry.push(u64::from(across[step]));
        let (plus, minus) = column.step(equal(symbols), (above & Vector::splat(1), above.shr(1)));
        carry = plus | minus.shl(1);
        if let Some(done) = step.checked_sub(LANES - 1) {
            across[done] = carry.0[LANES - 1] as u8;
        }
    }
    // The text has left the upper lanes; they keep their last column while it leaves the lower ones.
    for late in 0..LANES - 1 {
        symbols = symbols.push(absent);
        let above = carry.push(0);
        let frozen = column;
        let (plus, minus) = column.step(equal(symbols), (above & Vector::splat(1), above.shr(1)));
        let mut active = Vector::ZERO;
        for lane in &mut active.0[late + 1..] {
            *lane = u64::MAX;
        }
        column.plus = column.plus.select(frozen.plus, active);
        column.minus = column.minus.select(frozen.minus, active);
        carry = plus | minus.shl(1);
        if let Some(done) = (cols + late).checked_sub(LANES - 1) {
            across[done] = carry.0[LANES - 1] as u8;
        }
    }
    column
}
