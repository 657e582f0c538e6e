//! Scoring texts by Unicode code point.

use super::batch::{Columns, Options, score_rows};
use super::ragged::{Error, check_index};

/// Non-ASCII rows that are decoded at a time: bounds the memory of a large batch.
const DECODED_ROWS: usize = 8192;

/// Scores every text against its golden text. Positions, lengths and edits count Unicode code points, as Python does.
///
/// # Errors
/// If the golden indices do not fit the two sides, or a text is too long.
pub fn score_texts(
    golden: &[&str],
    texts: &[&str],
    golden_index: &[u32],
    options: Options,
) -> Result<Columns, Error> {
    check_index(golden_index, golden.len(), texts.len())?;
    let golden_ascii: Vec<bool> = golden.iter().map(|text| text.is_ascii()).collect();
    let golden_of = |row: usize| golden_index[row] as usize;
    let wide: Vec<usize> = (0..texts.len())
        .filter(|&row| !(golden_ascii[golden_of(row)] && texts[row].is_ascii()))
        .collect();
    // In ASCII a byte is a code point, so the bytes are compared where they stand.
    let bytes = |row: usize| (golden[golden_of(row)].as_bytes(), texts[row].as_bytes());
    if wide.is_empty() {
        return score_rows(texts.len(), bytes, options);
    }
    let mut columns = Columns::new(texts.len(), options);
    let mut is_wide = wide.iter().copied().peekable();
    let narrow: Vec<usize> = (0..texts.len())
        .filter(|&row| is_wide.next_if_eq(&row).is_none())
        .collect();
    scatter(
        &mut columns,
        &score_rows(narrow.len(), |index| bytes(narrow[index]), options)?,
        &narrow,
    );
    for block in wide.chunks(DECODED_ROWS) {
        let mut decoded = Decoded::default();
        let mut slots = vec![usize::MAX; golden.len()];
        let mut pairs = Vec::with_capacity(block.len());
        for &row in block {
            let slot = &mut slots[golden_of(row)];
            if *slot == usize::MAX {
                *slot = decoded.push(golden[golden_of(row)]);
            }
            pairs.push((*slot, decoded.push(texts[row])));
        }
        let pair = |index: usize| (decoded.get(pairs[index].0), decoded.get(pairs[index].1));
        scatter(
            &mut columns,
            &score_rows(block.len(), pair, options)?,
            block,
        );
    }
    Ok(columns)
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

fn scatter(into: &mut Columns, from: &Columns, rows: &[usize]) {
    for (index, &row) in rows.iter().enumerate() {
        into.first_divergence[row] = from.first_divergence[index];
        into.positional[row] = from.positional[index];
        if let Some(edits) = from.edit_distance.get(index) {
            into.edit_distance[row] = *edits;
        }
    }
}
