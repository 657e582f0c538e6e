//! Token ids: ragged numpy arrays.

use kvspec_core::drift::{self, Ragged, Tail};
use numpy::{Element, IntoPyArray, PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::{
    Column, Ids, Offsets, detail_options, details_to_dict, options, slice, to_dict, value_error,
};

/// Below these sizes a batch takes about a millisecond at most and is scored where it lies, with the GIL held. Above,
/// the arrays are copied first, because other Python threads could write to them once the GIL is gone.
const INLINE_SYMBOLS: usize = 1 << 17;
const INLINE_ROW: i64 = 512;

/// Token ids of both sides as they came from Python.
struct Tokens<'a> {
    golden_values: &'a [u32],
    golden_offsets: &'a [i64],
    values: &'a [u32],
    offsets: &'a [i64],
    golden_index: &'a [u32],
}

impl Tokens<'_> {
    fn small(&self) -> bool {
        let short = |offsets: &[i64]| {
            offsets
                .windows(2)
                .all(|pair| pair[1].saturating_sub(pair[0]) <= INLINE_ROW)
        };
        self.golden_values.len() + self.values.len() <= INLINE_SYMBOLS
            && short(self.golden_offsets)
            && short(self.offsets)
    }

    /// Runs `score` on the two sides, without the GIL unless that is not worth it.
    fn run<R: Send>(
        &self,
        py: Python<'_>,
        score: impl Fn(Ragged<'_, u32>, Ragged<'_, u32>, &[u32]) -> Result<R, drift::Error> + Sync,
    ) -> PyResult<R> {
        let call = |tokens: &Tokens<'_>| {
            let golden = Ragged::new(tokens.golden_values, tokens.golden_offsets)?;
            let trials = Ragged::new(tokens.values, tokens.offsets)?;
            score(golden, trials, tokens.golden_index)
        };
        if self.small() {
            return call(self).map_err(value_error);
        }
        let (golden_values, golden_offsets) =
            (self.golden_values.to_vec(), self.golden_offsets.to_vec());
        let (values, offsets, index) = (
            self.values.to_vec(),
            self.offsets.to_vec(),
            self.golden_index.to_vec(),
        );
        let copy = || Tokens {
            golden_values: &golden_values,
            golden_offsets: &golden_offsets,
            values: &values,
            offsets: &offsets,
            golden_index: &index,
        };
        py.detach(|| call(&copy())).map_err(value_error)
    }
}

/// The arguments of a function over token ids, read as slices.
macro_rules! tokens {
    ($golden_values:ident, $golden_offsets:ident, $values:ident, $offsets:ident, $golden_index:ident) => {
        Tokens {
            golden_values: slice("golden_values", &$golden_values)?,
            golden_offsets: slice("golden_offsets", &$golden_offsets)?,
            values: slice("values", &$values)?,
            offsets: slice("offsets", &$offsets)?,
            golden_index: slice("golden_index", &$golden_index)?,
        }
    };
}

/// An integer that may be a token id.
trait TokenId: Element + Copy {
    fn fits(self) -> bool;
    fn id(self) -> u32;
}

impl TokenId for i32 {
    fn fits(self) -> bool {
        self >= 0
    }

    fn id(self) -> u32 {
        self.cast_unsigned()
    }
}

impl TokenId for i64 {
    fn fits(self) -> bool {
        u32::try_from(self).is_ok()
    }

    #[expect(clippy::cast_sign_loss, reason = "what does not fit is refused")]
    fn id(self) -> u32 {
        self as u32
    }
}

impl TokenId for u32 {
    fn fits(self) -> bool {
        true
    }

    fn id(self) -> u32 {
        self
    }
}

/// Appends an array of `T`; false if it is something else or holds what is no token id.
fn append<T: TokenId>(array: &Bound<'_, PyAny>, values: &mut Vec<u32>) -> bool {
    let Ok(array) = array.cast::<PyArray1<T>>() else {
        return false;
    };
    let Ok(ids) = array.to_vec() else {
        return false;
    };
    values.extend(ids.iter().map(|id| id.id()));
    // No early exit: both loops stay vector loops.
    ids.iter().fold(true, |fits, id| fits & id.fits())
}

/// Lays one-dimensional arrays of token ids end to end. Returns values and offsets, or nothing if one of the arrays is
/// not contiguous, not of an integer type that is read here, or holds what is no token id.
#[pyfunction]
pub(crate) fn concatenate<'py>(
    py: Python<'py>,
    arrays: &Bound<'py, PyList>,
) -> Option<(Column<'py, u32>, Column<'py, i64>)> {
    let mut values = Vec::new();
    let mut offsets = Vec::with_capacity(arrays.len() + 1);
    offsets.push(0);
    for array in arrays.iter() {
        let read = append::<i32>(&array, &mut values)
            || append::<i64>(&array, &mut values)
            || append::<u32>(&array, &mut values);
        if !read {
            return None;
        }
        offsets.push(i64::try_from(values.len()).ok()?);
    }
    Some((values.into_pyarray(py), offsets.into_pyarray(py)))
}

