//! How many flips there are, without where they are.
//!
//! Hits of a cell are of different units, so where a hit is one bit there are as many flips as hits, and the counts
//! that a cell begins with are enough: no sample is drawn.

use std::ops::Range;

use crate::enumerate::{Grid, check_limits};
use crate::error::Error;
use crate::fault::{Level, Sampler};
use crate::philox::{Domain, Key};
use crate::sample::{Place, Scratch, row_stream};
use crate::select::{Rows, Selector};

impl Sampler {
    /// The number of flips that [`Self::enumerate`] would return, without holding them.
    ///
    /// # Errors
    /// [`Error::Range`] if the grid leaves the limits.
    pub fn count(&self, key: Key, grid: &Grid, selector: &Selector) -> Result<u64, Error> {
        check_limits(grid)?;
        let rows = selector.rows(self.geometry());
        Ok(self.count_shown(key, grid, selector, &rows, &mut Scratch::default()))
    }

    /// [`Self::count`] of a checked grid, given the rows that the selector shows.
    pub(crate) fn count_shown(
        &self,
        key: Key,
        grid: &Grid,
        selector: &Selector,
        rows: &Rows,
        scratch: &mut Scratch,
    ) -> u64 {
        let mut flips = 0;
        for place in grid.places(key, selector) {
            for tokens in selector.token_spans(grid.tokens.clone(), grid.prompt_len) {
                flips += self.count_tokens(&place, tokens, rows, scratch);
            }
        }
        flips
    }

    fn count_tokens(
        &self,
        place: &Place,
        tokens: Range<u64>,
        rows: &Rows,
        scratch: &mut Scratch,
    ) -> u64 {
        if self.never_hits() || rows.is_empty() {
            return 0;
        }
        let mut flips = 0;
        for (span, planes) in self.page_spans(place, tokens) {
            let hidden = self.level == Level::Token && !(rows.shows_all() && self.all(planes));
            flips += if self.burst_len > 1 || hidden {
                self.count_sampled(place, span, rows, scratch)
            } else {
                self.count_hits(place, &span, planes, rows)
            };
        }
        flips
    }

    /// Whether pages leave no plane of the geometry out.
    fn all(&self, planes: [bool; 2]) -> bool {
        let first = self.geometry.first_plane as usize;
        planes[first..first + self.geometry.planes as usize]
            .iter()
            .all(|&hit| hit)
    }

    /// Where bursts overlap, or rows of a drawn cell are not shown, only the sample itself tells.
    fn count_sampled(
        &self,
        place: &Place,
        tokens: Range<u64>,
        rows: &Rows,
        scratch: &mut Scratch,
    ) -> u64 {
        let mut flips = 0;
        self.visit_tokens(place, tokens, rows, scratch, |_, hits| {
            flips += hits
                .iter()
                .map(|hit| u64::from(hit.mask.count_ones()))
                .sum::<u64>();
        });
        flips
    }

    fn count_hits(
        &self,
        place: &Place,
        tokens: &Range<u64>,
        planes: [bool; 2],
        rows: &Rows,
    ) -> u64 {
        let (first, len) = (tokens.start as u32, tokens.end - tokens.start);
        let mut hits = 0;
        if self.level == Level::Token {
            let start = self.token_stream(place, first);
            self.scan::<0>(&start, Domain::Token, 1, len, |_, block| {
                hits += u64::from(self.hits_of(block));
            });
            return hits;
        }
        for row in rows.iter() {
            let (kv, head) = self.geometry.plane_head(row);
            if !planes[kv as usize] {
                continue;
            }
            if self.level == Level::Head {
                let start = row_stream(place, first, kv, head);
                self.scan::<0>(&start, Domain::Row, 1, len, |_, block| {
                    hits += u64::from(self.hits_of(block));
                });
            } else {
                for token in tokens.clone() {
                    let stream = row_stream(place, token as u32, kv, head);
                    hits += self.count_units(&stream);
                }
            }
        }
        hits
    }
}
