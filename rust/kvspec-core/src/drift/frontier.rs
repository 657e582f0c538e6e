//! Furthest-reaching diagonals (Ukkonen 1985): edit distance in time proportional to its square, for pairs that are
//! long and nearly equal.

use super::prefix::common_prefix;
use super::symbol::Symbol;

/// Buffers that live as long as a batch.
#[derive(Default)]
pub(super) struct Scratch {
    before: Vec<i32>,
    after: Vec<i32>,
}

/// Steps between two looks at the progress.
const PATIENCE: usize = 2;

/// Unreached diagonal. Far enough below zero that adding one keeps it there.
const UNREACHED: i32 = i32::MIN / 2;

/// The edit distance if it is at most `limit` and the search promises to touch fewer than `budget` diagonals, else
/// `None`. `a` is not longer than `b`.
#[inline(always)]
pub(super) fn distance<T: Symbol>(
    a: &[T],
    b: &[T],
    limit: usize,
    budget: usize,
    scratch: &mut Scratch,
) -> Option<u32> {
    let (rows, cols) = (a.len() as i32, b.len() as i32);
    let target = cols - rows;
    let extend = |row: i32, diagonal: i32| {
        let (i, j) = (row as usize, (row + diagonal) as usize);
        match (a.get(i), b.get(j)) {
            (Some(x), Some(y)) if x == y => row + common_prefix(&a[i..], &b[j..]) as i32,
            _ => row,
        }
    };
    // No search within the budget visits more diagonals than this on either side of diagonal 0.
    let reach = (budget.isqrt() + PATIENCE + 1)
        .min(limit + 1)
        .min(b.len() + 1);
    let centre = reach as i32 + 1;
    for side in [&mut scratch.before, &mut scratch.after] {
        side.clear();
        side.resize(2 * reach + 3, UNREACHED);
    }
    let first = extend(0, 0);
    if target == 0 && first == rows {
        return Some(0);
    }
    scratch.before[centre as usize] = first;
    let mut visited = 1;
    for errors in 1..=limit.min(reach) {
        let (low, high) = ((errors as i32).min(rows), (errors as i32).min(cols));
        let mut furthest = 0;
        for diagonal in -low..=high {
            let at = (centre + diagonal) as usize;
            let before = &scratch.before[at - 1..=at + 1];
            // A symbol of `b` alone comes from the diagonal below, one of `a` alone from above, a substitution stays.
            let row = before[0]
                .max(before[1] + 1)
                .max(before[2] + 1)
                .min(rows)
                .min(cols - diagonal);
            let row = extend(row, diagonal);
            scratch.after[at] = row;
            furthest = furthest.max(2 * row + diagonal);
            if diagonal == target && row == rows {
                return Some(errors as u32);
            }
        }
        visited += 2 * errors + 1;
        if errors.is_multiple_of(PATIENCE) {
            // Errors so far reached `furthest` of `rows + cols`; the rest will take as many in proportion.
            let whole = (errors as u64 * (rows + cols) as u64) / (furthest.max(1) as u64);
            if visited > budget || whole * whole > budget as u64 {
                return None;
            }
        }
        std::mem::swap(&mut scratch.before, &mut scratch.after);
    }
    None
}
