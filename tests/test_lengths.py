"""The length of the context against its dose: answers whose truth is known."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from kvspec.plan import compile_plan
from kvspec.records import Record, RecordWriter, RunStore
from kvspec.report import to_json
from kvspec.score import Scores, score_run
from kvspec.spec import load_spec
from kvspec.stats.exact import Strata
from tests.test_report import SCHEMA

SPEC = """
kvspec: 1
name: t
model: {id: gpt2}
prompts: {generator: math_needle, contexts: CONTEXTS, items: 100, tasks: [retrieve_b]}
faults:
  - {name: Rot, model: random, site: KV_WRITE, rate: {per_bit: [1e-8, 1e-7]}}
  - {name: Keys, model: random, site: KV_WRITE, rate: {per_bit: 1e-7}, where: {cache: [K]}}
controls: {null_trials: 0, golden_repeats: 0}
trials: 2
"""


def run(tmp_path: Path, loss: Callable[[int, int], float], contexts: str = "[100, 400]") -> Scores:
    """Flips grow with rate and length; `loss(flips, context)` is the probability that they spoil the answer."""
    (tmp_path / "spec.yaml").write_text(SPEC.replace("CONTEXTS", contexts), encoding="utf-8")
    plan = compile_plan(load_spec(tmp_path / "spec.yaml"))
    rng = np.random.default_rng(7)
    with RunStore.create(tmp_path / "run", plan, version="test") as store, RecordWriter(store) as writer:
        for trial in plan.trials():
            task = plan.spec.prompts.tasks[trial.request]
            assert task is not None
            flips = 0
            if trial.kind == "fault":
                rate = plan.cells[trial.cell].fault.rate.value
                flips = int(rng.poisson(rate * 1e8 * task.context / 100))
            lost = flips and rng.random() < loss(flips, task.context)
            right = re.findall(r"0\*(?:\(\?:)?(\d+)", str(task.grader.expected))[0]
            writer.add(
                Record(
                    trial_id=trial.id, kind=trial.kind, cell=trial.cell, request=trial.request, trial=trial.trial,
                    prompt_tokens=4, token_ids=[int(lost)], text="!!" if lost else right, finish_reason="stop",
                    tokens_written=5, flips_planned=flips, flips_landed=flips,
                )
            )  # fmt: skip
        store.finish()
    return score_run(tmp_path / "run")


def test_what_the_dose_explains_is_no_effect_of_the_length(tmp_path: Path) -> None:
    scores = run(tmp_path, lambda flips, _: 1 - 0.9**flips)
    (found,) = scores.tasks.lengths
    assert (found.task, found.shorter, found.longer) == ("retrieve_b", 100, 400)
    assert found.at_equal_rates is not None
    assert found.at_equal_flips is not None
    assert found.at_equal_rates.high < -0.1  # as the "death spiral" has it
    assert found.at_equal_flips.low < 0 < found.at_equal_flips.high
    assert found.p_holm > 0.05
    (said,) = (sentence for sentence in scores.verdict if sentence.startswith("Length"))
    assert "none of 1 pairs differs" in said
    jsonschema.validate(to_json(scores), SCHEMA)


def test_what_is_left_beyond_the_dose_is_found(tmp_path: Path) -> None:
    scores = run(tmp_path, lambda flips, context: 1 - (0.9 if context == 100 else 0.6) ** flips)
    (found,) = scores.tasks.lengths
    assert found.p_holm < 1e-3
    assert found.at_equal_flips is not None
    assert found.at_equal_flips.high < 0
    assert any("1 of 1 pairs differ" in sentence for sentence in scores.verdict)


def test_kinds_of_faults_are_not_mixed(tmp_path: Path) -> None:
    found = run(tmp_path, lambda flips, _: 1 - 0.9**flips).tasks.lengths[0]
    assert found.trials[0] <= 600
    # Rot at both rates is one series, Keys another: 7 flips of one do not stand beside 7 of the other
    from kvspec.score.lengths import Sample, length_effects

    def sample(series: int) -> Sample:
        ones = np.ones(5, np.int64)
        return Sample(ones > 0, ones * series, ones, ones * 7)

    (apart,) = length_effects({(100, "t"): sample(0), (400, "t"): sample(1)})
    assert apart.at_equal_flips is None
    assert apart.trials == (0, 0)


def test_one_context_has_no_lengths(tmp_path: Path) -> None:
    scores = run(tmp_path, lambda *_: 0.5, "100")
    assert scores.tasks.lengths == ()
    assert not any(sentence.startswith("Length") for sentence in scores.verdict)


@pytest.mark.parametrize(("size", "strata"), [((60, 90), 3), ((2, 3), 60)])
def test_the_interval_of_a_common_difference_covers(size: tuple[int, int], strata: int) -> None:
    rng = np.random.default_rng(3)
    base = rng.uniform(0.2, 0.7, strata)
    covered = []
    for _ in range(600):
        k1, k2 = rng.binomial(size[0], base + 0.15), rng.binomial(size[1], base)
        found = Strata.of(k1, [size[0]] * strata, k2, [size[1]] * strata).difference()
        assert found is not None
        covered.append(found.low <= 0.15 <= found.high)
    assert 0.92 < np.mean(covered) < 0.98
    assert Strata.of([1], [1], [0], [0]).difference() is None