/// Scores token ids of every trial against its golden output. See `kvspec.score.drift.score`.
#[pyfunction]
#[pyo3(signature = (golden_values, golden_offsets, values, offsets, golden_index, *, edit_distance=true, limit=None, threads=0))]
#[expect(
    clippy::too_many_arguments,
    clippy::needless_pass_by_value,
    reason = "a Python signature"
)]
pub(crate) fn score_tokens<'py>(
    py: Python<'py>,
    golden_values: Ids<'py>,
    golden_offsets: Offsets<'py>,
    values: Ids<'py>,
    offsets: Offsets<'py>,
    golden_index: Ids<'py>,
    edit_distance: bool,
    limit: Option<u32>,
    threads: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let tokens = tokens!(golden_values, golden_offsets, values, offsets, golden_index);
    let options = options(edit_distance, limit, threads);
    let columns = tokens.run(py, |golden, trials, index| {
        drift::score_tokens(golden, trials, index, options)
    })?;
    to_dict(py, columns, "token", edit_distance)
}

/// Lengths, common ends, mismatches and Indel distance of token ids.
#[pyfunction]
#[pyo3(signature = (golden_values, golden_offsets, values, offsets, golden_index, *, indel_distance=true, limit=None, threads=0))]
#[expect(
    clippy::too_many_arguments,
    clippy::needless_pass_by_value,
    reason = "a Python signature"
)]
pub(crate) fn detail_tokens<'py>(
    py: Python<'py>,
    golden_values: Ids<'py>,
    golden_offsets: Offsets<'py>,
    values: Ids<'py>,
    offsets: Offsets<'py>,
    golden_index: Ids<'py>,
    indel_distance: bool,
    limit: Option<u32>,
    threads: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let tokens = tokens!(golden_values, golden_offsets, values, offsets, golden_index);
    let options = detail_options(indel_distance, limit, threads);
    let details = tokens.run(py, |golden, trials, index| {
        drift::detail_tokens(golden, trials, index, options)
    })?;
    details_to_dict(py, details, indel_distance)
}

/// Per position: trials compared there, and trials that differ there.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "a Python signature")]
pub(crate) fn position_counts<'py>(
    py: Python<'py>,
    golden_values: Ids<'py>,
    golden_offsets: Offsets<'py>,
    values: Ids<'py>,
    offsets: Offsets<'py>,
    golden_index: Ids<'py>,
) -> PyResult<(Column<'py, u64>, Column<'py, u64>)> {
    let tokens = tokens!(golden_values, golden_offsets, values, offsets, golden_index);
    let counts = tokens.run(py, drift::position_counts)?;
    Ok((
        counts.compared.into_pyarray(py),
        counts.differing.into_pyarray(py),
    ))
}

/// Trials whose first divergence is at each position.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "a Python signature")]
pub(crate) fn first_divergence_histogram<'py>(
    py: Python<'py>,
    first_divergence: Offsets<'py>,
    positions: usize,
) -> PyResult<Column<'py, u64>> {
    let first = slice("first_divergence", &first_divergence)?;
    let histogram = drift::first_divergence_histogram(first, positions).map_err(value_error)?;
    Ok(histogram.into_pyarray(py))
}

/// Kaplan-Meier survival of undiverged outputs by position.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "a Python signature")]
pub(crate) fn survival<'py>(
    py: Python<'py>,
    first_divergence: Offsets<'py>,
    lengths: Ids<'py>,
    positions: usize,
) -> PyResult<Column<'py, f64>> {
    let first = slice("first_divergence", &first_divergence)?;
    let lengths = slice("lengths", &lengths)?;
    let curve = drift::survival(first, lengths, positions).map_err(value_error)?;
    Ok(curve.into_pyarray(py))
}

/// Length and period of the repeating stretch at the end of every row.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "a Python signature")]
pub(crate) fn periodic_tails<'py>(
    py: Python<'py>,
    values: Ids<'py>,
    offsets: Offsets<'py>,
    longest_period: usize,
) -> PyResult<(Column<'py, u32>, Column<'py, u32>)> {
    let (values, offsets) = (
        slice("values", &values)?.to_vec(),
        slice("offsets", &offsets)?.to_vec(),
    );
    let tails: Vec<Tail> = py
        .detach(|| {
            let rows = Ragged::new(&values, &offsets)?;
            Ok((0..rows.len())
                .map(|row| drift::periodic_tail(rows.row(row), longest_period))
                .collect())
        })
        .map_err(value_error)?;
    // A row is shorter than 2^31 symbols.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "Ragged refuses longer rows"
    )]
    let column = |part: fn(&Tail) -> usize| {
        PyArray1::from_iter(py, tails.iter().map(|tail| part(tail) as u32))
    };
    Ok((column(|tail| tail.length), column(|tail| tail.period)))
}
