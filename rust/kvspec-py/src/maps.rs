//! Fault maps: validation of columns from outside, application to a cache.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use kvspec_core::{Layout, Op, SiteBounds, SiteCheck, SiteError, Sites, Word};
use numpy::{Element, PyReadonlyArray1, PyReadwriteArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::value_error;

/// Borrowed columns. The GIL is held as long as they are looked at, so that no other thread changes what was
/// checked.
pub(crate) struct ColumnArrays<'py> {
    request: PyReadonlyArray1<'py, u32>,
    step: Option<PyReadonlyArray1<'py, u32>>,
    layer: PyReadonlyArray1<'py, u16>,
    kv: PyReadonlyArray1<'py, u8>,
    head: PyReadonlyArray1<'py, u16>,
    token: PyReadonlyArray1<'py, u32>,
    elem: PyReadonlyArray1<'py, u16>,
    bit: PyReadonlyArray1<'py, u8>,
}

impl<'py> ColumnArrays<'py> {
    pub(crate) fn new(columns: &Bound<'py, PyDict>) -> PyResult<Self> {
        Ok(Self {
            request: required(columns, "request")?,
            step: optional(columns, "step")?,
            layer: required(columns, "layer")?,
            kv: required(columns, "kv")?,
            head: required(columns, "head")?,
            token: required(columns, "token")?,
            elem: required(columns, "elem")?,
            bit: required(columns, "bit")?,
        })
    }

    pub(crate) fn sites(&self) -> PyResult<Sites<'_>> {
        Ok(Sites {
            request: slice("request", &self.request)?,
            step: self
                .step
                .as_ref()
                .map(|step| slice("step", step))
                .transpose()?,
            layer: slice("layer", &self.layer)?,
            kv: slice("kv", &self.kv)?,
            head: slice("head", &self.head)?,
            token: slice("token", &self.token)?,
            elem: slice("elem", &self.elem)?,
            bit: slice("bit", &self.bit)?,
        })
    }
}

fn optional<'py, T: Element>(
    columns: &Bound<'py, PyDict>,
    name: &str,
) -> PyResult<Option<PyReadonlyArray1<'py, T>>> {
    let Some(column) = columns.get_item(name)? else {
        return Ok(None);
    };
    let array = column.extract().map_err(|_| {
        PyValueError::new_err(format!(
            "column {name} is not a one-dimensional array of {} bits",
            8 * size_of::<T>()
        ))
    })?;
    Ok(Some(array))
}

fn required<'py, T: Element>(
    columns: &Bound<'py, PyDict>,
    name: &str,
) -> PyResult<PyReadonlyArray1<'py, T>> {
    optional(columns, name)?
        .ok_or_else(|| PyValueError::new_err(format!("column {name} is missing")))
}

pub(crate) fn slice<'a, T: Element>(
    name: &str,
    array: &'a PyReadonlyArray1<'_, T>,
) -> PyResult<&'a [T]> {
    array
        .as_slice()
        .map_err(|_| PyValueError::new_err(format!("column {name} is not contiguous")))
}

/// A streaming check of a fault map.
#[pyclass(frozen, module = "kvspec._native")]
pub(crate) struct MapCheck(Mutex<SiteCheck>);

type Limits = (u64, u64);
/// (kind, column, row, message)
type Finding = (&'static str, &'static str, u64, String);

#[pymethods]
impl MapCheck {
    #[new]
    #[pyo3(signature = (*, request, step, layer, kv, head, token, elem, bit))]
    #[expect(clippy::too_many_arguments, reason = "keywords of the Python API")]
    fn new(
        request: Limits,
        step: Option<Limits>,
        layer: Limits,
        kv: Limits,
        head: Limits,
        token: Limits,
        elem: Limits,
        bit: Limits,
    ) -> Self {
        Self(Mutex::new(SiteCheck::new(SiteBounds {
            request: range(request),
            step: step.map(range),
            layer: range(layer),
            kv: range(kv),
            head: range(head),
            token: range(token),
            elem: range(elem),
            bit: range(bit),
        })))
    }

    fn push(&self, columns: &Bound<'_, PyDict>) -> PyResult<Option<Finding>> {
        let arrays = ColumnArrays::new(columns)?;
        let sites = arrays.sites()?;
        let mut check = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(check.push(&sites).err().map(finding))
    }

    #[getter]
    fn rows(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).rows()
    }
}

fn range((start, end): Limits) -> Range<u64> {
    start..end
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature that map wants"
)]
fn finding(error: SiteError) -> Finding {
    let (kind, column, row) = match error {
        SiteError::Bounds { column, row, .. } => ("bounds", column, row),
        SiteError::Order { row } => ("order", "", row),
        SiteError::Duplicate { row } => ("duplicate", "", row),
        SiteError::Length { column, .. } => ("length", column, 0),
        _ => ("step", "step", 0),
    };
    (kind, column, row, error.to_string())
}

/// Storage words of a cache.
#[derive(FromPyObject)]
pub(crate) enum Words<'py> {
    Byte(PyReadwriteArray1<'py, u8>),
    Half(PyReadwriteArray1<'py, u16>),
    Full(PyReadwriteArray1<'py, u32>),
}

/// Applies a map to a cache.
#[pyfunction]
#[pyo3(signature = (words, columns, *, shape, strides, base = 0, op = "flip"))]
pub(crate) fn apply_map(
    words: Words<'_>,
    columns: &Bound<'_, PyDict>,
    shape: [usize; 6],
    strides: [isize; 6],
    base: usize,
    op: &str,
) -> PyResult<()> {
    let op = Op::parse(op).map_err(value_error)?;
    let arrays = ColumnArrays::new(columns)?;
    let sites = arrays.sites()?;
    let layout = Layout {
        base,
        shape,
        strides,
    };
    match words {
        Words::Byte(words) => apply(words, &sites, &layout, op),
        Words::Half(words) => apply(words, &sites, &layout, op),
        Words::Full(words) => apply(words, &sites, &layout, op),
    }
}

fn apply<W: Word + Element>(
    mut words: PyReadwriteArray1<'_, W>,
    sites: &Sites<'_>,
    layout: &Layout,
    op: Op,
) -> PyResult<()> {
    let words = words
        .as_slice_mut()
        .map_err(|_| PyValueError::new_err("words is not contiguous"))?;
    // A step column takes part in the order only: the caller chooses which read event it applies.
    kvspec_core::scatter(words, sites, layout, op).map_err(value_error)
}
