//! Listed faults of trials, as fault maps have them.

use kvspec_core::{Op, Target};
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::maps::{ColumnArrays, slice};
use crate::trials::{OwnedRows, StepFaults};
use crate::value_error;

/// The listed faults of all trials of a batch.
#[pyclass(frozen, module = "kvspec._native")]
pub(crate) struct EventTable(kvspec_core::EventTable);

#[pymethods]
impl EventTable {
    #[new]
    #[pyo3(signature = (*, layers, bits, starts, prompt_len, columns, op, target = None))]
    #[expect(clippy::needless_pass_by_value, reason = "arguments from Python")]
    fn new(
        layers: u32,
        bits: u32,
        starts: PyReadonlyArray1<'_, u64>,
        prompt_len: PyReadonlyArray1<'_, u32>,
        columns: &Bound<'_, PyDict>,
        op: PyReadonlyArray1<'_, u8>,
        target: Option<PyReadonlyArray1<'_, u8>>,
    ) -> PyResult<Self> {
        let arrays = ColumnArrays::new(columns)?;
        let ops: Result<Vec<Op>, _> = slice("op", &op)?
            .iter()
            .map(|&code| Op::from_code(code))
            .collect();
        let codes = target.as_ref().map(|target| slice("target", target));
        let targets: Result<Vec<Target>, _> = codes
            .transpose()?
            .unwrap_or_default()
            .iter()
            .map(|&code| Target::from_code(code))
            .collect();
        kvspec_core::EventTable::new(
            layers,
            bits,
            slice("starts", &starts)?,
            slice("prompt_len", &prompt_len)?,
            &arrays.sites()?,
            &ops.map_err(value_error)?,
            &targets.map_err(value_error)?,
        )
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
