//! Collapse into repetition: the `!!!!` a model prints once its cache is broken.

use super::symbol::Symbol;

/// The longest stretch at the end of a sequence that repeats with a short period.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tail {
    /// Symbols in the stretch: the longest suffix `s` with `s[i] == s[i - period]` for every `i >= period`.
    pub length: usize,
    /// The period. The smallest one, if several give the same stretch. 0 for an empty sequence.
    pub period: usize,
}

impl Tail {
    /// Whether the stretch holds its period at least `repeats` times in at least `symbols` symbols.
    #[must_use]
    pub fn is_collapse(self, repeats: usize, symbols: usize) -> bool {
        self.period > 0
            && self.length >= symbols
            && self.length >= repeats.saturating_mul(self.period)
    }
}

/// The periodic tail of a sequence, over periods up to `longest_period`.
///
/// Every sequence has one: any single last symbol is a tail of period 1. A tail of a longer period counts only if it
/// holds its period twice, and only if it is longer.
#[must_use]
pub fn periodic_tail<T: Symbol>(sequence: &[T], longest_period: usize) -> Tail {
    let mut best = Tail::default();
    for period in 1..=longest_period.min(sequence.len()) {
        let lagged = &sequence[..sequence.len() - period];
        let equal = sequence
            .iter()
            .rev()
            .zip(lagged.iter().rev())
            .take_while(|(a, b)| a == b);
        let length = period + equal.count();
        if length > best.length && (period == 1 || length >= 2 * period) {
            best = Tail { length, period };
        }
    }
    best
}
