//! Eight 64-bit lanes as a plain array. Inside `pulp`'s dispatch the compiler turns each operation into one AVX-512
//! or two AVX2 instructions; no `unsafe` is needed, and the portable build computes the same bits.

use std::ops::{Add, BitAnd, BitOr, BitXor};

use super::simd::Lanes;

/// Lanes of one vector.
pub(super) const LANES: usize = 8;

/// Eight 64-bit lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(align(64))]
pub(super) struct Vector(pub(super) [u64; LANES]);

impl Vector {
    pub(super) const ZERO: Self = Self([0; LANES]);
    pub(super) const ONES: Self = Self([u64::MAX; LANES]);

    #[inline(always)]
    pub(super) fn splat(value: u64) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn zip(self, other: Self, op: impl Fn(u64, u64) -> u64) -> Self {
        let mut out = self.0;
        for (lane, &right) in out.iter_mut().zip(&other.0) {
            *lane = op(*lane, right);
        }
        Self(out)
    }

    #[inline(always)]
    fn map(self, op: impl Fn(u64) -> u64) -> Self {
        let mut out = self.0;
        for lane in &mut out {
            *lane = op(*lane);
        }
        Self(out)
    }

    #[inline(always)]
    pub(super) fn shl(self, by: u32) -> Self {
        self.map(|lane| lane << by)
    }

    #[inline(always)]
    pub(super) fn shr(self, by: u32) -> Self {
        self.map(|lane| lane >> by)
    }
}

macro_rules! lane_op {
    ($trait:ident, $method:ident, $op:expr) => {
        impl $trait for Vector {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                self.zip(other, $op)
            }
        }
    };
}

lane_op!(BitAnd, bitand, |a, b| a & b);
lane_op!(BitOr, bitor, |a, b| a | b);
lane_op!(BitXor, bitxor, |a, b| a ^ b);
lane_op!(Add, add, u64::wrapping_add);

/// A column of the matrix of some distance, 64 rows in every lane, as differences between neighbouring rows.
///
/// What passes from row to row is a pair of words: one bit for a difference of +1 between neighbouring columns, and one for
/// -1.
pub(super) trait Column<L: Lanes>: Copy {
    /// The first column.
    fn start(l: L) -> Self;

    /// Moves one text symbol on. `differ` marks the rows whose pattern symbol differs from the text symbol; `above` is the
    /// difference above the first row. Returns the one at the last row.
    fn step(&mut self, l: L, differ: L::Word, above: (L::Word, L::Word)) -> (L::Word, L::Word);

    /// `new` in the lanes of `mask`, `old` in the others.
    fn select(l: L, mask: L::Word, new: Self, old: Self) -> Self;

    /// The differences as plain lanes.
    fn store(&self, l: L) -> Differences;
}

#[inline(always)]
fn choose<L: Lanes>(l: L, mask: L::Word, new: L::Word, old: L::Word) -> L::Word {
    l.or(l.and(new, mask), l.and(old, l.not(mask)))
}

/// Insertions, deletions and substitutions, after Hyyrö (2003). The values are distances `D[i][j]`; `D[i][j] -
/// D[i - 1][j]` is +1 where a `plus` bit is set, -1 where a `minus` bit is set.
#[derive(Clone, Copy)]
pub(super) struct LevenshteinColumn<L: Lanes> {
    plus: L::Word,
    minus: L::Word,
}

impl<L: Lanes> Column<L> for LevenshteinColumn<L> {
    #[inline(always)]
    fn start(l: L) -> Self {
        Self {
            plus: l.load(Vector::ONES),
            minus: l.load(Vector::ZERO),
        }
    }

    #[inline(always)]
    fn step(&mut self, l: L, differ: L::Word, above: (L::Word, L::Word)) -> (L::Word, L::Word) {
        let (plus, minus) = (self.plus, self.minus);
        let matched = l.or(l.not(differ), above.1);
        let carried = l.xor(l.add(l.and(matched, plus), plus), plus);
        let diagonal = l.or(l.or(carried, matched), minus);
        let right_plus = l.or(minus, l.not(l.or(diagonal, plus)));
        let right_minus = l.and(diagonal, plus);
        let shifted_plus = l.or(l.double(right_plus), above.0);
        let shifted_minus = l.or(l.double(right_minus), above.1);
        self.plus = l.or(shifted_minus, l.not(l.or(diagonal, shifted_plus)));
        self.minus = l.and(shifted_plus, diagonal);
        (l.top(right_plus), l.top(right_minus))
    }

