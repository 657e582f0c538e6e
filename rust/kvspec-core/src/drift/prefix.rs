//! Metrics that compare position by position.

use super::symbol::Symbol;

/// Symbols compared at once. 32 of them are one to four vector registers.
const BLOCK: usize = 32;

/// Length of the longest common prefix: the largest `p` with `a[..p] == b[..p]`.
#[must_use]
#[inline(always)]
pub fn common_prefix<T: Symbol>(a: &[T], b: &[T]) -> usize {
    let (a_blocks, b_blocks) = (a.chunks_exact(BLOCK), b.chunks_exact(BLOCK));
    let mut equal = 0;
    for (x, y) in a_blocks.zip(b_blocks) {
        if x != y {
            break;
        }
        equal += BLOCK;
    }
    equal
        + a[equal..]
            .iter()
            .zip(&b[equal..])
            .take_while(|(x, y)| x == y)
            .count()
}

/// Length of the longest common suffix: the largest `s` with the last `s` symbols equal.
#[must_use]
#[inline(always)]
pub fn common_suffix<T: Symbol>(a: &[T], b: &[T]) -> usize {
    let (a_blocks, b_blocks) = (a.rchunks_exact(BLOCK), b.rchunks_exact(BLOCK));
    let mut equal = 0;
    for (x, y) in a_blocks.zip(b_blocks) {
        if x != y {
            break;
        }
        equal += BLOCK;
    }
    let (a_rest, b_rest) = (&a[..a.len() - equal], &b[..b.len() - equal]);
    equal
        + a_rest
            .iter()
            .rev()
            .zip(b_rest.iter().rev())
            .take_while(|(x, y)| x == y)
            .count()
}

/// Differing positions over the common length: `#{i < min(|a|, |b|) : a[i] != b[i]}`. For sequences of one length this
/// is the Hamming distance.
#[must_use]
#[inline(always)]
pub fn mismatches<T: Symbol>(a: &[T], b: &[T]) -> usize {
    // A counter as wide as a symbol keeps a vector register full; 192 blocks cannot overflow a byte.
    let shared = a.len().min(b.len());
    let (a, b) = (&a[..shared], &b[..shared]);
    if T::BITS == 8 {
        let mut total = 0;
        for (x, y) in a.chunks(192).zip(b.chunks(192)) {
            let mut count = 0_u8;
            for (p, q) in x.iter().zip(y) {
                count += u8::from(p != q);
            }
            total += usize::from(count);
        }
        return total;
    }
    let mut count = 0_u32;
    for (p, q) in a.iter().zip(b) {
        count += u32::from(p != q);
    }
    count as usize
}

/// The guide's drift rule: differing positions over the common length, plus the difference of the lengths.
#[must_use]
#[inline(always)]
pub fn positional<T: Symbol>(a: &[T], b: &[T]) -> usize {
    mismatches(a, b) + a.len().abs_diff(b.len())
}

/// The first differing position; the shorter length if one is a prefix of the other; `None` if they are identical.
#[must_use]
#[inline(always)]
pub fn first_divergence<T: Symbol>(a: &[T], b: &[T]) -> Option<usize> {
    let prefix = common_prefix(a, b);
    (prefix < a.len() || prefix < b.len()).then_some(prefix)
}
