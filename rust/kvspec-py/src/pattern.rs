//! Regular expressions of graders.

use pyo3::prelude::*;

use crate::value_error;

/// A regular expression that is matched in linear time.
#[pyclass(frozen, module = "kvspec._native")]
pub(crate) struct Pattern(kvspec_core::Pattern);

#[pymethods]
impl Pattern {
    #[new]
    fn new(pattern: &str) -> PyResult<Self> {
        kvspec_core::Pattern::new(pattern)
            .map(Self)
            .map_err(value_error)
    }

    fn occurs_in(&self, text: &str) -> bool {
        self.0.occurs_in(text)
    }
}