    #[inline(always)]
    fn select(l: L, mask: L::Word, new: Self, old: Self) -> Self {
        Self {
            plus: choose(l, mask, new.plus, old.plus),
            minus: choose(l, mask, new.minus, old.minus),
        }
    }

    #[inline(always)]
    fn store(&self, l: L) -> Differences {
        Differences {
            plus: l.store(self.plus),
            minus: l.store(self.minus),
        }
    }
}

/// Insertions and deletions, after Hyyrö (2004). The values are lengths of longest common subsequences, which grow by
/// one where a bit is zero.
#[derive(Clone, Copy)]
pub(super) struct IndelColumn<L: Lanes> {
    level: L::Word,
}

impl<L: Lanes> Column<L> for IndelColumn<L> {
    #[inline(always)]
    fn start(l: L) -> Self {
        let level = l.load(Vector::ONES);
        Self { level }
    }

    #[inline(always)]
    fn step(&mut self, l: L, differ: L::Word, above: (L::Word, L::Word)) -> (L::Word, L::Word) {
        let level = self.level;
        let equal = l.and(level, l.not(differ));
        let sum = l.add(l.add(level, equal), above.0);
        self.level = l.or(sum, l.and(level, differ));
        // The sum ran over where both had the top bit, or where it has lost the one that was there.
        let over = l.or(equal, l.and(level, l.not(sum)));
        (l.top(over), l.load(Vector::ZERO))
    }

    #[inline(always)]
    fn select(l: L, mask: L::Word, new: Self, old: Self) -> Self {
        let level = choose(l, mask, new.level, old.level);
        Self { level }
    }

    #[inline(always)]
    fn store(&self, l: L) -> Differences {
        Differences {
            plus: l.store(l.not(self.level)),
            minus: Vector::ZERO,
        }
    }
}

/// The vertical differences of a `Column`, read off.
pub(super) struct Differences {
    plus: Vector,
    minus: Vector,
}

impl Differences {
    /// `D[first + rows][j] - D[first][j]` in one lane.
    #[inline(always)]
    pub(super) fn sum(&self, lane: usize, rows: usize) -> i64 {
        let mask = if rows >= 64 {
            u64::MAX
        } else {
            (1 << rows) - 1
        };
        let count = |word: u64| i64::from((word & mask).count_ones());
        count(self.plus.0[lane]) - count(self.minus.0[lane])
    }
}

/// Turns 64 rows of symbols into bit planes: bit `i` of plane `p` is bit `p` of row `i`. `width` is 8, 16 or 32 bits; the
/// planes are the first `width` entries of `words`.
///
/// The rows are first folded into `width` words, so that word `i` holds rows `i`, `i + width`, and so on; each fold is
/// then a `width` x `width` bit matrix, transposed in place by swapping ever smaller blocks.
///
/// Vectors are addressed by masked indices on purpose: with plain strides the compiler vectorises across vectors, with
/// gathers and scatters, which is ten times slower.
#[inline(always)]
pub(super) fn bit_planes(row: impl Fn(usize) -> Vector, width: usize, words: &mut [Vector; 32]) {
    let low = width - 1;
    for (i, word) in words.iter_mut().enumerate().take(width) {
        *word = row(i);
    }
    for i in width..64 {
        let word = &mut words[i & low & 31];
        *word = *word | row(i).shl((i & !low) as u32);
    }
    let mut half = width / 2;
    while half > 0 {
        // Ones in the low `half` bits of every 2 * `half` bits.
        let mask = Vector::splat(u64::MAX / ((1_u64 << half) + 1));
        for k in 0..width / 2 {
            let upper = ((2 * (k & !(half - 1))) | (k & (half - 1))) & 31;
            let lower = (upper + half) & 31;
            let (a, b) = (words[upper], words[lower]);
            let swap = (a.shr(half as u32) ^ b) & mask;
            words[upper] = a ^ swap.shl(half as u32);
            words[lower] = b ^ swap;
        }
        half /= 2;
    }
}
