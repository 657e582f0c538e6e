//! Golden diffing: arrays and strings in, one column per metric out.

pub(crate) mod logprobs;
pub(crate) mod texts;
pub(crate) mod tokens;

use kvspec_core::drift::{self, Columns, DetailOptions, Details, Options};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

type Ids<'py> = PyReadonlyArray1<'py, u32>;
type Offsets<'py> = PyReadonlyArray1<'py, i64>;
type Column<'py, T> = Bound<'py, PyArray1<T>>;

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

fn options(edit_distance: bool, limit: Option<u32>, threads: usize) -> Options {
    let limit = limit.unwrap_or(u32::MAX - 1);
    Options {
        edit_distance,
        limit,
        threads,
    }
}

fn detail_options(indel_distance: bool, limit: Option<u32>, threads: usize) -> DetailOptions {
    let limit = limit.unwrap_or(u32::MAX - 1);
    DetailOptions {
        indel_distance,
        limit,
        threads,
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

fn details_to_dict(
    py: Python<'_>,
    details: Details,
    indel_distance: bool,
) -> PyResult<Bound<'_, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("golden_length", details.golden_length.into_pyarray(py))?;
    out.set_item("length", details.length.into_pyarray(py))?;
    out.set_item("common_prefix", details.common_prefix.into_pyarray(py))?;
    out.set_item("common_suffix", details.common_suffix.into_pyarray(py))?;
    out.set_item("mismatches", details.mismatches.into_pyarray(py))?;
    if indel_distance {
        out.set_item("indel_distance", details.indel_distance.into_pyarray(py))?;
    }
    Ok(out)
}
