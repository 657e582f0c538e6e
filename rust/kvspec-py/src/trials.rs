//! The trials of a campaign and the faults of its steps.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kvspec_core::{CacheTables, Format, Key, LayerCache, Op, Site, StepRows, Target, Trials};
use numpy::{
    IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray4,
    PyReadwriteArrayDyn,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::sampling::{Sampler, Selector};
use crate::value_error;

/// The fault entries of all trials of a campaign.
#[pyclass(frozen, module = "kvspec._native")]
pub(crate) struct TrialTable(kvspec_core::TrialTable);

#[pymethods]
impl TrialTable {
    #[new]
    #[pyo3(signature = (*, layers, samplers, selectors, sampler, selector, write_key, request, prompt_len,
                        site = None, op = None, target = None, read_master = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of the Python API")]
    #[expect(clippy::needless_pass_by_value, reason = "arguments from Python")]
    fn new(
        layers: u32,
        samplers: Vec<Py<Sampler>>,
        selectors: Vec<Py<Selector>>,
        sampler: PyReadonlyArray1<'_, u32>,
        selector: PyReadonlyArray1<'_, u32>,
        write_key: PyReadonlyArray2<'_, u32>,
        request: PyReadonlyArray1<'_, u32>,
        prompt_len: PyReadonlyArray1<'_, u32>,
        site: Option<Vec<String>>,
        op: Option<Vec<String>>,
        target: Option<Vec<String>>,
        read_master: Option<PyReadonlyArray2<'_, u32>>,
    ) -> PyResult<Self> {
        let site: Result<_, _> = site.iter().flatten().map(|x| Site::parse(x)).collect();
        let op: Result<_, _> = op.iter().flatten().map(|x| Op::parse(x)).collect();
        let target: Result<_, _> = target.iter().flatten().map(|x| Target::parse(x)).collect();
        let read_master = read_master.map(|masters| keys("read_master", &masters));
        let trials = Trials {
            sampler: column(&sampler),
            selector: column(&selector),
            write_key: keys("write_key", &write_key)?,
            request: column(&request),
            prompt_len: column(&prompt_len),
            site: site.map_err(value_error)?,
            op: op.map_err(value_error)?,
            target: target.map_err(value_error)?,
            read_master: read_master.transpose()?.unwrap_or_default(),
        };
        let samplers = samplers.iter().map(|x| x.get().0.clone()).collect();
        let selectors = selectors.iter().map(|x| x.get().0.clone()).collect();
        kvspec_core::TrialTable::new(layers, samplers, selectors, &trials)
            .map(Self)
            .map_err(value_error)
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    #[pyo3(signature = (entry, written))]
    #[expect(clippy::needless_pass_by_value, reason = "arguments from Python")]
    fn planned<'py>(
        &self,
        py: Python<'py>,
        entry: PyReadonlyArray1<'py, u32>,
        written: PyReadonlyArray1<'py, u32>,
    ) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let (entry, written) = (column(&entry), column(&written));
        let flips = py.detach(|| self.0.planned(&entry, &written));
        Ok(flips.map_err(value_error)?.into_pyarray(py))
    }

    #[pyo3(signature = (*, entry, row, start, count))]
    #[expect(clippy::needless_pass_by_value, reason = "arguments from Python")]
    fn write_step(
        &self,
        py: Python<'_>,
        entry: PyReadonlyArray1<'_, u32>,
        row: PyReadonlyArray1<'_, u32>,
        start: PyReadonlyArray1<'_, u32>,
        count: PyReadonlyArray1<'_, u32>,
    ) -> PyResult<StepFaults> {
        OwnedRows::new([&entry, &row, &start, &count]).faults(py, |rows| self.0.write_step(rows))
    }

    #[pyo3(signature = (*, entry, row, start, count))]
    #[expect(clippy::needless_pass_by_value, reason = "arguments from Python")]
    fn read_step(
        &self,
        py: Python<'_>,
        entry: PyReadonlyArray1<'_, u32>,
        row: PyReadonlyArray1<'_, u32>,
        start: PyReadonlyArray1<'_, u32>,
        count: PyReadonlyArray1<'_, u32>,
    ) -> PyResult<StepFaults> {
        OwnedRows::new([&entry, &row, &start, &count]).faults(py, |rows| self.0.read_step(rows))
    }
}

/// Entry, row, start and count of a step.
pub(crate) struct OwnedRows([Vec<u32>; 4]);

