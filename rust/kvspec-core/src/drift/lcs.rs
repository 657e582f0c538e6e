//! Longest common subsequence, and the edit distance without substitutions that follows from it.

use super::levenshtein::trim;
use super::prefix::common_prefix;
use super::symbol::Symbol;

/// Length of the longest common subsequence.
#[must_use]
pub fn lcs_length<T: Symbol>(a: &[T], b: &[T]) -> usize {
    let (short, long) = trim(a, b, common_prefix(a, b));
    let common = a.len().min(b.len()) - short.len();
    if short.is_empty() {
        common
    } else {
        common + bit_parallel(short, long)
    }
}

/// The least number of insertions and deletions that turn `a` into `b`: `|a| + |b| - 2 lcs(a, b)`.
#[must_use]
pub fn indel_distance<T: Symbol>(a: &[T], b: &[T]) -> u32 {
    (a.len() + b.len() - 2 * lcs_length(a, b)) as u32
}

/// Hyyrö (2004): a zero bit marks a row where the length grows by one.
fn bit_parallel<T: Symbol>(pattern: &[T], text: &[T]) -> usize {
    let (pattern, text, absent) = T::rename(pattern, text);
    let words = pattern.len().div_ceil(64);
    let mut equal = vec![0_u64; absent as usize * words];
    for (row, &symbol) in pattern.iter().enumerate() {
        equal[symbol as usize * words + row / 64] |= 1 << (row % 64);
    }
    let mut state = vec![u64::MAX; words];
    for symbol in text.into_iter().filter(|&symbol| symbol != absent) {
        let mut carry = false;
        for (word, &matches) in state.iter_mut().zip(&equal[symbol as usize * words..]) {
            let both = *word & matches;
            let (sum, first) = word.overflowing_add(both);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            carry = first | second;
            *word = sum | (*word & !matches);
        }
    }
    // Rows past the pattern never match and keep their one.
    state.iter().map(|word| word.count_zeros() as usize).sum()
}
