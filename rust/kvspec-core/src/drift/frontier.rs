//! Furthest-reaching diagonals from both ends (Ukkonen 1985, met in the middle as in Myers 1986): the distance in time
//! proportional to its square, for pairs that are long and nearly equal.
//!
//! After `e` errors, `rows[d]` is the furthest row that a path of at most `e` edits reaches on diagonal `d` (column minus row).
//! Two searches, one from either end, take turns. Costs never fall along a diagonal, so a cheapest path of `D` edits
//! exists as soon as the two searches, of `D` errors in sum, touch or pass each other on some diagonal. Each visits a
//! quarter of the diagonals that one search alone would visit.

use super::edits::Edits;
use super::prefix::{common_prefix, common_suffix};
use super::symbol::Symbol;

/// Buffers that live as long as a batch.
#[derive(Default)]
pub(super) struct Scratch {
    forward: Rows,
    backward: Rows,
}

/// Furthest rows, by diagonal, after the last and the coming number of errors.
#[derive(Default)]
struct Rows {
    now: Vec<i32>,
    next: Vec<i32>,
}

/// Errors between two looks at the progress.
const PATIENCE: usize = 2;

/// Unreached diagonal. Far enough below zero that adding one keeps it there.
const UNREACHED: i32 = i32::MIN / 2;

/// Symbols compared at once.
const CHUNK: usize = 8;

/// The distance if it is at most `limit`, `limit + 1` if it is known to be more, and `None` if the search does not
/// promise to end within `budget` diagonals. `a` is not longer than `b`.
#[inline(always)]
pub(super) fn distance<E: Edits, T: Symbol>(
    a: &[T],
    b: &[T],
    limit: usize,
    budget: usize,
    scratch: &mut Scratch,
) -> Option<u32> {
    let whole = a.len() + b.len();
    let target = b.len() - a.len();
    // A search within the budget makes fewer errors in all, half of them from either end.
    let most = (2 * budget).isqrt() + PATIENCE;
    let centre = most / 2 + 2;
    let mut forward = Search::<T, false>::new(a, b, centre, &mut scratch.forward);
    let mut backward = Search::<T, true>::new(a, b, centre, &mut scratch.backward);
    for errors in 1..=most {
        if errors > limit {
            return Some(errors as u32);
        }
        if errors % 2 == 1 {
            forward.advance::<E>();
        } else {
            backward.advance::<E>();
        }
        let reached = (forward.reached + backward.reached) as usize;
        if reached >= whole && meet(&forward, &backward, target) {
            return Some(errors as u32);
        }
        // Errors so far reached this much of the whole; the rest will take as many in proportion.
        if errors.is_multiple_of(PATIENCE) {
            let foreseen = errors as u64 * whole as u64 / reached as u64;
            if foreseen * foreseen / 2 > budget as u64 {
                return None;
            }
        }
    }
    None
}

/// Whether the searches touch or pass each other on a diagonal.
#[inline(always)]
fn meet<T: Symbol>(
    forward: &Search<'_, T, false>,
    backward: &Search<'_, T, true>,
    target: usize,
) -> bool {
    let (rows, target) = (forward.a.len() as i32, target as i32);
    // Diagonal `d` of one search is diagonal `target - d` of the other.
    let first = (-forward.low).max(target - backward.high);
    let last = forward.high.min(target + backward.low);
    if first > last {
        return false;
    }
    let ahead = forward.rows(first, last).iter();
    let behind = backward.rows(target - last, target - first).iter().rev();
    ahead.zip(behind).any(|(x, y)| x + y >= rows)
}

/// The search from one end. `BACK` reads both sequences from their ends; rows and columns count from there.
struct Search<'a, T, const BACK: bool> {
    a: &'a [T],
    b: &'a [T],
    rows: &'a mut Rows,
    /// Index of diagonal 0.
    centre: i32,
    /// The diagonals `-low ..= high` are reached.
    low: i32,
    high: i32,
    /// The largest row plus column.
    reached: i32,
}

impl<'a, T: Symbol, const BACK: bool> Search<'a, T, BACK> {
    #[inline(always)]
    fn new(a: &'a [T], b: &'a [T], centre: usize, rows: &'a mut Rows) -> Self {
        for side in [&mut rows.now, &mut rows.next] {
            if side.len() <= 2 * centre {
                side.resize(2 * centre + 1, UNREACHED);
            }
        }
        let first = extend::<T, BACK>(a, b, 0, 0) as i32;
        rows.now[centre] = first;
        Self {
            a,
            b,
            rows,
            centre: centre as i32,
            low: 0,
            high: 0,
            reached: 2 * first,
        }
    }

    #[inline(always)]
    fn rows(&self, first: i32, last: i32) -> &[i32] {
        &self.rows.now[(self.centre + first) as usize..=(self.centre + last) as usize]
    }

    /// One error more.
    #[inline(always)]
    fn advance<E: Edits>(&mut self) {
        let (rows, cols) = (self.a.len() as i32, self.b.len() as i32);
        let (low, high) = ((self.low + 1).min(rows), (self.high + 1).min(cols));
        // What lies beyond the reached diagonals is left over from earlier pairs.
        let at = |diagonal: i32| (self.centre + diagonal) as usize;
        self.rows.now[at(-low - 1)..at(-self.low)].fill(UNREACHED);
        self.rows.now[at(self.high) + 1..=at(high + 1)].fill(UNREACHED);
        let now = &self.rows.now[at(-low - 1)..=at(high + 1)];
        let next = &mut self.rows.next[at(-low)..=at(high)];
        for ((row, from), diagonal) in next.iter_mut().zip(now.windows(3)).zip(-low..) {
            // A symbol of `b` alone comes from the diagonal below, one of `a` alone from above, a substitution stays.
            let stay = from[1] + i32::from(E::SUBSTITUTIONS);
            let furthest = from[0].max(stay).max(from[2] + 1);
            *row = furthest.min(rows).min(cols - diagonal);
        }
        for (row, diagonal) in next.iter_mut().zip(-low..) {
            *row = extend::<T, BACK>(self.a, self.b, *row as u32, (*row + diagonal) as u32) as i32;
        }
        let sums = next
            .iter()
            .zip(-low..)
            .map(|(row, diagonal)| 2 * row + diagonal);
        self.reached = sums.fold(0, i32::max);
        (self.low, self.high) = (low, high);
        std::mem::swap(&mut self.rows.now, &mut self.rows.next);
    }
}

/// The row that equal symbols lead to from `row` and `col`.
#[inline(always)]
fn extend<T: Symbol, const BACK: bool>(a: &[T], b: &[T], row: u32, col: u32) -> u32 {
    let (i, j) = (row as usize, col as usize);
    if let (Some(x), Some(y)) = (chunk::<T, BACK>(a, i), chunk::<T, BACK>(b, j)) {
        let equal = if BACK {
            T::equal_last(x, y)
        } else {
            T::equal_first(x, y)
        };
        if equal < CHUNK {
            return row + equal as u32;
        }
    }
    let equal = if BACK {
        common_suffix(&a[..a.len() - i], &b[..b.len() - j])
    } else {
        common_prefix(&a[i..], &b[j..])
    };
    row + equal as u32
}

/// The next symbols at position `at`, counted from the beginning or from the end.
#[inline(always)]
fn chunk<T, const BACK: bool>(symbols: &[T], at: usize) -> Option<&[T; CHUNK]> {
    let start = if BACK {
        symbols.len().checked_sub(at + CHUNK)?
    } else {
        at
    };
    symbols.get(start..start + CHUNK)?.first_chunk()
}
