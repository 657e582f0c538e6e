//! Divergence of next-token distributions, one row per position.

use kvspec_core::drift;
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

type Logprobs<'py> = PyReadonlyArray2<'py, f32>;
type Ids<'py> = PyReadonlyArray2<'py, u32>;
type Column<'py> = Bound<'py, PyArray1<f64>>;

/// A two-dimensional argument: a copy of its values, its width and its height. Other Python threads may write to the
/// array once the GIL is gone, and the logarithms cost far more than the copy.
fn rows<T: Copy + numpy::Element>(
    name: &str,
    array: &PyReadonlyArray2<'_, T>,
) -> PyResult<(Vec<T>, usize, usize)> {
    let [height, width] = *array.shape() else {
        return Err(PyValueError::new_err(format!(
            "`{name}` is not two-dimensional"
        )));
    };
    let values = array
        .as_slice()
        .map_err(|_| PyValueError::new_err(format!("`{name}` is not contiguous")))?;
    Ok((values.to_vec(), width, height))
}

fn same<T: Copy + PartialEq + std::fmt::Debug>(what: &str, a: T, b: T) -> PyResult<()> {
    if a == b {
        Ok(())
    } else {
        Err(PyValueError::new_err(format!(
            "{what} differ: {a:?} and {b:?}"
        )))
    }
}

/// Kullback-Leibler divergence of full distributions `[n, vocab]`, in nats per row.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "a Python signature")]
pub(crate) fn kl_full<'py>(
    py: Python<'py>,
    golden: Logprobs<'py>,
    faulty: Logprobs<'py>,
) -> PyResult<Column<'py>> {
    let (p, width, height) = rows("golden", &golden)?;
    let (q, q_width, q_height) = rows("faulty", &faulty)?;
    same("the shapes", [height, width], [q_height, q_width])?;
    let row = |index: usize| index * width..(index + 1) * width;
    let out: Vec<f64> = py.detach(|| {
        (0..height)
            .map(|index| drift::kl_full(&p[row(index)], &q[row(index)]))
            .collect()
    });
    Ok(out.into_pyarray(py))
}

/// Lower bound of the Kullback-Leibler divergence from the likeliest tokens `[n, k]`, in nats per row.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "a Python signature")]
pub(crate) fn kl_topk<'py>(
    py: Python<'py>,
    golden_ids: Ids<'py>,
    golden: Logprobs<'py>,
    faulty_ids: Ids<'py>,
    faulty: Logprobs<'py>,
) -> PyResult<Column<'py>> {
    let (p_ids, p_width, height) = rows("golden_ids", &golden_ids)?;
    let (p, width, p_height) = rows("golden", &golden)?;
    same(
        "ids and logprobs of the golden side",
        [height, p_width],
        [p_height, width],
    )?;
    let (q_ids, q_width, q_height) = rows("faulty_ids", &faulty_ids)?;
    let (q, width, p_height) = rows("faulty", &faulty)?;
    same(
        "ids and logprobs of the faulty side",
        [q_height, q_width],
        [p_height, width],
    )?;
    same("the numbers of rows", height, q_height)?;
    let out: Vec<f64> = py.detach(|| {
        (0..height)
            .map(|index| {
                let golden = index * p_width..(index + 1) * p_width;
                let faulty = index * q_width..(index + 1) * q_width;
                drift::kl_topk(
                    (&p_ids[golden.clone()], &p[golden]),
                    (&q_ids[faulty.clone()], &q[faulty]),
                )
            })
            .collect()
    });
    Ok(out.into_pyarray(py))
}

/// Share of the likeliest tokens `[n, k]` that both sides hold, per row.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "a Python signature")]
pub(crate) fn topk_agreement<'py>(
    py: Python<'py>,
    golden_ids: Ids<'py>,
    faulty_ids: Ids<'py>,
) -> PyResult<Column<'py>> {
    let (p, p_width, height) = rows("golden_ids", &golden_ids)?;
    let (q, q_width, q_height) = rows("faulty_ids", &faulty_ids)?;
    same("the numbers of rows", height, q_height)?;
    let out: Vec<f64> = py.detach(|| {
        (0..height)
            .map(|index| {
                let golden = &p[index * p_width..(index + 1) * p_width];
                drift::topk_agreement(golden, &q[index * q_width..(index + 1) * q_width])
            })
            .collect()
    });
    Ok(out.into_pyarray(py))
}
