//! Selectors: what of a sample is shown.
//!
//! A selector never enters a counter, a table or a level. It hides flips, so narrowing it leaves all others
//! where they are.

use std::ops::Range;

use crate::error::Error;
use crate::fault::Geometry;

/// A set of indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indices(Vec<Range<u64>>);

impl Indices {
    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        let everything = 0..u64::MAX;
        Self(vec![everything])
    }

    /// The union of half-open ranges, in any order.
    ///
    /// # Errors
    /// [`Error::Range`] for a range that runs backwards or beyond `limit`; `name` says whose it is.
    pub fn new(name: &'static str, mut ranges: Vec<Range<u64>>, limit: u64) -> Result<Self, Error> {
        for range in &ranges {
            check_range(name, range, limit)?;
        }
        ranges.retain(|range| !range.is_empty());
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Ok(Self(merged))
    }

    /// Whether `index` is in the set.
    #[must_use]
    pub fn contains(&self, index: u64) -> bool {
        let after = self.0.partition_point(|range| range.start <= index);
        after > 0 && index < self.0[after - 1].end
    }

    /// The parts of the set inside `window`, ascending and not empty.
    pub(crate) fn within(&self, window: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let from = self.0.partition_point(|range| range.end <= window.start);
        self.0[from..]
            .iter()
            .map(move |range| range.start.max(window.start)..range.end.min(window.end))
            .take_while(|range| !range.is_empty())
    }
}

/// Fails unless `range` runs forwards and ends at `limit` at the latest.
pub(crate) fn check_range(name: &'static str, range: &Range<u64>, limit: u64) -> Result<(), Error> {
    let &Range { start, end } = range;
    if start > end || end > limit {
        return Err(Error::Range {
            name,
            start,
            end,
            limit,
        });
    }
    Ok(())
}

/// Part of a request's life by which its tokens were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// All tokens.
    All,
    /// Tokens of the prompt, below `prompt_len`.
    Prompt,
    /// Generated tokens, from `prompt_len` on.
    Decode,
}

impl Phase {
    /// The phase of that name.
    ///
    /// # Errors
    /// [`Error::Word`] for any other name.
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "all" => Ok(Self::All),
            "prompt" => Ok(Self::Prompt),
            "decode" => Ok(Self::Decode),
            _ => Err(Error::Word {
                name: "phase",
                value: name.to_owned(),
                allowed: &["all", "prompt", "decode"],
            }),
        }
    }
}

/// Which flips of a sample are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// Layers shown.
    pub layers: Indices,
    /// KV heads shown.
    pub heads: Indices,
    /// Whether K and V are shown.
    pub planes: [bool; 2],
    /// Phase shown.
    pub phase: Phase,
    /// Token positions shown.
    pub tokens: Indices,
    /// Read events shown: 0 is the prefill, i the i-th decode forward. Writes are not events.
    pub steps: Indices,
}

impl Default for Selector {
    fn default() -> Self {
        Self {
            layers: Indices::all(),
            heads: Indices::all(),
            planes: [true; 2],
            phase: Phase::All,
            tokens: Indices::all(),
            steps: Indices::all(),
        }
    }
}

impl Selector {
    /// The shown layers inside `layers`.
    pub(crate) fn layer_spans(&self, layers: Range<u32>) -> impl Iterator<Item = Range<u32>> {
        self.layers
            .within(u64::from(layers.start)..u64::from(layers.end))
            .map(|span| span.start as u32..span.end as u32)
    }

    /// The shown tokens inside `tokens` of a request whose prompt has `prompt_len` tokens.
    pub(crate) fn token_spans(
        &self,
        tokens: Range<u64>,
        prompt_len: u32,
    ) -> impl Iterator<Item = Range<u64>> {
        let border = u64::from(prompt_len);
        let Range { start, end } = tokens;
        self.tokens.within(match self.phase {
            Phase::All => start..end,
            Phase::Prompt => start..end.min(border),
            Phase::Decode => start.max(border)..end,
        })
    }

    /// The shown rows of a token.
    pub(crate) fn rows(&self, geometry: &Geometry) -> Rows {
        let shown: Vec<bool> = (0..geometry.rows())
            .map(|row| {
                let (kv, head) = geometry.plane_head(row);
                self.planes[kv as usize] && self.heads.contains(u64::from(head))
            })
            .collect();
        let count = shown.iter().filter(|&&shown| shown).count();
        Rows { shown, count }
    }
}

/// The shown rows of a token, resolved against a geometry.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    shown: Vec<bool>,
    count: usize,
}

impl Rows {
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn shows_all(&self) -> bool {
        self.count == self.shown.len()
    }

    #[inline]
    pub(crate) fn shows(&self, row: u32) -> bool {
        self.shown[row as usize]
    }

    /// The shown rows, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        (0..self.shown.len() as u32).filter(|&row| self.shows(row))
    }
}
