//! Metrics that compare position by position.

use super::symbol::Symbol;

/// Symbols compared at once while all is equal. 32 of them are one to four vector registers.
const BLOCK: usize = 32;

/// Symbols in which the first difference is then looked for.
const CHUNK: usize = 8;

/// Length of the longest common prefix: the largest `p` with `a[..p] == b[..p]`.
#[must_use]
#[inline(always)]
pub fn common_prefix<T: Symbol>(a: &[T], b: &[T]) -> usize {
    let shared = a.len().min(b.len());
    let (a, b) = (&a[..shared], &b[..shared]);
    let mut at = 0;
    for (x, y) in a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK)) {
        if x != y {
            break;
        }
        at += BLOCK;
    }
    while let (Some(x), Some(y)) = (
        a[at..].first_chunk::<CHUNK>(),
        b[at..].first_chunk::<CHUNK>(),
    ) {
        let equal = T::equal_first(x, y);
        at += equal;
        if equal < CHUNK {
            return at;
        }
    }
    // The last chunk overlaps what is known to be equal.
    if let (Some(x), Some(y)) = (a.last_chunk::<CHUNK>(), b.last_chunk::<CHUNK>()) {
        return shared - CHUNK + T::equal_first(x, y);
    }
    at + a[at..]
        .iter()
        .zip(&b[at..])
        .take_while(|(x, y)| x == y)
        .count()
}

/// Length of the longest common suffix: the largest `s` with the last `s` symbols equal.
#[must_use]
#[inline(always)]
pub fn common_suffix<T: Symbol>(a: &[T], b: &[T]) -> usize {
    let shared = a.len().min(b.len());
    let (a, b) = (&a[a.len() - shared..], &b[b.len() - shared..]);
    let mut left = shared;
    for (x, y) in a.rchunks_exact(BLOCK).zip(b.rchunks_exact(BLOCK)) {
        if x != y {
            break;
        }
        left -= BLOCK;
    }
    while let (Some(x), Some(y)) = (
        a[..left].last_chunk::<CHUNK>(),
        b[..left].last_chunk::<CHUNK>(),
    ) {
        let equal = T::equal_last(x, y);
        left -= equal;
        if equal < CHUNK {
            return shared - left;
        }
    }
    // The first chunk overlaps what is known to be equal.
    if let (Some(x), Some(y)) = (a.first_chunk::<CHUNK>(), b.first_chunk::<CHUNK>()) {
        return shared - CHUNK + T::equal_last(x, y);
    }
    let rest = a[..left].iter().rev().zip(b[..left].iter().rev());
    shared - left + rest.take_while(|(x, y)| x == y).count()
}

/// Differing positions over the common length: `#{i < min(|a|, |b|) : a[i] != b[i]}`. For sequences of one length this
/// is the Hamming distance.
#[must_use]
#[inline(always)]
pub fn mismatches<T: Symbol>(a: &[T], b: &[T]) -> usize {
    let shared = a.len().min(b.len());
    let (a, b) = (&a[..shared], &b[..shared]);
    // A counter as wide as a symbol keeps a vector register full; 192 symbols cannot overflow a byte.
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
