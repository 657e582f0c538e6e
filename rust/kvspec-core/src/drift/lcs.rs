//! Longest common subsequence, and the edit distance without substitutions that follows from it.

use super::levenshtein::trim;
use super::prefix::common_prefix;
use super::symbol::Symbol;

/// Rows that share one table of matches. It bounds the table to two megabytes, however many symbols there are.
const STRIP: usize = 64 * 64;

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

/// Hyyrö (2004): a zero bit marks a row where the length grows by one. The column is one long number, added up word by
/// word; between strips the carry of every text symbol is kept.
fn bit_parallel<T: Symbol>(pattern: &[T], text: &[T]) -> usize {
    let (pattern, text, absent) = T::rename(pattern, text);
    let mut carries = vec![false; text.len()];
    let mut length = 0;
    for strip in pattern.chunks(STRIP) {
        let matches = Matches::new(strip, absent);
        let mut state = vec![u64::MAX; matches.words];
        for (&symbol, carry) in text.iter().zip(&mut carries) {
            let row = matches.row(symbol);
            if row.is_none() && !*carry {
                continue;
            }
            for (at, word) in state.iter_mut().enumerate() {
                let equal = row.map_or(0, |row| row[at]);
                let (sum, first) = word.overflowing_add(*word & equal);
                let (sum, second) = sum.overflowing_add(u64::from(*carry));
                *carry = first | second;
                *word = sum | (*word & !equal);
            }
        }
        // Rows past the pattern never match and keep their one.
        length += state
            .iter()
            .map(|word| word.count_zeros() as usize)
            .sum::<usize>();
    }
    length
}

/// Where each symbol stands in a strip of the pattern.
struct Matches {
    words: usize,
    /// Row of the table for each symbol, `u32::MAX` for a symbol that the strip lacks.
    rows: Vec<u32>,
    table: Vec<u64>,
}

impl Matches {
    fn new(strip: &[u32], absent: u32) -> Self {
        let words = strip.len().div_ceil(64);
        let mut rows = vec![u32::MAX; absent as usize + 1];
        let mut table = Vec::new();
        for (at, &symbol) in strip.iter().enumerate() {
            let row = &mut rows[symbol as usize];
            if *row == u32::MAX {
                *row = (table.len() / words) as u32;
                table.resize(table.len() + words, 0);
            }
            table[*row as usize * words + at / 64] |= 1 << (at % 64);
        }
        Self { words, rows, table }
    }

    fn row(&self, symbol: u32) -> Option<&[u64]> {
        let row = self.rows[symbol as usize];
        (row != u32::MAX).then(|| &self.table[row as usize * self.words..][..self.words])
    }
}
