//! Where outputs diverge, over all trials of a cell.

use super::ragged::{Error, MOST_POSITIONS, Ragged, check_index};

/// How many trials were compared at a position, and how many differed there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PositionCounts {
    /// Trials in which golden and faulty output both have this position.
    pub compared: Vec<u64>,
    /// Those of them whose symbols differ there.
    pub differing: Vec<u64>,
}

/// Counts differing symbols per position, up to the longest golden output.
///
/// # Errors
/// If the golden indices do not fit the two sides.
pub fn position_counts(
    golden: Ragged<'_, u32>,
    trials: Ragged<'_, u32>,
    golden_index: &[u32],
) -> Result<PositionCounts, Error> {
    check_index(golden_index, golden.len(), trials.len())?;
    let longest = (0..golden.len())
        .map(|row| golden.row(row).len())
        .max()
        .unwrap_or(0);
    let mut counts = PositionCounts {
        compared: vec![0; longest],
        differing: vec![0; longest],
    };
    // Trials that end at a position, added up from behind afterwards: one write a trial instead of one a symbol.
    let mut ends = vec![0; longest + 1];
    for (row, &index) in golden_index.iter().enumerate() {
        let (golden, faulty) = (golden.row(index as usize), trials.row(row));
        for (count, (a, b)) in counts.differing.iter_mut().zip(golden.iter().zip(faulty)) {
            *count += u64::from(a != b);
        }
        ends[golden.len().min(faulty.len())] += 1;
    }
    let mut alive = 0;
    for (compared, ended) in counts.compared.iter_mut().zip(&ends[1..]).rev() {
        alive += ended;
        *compared = alive;
    }
    Ok(counts)
}

/// How many trials diverge first at each position below `positions`. Later divergence and none (-1) are not counted.
///
/// # Errors
/// If the positions are too many.
pub fn first_divergence_histogram(
    first_divergence: &[i64],
    positions: usize,
) -> Result<Vec<u64>, Error> {
    if positions > MOST_POSITIONS {
        return Err(Error::TooManyPositions { positions });
    }
    let mut histogram = vec![0; positions];
    for &first in first_divergence {
        if let Some(count) = usize::try_from(first)
            .ok()
            .and_then(|first| histogram.get_mut(first))
        {
            *count += 1;
        }
    }
    Ok(histogram)
}

/// Kaplan-Meier estimate of `P(no divergence before position t)` for `t` in `0..=positions`.
///
/// `S(0) = 1` and `S(t + 1) = S(t) (1 - diverged(t) / at_risk(t))`, where `at_risk(t)` are the trials that had not
/// diverged before `t` and whose output goes on to position `t`. A trial that stays identical leaves the risk set at its
/// end, so outputs of different lengths can be drawn into one curve. A position with nobody at risk leaves S unchanged.
///
/// `lengths` is the length of the identical output where `first_divergence` is -1 and not read elsewhere.
///
/// # Errors
/// If the two slices differ in length, or the positions are too many.
pub fn survival(
    first_divergence: &[i64],
    lengths: &[u32],
    positions: usize,
) -> Result<Vec<f64>, Error> {
    if first_divergence.len() != lengths.len() {
        return Err(Error::ShapeMismatch {
            expected: first_divergence.len(),
            given: lengths.len(),
        });
    }
    let diverged = first_divergence_histogram(first_divergence, positions)?;
    let mut left = vec![0_u64; positions];
    for (&first, &length) in first_divergence.iter().zip(lengths) {
        if first < 0
            && let Some(count) = left.get_mut(length as usize)
        {
            *count += 1;
        }
    }
    let mut at_risk = first_divergence.len() as u64;
    let mut curve = Vec::with_capacity(positions + 1);
    let mut alive = 1.0;
    curve.push(alive);
    for (diverged, left) in diverged.into_iter().zip(left) {
        // An identical output of length t has no position t, so it leaves before the divergences at t are counted.
        at_risk -= left;
        if at_risk > 0 {
            alive *= 1.0 - diverged as f64 / at_risk as f64;
        }
        at_risk -= diverged;
        curve.push(alive);
    }
    Ok(curve)
}
