//! Regular expressions from strangers: matched in linear time, compiled within a size limit.

use regex::{Regex, RegexBuilder};

use crate::error::Error;

/// Bytes of a compiled pattern.
const SIZE_LIMIT: usize = 1 << 20;
/// Levels of nesting.
const NEST_LIMIT: u32 = 50;

/// A regular expression of the `regex` crate: no backreference, no look-around, no backtracking.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// [`Error::Pattern`] with the reason.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        let mut builder = RegexBuilder::new(pattern);
        builder
            .size_limit(SIZE_LIMIT)
            .dfa_size_limit(SIZE_LIMIT)
            .nest_limit(NEST_LIMIT);
        builder.build().map(Self).map_err(|error| Error::Pattern {
            reason: error.to_string(),
        })
    }

    /// Whether the pattern occurs in a text.
    #[must_use]
    pub fn occurs_in(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}
