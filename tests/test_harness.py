"""Prompts of lm-evaluation-harness: asked as it asks, scored as it scores, on a task of our own with local data."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager

from kvspec.errors import KvspecError, PrerequisiteError
from kvspec.plan import compile_plan
from kvspec.records import Record, RecordWriter, RunStore
from kvspec.score import score_run
from kvspec.spec import Spec, harness, load_spec

TASK = """
task: kvspec_sums
dataset_path: json
dataset_kwargs: {data_files: {test: DATA, train: DATA}}
test_split: test
fewshot_split: train
output_type: OUTPUT
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 16}
filter_list:
  - name: first-number
    filter: [{function: regex, regex_pattern: "(-?[0-9]+)"}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(autouse=True)
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    docs = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(1, 7)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, docs)))
    file = folder / "sums.yaml"
    file.write_text(TASK.replace("DATA", str(folder / "data.jsonl")).replace("OUTPUT", "generate_until"))
    monkeypatch.setenv(harness.FOLDER, str(folder))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    harness._load.cache_clear()
    # its index of thousands of tasks of its own takes seconds, and none of them is asked here
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(TaskManager, include_defaults=False))
    return file


def load(tmp_path: Path, prompts: str, generation: str = "{}") -> Spec:
    path = tmp_path / "spec.yaml"
    faults = "faults: [{name: F, model: random, site: KV_WRITE, rate: {per_bit: 1e-6}}]"
    asked = f"prompts: {prompts}\ngeneration: {generation}"
    path.write_text(f"kvspec: 1\nname: t\nmodel: {{id: gpt2}}\n{asked}\n{faults}\ntrials: 2\n")
    return load_spec(path)


def test_prompts_are_those_of_the_harness(tmp_path: Path) -> None:
    bare = load(tmp_path, "{lm_eval: kvspec_sums, limit: 3}").prompts
    assert bare.texts == tuple(f"Question: What is {i} + {i}?\nAnswer:" for i in (1, 2, 3))
    shown = load(tmp_path, "{inline: [Hello], lm_eval: kvspec_sums, num_fewshot: 2}").prompts
    assert len(shown.texts) == 7
    assert shown.tasks[0] is None
    for text in shown.texts[1:]:
        assert text.count("Question:") == 3
        assert text.count("Answer: ") == 2  # worked; the last one is open
    assert load(tmp_path, "{inline: [Hello], lm_eval: kvspec_sums, num_fewshot: 2}").prompts == shown


def test_answers_are_scored_by_the_harness(tmp_path: Path) -> None:
    plan = compile_plan(load(tmp_path, "{lm_eval: kvspec_sums, limit: 4}"))
    with RunStore.create(tmp_path / "run", plan, version="test") as store, RecordWriter(store) as writer:
        for trial in plan.trials():
            right = f" It is {2 * (trial.request + 1)}.\nQuestion: What is 9 + 9? 18"
            text = " It is 7." if trial.kind == "fault" and trial.trial == 1 and trial.request < 3 else right
            writer.add(
                Record(
                    trial_id=trial.id, kind=trial.kind, cell=trial.cell, request=trial.request, trial=trial.trial,
                    prompt_tokens=4, token_ids=[len(text)], text=text, finish_reason="stop", tokens_written=5,
                    flips_planned=0, flips_landed=0,
                )
            )  # fmt: skip
        store.finish()
    harness._load.cache_clear()  # as another process would
    tasks = score_run(tmp_path / "run").tasks
    (clean,), (faulted,) = tasks.clean, tasks.faulted
    assert (clean.task, clean.right.k, clean.right.n) == ("kvspec_sums", 4, 4)
    assert (faulted.right.k, faulted.right.n) == (5, 8)


