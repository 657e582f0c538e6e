//! Sampling: keys, samplers and selectors.

use kvspec_core::{FaultModel, Geometry, Grid, Indices, Page, Per, Phase, Target};
use numpy::{IntoPyArray, PyArray1};
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
#[pyo3(signature = (seed, experiment, trial, fault, target = "values"))]
pub(crate) fn derive_keys(
    seed: u64,
    experiment: u64,
    trial: u32,
    fault: u32,
    target: &str,
) -> PyResult<(Key, Key)> {
    let keys = kvspec_core::derive_keys(seed, experiment, trial, fault);
    let (write, read) = match Target::parse(target).map_err(value_error)? {
        Target::Values => keys,
        Target::Scales => kvspec_core::scale_keys(keys.0),
    };
    Ok((pair(write), pair(read)))
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
pub(crate) struct Sampler(pub(crate) kvspec_core::Sampler);

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
pub(crate) struct Selector(pub(crate) kvspec_core::Selector);

#[pymethods]
impl Selector {
    #[new]
    #[pyo3(
        signature = (*, layers = None, heads = None, planes = (true, true), phase = "all", tokens = None,
                     steps = None),
        text_signature = "(*, layers=None, heads=None, planes=(True, True), phase='all', tokens=None, steps=None)"
    )]
    fn new(
        layers: Option<Ranges>,
        heads: Option<Ranges>,
        planes: (bool, bool),
        phase: &str,
        tokens: Option<Ranges>,
        steps: Option<Ranges>,
    ) -> PyResult<Self> {
        Ok(Self(kvspec_core::Selector {
            layers: indices("layers", layers)?,
            heads: indices("heads", heads)?,
            planes: planes.into(),
            phase: Phase::parse(phase).map_err(value_error)?,
            tokens: indices("tokens", tokens)?,
            steps: indices("steps", steps)?,
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
