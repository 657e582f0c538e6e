//! Fault maps in foreign memory: borrowed columns, their order, and streaming validation (sampling.md, section 8).
//!
//! A map from another lab is untrusted. [`SiteCheck`] looks at every value of every column, one batch at a time,
//! so that a reader needs no more memory than one batch.

#![expect(
    clippy::inline_always,
    reason = "what `pulp` dispatches is compiled for the instructions of the machine only where it is inlined"
)]
#![expect(
    clippy::needless_bitwise_bool,
    reason = "without branches the loop vectorizes"
)]

use std::fmt;
use std::ops::Range;

/// Borrowed columns of a fault map, or of a part of one; one row is one faulty bit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sites<'a> {
    /// Index of the request in the plan.
    pub request: &'a [u32],
    /// Read event; `None` for faults of writes.
    pub step: Option<&'a [u32]>,
    /// Global layer index.
    pub layer: &'a [u16],
    /// 0 for K, 1 for V.
    pub kv: &'a [u8],
    /// Global KV head.
    pub head: &'a [u16],
    /// Logical position in the request.
    pub token: &'a [u32],
    /// Element of the row.
    pub elem: &'a [u16],
    /// Bit of the stored element, 0 the least significant.
    pub bit: &'a [u8],
}

/// A site as three numbers that order like it: (request, step), (layer, kv, head), (token, elem, bit).
pub(crate) type Key = (u64, u64, u64);

impl Sites<'_> {
    /// Some of the rows.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Self {
        fn part<'a, T>(column: &'a [T], rows: &Range<usize>) -> &'a [T] {
            &column[rows.start..rows.end]
        }
        Sites {
            request: part(self.request, &rows),
            step: self.step.map(|step| part(step, &rows)),
            layer: part(self.layer, &rows),
            kv: part(self.kv, &rows),
            head: part(self.head, &rows),
            token: part(self.token, &rows),
            elem: part(self.elem, &rows),
            bit: part(self.bit, &rows),
        }
    }

    /// Number of rows, as the first column has it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.request.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fails unless all columns are equally long.
    ///
    /// # Errors
    /// [`SiteError::Length`].
    pub fn check_lengths(&self) -> Result<(), SiteError> {
        let expected = self.len();
        let lengths = [
            ("step", self.step.map_or(expected, <[u32]>::len)),
            ("layer", self.layer.len()),
            ("kv", self.kv.len()),
            ("head", self.head.len()),
            ("token", self.token.len()),
            ("elem", self.elem.len()),
            ("bit", self.bit.len()),
        ];
        match lengths.into_iter().find(|&(_, len)| len != expected) {
            Some((column, len)) => Err(SiteError::Length {
                column,
                len,
                expected,
            }),
            None => Ok(()),
        }
    }

    /// The row that first repeats or precedes the one before it, and whether it repeats it. `before` is the row
    /// in front of these.
    pub(crate) fn disorder(&self, before: Option<Key>) -> Option<(usize, bool)> {
        let first = before.filter(|&key| !self.is_empty() && key >= self.key(0));
        let row = match first {
            Some(_) => Some(0),
            // Blocks without an early exit vectorize; the row is looked for only in a block that has one.
            None => pulp::Arch::new()
                .dispatch(DisorderedBlock(self))
                .and_then(|mut rows| rows.find(|&i| self.key(i - 1) >= self.key(i))),
        };
        row.map(|i| {
            let previous = if i == 0 {
                before
            } else {
                Some(self.key(i - 1))
            };
            (i, previous == Some(self.key(i)))
        })
    }

    #[inline(always)]
    fn disordered_block(&self) -> Option<Range<usize>> {
        (1..self.len())
            .step_by(BLOCK)
            .map(|start| start..(start + BLOCK).min(self.len()))
            .find(|rows| !self.ascends(rows.clone()))
    }

    /// Whether each of `rows`, at most [`BLOCK`] that start at 1 or later, lies behind the row before it.
    #[inline(always)]
    fn ascends(&self, rows: Range<usize>) -> bool {
        let rows = rows.start - 1..rows.end;
        let step = |step: &[u32]| constant(&step[rows.clone()]);
        if !constant(&self.request[rows.clone()]) || !self.step.is_none_or(step) {
            return rows
                .clone()
                .is_sorted_by(|&a, &b| self.key(a) < self.key(b));
        }
        // Keys in arrays of their own: the comparison of neighbours then vectorizes. Signed, as most processors
        // compare only those; no key reaches the sign.
        let (mut places, mut bits) = ([0_i64; BLOCK + 1], [0_i64; BLOCK + 1]);
        let (layer, kv) = (&self.layer[rows.clone()], &self.kv[rows.clone()]);
        let head = &self.head[rows.clone()];
        for (place, ((&layer, &kv), &head)) in places.iter_mut().zip(layer.iter().zip(kv).zip(head))
        {
            *place = place_key(layer, kv, head).cast_signed();
        }
        let (token, elem) = (&self.token[rows.clone()], &self.elem[rows.clone()]);
        let bit = &self.bit[rows.clone()];
        for (key, ((&token, &elem), &bit)) in bits.iter_mut().zip(token.iter().zip(elem).zip(bit)) {
            *key = bit_key(token, elem, bit).cast_signed();
        }
        let (places, bits) = (&places[..rows.len()], &bits[..rows.len()]);
        let neighbours = places
            .iter()
            .zip(&places[1..])
            .zip(bits.iter().zip(&bits[1..]));
        neighbours.fold(true, |ok, ((p, q), (a, b))| {
            ok & ((p < q) | ((p == q) & (a < b)))
        })
    }

    pub(crate) fn key(&self, i: usize) -> Key {
        let step = self.step.map_or(0, |step| step[i]);
        (
            u64::from(self.request[i]) << 32 | u64::from(step),
            place_key(self.layer[i], self.kv[i], self.head[i]),
            bit_key(self.token[i], self.elem[i], self.bit[i]),
        )
    }
}

