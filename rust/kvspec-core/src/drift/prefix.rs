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
    if T::BITS == 8 {
        return differing_bytes(a, b);
    }
    let count: u32 = a.iter().zip(b).map(|(x, y)| u32::from(x != y)).sum();
    count as usize
}

/// Differing positions of two sequences of bytes of one length.
#[inline(always)]
fn differing_bytes<T: Symbol>(a: &[T], b: &[T]) -> usize {
    /// Bytes of a vector register. A byte can count three of them.
    const WIDTH: usize = 64;
    let (whole, rest) = (a.len() - a.len() % WIDTH, a.len() % WIDTH);
    let mut total = 0;
    for (a, b) in a[..whole]
        .chunks(3 * WIDTH)
        .zip(b[..whole].chunks(3 * WIDTH))
    {
        let count: u8 = a.iter().zip(b).map(|(x, y)| u8::from(x != y)).sum();
        total += usize::from(count);
    }
    match (a.last_chunk::<WIDTH>(), b.last_chunk::<WIDTH>()) {
        (Some(x), Some(y)) => {
            // The last register overlaps what is counted already.
            let differs = |i: usize| u8::from(i >= WIDTH - rest && x[i] != y[i]);
            total + usize::from((0..WIDTH).map(differs).sum::<u8>())
        }
        _ => a.iter().zip(b).filter(|(x, y)| x != y).count(),
    }
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
