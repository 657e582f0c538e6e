//! Explicit fault maps: enumerate the flips of a sampler, apply them to a cache (sampling.md, section 8).

use std::ops::{BitAnd, BitOr, BitXor, Not, Range};

use crate::error::Error;
use crate::fault::{Geometry, Sampler};
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

/// Flips as columns of equal length, in canonical order: ascending and unique by (request, layer, kv, head,
/// token, elem, bit).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultMap {
    columns: Columns,
}

/// The columns of a [`FaultMap`]; one row is one flipped bit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// Index of the request in the plan.
    pub request: Vec<u32>,
    /// Global layer index.
    pub layer: Vec<u16>,
    /// 0 for K, 1 for V.
    pub kv: Vec<u8>,
    /// Global KV head.
    pub head: Vec<u16>,
    /// Logical position in the request.
    pub token: Vec<u32>,
    /// Element of the row.
    pub elem: Vec<u16>,
    /// Bit of the stored element, 0 the least significant.
    pub bit: Vec<u8>,
}

impl Columns {
    fn site(&self, i: usize) -> (u32, u16, u8, u16, u32, u16, u8) {
        (
            self.request[i],
            self.layer[i],
            self.kv[i],
            self.head[i],
            self.token[i],
            self.elem[i],
            self.bit[i],
        )
    }
}

impl FaultMap {
    /// A map from outside.
    ///
    /// # Errors
    /// [`Error::Length`] for columns of unequal length, [`Error::Order`] unless the sites ascend strictly.
    pub fn new(columns: Columns) -> Result<Self, Error> {
        let expected = columns.request.len();
        let lengths = [
            ("layer", columns.layer.len()),
            ("kv", columns.kv.len()),
            ("head", columns.head.len()),
            ("token", columns.token.len()),
            ("elem", columns.elem.len()),
            ("bit", columns.bit.len()),
        ];
        for (name, len) in lengths {
            if len != expected {
                return Err(Error::Length {
                    name,
                    len,
                    expected,
                });
            }
        }
        match (1..expected).find(|&i| columns.site(i - 1) >= columns.site(i)) {
            Some(index) => Err(Error::Order { index }),
            None => Ok(Self { columns }),
        }
    }

    /// Number of flips.
    #[must_use]
    pub fn len(&self) -> usize {
        self.columns.token.len()
    }

    /// Whether there is no flip.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The columns.
    #[must_use]
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// The columns, given up.
    #[must_use]
    pub fn into_columns(self) -> Columns {
        self.columns
    }

    /// Applies `op` to every site of `cache`. A flip applied twice restores the cache.
    ///
    /// # Errors
    /// [`Error::Index`] if a coordinate is outside `layout.shape` or a bit outside the word, [`Error::Layout`]
    /// or [`Error::Address`] if the layout reaches outside the cache. Everything is checked before the first
    /// write.
    pub fn apply<W: Word>(&self, cache: &mut [W], layout: &Layout, op: Op) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        self.check_bounds::<W>(layout)?;
        let strides = layout.checked_strides(cache.len())?;
        // Offsets first, then the scatter: independent writes keep many cache misses in flight.
        let mut offsets = [0; 512];
        let columns = &self.columns;
        for start in (0..self.len()).step_by(offsets.len()) {
            let chunk = start..(start + offsets.len()).min(self.len());
            for (offset, i) in offsets.iter_mut().zip(chunk.clone()) {
                let site = [
                    columns.request[i] as usize,
                    columns.layer[i] as usize,
                    columns.kv[i] as usize,
                    columns.head[i] as usize,
                    columns.token[i] as usize,
                    columns.elem[i] as usize,
                ];
                // Inside bounds that `checked_strides` has proved; wrapping, since strides may be negative.
                *offset = site
                    .iter()
                    .zip(&strides)
                    .fold(layout.base, |sum, (&x, &stride)| {
                        sum.wrapping_add(x.wrapping_mul(stride))
                    });
            }
            let sites = offsets.iter().zip(&columns.bit[chunk]);
            match op {
                Op::Flip => sites.for_each(|(&o, &bit)| cache[o] = cache[o] ^ W::bit(bit)),
                Op::Set0 => sites.for_each(|(&o, &bit)| cache[o] = cache[o] & !W::bit(bit)),
                Op::Set1 => sites.for_each(|(&o, &bit)| cache[o] = cache[o] | W::bit(bit)),
            }
        }
        Ok(())
    }

    fn check_bounds<W: Word>(&self, layout: &Layout) -> Result<(), Error> {
        fn largest<T: Copy + Into<u64>>(column: &[T]) -> u64 {
            column.iter().fold(0, |top, &x| top.max(x.into()))
        }
        let c = &self.columns;
        let tops = [
            ("request", largest(&c.request), layout.shape[0] as u64),
            ("layer", largest(&c.layer), layout.shape[1] as u64),
            ("kv", largest(&c.kv), layout.shape[2] as u64),
            ("head", largest(&c.head), layout.shape[3] as u64),
            ("token", largest(&c.token), layout.shape[4] as u64),
            ("elem", largest(&c.elem), layout.shape[5] as u64),
            ("bit", largest(&c.bit), u64::from(W::BITS)),
        ];
        match tops.into_iter().find(|&(_, value, limit)| value >= limit) {
            Some((name, value, limit)) => Err(Error::Index { name, value, limit }),
            None => Ok(()),
        }
    }
}

