"""The prompts of a spec: written inline, read from a `.txt` or `.jsonl` file, generated, or a task of a harness."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kvspec.errors import Diagnostic, Mark, SpecError
from kvspec.spec.graders import read_task
from kvspec.spec.harness import harness_prompts
from kvspec.spec.load import beside, read_text
from kvspec.spec.model import PromptSpec, Task
from kvspec.spec.needle import MAX_PRODUCTS, Needles, math_needle
from kvspec.spec.needle_scene import Values
from kvspec.spec.tree import Findings, Node, printable

MAX_PROMPTS = 100_000
MAX_PROMPT_CHARS = 1 << 20
MAX_FILE_BYTES = 64 << 20
"""Size of a prompt file."""
MAX_GENERATED_TOKENS = 20_000_000
"""Tokens of context over all generated prompts."""
MAX_LINE_ERRORS = 20
"""Bad lines of a prompt file that are told."""


GENERATED = (
    "contexts", "items", "tasks", "wording", "fact", "a", "b", "positions", "examples", "examples_of", "item_seed"
)  # fmt: skip
"""Keys of the generator."""
TASKS = ("retrieve_a", "retrieve_b", "retrieve_both", "sum", "product")
"""What is asked below each text unless the spec says so: part of every plan, so it stays."""
HARNESS = ("limit", "num_fewshot")
"""Keys of `lm_eval`."""


def read_prompts(prompts: Node, findings: Findings) -> PromptSpec:
    """All prompts in order, `repeat` applied. The mapping has passed the schema; what its file holds has not.

    Errors go to `findings`: KVS101 and KVS104 for the file, KVS103, KVS201-203, KVS205-207 and KVS210 for its lines
    and for the generator, KVS210 for a task of the harness. Raises `PrerequisiteError` (KVS901) without the harness.
    """
    inline = prompts.get("inline")
    found: list[tuple[str, Task | None]] = [(text, None) for text in (inline.plain() if inline else ())]
    file = prompts.get("file")
    if file is not None:
        try:
            found += _read_file(file)
        except SpecError as error:
            findings.diagnostics += error.diagnostics
            return PromptSpec(())
    repeat = prompts.get("repeat")
    times = int(repeat.plain()) if repeat else 1
    needles = _needles(prompts, findings)
    generated = len(needles.contexts) * needles.items * len(needles.tasks) if needles else 0
    if (len(found) + generated) * times > MAX_PROMPTS:
        problem = f"the spec has {(len(found) + generated) * times} prompts"
        expected = f"at most {MAX_PROMPTS}, repetitions included"
        findings.add("KVS207", problem, prompts.mark, "$.prompts", expected=expected)
        return PromptSpec(())
    if needles:
        if generated * max(needles.contexts) > MAX_GENERATED_TOKENS:
            problem = f"the generator would write {generated} prompts of up to {max(needles.contexts)} tokens"
            expected = f"at most {MAX_GENERATED_TOKENS} tokens in all"
            findings.add("KVS207", problem, prompts.mark, "$.prompts", expected=expected)
            return PromptSpec(())
        found += math_needle(needles)
    try:
        found += _harness(prompts, findings)
    except SpecError as error:
        findings.diagnostics += error.diagnostics
        return PromptSpec(())
    if len(found) * times > MAX_PROMPTS:
        expected = f"at most {MAX_PROMPTS}, repetitions included"
        findings.add(
            "KVS207", f"the spec has {len(found) * times} prompts", prompts.mark, "$.prompts", expected=expected
        )
        return PromptSpec(())
    texts = tuple(text for text, _ in found) * times
    tasks = tuple(task for _, task in found) * times if any(task for _, task in found) else ()
    return PromptSpec(texts, tasks)


def _harness(prompts: Node, findings: Findings) -> list[tuple[str, Task | None]]:
    """The prompts of a task of lm-evaluation-harness; none without one."""
    given = {key: node for key in HARNESS if (node := prompts.get(key)) is not None}
    name = prompts.get("lm_eval")
    if name is None:
        for key, node in given.items():
            mark = prompts.keys.get(key, node.mark)
            problem = f"`{key}` is a parameter of `lm_eval`, and there is none"
            findings.add("KVS206", problem, mark, f"$.prompts.{key}", expected="`lm_eval: TASK` beside it")
        return []
    plain = {key: int(node.plain()) for key, node in given.items()}
    return list(harness_prompts(name.plain(), plain.get("limit"), plain.get("num_fewshot"), name.mark))


def _needles(prompts: Node, findings: Findings) -> Needles | None:
    """The parameters of the generator, defaults filled in; `None` without a generator or if they are wrong."""
    given = {key: node for key in GENERATED if (node := prompts.get(key)) is not None}
    if prompts.get("generator") is None:
        for key, node in given.items():
            mark = prompts.keys.get(key, node.mark)
            problem = f"`{key}` is a parameter of a generator, and there is none"
            findings.add("KVS206", problem, mark, f"$.prompts.{key}", expected="`generator: math_needle` beside it")
        return None
    plain = {key: node.plain() for key, node in given.items()}

    def ends(key: str) -> tuple[int, int]:
        value = plain.get(key, [1, 9])
        low, high = value if isinstance(value, list) else (value, value)
        return int(low), int(high)

    for key, backwards in (("a", ends("a")), ("b", ends("b")), ("positions", plain.get("positions", (0, 1)))):
        if backwards[0] > backwards[1]:
            problem = f"the range `{backwards[0]}` to `{backwards[1]}` runs backwards"
            findings.add("KVS205", problem, given[key].mark, f"$.prompts.{key}", expected="the lower number first")
            return None
    wording = plain.get("wording", "variables")
    if wording != "variables" and "fact" in given:
        problem = f"`fact` words the facts about variables, and the wording is `{wording}`"
        mark = prompts.keys.get("fact", given["fact"].mark)
        findings.add("KVS206", problem, mark, "$.prompts.fact", expected="`wording: variables`, or no `fact`")
        return None
    tasks = tuple(plain.get("tasks", TASKS))
    pairs = math.prod(high - low + 1 for low, high in (ends("a"), ends("b")))
    if "product" in tasks and pairs > MAX_PRODUCTS:
        problem = f"the ranges of a and b have {pairs:,} products"
        mark = next(given[key].mark for key in ("a", "b") if key in given)
        findings.add("KVS205", problem, mark, "$.prompts", expected=f"at most {MAX_PRODUCTS:,} for the task `product`")
        return None
    contexts = plain.get("contexts", [2000])
    early, late = plain.get("positions", (0.2, 0.8))
    return Needles(
        contexts=tuple(int(x) for x in (contexts if isinstance(contexts, list) else [contexts])),
        items=int(plain.get("items", 100)),
        tasks=tasks,
        wording=wording,
        values=Values(
            a=ends("a"),
            b=ends("b"),
            positions=(float(early), float(late)),
            fact=plain.get("fact", "The value of {name} is {value}."),
        ),
        examples=int(plain.get("examples", 4)),
        examples_of=plain.get("examples_of", "item"),
        seed=int(plain.get("item_seed", 0)),
    )


def _read_file(node: Node) -> list[tuple[str, Task | None]]:
    path = beside(node.mark, str(node.value))
    where = "$.prompts.file"
    if not path.endswith((".txt", ".jsonl")):
        expected = "a `.txt` file with one prompt per line, or a `.jsonl` file with a `text` per line"
        raise SpecError(Diagnostic("KVS210", f"`{node.value}` has no known ending", node.mark, where, expected))
    text = read_text(path, MAX_FILE_BYTES, at=node.mark, where=where)
    texts: list[tuple[str, Task | None]] = []
    wrong: list[Diagnostic] = []
    for number, line in _lines(text):
        mark = Mark(path, number, 1)
        try:
            texts.append(_prompt(line, mark, where, number, as_json=path.endswith(".jsonl")))
        except SpecError as error:
            wrong += error.diagnostics
        if len(texts) > MAX_PROMPTS:
            problem = "the file holds too many prompts"
            wrong.append(Diagnostic("KVS207", problem, mark, where, f"at most {MAX_PROMPTS}"))
            break
        if len(wrong) > MAX_LINE_ERRORS:
            last = replace(wrong[-2], hint=f"more lines are wrong: these are the first {MAX_LINE_ERRORS}")
            wrong[-2:] = [last]
            break
    if wrong:
        raise SpecError(wrong)
    if not texts:
        raise SpecError(Diagnostic("KVS207", f"`{node.value}` holds no prompts", node.mark, where, "at least one line"))
    return texts


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, numbered from 1. Only `\\n` and `\\r\\n` end a line, so a prompt keeps all else."""
    start = number = 0
    while start < len(text):
        number += 1
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line = text[start:end].removesuffix("\r")
        start = end + 1
        if line.strip():
            yield number, line


