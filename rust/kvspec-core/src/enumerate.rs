//! From a sampler to the explicit map of its flips.

use std::ops::Range;

use crate::error::Error;
use crate::fault::{Geometry, Sampler};
use crate::map::{Columns, FaultMap};
use crate::philox::Key;
use crate::sample::{Hit, Place, Scratch};
use crate::select::{Rows, Selector, check_range};

/// Most flips that are held in memory at once.
pub const MAX_FLIPS: u64 = 1 << 30;
/// Layers end here.
pub(crate) const MAX_LAYERS: u64 = 1 << 16;
/// Tokens, requests and steps end here.
pub(crate) const MAX_TOKENS: u64 = 1 << 32;

/// Layers and tokens of one request to enumerate, before any selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Index of the request in the plan.
    pub request: u32,
    /// Layers, up to 65536.
    pub layers: Range<u32>,
    /// Token positions, up to 2^32.
    pub tokens: Range<u64>,
    /// Length of the prompt, where a selector asks for a phase.
    pub prompt_len: u32,
}

impl Grid {
    /// Where the cells of each shown layer are drawn.
    pub(crate) fn places(&self, key: Key, selector: &Selector) -> impl Iterator<Item = Place> {
        let request = self.request;
        let layers = selector.layer_spans(self.layers.clone()).flatten();
        layers.map(move |layer| Place {
            key,
            request,
            layer,
        })
    }
}

impl Sampler {
    /// All flips of `grid` that `selector` shows.
    ///
    /// # Errors
    /// [`Error::Range`] if the grid leaves the limits, [`Error::TooManyFlips`] if more than [`MAX_FLIPS`] are
    /// to be expected.
    pub fn enumerate(&self, key: Key, grid: &Grid, selector: &Selector) -> Result<FaultMap, Error> {
        let rows = selector.rows(self.geometry());
        self.check_grid(grid, selector, &rows)?;
        let mut sorter = RowSorter::new(self.geometry());
        let (mut columns, mut scratch) = (Columns::default(), Scratch::default());
        for place in grid.places(key, selector) {
            for tokens in selector.token_spans(grid.tokens.clone(), grid.prompt_len) {
                self.visit_tokens(&place, tokens, &rows, &mut scratch, |token, hits| {
                    sorter.push(token, hits);
                });
            }
            sorter.drain(grid.request, place.layer as u16, &mut columns);
        }
        Ok(FaultMap { columns })
    }

    fn check_grid(&self, grid: &Grid, selector: &Selector, rows: &Rows) -> Result<(), Error> {
        check_limits(grid)?;
        let layers = selector
            .layer_spans(grid.layers.clone())
            .map(|span| span.len());
        let tokens = selector
            .token_spans(grid.tokens.clone(), grid.prompt_len)
            .map(|span| span.end - span.start);
        let shown = layers.sum::<usize>() as f64 * tokens.sum::<u64>() as f64 * rows.len() as f64;
        check_flips(shown * self.expected_flips_per_row())
    }
}

/// Fails if so many flips would not fit.
pub(crate) fn check_flips(expected: f64) -> Result<(), Error> {
    if expected > MAX_FLIPS as f64 {
        return Err(Error::TooManyFlips {
            expected,
            limit: MAX_FLIPS,
        });
    }
    Ok(())
}

pub(crate) fn check_limits(grid: &Grid) -> Result<(), Error> {
    let layers = u64::from(grid.layers.start)..u64::from(grid.layers.end);
    check_range("layers", &layers, MAX_LAYERS)?;
    check_range("tokens", &grid.tokens, MAX_TOKENS)
}

/// Hits come token by token, canonical order is row by row: a stable counting sort of one layer.
struct RowSorter<'a> {
    geometry: &'a Geometry,
    hits: Vec<(u32, Hit)>,
    /// Flips of each row, then the place where its next one goes.
    rows: Vec<usize>,
}

impl<'a> RowSorter<'a> {
    fn new(geometry: &'a Geometry) -> Self {
        Self {
            geometry,
            hits: Vec::new(),
            rows: vec![0; geometry.rows() as usize],
        }
    }

    fn push(&mut self, token: u32, hits: &[Hit]) {
        for &hit in hits {
            self.rows[hit.row as usize] += hit.mask.count_ones() as usize;
            self.hits.push((token, hit));
        }
    }

    /// Appends the collected hits to `columns` and forgets them.
    fn drain(&mut self, request: u32, layer: u16, columns: &mut Columns) {
        if self.hits.is_empty() {
            return;
        }
        let mut end = columns.token.len();
        for (row, flips) in self.rows.iter_mut().enumerate() {
            let start = end;
            end += *flips;
            *flips = start;
            if end > start {
                let (kv, head) = self.geometry.plane_head(row as u32);
                columns.kv.resize(end, kv);
                columns.head.resize(end, head);
            }
        }
        columns.request.resize(end, request);
        columns.layer.resize(end, layer);
        columns.token.resize(end, 0);
        columns.elem.resize(end, 0);
        columns.bit.resize(end, 0);
        for (token, hit) in self.hits.drain(..) {
            let place = &mut self.rows[hit.row as usize];
            let mut mask = hit.mask;
            while mask != 0 {
                columns.token[*place] = token;
                columns.elem[*place] = hit.elem;
                columns.bit[*place] = mask.trailing_zeros() as u8;
                *place += 1;
                mask &= mask - 1;
            }
        }
        self.rows.fill(0);
    }
}
