//! Scoring texts by Unicode code point.

use super::batch::{Columns, Options, score_rows};
use super::detail::{DetailOptions, Details, detail_rows};
use super::ragged::{Error, LONGEST, check_index};
use super::symbol::Symbol;

/// A text and its length.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    utf8: &'a str,
    code_points: usize,
}

impl<'a> Text<'a> {
    /// A text of `code_points` code points, for callers who know the number without counting. A wrong one makes the
    /// results of this text meaningless.
    #[must_use]
    pub fn with_length(utf8: &'a str, code_points: usize) -> Self {
        Self { utf8, code_points }
    }

    /// A text to be compared by the bytes of its UTF-8 form if both sides are.
    #[must_use]
    pub fn by_byte(utf8: &'a str) -> Self {
        Self::with_length(utf8, utf8.len())
    }

    /// Whether a byte is a code point.
    fn is_ascii(self) -> bool {
        self.code_points == self.utf8.len()
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(utf8: &'a str) -> Self {
        Self::with_length(utf8, utf8.chars().count())
    }
}

/// Non-ASCII rows that are decoded at a time: bounds the memory of a large batch.
const DECODED_ROWS: usize = 8192;

/// Scores every text against its golden text. Positions, lengths and edits count Unicode code points, as Python does.
///
/// # Errors
/// If the golden indices do not fit the two sides, or a text is too long.
pub fn score_texts(
    golden: &[Text<'_>],
    texts: &[Text<'_>],
    golden_index: &[u32],
    options: Options,
) -> Result<Columns, Error> {
    by_code_point(golden, texts, golden_index, options)
}

/// Details of every text against its golden text, in Unicode code points.
///
/// # Errors
/// If the golden indices do not fit the two sides, or a text is too long.
pub fn detail_texts(
    golden: &[Text<'_>],
    texts: &[Text<'_>],
    golden_index: &[u32],
    options: DetailOptions,
) -> Result<Details, Error> {
    by_code_point(golden, texts, golden_index, options)
}

/// A table of results that can be computed over rows of any symbol.
trait Table: Copy {
    type Rows;

    fn compute<'a, T: Symbol>(
        self,
        rows: usize,
        pair: impl Fn(usize) -> (&'a [T], &'a [T]) + Sync,
    ) -> Self::Rows;

    fn empty(self, rows: usize) -> Self::Rows;

    /// Copies row `i` of `from` to row `rows[i]` of `into`.
    fn scatter(into: &mut Self::Rows, from: Self::Rows, rows: &[usize]);
}

impl Table for Options {
    type Rows = Columns;

    fn compute<'a, T: Symbol>(
        self,
        rows: usize,
        pair: impl Fn(usize) -> (&'a [T], &'a [T]) + Sync,
    ) -> Columns {
        score_rows(rows, pair, self)
    }

    fn empty(self, rows: usize) -> Columns {
        Columns::new(rows, self)
    }

    fn scatter(into: &mut Columns, from: Columns, rows: &[usize]) {
        copy_to(&mut into.first_divergence, &from.first_divergence, rows);
        copy_to(&mut into.positional, &from.positional, rows);
        copy_to(&mut into.edit_distance, &from.edit_distance, rows);
    }
}

impl Table for DetailOptions {
    type Rows = Details;

    fn compute<'a, T: Symbol>(
        self,
        rows: usize,
        pair: impl Fn(usize) -> (&'a [T], &'a [T]) + Sync,
    ) -> Details {
        detail_rows(rows, pair, self)
    }

    fn empty(self, rows: usize) -> Details {
        Details::new(rows, self.indel_distance)
    }

    fn scatter(into: &mut Details, mut from: Details, rows: &[usize]) {
        for (into, from) in into.columns_mut().into_iter().zip(from.columns_mut()) {
            copy_to(into, from, rows);
        }
    }
}

/// A column that was not asked for is empty on both sides.
fn copy_to<T: Copy>(into: &mut [T], from: &[T], rows: &[usize]) {
    for (&value, &row) in from.iter().zip(rows) {
        into[row] = value;
    }
}

fn by_code_point<M: Table>(
    golden: &[Text<'_>],
    texts: &[Text<'_>],
    golden_index: &[u32],
    table: M,
) -> Result<M::Rows, Error> {
    check_index(golden_index, golden.len(), texts.len())?;
    let longest = golden
        .iter()
        .chain(texts)
        .map(|text| text.code_points)
        .max();
    if let Some(length) = longest.filter(|&length| length > LONGEST) {
        return Err(Error::TooLong { length });
    }
    let golden_of = |row: usize| golden_index[row] as usize;
    let is_narrow = |row: usize| texts[row].is_ascii() && golden[golden_of(row)].is_ascii();
    // In ASCII a byte is a code point, so the bytes are compared where they stand.
    let bytes = |row: usize| {
        (
            golden[golden_of(row)].utf8.as_bytes(),
            texts[row].utf8.as_bytes(),
        )
    };
    let (narrow, wide): (Vec<usize>, Vec<usize>) =
        (0..texts.len()).partition(|&row| is_narrow(row));
    if wide.is_empty() {
        return Ok(table.compute(texts.len(), bytes));
    }
    let mut out = table.empty(texts.len());
    M::scatter(
        &mut out,
        table.compute(narrow.len(), |index| bytes(narrow[index])),
        &narrow,
    );
    for block in wide.chunks(DECODED_ROWS) {
        let mut decoded = Decoded::default();
        let mut slots = vec![usize::MAX; golden.len()];
        let mut pairs = Vec::with_capacity(block.len());
        for &row in block {
            let slot = &mut slots[golden_of(row)];
            if *slot == usize::MAX {
                *slot = decoded.push(golden[golden_of(row)].utf8);
            }
            pairs.push((*slot, decoded.push(texts[row].utf8)));
        }
        let pair = |index: usize| {
            let (golden, text) = pairs[index];
            (decoded.get(golden), decoded.get(text))
        };
        M::scatter(&mut out, table.compute(block.len(), pair), block);
    }
    Ok(out)
}

/// Code points of several texts in one buffer.
#[derive(Default)]
struct Decoded {
    symbols: Vec<u32>,
    ends: Vec<usize>,
}

impl Decoded {
    fn push(&mut self, text: &str) -> usize {
        self.symbols.extend(text.chars().map(u32::from));
        self.ends.push(self.symbols.len());
        self.ends.len() - 1
    }

    fn get(&self, slot: usize) -> &[u32] {
        let start = slot.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.symbols[start..self.ends[slot]]
    }
}
