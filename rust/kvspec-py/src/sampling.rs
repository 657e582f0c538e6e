//! Sampling: keys, samplers, and the trials of a campaign.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kvspec_core::{
    CacheTables, FaultModel, Format, Geometry, Grid, Indices, Page, Per, Phase, StepRows, Trials,
};
use numpy::{
    IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray4,
    PyReadwriteArrayDyn,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::value_error;

type Key = (u32, u32);
type Ranges = Vec<(u64, u64)>;

fn pair([a, b]: kvspec_core::Key) -> Key {
    (a, b)
}

/// One block of Philox4x32-10.
#[pyfunction]
pub(crate) fn philox(counter: (u32, u32, u32, u32), key: Key) -> (u32, u32, u32, u32) {
    kvspec_core::philox(counter.into(), key.into()).into()
}

/// Write key and read master of one fault entry in one trial.
#[pyfunction]
pub(crate) fn derive_keys(seed: u64, experiment: u64, trial: u32, fault: u32) -> (Key, Key) {
    let (write, read) = kvspec_core::derive_keys(seed, experiment, trial, fault);
    (pair(write), pair(read))
}

/// Key of one read event.
#[pyfunction]
pub(crate) fn read_key(master: Key, request: u32, step: u32) -> Key {
    pair(kvspec_core::read_key(master.into(), request, step))
}

/// Count thresholds of a binomial distribution, uint64.
#[pyfunction]
pub(crate) fn thresholds(
    py: Python<'_>,
    units: u32,
    probability: f64,
) -> PyResult<Bound<'_, PyArray1<u64>>> {
    let table = py.detach(|| kvspec_core::thresholds(units, probability));
    Ok(table.map_err(value_error)?.into_pyarray(py))
}

/// A fault model bound to the geometry of a layer.
#[pyclass(frozen, module = "kvspec._native")]
pub(crate) struct Sampler(kvspec_core::Sampler);

#[pymethods]
impl Sampler {
    #[new]
    #[pyo3(signature = (*, head_size, bits, heads, planes = 2, first_plane = 0, rate, per = "bit", mask,
                        burst_len = 1, page_tokens = 0, page_rate = 1.0))]
    #[expect(clippy::too_many_arguments, reason = "keywords of the Python API")]
    fn new(
        py: Python<'_>,
        head_size: u32,
        bits: u32,
        heads: u32,
        planes: u32,
        first_plane: u32,
        rate: f64,
        per: &str,
        mask: u32,
        burst_len: u32,
        page_tokens: u32,
        page_rate: f64,
    ) -> PyResult<Self> {
        let geometry = Geometry {
            head_size,
            bits,
            heads,
            planes,
            first_plane,
        };
        let model = FaultModel {
            rate,
            per: Per::parse(per).map_err(value_error)?,
            mask,
            burst_len,
            page: (page_tokens > 0).then_some(Page {
                tokens: page_tokens,
                rate: page_rate,
            }),
        };
        let sampler = py.detach(|| kvspec_core::Sampler::new(&model, &geometry));
        sampler.map(Self).map_err(value_error)
    }

    #[getter]
    fn level(&self) -> &'static str {
        self.0.level().name()
    }

    #[getter]
    fn thresholds<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        PyArray1::from_slice(py, self.0.thresholds())
    }

    #[getter]
    fn page_threshold(&self) -> Option<u64> {
        self.0.page_threshold()
    }

    #[getter]
    fn eligible_bits_per_row(&self) -> u32 {
        self.0.eligible_bits_per_row()
    }

    #[getter]
    fn expected_flips_per_row(&self) -> f64 {
        self.0.expected_flips_per_row()
    }

    #[pyo3(signature = (*, key, request, layers, tokens, prompt_len = 0, selector = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of the Python API")]
    fn enumerate<'py>(
        &self,
        py: Python<'py>,
        key: Key,
        request: u32,
        layers: (u32, u32),
        tokens: (u64, u64),
        prompt_len: u32,
        selector: Option<&Selector>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let grid = grid(request, layers, tokens, prompt_len);
        let map = with_selector(py, selector, |selector| {
            self.0.enumerate(key.into(), &grid, selector)
        });
        let columns = map.map_err(value_error)?.into_columns();
        let dict = PyDict::new(py);
        dict.set_item("request", columns.request.into_pyarray(py))?;
        dict.set_item("layer", columns.layer.into_pyarray(py))?;
        dict.set_item("kv", columns.kv.into_pyarray(py))?;
        dict.set_item("head", columns.head.into_pyarray(py))?;
        dict.set_item("token", columns.token.into_pyarray(py))?;
        dict.set_item("elem", columns.elem.into_pyarray(py))?;
        dict.set_item("bit", columns.bit.into_pyarray(py))?;
        Ok(dict)
    }

    #[pyo3(signature = (*, key, request, layers, tokens, prompt_len = 0, selector = None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of the Python API")]
    fn count(
        &self,
        py: Python<'_>,
        key: Key,
        request: u32,
        layers: (u32, u32),
        tokens: (u64, u64),
        prompt_len: u32,
        selector: Option<&Selector>,
    ) -> PyResult<u64> {
        let grid = grid(request, layers, tokens, prompt_len);
        let flips = with_selector(py, selector, |selector| {
            self.0.count(key.into(), &grid, selector)
        });
        flips.map_err(value_error)
    }
}