def _prompt(line: str, mark: Mark, where: str, number: int, *, as_json: bool) -> tuple[str, Task | None]:
    record = _from_json(line, mark, where) if as_json else {"text": line}
    prompt: str = record["text"]
    if not 1 <= len(prompt) <= MAX_PROMPT_CHARS:
        expected = f"1 to {MAX_PROMPT_CHARS} characters"
        raise SpecError(Diagnostic("KVS207", f"the prompt has {len(prompt)} characters", mark, where, expected))
    return prompt, read_task(record, number, mark, where)


def _from_json(line: str, mark: Mark, where: str) -> dict[str, Any]:
    twice: list[str] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                twice.append(key)
            found[key] = value
        return found

    try:
        record = json.loads(line, object_pairs_hook=mapping)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        expected = 'a JSON object with a text, such as {"text": "The sun is"}'
        raise SpecError(Diagnostic("KVS201", "the line is not a prompt", mark, where, expected))
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        problem = "the prompt holds half of a surrogate pair"
        raise SpecError(Diagnostic("KVS210", problem, mark, where, "valid Unicode text")) from None
    if twice:
        problem = f"the key `{printable(twice[0])}` appears twice in the line"
        raise SpecError(Diagnostic("KVS103", problem, mark, where, "each key once"))
    return record