#[inline(always)]
fn place_key(layer: u16, kv: u8, head: u16) -> u64 {
    u64::from(layer) << 24 | u64::from(kv) << 16 | u64::from(head)
}

#[inline(always)]
fn bit_key(token: u32, elem: u16, bit: u8) -> u64 {
    u64::from(token) << 24 | u64::from(elem) << 8 | u64::from(bit)
}

#[inline(always)]
fn constant<T: Copy + PartialEq>(column: &[T]) -> bool {
    column
        .first()
        .is_none_or(|&first| column.iter().fold(true, |same, &x| same & (x == first)))
}

const BLOCK: usize = 256;

/// The values that each column may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteBounds {
    /// Requests.
    pub request: Range<u64>,
    /// Read events, `None` if there must be no such column. An event reads only tokens below its step.
    pub step: Option<Range<u64>>,
    /// Layers.
    pub layer: Range<u64>,
    /// Planes.
    pub kv: Range<u64>,
    /// KV heads.
    pub head: Range<u64>,
    /// Tokens.
    pub token: Range<u64>,
    /// Elements of a row.
    pub elem: Range<u64>,
    /// Bits of an element.
    pub bit: Range<u64>,
}

/// Checks a map batch by batch: lengths, bounds, canonical order, no site twice.
#[derive(Clone, Debug)]
pub struct SiteCheck {
    bounds: SiteBounds,
    rows: u64,
    last: Option<Key>,
}

impl SiteCheck {
    /// A check at the first row of a map.
    #[must_use]
    pub fn new(bounds: SiteBounds) -> Self {
        Self {
            bounds,
            rows: 0,
            last: None,
        }
    }

