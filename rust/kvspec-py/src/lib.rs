//! `kvspec._native`: conversions, the GIL and exceptions. All logic is in `kvspec-core`.

mod drift;
mod events;
mod formats;
mod maps;
mod pattern;
mod sampling;
mod trials;

use kvspec_core::Error;
use pyo3::PyErr;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::pymodule;

/// Every error of the core is a wrong argument.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature that map_err wants"
)]
fn value_error(error: Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

#[pymodule]
mod _native {
    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::drift::logprobs::{kl_full, kl_topk, topk_agreement};
    #[pymodule_export]
    use super::drift::texts::{detail_texts, score_texts};
    #[pymodule_export]
    use super::drift::tokens::{
        concatenate, detail_tokens, first_divergence_histogram, periodic_tails, position_counts,
        score_tokens, survival,
    };
    #[pymodule_export]
    use super::events::EventTable;
    #[pymodule_export]
    use super::formats::{decode, encode, format_bits, format_mask, format_scaled, quantize};
    #[pymodule_export]
    use super::maps::{MapCheck, apply_map};
    #[pymodule_export]
    use super::pattern::Pattern;
    #[pymodule_export]
    use super::sampling::{Sampler, Selector, derive_keys, philox, read_key, thresholds};
    #[pymodule_export]
    use super::trials::{StepFaults, TrialTable};

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// The JSON Schema of that name.
    #[pyfunction]
    fn schema(name: &str) -> PyResult<&'static str> {
        match name {
            "spec" => Ok(include_str!("../../../schemas/spec.schema.json")),
            "faultmap" => Ok(include_str!("../../../schemas/faultmap.schema.json")),
            "report" => Ok(include_str!("../../../schemas/report.schema.json")),
            "diff" => Ok(include_str!("../../../schemas/diff.schema.json")),
            "certificate" => Ok(include_str!("../../../schemas/certificate.schema.json")),
            _ => Err(PyValueError::new_err(format!(
                "schema `{name}` is not one of spec, faultmap, report, diff, certificate"
            ))),
        }
    }
}