impl OwnedRows {
    pub(crate) fn new(columns: [&PyReadonlyArray1<'_, u32>; 4]) -> Self {
        Self(columns.map(column))
    }

    /// What a table finds for these rows, without the GIL.
    pub(crate) fn faults(
        &self,
        py: Python<'_>,
        find: impl FnOnce(&StepRows<'_>) -> Result<kvspec_core::StepFaults, kvspec_core::Error> + Send,
    ) -> PyResult<StepFaults> {
        let [entry, row, start, count] = &self.0;
        let rows = StepRows {
            entry,
            row,
            start,
            count,
        };
        let faults = py.detach(|| find(&rows)).map_err(value_error)?;
        Ok(StepFaults(Mutex::new(faults)))
    }
}

/// A copy of `[n, 2]` words as keys.
fn keys(name: &str, array: &PyReadonlyArray2<'_, u32>) -> PyResult<Vec<Key>> {
    let keys = array.as_array();
    if keys.ncols() != 2 {
        let shape = keys.shape();
        return Err(PyValueError::new_err(format!(
            "{name} has shape {shape:?} instead of [n, 2]"
        )));
    }
    Ok(keys
        .rows()
        .into_iter()
        .map(|key| [key[0], key[1]])
        .collect())
}

/// A copy of a column, since Python may write to its buffer while the GIL is released.
pub(crate) fn column(array: &PyReadonlyArray1<'_, u32>) -> Vec<u32> {
    array.as_array().iter().copied().collect()
}

/// The flips of one step and the count of those that landed.
///
/// Frozen like the other classes, so its counters need the lock. It is taken without holding the GIL wherever
/// it may be held for long, hence cannot wait for a thread that waits for the GIL.
#[pyclass(frozen, module = "kvspec._native")]
pub(crate) struct StepFaults(pub(crate) Mutex<kvspec_core::StepFaults>);

impl StepFaults {
    fn lock(&self) -> MutexGuard<'_, kvspec_core::StepFaults> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl StepFaults {
    fn __len__(&self) -> usize {
        self.lock().len()
    }

    fn layer_len(&self, layer: u32) -> PyResult<usize> {
        self.lock().layer_len(layer).map_err(value_error)
    }

    #[pyo3(signature = (layer, words, *, block_table, offsets, block_stride, format, codes = None, scales = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of the Python API")]
    #[expect(clippy::needless_pass_by_value, reason = "arguments from Python")]
    fn inject(
        &self,
        py: Python<'_>,
        layer: u32,
        words: PyReadwriteArrayDyn<'_, u32>,
        block_table: PyReadonlyArray2<'_, i32>,
        offsets: PyReadonlyArray4<'_, i64>,
        block_stride: usize,
        format: &str,
        codes: Option<PyReadwriteArrayDyn<'_, u8>>,
        scales: Option<PyReadwriteArrayDyn<'_, u32>>,
    ) -> PyResult<()> {
        let format = Format::parse(format).map_err(value_error)?;
        let (_, blocks_per_row) = block_table.as_array().dim();
        let offsets_shape = offsets.as_array().dim().into();
        let mut arrays = CacheArrays(words, codes, scales);
        let mut cache = arrays.cache()?;
        // Borrowed without a copy even though the GIL is released: the tables are as large as the batch, and
        // the engine changes neither them nor the cache during a forward.
        let tables = CacheTables {
            block_table: block_table
                .as_slice()
                .map_err(|_| not_contiguous("block_table"))?,
            blocks_per_row,
            offsets: offsets.as_slice().map_err(|_| not_contiguous("offsets"))?,
            offsets_shape,
            block_stride,
        };
        py.detach(|| self.lock().inject(layer, &mut cache, &tables, format))
            .map_err(value_error)
    }

    #[pyo3(signature = (words, *, format, codes = None, scales = None))]
    fn restore(
        &self,
        py: Python<'_>,
        words: PyReadwriteArrayDyn<'_, u32>,
        format: &str,
        codes: Option<PyReadwriteArrayDyn<'_, u8>>,
        scales: Option<PyReadwriteArrayDyn<'_, u32>>,
    ) -> PyResult<()> {
        let format = Format::parse(format).map_err(value_error)?;
        let mut arrays = CacheArrays(words, codes, scales);
        let mut cache = arrays.cache()?;
        py.detach(|| self.lock().restore(&mut cache, format))
            .map_err(value_error)
    }

    #[getter]
    fn landed<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        let landed = self.lock().landed().to_vec();
        landed.into_pyarray(py)
    }

    #[getter]
    fn changed<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        let changed = self.lock().changed().to_vec();
        changed.into_pyarray(py)
    }

    #[getter]
    fn exposed<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        let exposed = self.lock().exposed().to_vec();
        exposed.into_pyarray(py)
    }

    #[getter]
    fn restored<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        let restored = self.lock().restored().to_vec();
        restored.into_pyarray(py)
    }

    fn columns<'py>(&self, py: Python<'py>, layer: u32) -> PyResult<Bound<'py, PyDict>> {
        let columns = py.detach(|| self.lock().columns(layer));
        let columns = columns.map_err(value_error)?;
        let dict = PyDict::new(py);
        dict.set_item("row", columns.row.into_pyarray(py))?;
        dict.set_item("kv", columns.kv.into_pyarray(py))?;
        dict.set_item("head", columns.head.into_pyarray(py))?;
        dict.set_item("token", columns.token.into_pyarray(py))?;
        dict.set_item("elem", columns.elem.into_pyarray(py))?;
        dict.set_item("mask", columns.mask.into_pyarray(py))?;
        let target: Vec<u8> = columns.target.iter().map(|&x| x as u8).collect();
        dict.set_item("target", target.into_pyarray(py))?;
        Ok(dict)
    }
}

/// Words, codes and scales of a layer.
struct CacheArrays<'py>(
    PyReadwriteArrayDyn<'py, u32>,
    Option<PyReadwriteArrayDyn<'py, u8>>,
    Option<PyReadwriteArrayDyn<'py, u32>>,
);

impl CacheArrays<'_> {
    fn cache(&mut self) -> PyResult<LayerCache<'_>> {
        let Self(words, codes, scales) = self;
        Ok(LayerCache {
            words: words.as_slice_mut().map_err(|_| not_contiguous("words"))?,
            codes: match codes {
                Some(codes) => codes.as_slice_mut().map_err(|_| not_contiguous("codes"))?,
                None => &mut [],
            },
            scales: match scales {
                Some(scales) => scales
                    .as_slice_mut()
                    .map_err(|_| not_contiguous("scales"))?,
                None => &mut [],
            },
        })
    }
}

fn not_contiguous(name: &str) -> PyErr {
    PyValueError::new_err(format!("{name} is not a C-contiguous array"))
}