/// What a fault does to a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Inverts it.
    Flip,
    /// Stuck at 0.
    Set0,
    /// Stuck at 1.
    Set1,
}

/// Where a cache holds (request, layer, kv, head, token, elem).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Index of the word at the origin.
    pub base: usize,
    /// Extent of each coordinate.
    pub shape: [usize; 6],
    /// Words from one to the next of each coordinate; may be negative or 0.
    pub strides: [isize; 6],
}

impl Layout {
    /// A cache without gaps, the last coordinate fastest; `None` if its size overflows.
    #[must_use]
    pub fn contiguous(shape: [usize; 6]) -> Option<Self> {
        let mut strides = [0; 6];
        let mut words: usize = 1;
        for (stride, &extent) in strides.iter_mut().zip(&shape).rev() {
            *stride = isize::try_from(words).ok()?;
            words = words.checked_mul(extent)?;
        }
        Some(Self {
            base: 0,
            shape,
            strides,
        })
    }

    /// The strides modulo the word size, once no coordinate inside a shape without zeros can leave the cache.
    fn checked_strides(&self, words: usize) -> Result<[usize; 6], Error> {
        let (mut lowest, mut highest) = (self.base as i128, self.base as i128);
        for (&extent, &stride) in self.shape.iter().zip(&self.strides) {
            let reach = (extent as i128 - 1).saturating_mul(stride as i128);
            lowest = lowest.saturating_add(reach.min(0));
            highest = highest.saturating_add(reach.max(0));
        }
        if lowest < 0 {
            return Err(Error::Layout { name: "strides" });
        }
        if highest >= words as i128 {
            return Err(Error::Address {
                address: u64::try_from(highest).unwrap_or(u64::MAX),
                words,
            });
        }
        Ok(self.strides.map(isize::cast_unsigned))
    }
}

/// A storage word of a cache.
pub trait Word:
    Copy + BitXor<Output = Self> + BitAnd<Output = Self> + BitOr<Output = Self> + Not<Output = Self>
{
    /// Its width.
    const BITS: u32;
    /// The word with one bit set, below [`Self::BITS`].
    fn bit(bit: u8) -> Self;
}

macro_rules! word {
    ($($ty:ty),*) => {$(
        impl Word for $ty {
            const BITS: u32 = <$ty>::BITS;
            fn bit(bit: u8) -> Self {
                (1 as $ty) << (u32::from(bit) % Self::BITS)
            }
        }
    )*};
}
word!(u8, u16, u32);

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
        let mut columns = Columns::default();
        self.visit_layers_of(
            key,
            grid,
            selector,
            &rows,
            |layer, token, hits| match token {
                Some(token) => sorter.push(token, hits),
                None => sorter.drain(grid.request, layer as u16, &mut columns),
            },
        );
        Ok(FaultMap { columns })
    }

    /// The number of flips that [`Self::enumerate`] would return, without holding them.
    ///
    /// # Errors
    /// [`Error::Range`] if the grid leaves the limits.
    pub fn count(&self, key: Key, grid: &Grid, selector: &Selector) -> Result<u64, Error> {
        check_limits(grid)?;
        let rows = selector.rows(self.geometry());
        let mut flips = 0;
        self.visit_layers_of(key, grid, selector, &rows, |_, _, hits| {
            flips += hits
                .iter()
                .map(|hit| u64::from(hit.mask.count_ones()))
                .sum::<u64>();
        });
        Ok(flips)
    }

    /// Visits each shown layer as `visit(layer, Some(token), hits)` and at its end as `visit(layer, None, &[])`.
    fn visit_layers_of(
        &self,
        key: Key,
        grid: &Grid,
        selector: &Selector,
        rows: &Rows,
        mut visit: impl FnMut(u32, Option<u32>, &[Hit]),
    ) {
        let mut scratch = Scratch::default();
        for layer in selector.layer_spans(grid.layers.clone()).flatten() {
            let place = Place {
                key,
                request: grid.request,
                layer,
            };
            for tokens in selector.token_spans(grid.tokens.clone(), grid.prompt_len) {
                self.visit_tokens(&place, tokens, rows, &mut scratch, |token, hits| {
                    visit(layer, Some(token), hits);
                });
            }
            visit(layer, None, &[]);
        }
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

fn check_limits(grid: &Grid) -> Result<(), Error> {
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
