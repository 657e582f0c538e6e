//! Texts: lists of Python strings.

use kvspec_core::drift::{self, Text};
use pyo3::Borrowed;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use super::{Ids, detail_options, details_to_dict, options, slice, to_dict, value_error};

/// Scores texts against their golden texts by Unicode code point, or by byte of their UTF-8 forms. See `kvspec.score.drift.score`.
#[pyfunction]
#[pyo3(signature = (golden, texts, golden_index, *, edit_distance=true, limit=None, by_byte=false, threads=0))]
#[expect(
    clippy::too_many_arguments,
    clippy::needless_pass_by_value,
    reason = "a Python signature"
)]
pub(crate) fn score_texts<'py>(
    py: Python<'py>,
    golden: &Bound<'py, PyList>,
    texts: &Bound<'py, PyList>,
    golden_index: Ids<'py>,
    edit_distance: bool,
    limit: Option<u32>,
    by_byte: bool,
    threads: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let options = options(edit_distance, limit, threads);
    let columns = with_texts(
        py,
        (golden, texts),
        &golden_index,
        by_byte,
        |golden, texts, index| drift::score_texts(golden, texts, index, options),
    )?;
    to_dict(py, columns, "char", edit_distance)
}

/// Lengths, common ends, mismatches and Indel distance of texts, in Unicode code points.
#[pyfunction]
#[pyo3(signature = (golden, texts, golden_index, *, indel_distance=true, limit=None, threads=0))]
#[expect(clippy::needless_pass_by_value, reason = "a Python signature")]
pub(crate) fn detail_texts<'py>(
    py: Python<'py>,
    golden: &Bound<'py, PyList>,
    texts: &Bound<'py, PyList>,
    golden_index: Ids<'py>,
    indel_distance: bool,
    limit: Option<u32>,
    threads: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let options = detail_options(indel_distance, limit, threads);
    let details = with_texts(
        py,
        (golden, texts),
        &golden_index,
        false,
        |golden, texts, index| drift::detail_texts(golden, texts, index, options),
    )?;
    details_to_dict(py, details, indel_distance)
}

/// Runs `score` on borrowed texts without the GIL. The tuples hold the strings, and neither they nor Python strings ever
/// change, so the borrowed text outlives the call.
fn with_texts<R: Send>(
    py: Python<'_>,
    (golden, texts): (&Bound<'_, PyList>, &Bound<'_, PyList>),
    golden_index: &Ids<'_>,
    by_byte: bool,
    score: impl Fn(&[Text<'_>], &[Text<'_>], &[u32]) -> Result<R, drift::Error> + Sync,
) -> PyResult<R> {
    let index = slice("golden_index", golden_index)?.to_vec();
    let (golden, texts) = (golden.to_tuple(), texts.to_tuple());
    let (golden, texts) = (strings("golden", &golden)?, strings("texts", &texts)?);
    let golden = borrow("golden", &golden, by_byte)?;
    let texts = borrow("texts", &texts, by_byte)?;
    py.detach(|| score(&golden, &texts, &index))
        .map_err(value_error)
}

fn strings<'a, 'py>(
    name: &str,
    tuple: &'a Bound<'py, PyTuple>,
) -> PyResult<Vec<Borrowed<'a, 'py, PyString>>> {
    let mut out = Vec::with_capacity(tuple.len());
    for (index, item) in tuple.iter_borrowed().enumerate() {
        out.push(
            item.cast::<PyString>()
                .map_err(|_| PyTypeError::new_err(format!("`{name}[{index}]` is not a str")))?,
        );
    }
    Ok(out)
}

fn borrow<'a>(
    name: &str,
    strings: &'a [Borrowed<'_, '_, PyString>],
    by_byte: bool,
) -> PyResult<Vec<Text<'a>>> {
    let mut out = Vec::with_capacity(strings.len());
    for (index, string) in strings.iter().enumerate() {
        let text = string
            .to_str()
            .map_err(|error| surrogate(string.py(), name, index, &error))?;
        // A `str` knows its length. A subclass may claim another one.
        out.push(if by_byte {
            Text::by_byte(text)
        } else if string.is_exact_instance_of::<PyString>() {
            Text::with_length(text, string.len()?)
        } else {
            Text::from(text)
        });
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
