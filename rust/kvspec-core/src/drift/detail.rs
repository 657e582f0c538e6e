//! What a report may want to know beyond the drift itself.

use pulp::Arch;

use super::edits::{Indel, Job, Scratch, solve, trim};
use super::parallel::Division;
use super::prefix::{common_prefix, common_suffix, mismatches};
use super::ragged::{Error, Ragged, check_index};
use super::symbol::Symbol;

/// One entry per trial in every column.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// Symbols of the golden output.
    pub golden_length: Vec<u32>,
    /// Symbols of the trial's output.
    pub length: Vec<u32>,
    /// Length of the longest common prefix.
    pub common_prefix: Vec<u32>,
    /// Length of the longest common suffix. It may overlap the prefix: `aba` and `aba c aba` share 3 at either end.
    pub common_suffix: Vec<u32>,
    /// Differing positions over the common length.
    pub mismatches: Vec<u32>,
    /// Least number of insertions and deletions; empty if not asked for. The longest common subsequence is as long as
    /// half of what it leaves of both lengths: `(golden_length + length - indel_distance) / 2`.
    pub indel_distance: Vec<u32>,
}

/// How details are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetailOptions {
    /// Whether the Indel distance is wanted.
    pub indel_distance: bool,
    /// Indel distances above this are reported as this plus one.
    pub limit: u32,
    /// Threads to use at most; 0 takes as many as the machine offers. The result does not depend on it.
    pub threads: usize,
}

impl Default for DetailOptions {
    fn default() -> Self {
        Self {
            indel_distance: true,
            limit: u32::MAX - 1,
            threads: 0,
        }
    }
}

impl Details {
    pub(super) fn new(rows: usize, indel_distance: bool) -> Self {
        Self {
            golden_length: vec![0; rows],
            length: vec![0; rows],
            common_prefix: vec![0; rows],
            common_suffix: vec![0; rows],
            mismatches: vec![0; rows],
            indel_distance: vec![0; if indel_distance { rows } else { 0 }],
        }
    }

    /// All columns in the order of their declaration.
    pub(super) fn columns_mut(&mut self) -> [&mut Vec<u32>; 6] {
        [
            &mut self.golden_length,
            &mut self.length,
            &mut self.common_prefix,
            &mut self.common_suffix,
            &mut self.mismatches,
            &mut self.indel_distance,
        ]
    }
}

/// Details of every trial against its golden output.
///
/// # Errors
/// If the golden indices do not fit the two sides.
pub fn detail_tokens(
    golden: Ragged<'_, u32>,
    trials: Ragged<'_, u32>,
    golden_index: &[u32],
    options: DetailOptions,
) -> Result<Details, Error> {
    check_index(golden_index, golden.len(), trials.len())?;
    let pair = |row: usize| (golden.row(golden_index[row] as usize), trials.row(row));
    Ok(detail_rows(trials.len(), pair, options))
}

/// Details of `rows` pairs given by a function.
pub(super) fn detail_rows<'a, T: Symbol>(
    rows: usize,
    pair: impl Fn(usize) -> (&'a [T], &'a [T]) + Sync,
    options: DetailOptions,
) -> Details {
    let mut details = Details::new(rows, options.indel_distance);
    let division = Division::new(rows, &pair, options.threads);
    let mut columns = details
        .columns_mut()
        .map(|column| column.chunks_mut(division.rows));
    let mut parts: Vec<(usize, [&mut [u32]; 6])> = (0..rows)
        .step_by(division.rows)
        .map(|first| {
            let columns = columns
                .each_mut()
                .map(|column| column.next().unwrap_or_default());
            (first, columns)
        })
        .collect();
    division.share(&mut parts, |(first, columns), scratch: &mut Scratch<T>| {
        let mut jobs = Vec::new();
        for index in 0..columns[0].len() {
            let (golden, faulty) = pair(*first + index);
            let prefix = common_prefix(golden, faulty);
            let values = [
                golden.len(),
                faulty.len(),
                prefix,
                common_suffix(golden, faulty),
                mismatches(golden, faulty),
            ];
            for (column, value) in columns.iter_mut().zip(values) {
                column[index] = value as u32;
            }
            if options.indel_distance {
                let (short, long) = trim(golden, faulty, prefix);
                if short.is_empty() {
                    columns[5][index] = (long.len() as u32).min(options.limit.saturating_add(1));
                } else {
                    jobs.push(Job {
                        short,
                        long,
                        row: index,
                        distance: 0,
                    });
                }
            }
        }
        solve::<Indel, T>(Arch::new(), &mut jobs, options.limit as usize, scratch);
        for job in jobs {
            columns[5][job.row] = job.distance;
        }
    });
    drop(parts);
    details
}
