"""Specs of math-needle prompts, from the lines of their `prompts`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from kvspec.spec import Spec, load_spec

FAULT = "faults: [{name: F, model: random, site: KV_WRITE, rate: {per_bit: [1e-7, 1e-6]}}]\ntrials: 3\n"


def load(tmp_path: Path, prompts: str) -> Spec:
    path = tmp_path / "spec.yaml"
    path.write_text(f"kvspec: 1\nname: t\nmodel: {{id: gpt2}}\nprompts: {prompts}\n{FAULT}", encoding="utf-8")
    return load_spec(path)


def needle(tmp_path: Path, more: str = "") -> Spec:
    return load(tmp_path, f"{{generator: math_needle, contexts: [60, 300], items: 5{more}}}")


def asdict_task(task: object) -> dict[str, object]:
    return asdict(task)  # type: ignore[call-overload, no-any-return]