fn grid(request: u32, layers: (u32, u32), tokens: (u64, u64), prompt_len: u32) -> Grid {
    Grid {
        request,
        layers: layers.0..layers.1,
        tokens: tokens.0..tokens.1,
        prompt_len,
    }
}

/// Runs `work` without the GIL, with everything selected by default.
fn with_selector<T: Send>(
    py: Python<'_>,
    selector: Option<&Selector>,
    work: impl FnOnce(&kvspec_core::Selector) -> T + Send,
) -> T {
    py.detach(|| match selector {
        Some(selector) => work(&selector.0),
        None => work(&kvspec_core::Selector::default()),
    })
}

/// What of a sample is shown.
#[pyclass(frozen, module = "kvspec._native")]
pub(crate) struct Selector(kvspec_core::Selector);

#[pymethods]
impl Selector {
    #[new]
    #[pyo3(signature = (*, layers = None, heads = None, planes = (true, true), phase = "all", tokens = None))]
    fn new(
        layers: Option<Ranges>,
        heads: Option<Ranges>,
        planes: (bool, bool),
        phase: &str,
        tokens: Option<Ranges>,
    ) -> PyResult<Self> {
        Ok(Self(kvspec_core::Selector {
            layers: indices("layers", layers)?,
            heads: indices("heads", heads)?,
            planes: planes.into(),
            phase: Phase::parse(phase).map_err(value_error)?,
            tokens: indices("tokens", tokens)?,
        }))
    }
}

fn indices(name: &'static str, ranges: Option<Ranges>) -> PyResult<Indices> {
    let Some(ranges) = ranges else {
        return Ok(Indices::all());
    };
    let ranges = ranges.into_iter().map(|(start, end)| start..end).collect();
    Indices::new(name, ranges, 1 << 32).map_err(value_error)
}

/// The fault entries of all trials of a campaign.
#[pyclass(frozen, module = "kvspec._native")]
pub(crate) struct TrialTable(kvspec_core::TrialTable);

#[pymethods]
impl TrialTable {
    #[new]
    #[pyo3(signature = (*, layers, samplers, selectors, sampler, selector, write_key, request, prompt_len))]
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
    ) -> PyResult<Self> {
        let keys = write_key.as_array();
        if keys.ncols() != 2 {
            let shape = keys.shape();
            return Err(PyValueError::new_err(format!(
                "write_key has shape {shape:?} instead of [n, 2]"
            )));
        }
        let trials = Trials {
            sampler: column(&sampler),
            selector: column(&selector),
            write_key: keys
                .rows()
                .into_iter()
                .map(|key| [key[0], key[1]])
                .collect(),
            request: column(&request),
            prompt_len: column(&prompt_len),
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
        let (entry, row) = (column(&entry), column(&row));
        let (start, count) = (column(&start), column(&count));
        let faults = py.detach(|| {
            self.0.write_step(&StepRows {
                entry: &entry,
                row: &row,
                start: &start,
                count: &count,
            })
        });
        Ok(StepFaults(Mutex::new(faults.map_err(value_error)?)))
    }
}

/// A copy of a column, since Python may write to its buffer while the GIL is released.
fn column(array: &PyReadonlyArray1<'_, u32>) -> Vec<u32> {
    array.as_array().iter().copied().collect()
}

/// The flips of one step and the count of those that landed.
///
/// Frozen like the other classes, so its counters need the lock. It is taken without holding the GIL wherever
/// it may be held for long, hence cannot wait for a thread that waits for the GIL.
#[pyclass(frozen, module = "kvspec._native")]
pub(crate) struct StepFaults(Mutex<kvspec_core::StepFaults>);

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

    #[pyo3(signature = (layer, words, *, block_table, offsets, block_stride, format))]
    #[expect(clippy::too_many_arguments, reason = "keywords of the Python API")]
    #[expect(clippy::needless_pass_by_value, reason = "arguments from Python")]
    fn inject(
        &self,
        py: Python<'_>,
        layer: u32,
        mut words: PyReadwriteArrayDyn<'_, u32>,
        block_table: PyReadonlyArray2<'_, i32>,
        offsets: PyReadonlyArray4<'_, i64>,
        block_stride: usize,
        format: &str,
    ) -> PyResult<()> {
        let format = Format::parse(format).map_err(value_error)?;
        let (_, blocks_per_row) = block_table.as_array().dim();
        let offsets_shape = offsets.as_array().dim().into();
        let words = words.as_slice_mut().map_err(|_| not_contiguous("words"))?;
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
        py.detach(|| self.lock().inject(layer, words, &tables, format))
            .map_err(value_error)
    }

    #[getter]
    fn landed<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        let landed = self.lock().landed().to_vec();
        landed.into_pyarray(py)
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
        Ok(dict)
    }
}

fn not_contiguous(name: &str) -> PyErr {
    PyValueError::new_err(format!("{name} is not a C-contiguous array"))
}
