//! Storage formats.

use kvspec_core::Format;
use numpy::{IntoPyArray, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn};
use pyo3::prelude::*;

use crate::value_error;

/// Bits of a code.
#[pyfunction]
pub(crate) fn format_bits(format: &str) -> PyResult<u32> {
    Ok(Format::parse(format).map_err(value_error)?.bits())
}

/// Mask of a named set of bits of a code.
#[pyfunction]
pub(crate) fn format_mask(format: &str, bits: &str) -> PyResult<u32> {
    let format = Format::parse(format).map_err(value_error)?;
    format.mask(bits).map_err(value_error)
}

/// Codes nearest to float32 values, ties to even; the shape is kept.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "arguments from Python")]
pub(crate) fn encode<'py>(
    py: Python<'py>,
    format: &str,
    values: PyReadonlyArrayDyn<'py, f32>,
) -> PyResult<Bound<'py, PyArrayDyn<u32>>> {
    let format = Format::parse(format).map_err(value_error)?;
    let values = values.to_owned_array();
    let codes = py.detach(|| values.mapv_into_any(|value| format.encode(value.to_bits())));
    Ok(codes.into_pyarray(py))
}

/// Float32 values of codes, exact; the shape is kept.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "arguments from Python")]
pub(crate) fn decode<'py>(
    py: Python<'py>,
    format: &str,
    codes: PyReadonlyArrayDyn<'py, u32>,
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let format = Format::parse(format).map_err(value_error)?;
    let codes = codes.to_owned_array();
    let values = py.detach(|| codes.mapv_into_any(|code| f32::from_bits(format.decode(code))));
    Ok(values.into_pyarray(py))
}