    /// Rows that were accepted.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Checks the rows that follow those of the calls before.
    ///
    /// # Errors
    /// The first [`SiteError`]: lengths, then bounds column by column, then order. Nothing of the batch counts
    /// as accepted then.
    pub fn push(&mut self, sites: &Sites<'_>) -> Result<(), SiteError> {
        sites.check_lengths()?;
        let bounds = &self.bounds;
        let start = self.rows;
        match (sites.step, &bounds.step) {
            (Some(step), Some(range)) => {
                inside("step", step, range, start)?;
                below_step(sites.token, step, start)?;
            }
            (None, None) => {}
            (step, _) => {
                return Err(SiteError::Step {
                    present: step.is_some(),
                });
            }
        }
        inside("request", sites.request, &bounds.request, start)?;
        inside("layer", sites.layer, &bounds.layer, start)?;
        inside("kv", sites.kv, &bounds.kv, start)?;
        inside("head", sites.head, &bounds.head, start)?;
        inside("token", sites.token, &bounds.token, start)?;
        inside("elem", sites.elem, &bounds.elem, start)?;
        inside("bit", sites.bit, &bounds.bit, start)?;
        if let Some((row, duplicate)) = sites.disorder(self.last) {
            let row = start + row as u64;
            return Err(if duplicate {
                SiteError::Duplicate { row }
            } else {
                SiteError::Order { row }
            });
        }
        if let Some(last) = sites.len().checked_sub(1) {
            self.last = Some(sites.key(last));
        }
        self.rows = start + sites.len() as u64;
        Ok(())
    }
}

/// Fails at the first value outside `range`; `start` is the number of the first row.
fn inside<T: Copy + Ord + Into<u64>>(
    column: &'static str,
    values: &[T],
    range: &Range<u64>,
    start: u64,
) -> Result<(), SiteError> {
    // The extremes vectorize in the column's own type; the row is looked for only if there is one.
    let outside = |x: T| !range.contains(&x.into());
    match extremes(values) {
        Some((least, most)) if outside(least) || outside(most) => {}
        _ => return Ok(()),
    }
    let row = values.iter().position(|&x| outside(x)).unwrap_or_default();
    Err(SiteError::Bounds {
        column,
        row: start + row as u64,
        value: values[row].into(),
        start: range.start,
        end: range.end,
    })
}

/// The least and the greatest value.
pub(crate) fn extremes<T: Copy + Ord>(values: &[T]) -> Option<(T, T)> {
    pulp::Arch::new().dispatch(Extremes(values))
}

// Types of their own: a closure is called through a shim that no instruction set is inlined into.

struct Extremes<'a, T>(&'a [T]);

impl<T: Copy + Ord> pulp::WithSimd for Extremes<'_, T> {
    type Output = Option<(T, T)>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
        let &first = self.0.first()?;
        let wider = |(least, most): (T, T), &x: &T| (least.min(x), most.max(x));
        Some(self.0.iter().fold((first, first), wider))
    }
}

struct DisorderedBlock<'a>(&'a Sites<'a>);

impl pulp::WithSimd for DisorderedBlock<'_> {
    type Output = Option<Range<usize>>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
        self.0.disordered_block()
    }
}

fn below_step(token: &[u32], step: &[u32], start: u64) -> Result<(), SiteError> {
    match token.iter().zip(step).position(|(t, s)| t >= s) {
        None => Ok(()),
        Some(row) => Err(SiteError::Bounds {
            column: "token",
            row: start + row as u64,
            value: token[row].into(),
            start: 0,
            end: step[row].into(),
        }),
    }
}

/// What is wrong with the sites of a map. Rows count from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SiteError {
    /// A column differs in length from the first.
    Length {
        column: &'static str,
        len: usize,
        expected: usize,
    },
    /// The column of read events is there and must not be, or the reverse.
    Step { present: bool },
    /// A value outside what its column may have.
    Bounds {
        column: &'static str,
        row: u64,
        value: u64,
        start: u64,
        end: u64,
    },
    /// A row that belongs before the one before it.
    Order { row: u64 },
    /// A row that repeats the one before it.
    Duplicate { row: u64 },
}

impl fmt::Display for SiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length {
                column,
                len,
                expected,
            } => write!(f, "column {column} has {len} rows instead of {expected}"),
            Self::Step { present: true } => write!(f, "column step does not belong here"),
            Self::Step { present: false } => write!(f, "column step is missing"),
            Self::Bounds {
                column,
                row,
                value,
                start,
                end,
            } => write!(f, "{column} {value} of row {row} is outside {start}..{end}"),
            Self::Order { row } => write!(f, "row {row} belongs before the row before it"),
            Self::Duplicate { row } => write!(f, "row {row} repeats the site before it"),
        }
    }
}

impl std::error::Error for SiteError {}
