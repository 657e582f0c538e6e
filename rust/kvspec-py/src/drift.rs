//! Golden diffing: arrays and strings in, one column per metric out.

use kvspec_core::drift::{self, Columns, Options, Ragged};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature that map_err wants"
)]
fn value_error(error: drift::Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// The slice behind a numpy argument, if it has one.
fn slice<'a, T: numpy::Element>(
    name: &str,
    array: &'a PyReadonlyArray1<'_, T>,
) -> PyResult<&'a [T]> {
    array
        .as_slice()
        .map_err(|_| PyValueError::new_err(format!("`{name}` is not contiguous")))
}

/// Below these sizes a batch takes about a millisecond at most and is scored where it lies, with the GIL held. Above,
/// the arrays are copied first, because other Python threads could write to them once the GIL is gone.
const INLINE_SYMBOLS: usize = 1 << 17;
const INLINE_ROW: i64 = 512;

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
    golden_values: PyReadonlyArray1<'py, u32>,
    golden_offsets: PyReadonlyArray1<'py, i64>,
    values: PyReadonlyArray1<'py, u32>,
    offsets: PyReadonlyArray1<'py, i64>,
    golden_index: PyReadonlyArray1<'py, u32>,
    edit_distance: bool,
    limit: Option<u32>,
    threads: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let golden_values = slice("golden_values", &golden_values)?;
    let golden_offsets = slice("golden_offsets", &golden_offsets)?;
    let values = slice("values", &values)?;
    let offsets = slice("offsets", &offsets)?;
    let golden_index = slice("golden_index", &golden_index)?;
    let options = options(edit_distance, limit, threads);
    let score = |golden_values: &[u32],
                 golden_offsets: &[i64],
                 values: &[u32],
                 offsets: &[i64],
                 index: &[u32]| {
        let golden = Ragged::new(golden_values, golden_offsets)?;
        let trials = Ragged::new(values, offsets)?;
        drift::score_tokens(golden, trials, index, options)
    };
    let longest = |offsets: &[i64]| {
        offsets
            .windows(2)
            .map(|pair| pair[1].saturating_sub(pair[0]))
            .max()
    };
    let small = golden_values.len() + values.len() <= INLINE_SYMBOLS
        && longest(golden_offsets) <= Some(INLINE_ROW)
        && longest(offsets) <= Some(INLINE_ROW);
    let columns = if small {
        score(golden_values, golden_offsets, values, offsets, golden_index)
    } else {
        let (golden_values, golden_offsets) = (golden_values.to_vec(), golden_offsets.to_vec());
        let (values, offsets, index) = (values.to_vec(), offsets.to_vec(), golden_index.to_vec());
        py.detach(|| score(&golden_values, &golden_offsets, &values, &offsets, &index))
    };
    to_dict(py, columns.map_err(value_error)?, "token", edit_distance)
}

/// Scores texts against their golden texts by Unicode code point. See `kvspec.score.drift.score`.
#[pyfunction]
#[pyo3(signature = (golden, texts, golden_index, *, edit_distance=true, limit=None, threads=0))]
#[expect(clippy::needless_pass_by_value, reason = "a Python signature")]
pub(crate) fn score_texts<'py>(
    py: Python<'py>,
    golden: &Bound<'py, PyList>,
    texts: &Bound<'py, PyList>,
    golden_index: PyReadonlyArray1<'py, u32>,
    edit_distance: bool,
    limit: Option<u32>,
    threads: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let index = slice("golden_index", &golden_index)?.to_vec();
    // The strong references keep the strings alive and Python strings never change, so the borrowed text outlives the
    // time without the GIL.
    let golden = strings("golden", golden)?;
    let texts = strings("texts", texts)?;
    let golden = borrow("golden", &golden)?;
    let texts = borrow("texts", &texts)?;
    let options = options(edit_distance, limit, threads);
    let columns = py.detach(|| drift::score_texts(&golden, &texts, &index, options));
    to_dict(py, columns.map_err(value_error)?, "char", edit_distance)
}

fn options(edit_distance: bool, limit: Option<u32>, threads: usize) -> Options {
    let limit = limit.unwrap_or(u32::MAX - 1);
    Options {
        edit_distance,
        limit,
        threads,
    }
}

fn strings<'py>(name: &str, list: &Bound<'py, PyList>) -> PyResult<Vec<Bound<'py, PyString>>> {
    let mut out = Vec::with_capacity(list.len());
    for (index, item) in list.iter().enumerate() {
        out.push(
            item.cast_into::<PyString>()
                .map_err(|_| PyTypeError::new_err(format!("`{name}[{index}]` is not a str")))?,
        );
    }
    Ok(out)
}

fn borrow<'a>(name: &str, strings: &'a [Bound<'_, PyString>]) -> PyResult<Vec<&'a str>> {
    let mut out = Vec::with_capacity(strings.len());
    for (index, string) in strings.iter().enumerate() {
        out.push(
            string
                .to_str()
                .map_err(|error| surrogate(string.py(), name, index, &error))?,
        );
    }
    Ok(out)
}

/// A `str` that is not valid Unicode has no UTF-8 form; everything else is passed on.
fn surrogate(py: Python<'_>, name: &str, index: usize, error: &PyErr) -> PyErr {
    match error
        .value(py)
        .getattr("start")
        .and_then(|start| start.extract::<usize>())
    {
        Ok(start) => PyValueError::new_err(format!(
            "`{name}[{index}]` has a lone surrogate at character {start}: it is not Unicode text"
        )),
        Err(_) => error.clone_ref(py),
    }
}

fn to_dict<'py>(
    py: Python<'py>,
    columns: Columns,
    unit: &str,
    edit_distance: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("exact", PyArray1::from_iter(py, columns.exact()))?;
    out.set_item(
        "first_divergence",
        columns.first_divergence.into_pyarray(py),
    )?;
    out.set_item(format!("{unit}_drift"), columns.positional.into_pyarray(py))?;
    if edit_distance {
        out.set_item(
            format!("{unit}_edit_distance"),
            columns.edit_distance.into_pyarray(py),
        )?;
    }
    Ok(out)
}
