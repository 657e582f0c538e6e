"""Whether prompts and answers fit into the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kvspec.errors import Diagnostic
from kvspec.models import ModelInfo
from kvspec.spec.model import Spec


def misfits(
    spec: Spec, info: ModelInfo, tokens: Sequence[int], severity: Literal["error", "warning"] = "error"
) -> list[Diagnostic]:
    """A KVS405 for every prompt that is empty or does not fit with its answer. `tokens` are counts per prompt."""
    limits = [limit for limit in (info.max_model_len, spec.model.max_model_len) if limit is not None]
    limit = min(limits) if limits else None
    found = []
    for index, count in enumerate(tokens):
        if not count:
            found.append(Diagnostic("KVS405", f"prompt {index} has no tokens", path="$.prompts", severity=severity))
        elif limit is not None and count + spec.generation.max_tokens > limit:
            found.append(
                Diagnostic(
                    "KVS405",
                    f"prompt {index} has {count} tokens; with {spec.generation.max_tokens} generated ones "
                    f"it does not fit into `{spec.model.id}`",
                    path="$.prompts",
                    expected=f"at most {limit} tokens in all",
                    hint="shorten the prompt or generation.max_tokens",
                    severity=severity,
                )
            )
    return found
