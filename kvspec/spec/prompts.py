"""The prompts of a spec: written inline, or read from a `.txt` or `.jsonl` file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from kvspec.errors import Diagnostic, Mark, SpecError
from kvspec.spec.load import beside, read_text
from kvspec.spec.tree import Findings, Node

MAX_PROMPTS = 100_000
MAX_PROMPT_CHARS = 1 << 20
MAX_FILE_BYTES = 64 << 20
"""Size of a prompt file."""
MAX_LINE_ERRORS = 20
"""Bad lines of a prompt file that are told."""


def read_prompts(prompts: Node, findings: Findings) -> tuple[str, ...]:
    """All prompts in order, `repeat` applied. The mapping has passed the schema; what its file holds has not.

    Errors go to `findings`: KVS101 and KVS104 for the file, KVS201, KVS207 and KVS210 for its lines.
    """
    inline = prompts.get("inline")
    texts: list[str] = inline.plain() if inline else []
    file = prompts.get("file")
    if file is not None:
        try:
            texts += _read_file(file)
        except SpecError as error:
            findings.diagnostics += error.diagnostics
            return ()
    repeat = prompts.get("repeat")
    times = int(repeat.plain()) if repeat else 1
    if len(texts) * times > MAX_PROMPTS:
        problem = f"the spec has {len(texts) * times} prompts"
        expected = f"at most {MAX_PROMPTS}, repetitions included"
        findings.add("KVS207", problem, prompts.mark, "$.prompts", expected=expected)
        return ()
    return tuple(texts * times)


def _read_file(node: Node) -> list[str]:
    path = beside(node.mark, str(node.value))
    where = "$.prompts.file"
    if not path.endswith((".txt", ".jsonl")):
        expected = "a `.txt` file with one prompt per line, or a `.jsonl` file with a `text` per line"
        raise SpecError(Diagnostic("KVS210", f"`{node.value}` has no known ending", node.mark, where, expected))
    text = read_text(path, MAX_FILE_BYTES, at=node.mark, where=where)
    texts: list[str] = []
    wrong: list[Diagnostic] = []
    for number, line in _lines(text):
        mark = Mark(path, number, 1)
        try:
            texts.append(_prompt(line, mark, where, as_json=path.endswith(".jsonl")))
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


def _prompt(line: str, mark: Mark, where: str, *, as_json: bool) -> str:
    prompt = _from_json(line, mark, where) if as_json else line
    if not 1 <= len(prompt) <= MAX_PROMPT_CHARS:
        expected = f"1 to {MAX_PROMPT_CHARS} characters"
        raise SpecError(Diagnostic("KVS207", f"the prompt has {len(prompt)} characters", mark, where, expected))
    return prompt


def _from_json(line: str, mark: Mark, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    prompt = record.get("text") if isinstance(record, dict) else None
    if not isinstance(prompt, str):
        expected = 'a JSON object with a text, such as {"text": "The sun is"}'
        raise SpecError(Diagnostic("KVS201", "the line is not a prompt", mark, where, expected))
    try:
        prompt.encode()
    except UnicodeEncodeError:
        problem = "the prompt holds half of a surrogate pair"
        raise SpecError(Diagnostic("KVS210", problem, mark, where, "valid Unicode text")) from None
    return prompt
