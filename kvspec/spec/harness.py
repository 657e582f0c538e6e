"""Prompts and scores of lm-evaluation-harness, an optional package: `prompts: {lm_eval: TASK}`.

A spec names a task; it never brings one. Task files can hold code, so they come from the installed package alone, or
from the folder that the user, not the spec, names in `KVSPEC_LM_EVAL_TASKS`. Data sets are loaded as the harness loads
them, which may ask the network.

What is scored is the answer. So the tasks that can be asked generate theirs (`generate_until`), or take the likeliest
of choices that are one token each and the same for every document (`multiple_choice`, as MMLU and BoolQ): there the
answer to one request is decoded among the choices. Choices of several tokens would take a request each, and each would
draw faults of its own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kvspec.errors import Diagnostic, Mark, PrerequisiteError, SpecError
from kvspec.spec.model import Grader, Task

FOLDER = "KVSPEC_LM_EVAL_TASKS"
"""Environment variable: a folder of task files of one's own."""
FEWSHOT_SEED = 1234
"""That of the harness."""


def harness_prompts(name: str, limit: int | None, num_fewshot: int | None, mark: Mark) -> Iterator[tuple[str, Task]]:
    """The prompts of a task in the order of its documents, with its examples in front, each with its grader.

    Raises `PrerequisiteError` (KVS901) without the package and `SpecError` (KVS210) for a task that is not there,
    cannot be loaded, or has no generated answers.
    """

    def wrong(problem: str, expected: str) -> SpecError:
        return SpecError(Diagnostic("KVS210", problem, mark, "$.prompts.lm_eval", expected))

    try:
        task = _load(name)
        if task.OUTPUT_TYPE not in ("generate_until", "multiple_choice"):
            expected = "a `generate_until` or `multiple_choice` task"
            raise wrong(f"`{name}` scores `{task.OUTPUT_TYPE}`, neither answers nor choices", expected)
        with _silent():
            if num_fewshot is not None:
                task.set_config("num_fewshot", num_fewshot)
            task.set_fewshot_seed(FEWSHOT_SEED)
            task.build_all_requests(limit=limit, rank=0, world_size=1)
        if task.OUTPUT_TYPE == "multiple_choice":
            yield from _multiple_choice(name, task.instances, wrong)
            return
        for instance in task.instances:
            text, generation = instance.args
            until = generation.get("until", [])
            scored = {"task": name, "doc": instance.doc, "until": [until] if isinstance(until, str) else list(until)}
            expected = json.dumps(scored, sort_keys=True, allow_nan=False)
            yield text, Task(name, "other", str(instance.doc_id), 0, Grader("lm_eval", expected))
    except (PrerequisiteError, SpecError):
        raise
    except Exception as error:  # whatever a task's file, data or template raises
        raise wrong(f"the task `{name}` cannot be loaded: {_reason(error)}", "a task of the harness") from error


def _multiple_choice(
    name: str, instances: Iterable[Any], wrong: Callable[[str, str], SpecError]
) -> Iterator[tuple[str, Task]]:
    """One prompt per document; the harness has one request per choice, with the same text before it."""
    documents: dict[Any, list[Any]] = defaultdict(list)
    for instance in instances:
        documents[instance.doc_id].append(instance)
    asked = {
        key: (tuple(dict.fromkeys(each.args[0] for each in group)), tuple(each.args[1] for each in group))
        for key, group in documents.items()
    }
    if len({choices for _, choices in asked.values()}) > 1:
        expected = f"the same choices for all documents, as ` A` to ` D`, or `{name}` as a `generate_until` task"
        raise wrong(f"every document of `{name}` has choices of its own", expected)
    for key, (texts, choices) in asked.items():
        if len(texts) > 1:
            expected = "one text before all choices, which are all different"
            raise wrong(f"`{name}` compares choices after {len(texts)} different texts", expected)
        scored = {"task": name, "doc": documents[key][0].doc, "choices": list(choices)}
        grader = Grader("lm_eval", json.dumps(scored, sort_keys=True, allow_nan=False), choices=choices)
        yield texts[0], Task(name, "other", str(key), 0, grader, chance=1 / len(choices))


def harness_grade(expected: str) -> Callable[[str], bool]:
    """The test of one answer: right if the first metric of the task, as the harness computes it, is 1.

    A generated answer ends at the task's own stop texts, and passes its first filter; a chosen one is the choice that
    the harness is told to be likelier than the others. Raises `PrerequisiteError` (KVS901)
    without the package or the task.
    """
    scored = json.loads(expected)
    try:
        task, doc = _load(scored["task"]), scored["doc"]
    except PrerequisiteError:
        raise
    except Exception as error:
        raise PrerequisiteError.one(
            "KVS901", f"answers of the task `{scored['task']}` cannot be scored: {_reason(error)}", hint=f"see {FOLDER}"
        ) from error

    from lm_eval.api.instance import Instance

    def right(results: list[Any]) -> bool:
        return float(next(iter(task.process_results(doc, results).values()))) >= 1.0

    if "choices" in scored:
        choices: list[str] = scored["choices"]
        return lambda text: text in choices and right([(-float(text != each), text == each) for each in choices])

    def grade(text: str) -> bool:
        for stop in scored["until"]:
            text = text.split(stop)[0] if stop else text
        instance = Instance(
            request_type="generate_until", doc=doc, arguments=("", {}), idx=0, metadata=(scored["task"], 0, 1)
        )
        instance.resps = [text]
        answer: Any = text
        for ensemble in task._filters[:1]:
            ensemble.apply([instance])
            answer = instance.filtered_resps[ensemble.name]
        return right([answer])

    return grade


@functools.cache
def _load(name: str) -> Any:
    if not _installed():
        raise PrerequisiteError.one(
            "KVS901",
            "prompts of lm-evaluation-harness need the package `lm_eval`, which is not installed",
            path="$.prompts.lm_eval",
            hint="install the `lm-eval` extra: `uv sync --extra cpu --extra lm-eval`",
        )
    folder = os.environ.get(FOLDER)
    with _silent():
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(Path(folder).resolve()) if folder else None)
        if name not in manager.all_subtasks:
            raise LookupError(f"the harness has no task of this name, and neither has `{FOLDER}`")
        return manager.load([name])["tasks"][name]


def _installed() -> bool:
    try:
        return importlib.util.find_spec("lm_eval") is not None
    except ValueError:  # it was forbidden to this process
        return False


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Bars and notices of the harness and of `datasets` are not the user's."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
