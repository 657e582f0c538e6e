"""Whether prompts and answers fit into the model, and whether choices are tokens of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from kvspec.errors import Diagnostic, EngineError
from kvspec.models import ModelInfo
from kvspec.spec.model import Spec

BEFORE = "Answer:"
"""What choices are tokenized after: with some tokenizers the first token of a text is another one."""


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


def choice_ids(encode: Callable[[str], Sequence[int]], choices: Sequence[str]) -> list[int]:
    """The token of each choice, as it stands after a prompt. `encode` is the tokenizer's: a text to its token ids.

    Raises `EngineError` (KVS409) for a choice of several tokens, and for two that begin with the same one.
    """
    before = list(encode(BEFORE))
    found: dict[int, str] = {}
    for choice in choices:
        ids = list(encode(BEFORE + choice))
        own = ids[len(before) :] if ids[: len(before)] == before else ids
        if len(own) != 1 or own[0] in found:
            same = f", that of `{found[own[0]]}`" if len(own) == 1 else ""
            raise EngineError.one(
                "KVS409",
                f"the choice `{choice}` is {len(own)} token{'' if len(own) == 1 else 's'} of the model{same}",
                path="$.generation.choices",
                expected="choices of one token each, all different",
                hint="begin it with a space where the prompt ends without one"
                if not choice[0].isspace()
                else "label the choices with letters in the prompt, and choose among the letters",
            )
        found[own[0]] = choice
    return list(found)
