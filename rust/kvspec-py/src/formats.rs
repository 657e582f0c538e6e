//! Storage formats.

use kvspec_core::{Error, Format, SCALE_BITS, Target};
use numpy::{
    IntoPyArray, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArray2,
};
use pyo3::prelude::*;

use crate::value_error;

/// Bits of a code, or of a scale.
#[pyfunction]
#[pyo3(signature = (format, target = "values"))]
pub(crate) fn format_bits(format: &str, target: &str) -> PyResult<u32> {
    let format = Format::parse(format).map_err(value_error)?;
    match Target::parse(target).map_err(value_error)? {
        Target::Values => Ok(format.bits()),
        Target::Scales if format.scaled() => Ok(SCALE_BITS),
        Target::Scales => Err(value_error(Error::Unscaled {
            format: format.name(),
        })),
    }
}

/// Mask of a named set of bits of a code, or of a scale.
#[pyfunction]
#[pyo3(signature = (format, bits, target = "values"))]
pub(crate) fn format_mask(format: &str, bits: &str, target: &str) -> PyResult<u32> {
    let format = Format::parse(format).map_err(value_error)?;
    let mask = match Target::parse(target).map_err(value_error)? {
        Target::Values => format.mask(bits),
        Target::Scales => format.scale_mask(bits),
    };
    mask.map_err(value_error)
}

/// Whether the codes of a row share a scale.
#[pyfunction]
pub(crate) fn format_scaled(format: &str) -> PyResult<bool> {
    Ok(Format::parse(format).map_err(value_error)?.scaled())
}

/// Codes of float32 values; the shape is kept. Scaled formats take the scale of each row of the last axis.
#[pyfunction]
#[pyo3(signature = (format, values, scales = None))]
#[expect(clippy::needless_pass_by_value, reason = "arguments from Python")]
pub(crate) fn encode<'py>(
    py: Python<'py>,
    format: &str,
    values: PyReadonlyArrayDyn<'py, f32>,
    scales: Option<PyReadonlyArrayDyn<'py, f32>>,
) -> PyResult<Bound<'py, PyArrayDyn<u32>>> {
    let format = Format::parse(format).map_err(value_error)?;
    let mut codes = values.as_array().mapv(f32::to_bits);
    let scales = Scales::of(format, codes.shape(), scales.as_ref())?;
    py.detach(|| scales.each(&mut codes, |word, scale| format.encode(word, scale)));
    Ok(codes.into_pyarray(py))
}

/// Float32 values of codes; the shape is kept. Scaled formats take the scale of each row of the last axis.
#[pyfunction]
#[pyo3(signature = (format, codes, scales = None))]
#[expect(clippy::needless_pass_by_value, reason = "arguments from Python")]
pub(crate) fn decode<'py>(
    py: Python<'py>,
    format: &str,
    codes: PyReadonlyArrayDyn<'py, u32>,
    scales: Option<PyReadonlyArrayDyn<'py, f32>>,
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let format = Format::parse(format).map_err(value_error)?;
    let mut words = codes.to_owned_array();
    let scales = Scales::of(format, words.shape(), scales.as_ref())?;
    let values = py.detach(|| {
        scales.each(&mut words, |code, scale| format.decode(code, scale));
        words.mapv_into_any(f32::from_bits)
    });
    Ok(values.into_pyarray(py))
}

type Words = numpy::ndarray::ArrayD<u32>;

/// Scales of the rows of an array; empty for formats without.
struct Scales(Vec<u32>);

impl Scales {
    fn of(
        format: Format,
        shape: &[usize],
        scales: Option<&PyReadonlyArrayDyn<'_, f32>>,
    ) -> PyResult<Self> {
        if !format.scaled() {
            return Ok(Self(Vec::new()));
        }
        let format = format.name();
        let scales = scales.ok_or_else(|| value_error(Error::NoScales { format }))?;
        let scales = scales.as_array();
        let Some((_, rows)) = shape.split_last() else {
            return Err(value_error(Error::NoScales { format }));
        };
        if scales.shape() != rows {
            return Err(value_error(Error::Length {
                name: "scales",
                len: scales.len(),
                expected: rows.iter().product(),
            }));
        }
        Ok(Self(scales.iter().map(|scale| scale.to_bits()).collect()))
    }

    fn each(&self, words: &mut Words, change: impl Fn(u32, u32) -> u32) {
        if self.0.is_empty() {
            words.mapv_inplace(|word| change(word, 0));
            return;
        }
        for (mut row, &scale) in words.rows_mut().into_iter().zip(&self.0) {
            row.mapv_inplace(|word| change(word, scale));
        }
    }
}

/// Rows `[rows, D]` rounded to what the cache can hold, in place; the scale stored for each. `codes` takes the codes
/// of a format of up to 8 bits.
#[pyfunction]
#[pyo3(signature = (format, values, codes = None))]
pub(crate) fn quantize<'py>(
    py: Python<'py>,
    format: &str,
    mut values: PyReadwriteArray2<'py, f32>,
    mut codes: Option<PyReadwriteArray2<'py, u8>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let format = Format::parse(format).map_err(value_error)?;
    let mut values = values.as_array_mut();
    let mut codes = codes.as_mut().map(PyReadwriteArray2::as_array_mut);
    if let Some(codes) = &codes
        && (codes.dim() != values.dim() || format.bits() > u8::BITS)
    {
        return Err(value_error(Error::Length {
            name: "codes",
            len: codes.len(),
            expected: values.len(),
        }));
    }
    let scales: Vec<f32> = py.detach(|| {
        let mut words = vec![0; values.ncols()];
        let rows = values
            .rows_mut()
            .into_iter()
            .enumerate()
            .map(|(i, mut row)| {
                for (word, value) in words.iter_mut().zip(&row) {
                    *word = value.to_bits();
                }
                let scale = format.quantize_codes(&mut words);
                if let Some(codes) = &mut codes {
                    for (kept, &code) in codes.row_mut(i).iter_mut().zip(&words) {
                        *kept = code as u8;
                    }
                }
                for (value, &code) in row.iter_mut().zip(&words) {
                    *value = f32::from_bits(format.decode(code, scale));
                }
                f32::from_bits(scale)
            });
        rows.collect()
    });
    Ok(scales.into_pyarray(py))
}
