//! Scoring many trials at once.

use pulp::{Arch, NullaryFnOnce};

use super::edits::{Job, Levenshtein, Scratch, solve, trim};
use super::parallel::Division;
use super::prefix::{common_prefix, mismatches};
use super::ragged::{Error, Ragged, check_index};
use super::symbol::Symbol;

/// How a batch is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether the edit distance is wanted; it is the only metric that costs more than reading the data.
    pub edit_distance: bool,
    /// Edit distances above this are reported as this plus one.
    pub limit: u32,
    /// Threads to use at most; 0 takes as many as the machine offers. The result does not depend on it.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            edit_distance: true,
            limit: u32::MAX - 1,
            threads: 0,
        }
    }
}

/// One entry per trial in every column.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// First differing position, the shorter length if one is a prefix of the other, -1 if identical.
    pub first_divergence: Vec<i64>,
    /// Differing positions over the common length plus the difference of the lengths.
    pub positional: Vec<u32>,
    /// Levenshtein distance; empty if not asked for.
    pub edit_distance: Vec<u32>,
}

impl Columns {
    /// Columns of `rows` zeros.
    pub(super) fn new(rows: usize, options: Options) -> Self {
        let edits = if options.edit_distance { rows } else { 0 };
        Self {
            first_divergence: vec![0; rows],
            positional: vec![0; rows],
            edit_distance: vec![0; edits],
        }
    }

    /// Whether the trial equals its golden output.
    #[must_use]
    pub fn exact(&self) -> impl ExactSizeIterator<Item = bool> + '_ {
        self.first_divergence.iter().map(|&first| first < 0)
    }
}

/// Scores every trial against its golden output.
///
/// # Errors
/// If the golden indices do not fit the two sides.
pub fn score_tokens(
    golden: Ragged<'_, u32>,
    trials: Ragged<'_, u32>,
    golden_index: &[u32],
    options: Options,
) -> Result<Columns, Error> {
    check_index(golden_index, golden.len(), trials.len())?;
    let pair = |row: usize| (golden.row(golden_index[row] as usize), trials.row(row));
    Ok(score_rows(trials.len(), pair, options))
}

/// Scores `rows` pairs given by a function.
pub(super) fn score_rows<'a, T: Symbol>(
    rows: usize,
    pair: impl Fn(usize) -> (&'a [T], &'a [T]) + Sync,
    options: Options,
) -> Columns {
    let arch = Arch::new();
    let mut columns = Columns::new(rows, options);
    let division = Division::new(rows, &pair, options.threads);
    let mut parts: Vec<Part<'_>> = split(&mut columns, division.rows);
    division.share(&mut parts, |part, scratch: &mut Scratch<T>| {
        let mut jobs = compare(arch, part, &pair, options);
        solve::<Levenshtein, T>(arch, &mut jobs, options.limit as usize, scratch);
        for job in jobs {
            part.edit_distance[job.row - part.first_row] = job.distance;
        }
    });
    columns
}

/// A run of rows and where their results go.
struct Part<'a> {
    first_row: usize,
    first_divergence: &'a mut [i64],
    positional: &'a mut [u32],
    edit_distance: &'a mut [u32],
}

fn split(columns: &mut Columns, rows: usize) -> Vec<Part<'_>> {
    let mut edits = columns.edit_distance.chunks_mut(rows);
    let cheap = columns
        .first_divergence
        .chunks_mut(rows)
        .zip(columns.positional.chunks_mut(rows));
    cheap
        .enumerate()
        .map(|(index, (first_divergence, positional))| Part {
            first_row: index * rows,
            first_divergence,
            positional,
            edit_distance: edits.next().unwrap_or_default(),
        })
        .collect()
}

/// Fills the cheap columns and the distances that follow from them; returns the pairs that still need a kernel.
fn compare<'a, T: Symbol>(
    arch: Arch,
    part: &mut Part<'_>,
    pair: &impl Fn(usize) -> (&'a [T], &'a [T]),
    options: Options,
) -> Vec<Job<'a, T>> {
    arch.dispatch(Compare {
        part,
        pair,
        options,
        symbol: std::marker::PhantomData,
    })
}

struct Compare<'p, 'q, 'f, F, T> {
    part: &'p mut Part<'q>,
    pair: &'f F,
    options: Options,
    symbol: std::marker::PhantomData<T>,
}

impl<'a, T: Symbol, F: Fn(usize) -> (&'a [T], &'a [T])> NullaryFnOnce
    for Compare<'_, '_, '_, F, T>
{
    type Output = Vec<Job<'a, T>>;

    #[inline(always)]
    fn call(self) -> Self::Output {
        let Self {
            part,
            pair,
            options,
            ..
        } = self;
        let mut jobs = Vec::new();
        for index in 0..part.positional.len() {
            let row = part.first_row + index;
            let (golden, faulty) = pair(row);
            // Counting starts at the beginning although the common prefix cannot differ: the loop then runs as long for
            // every row of a length, which the processor foresees, and an exact row needs no second look.
            let differing = mismatches(golden, faulty);
            let positional = differing + golden.len().abs_diff(faulty.len());
            if positional == 0 {
                part.first_divergence[index] = -1;
                continue;
            }
            let prefix = common_prefix(golden, faulty);
            part.first_divergence[index] = prefix as i64;
            part.positional[index] = positional as u32;
            if !options.edit_distance {
                continue;
            }
            let (short, long) = trim(golden, faulty, prefix);
            if short.is_empty() || long.len() == 1 {
                part.edit_distance[index] =
                    (long.len() as u32).min(options.limit.saturating_add(1));
            } else {
                jobs.push(Job {
                    short,
                    long,
                    row,
                    distance: 0,
                });
            }
        }
        jobs
    }
}