@pytest.mark.parametrize(
    ("prompts", "code", "path"),
    [
        ("{lm_eval: kvspec_other}", "KVS210", "$.prompts.lm_eval"),
        ("{lm_eval: ../sums.yaml}", "KVS210", "$.prompts.lm_eval"),
        ("{inline: [a], limit: 3}", "KVS206", "$.prompts.limit"),
        ("{lm_eval: kvspec_sums, limit: 0}", "KVS205", "$.prompts.limit"),
        ("{lm_eval: kvspec_sums, repeat: 100000}", "KVS207", "$.prompts"),
    ],
)
def test_wrong_prompts(tmp_path: Path, prompts: str, code: str, path: str) -> None:
    with pytest.raises(KvspecError) as caught:
        load(tmp_path, prompts)
    assert (caught.value.diagnostics[0].code, caught.value.diagnostics[0].path) == (code, path)


def test_only_answers_and_choices_can_be_asked(tmp_path: Path, task: Path) -> None:
    task.write_text(task.read_text().replace("generate_until", "loglikelihood"))
    with pytest.raises(KvspecError) as caught:
        load(tmp_path, "{lm_eval: kvspec_sums}")
    assert "loglikelihood" in caught.value.diagnostics[0].message


def _as_choice(task: Path, choices: str) -> None:
    """The same documents with choices, as MMLU has them."""
    text = task.read_text().replace("generate_until", "multiple_choice").split("generation_kwargs")[0]
    text = text.replace('doc_to_target: "{{answer}}"', f"doc_to_target: 1\ndoc_to_choice: {choices}")
    task.write_text(text + "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n")


def test_choices_are_asked_in_one_request_and_scored_by_the_harness(tmp_path: Path, task: Path) -> None:
    _as_choice(task, "[A, B, C]")
    spec = load(tmp_path, "{lm_eval: kvspec_sums, limit: 2}", "{max_tokens: 1, choices: [' C', ' A', ' B']}")
    assert spec.prompts.texts == tuple(f"Question: What is {i} + {i}?\nAnswer:" for i in (1, 2))
    for asked in spec.prompts.tasks:
        assert asked is not None
        assert asked.chance == pytest.approx(1 / 3)
        right = harness.harness_grade(str(asked.grader.expected))
        assert [right(text) for text in (" A", " B", " C", "B", "")] == [False, True, False, False, False]


@pytest.mark.parametrize("generation", ["{}", "{max_tokens: 1}", "{max_tokens: 1, choices: [' A', ' B']}"])
def test_the_choices_of_a_task_must_be_those_of_the_spec(tmp_path: Path, task: Path, generation: str) -> None:
    _as_choice(task, "[A, B, C]")
    with pytest.raises(KvspecError) as caught:
        load(tmp_path, "{lm_eval: kvspec_sums}", generation)
    (told,) = caught.value.diagnostics
    assert told.code == "KVS206"
    assert told.expected == '`generation: {max_tokens: 1, choices: [" A", " B", " C"]}`'


def test_documents_with_choices_of_their_own_are_refused(tmp_path: Path, task: Path) -> None:
    _as_choice(task, '"{{[answer, question]}}"')
    with pytest.raises(KvspecError) as caught:
        load(tmp_path, "{lm_eval: kvspec_sums}", "{max_tokens: 1, choices: [' A', ' B']}")
    assert caught.value.diagnostics[0].code == "KVS210"
    assert "choices of its own" in caught.value.diagnostics[0].message


def test_without_the_package_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grader = load(tmp_path, "{lm_eval: kvspec_sums, limit: 1}").prompts.tasks[0].grader  # type: ignore[union-attr]
    harness._load.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for ask in (lambda: load(tmp_path, "{lm_eval: kvspec_sums}"), lambda: harness.harness_grade(str(grader.expected))):
        with pytest.raises(PrerequisiteError) as caught:
            ask()
        assert caught.value.diagnostics[0].code == "KVS901"


def test_a_task_that_is_gone_cannot_be_scored(tmp_path: Path, task: Path) -> None:
    grader = load(tmp_path, "{lm_eval: kvspec_sums, limit: 1}").prompts.tasks[0].grader  # type: ignore[union-attr]
    harness._load.cache_clear()
    task.unlink()
    with pytest.raises(PrerequisiteError) as caught:
        harness.harness_grade(str(grader.expected))
    assert "kvspec_sums" in caught.value.diagnostics[0].message
