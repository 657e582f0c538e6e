"""The diff viewer: typical and worst trials beside their golden answers, with the flips that caused them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from kvspec.report.diff import Piece, align, first_difference, pieces, words
from kvspec.report.limits import Limits
from kvspec.report.safe import brief, clip, visible
from kvspec.score import Scores
from kvspec.score.flips import FlipList, list_flips
from kvspec.score.views import RunFiles, TrialView, Views

ROLES = {"typical": "typical mismatch", "worst": "worst mismatch", "crash": "crash"}


def trial_items(scores: Scores, views: Views, files: RunFiles, extras: Any, limits: Limits) -> list[dict[str, Any]]:
    """One item per trial to look at."""
    names = {cell.plan.index: cell.plan for cell in scores.cells}
    storage = scores.run.storage_format
    items = []
    for number, trial in enumerate(views.trials[: limits.trials]):
        plan = names[trial.cell]
        flips = None
        if extras.geometry is not None:
            flips = list_flips(files.plan, plan.fault, trial, extras.geometry)
        golden, faulted, unit = _answers(trial, extras.tokenizer, limits)
        if flips is not None and flips.total == len(flips.token) and unit == "token":
            faulted = _marked(faulted, trial, flips)
        items.append(
            {
                "id": f"trial-{number}",
                "trial": visible(trial.trial_id),
                "cell": brief(plan.name, limits.name),
                "role": ROLES[trial.role],
                "outcome": trial.outcome,
                "flips_words": _count(trial.landed, "flip"),
                "summary": _summary(trial),
                "prompt": brief(trial.prompt, limits.text, keep="\n"),
                "golden": _runs(golden),
                "faulted": _runs(faulted),
                "unit": unit,
                "cut": max(len(trial.golden_ids), len(trial.token_ids)) > limits.tokens,
                "error": brief(trial.error, limits.text) if trial.error else "",
                "flips": _flip_rows(flips, trial, storage, limits),
            }
        )
    return items


def _answers(trial: TrialView, tokenizer: Any, limits: Limits) -> tuple[list[Piece], list[Piece], str]:
    if tokenizer is not None:
        left, right = trial.golden_ids[: limits.tokens], trial.token_ids[: limits.tokens]
        same = align(left, right)
        first = first_difference(left, right)
        texts = tokenizer(left), tokenizer(right)
        return pieces(texts[0], same[0], first, left), pieces(texts[1], same[1], first, right), "token"
    cut = words(trial.golden_text)[: limits.tokens], words(trial.text)[: limits.tokens]
    same = align(*cut)
    first = first_difference(*cut)
    return pieces(_short(cut[0], limits), same[0], first), pieces(_short(cut[1], limits), same[1], first), "word"


def _short(texts: list[str], limits: Limits) -> list[str]:
    # An answer that collapsed may be one endless word.
    return [clip(text, max(40, limits.text // 4)) for text in texts]


def _marked(answer: list[Piece], trial: TrialView, flips: FlipList) -> list[Piece]:
    counts = Counter((flips.token - trial.prompt_tokens).tolist())
    return [replace(piece, flips=counts.get(piece.at, 0)) for piece in answer]


def _runs(answer: list[Piece]) -> list[dict[str, Any]]:
    """Neighbours that are the same in both answers become one run: the page holds no more elements than it needs."""
    runs: list[dict[str, Any]] = []
    for piece in answer:
        plain = piece.same and not piece.flips and not piece.first
        if plain and runs and runs[-1]["plain"]:
            runs[-1]["text"] += piece.text
            continue
        title = ""
        if piece.id is not None and not plain:
            title = f"token {piece.at}, id {piece.id}"
        if piece.flips:
            title += f", {_count(piece.flips, 'flip')} in its cache rows"
        runs.append(
            {
                "plain": plain,
                "same": piece.same,
                "first": piece.first,
                "flips": piece.flips,
                "text": piece.text,
                "title": title,
            }
        )
    return runs


def _summary(trial: TrialView) -> str:
    if trial.role == "crash":
        return f"The request did not finish: {trial.reason or 'no answer'}."
    parts = []
    if trial.first_divergence is None:
        parts.append("All tokens equal golden")
    elif trial.first_divergence == 0:
        parts.append("Differs from the first token on")
    else:
        parts.append(f"Equal for {_count(trial.first_divergence, 'token')}, then differs")
    if trial.token_drift is not None:
        total = max(len(trial.golden_ids), len(trial.token_ids))
        parts.append(f"{trial.token_drift:,} of {_count(total, 'token')} differ at their place")
    if trial.nonfinite_at is not None:
        parts.append(f"logits not finite from token {trial.nonfinite_at}")
    return "; ".join(parts) + "."


def _flip_rows(flips: FlipList | None, trial: TrialView, storage: str, limits: Limits) -> dict[str, Any] | None:
    if flips is None:
        return None
    shown = min(len(flips.token), limits.flips)
    rows = []
    for i in range(shown):
        token = int(flips.token[i])
        after = token - trial.prompt_tokens
        rows.append(
            (
                f"{token}",
                "prompt" if after < 0 else f"answer {after}",
                f"{flips.layer[i]}",
                "KV"[int(flips.value[i])],
                f"{flips.head[i]}",
                f"{flips.element[i]}",
                _bit(int(flips.bit[i]), storage),
            )
        )
    return {"rows": rows, "shown": shown, "total": flips.total}


_FIELDS = {
    "bf16": (7, 15),
    "fp16": (10, 15),
    "fp8_e4m3": (3, 7),
    "fp8_e5m2": (2, 7),
    "float32": (23, 31),
}
"""First exponent bit and the sign bit of floating-point formats."""


def _bit(bit: int, storage: str) -> str:
    if storage not in _FIELDS:
        return f"{bit}"
    exponent, sign = _FIELDS[storage]
    return f"{bit} ({'sign' if bit == sign else 'exponent' if bit >= exponent else 'mantissa'})"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
