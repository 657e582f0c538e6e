"""The model's files and the prompts as token ids, before the engine starts."""

from __future__ import annotations

from typing import Any

from kvspec.bundled import convert
from kvspec.engine.session import prepare_environment, quiet
from kvspec.errors import Diagnostic, EngineError, PrerequisiteError
from kvspec.models import ModelInfo, describe, is_local, ways_to_get
from kvspec.spec.model import ModelSpec, Spec


def materialize(model: ModelSpec) -> str:
    """What vLLM is told to load: a folder on this machine, or a hub id whose files it may download.

    Converts the bundled model if needed. Raises `PrerequisiteError` (KVS901, KVS902).
    """
    if model.id.startswith("bundled:"):
        describe(model)  # refuses unknown names
        with quiet():
            return str(convert())
    if is_local(model.id):
        folder = describe(model).folder
        assert folder is not None
        return str(folder)
    return model.id


def load_tokenizer(model: ModelSpec, source: str) -> Any:
    """The Hugging Face tokenizer that vLLM will use. Raises `PrerequisiteError` (KVS902) if the model is not there."""
    prepare_environment()
    try:
        with quiet():
            from transformers import AutoConfig, AutoTokenizer

            AutoConfig.from_pretrained(source, revision=model.revision)
            return AutoTokenizer.from_pretrained(source, revision=model.revision)
    except Exception as error:  # transformers raises OSError, ValueError and huggingface_hub's own classes
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PrerequisiteError.one(
            "KVS902",
            f"the model `{model.id}` cannot be loaded: {lines[0]}",
            path="$.model.id",
            hint=ways_to_get(f"`{model.id}`"),
        ) from error


def tokenize(spec: Spec, tokenizer: Any) -> list[list[int]]:
    """Token ids of every prompt."""
    return [list(tokenizer.encode(text)) for text in spec.prompts.texts]


def check_lengths(spec: Spec, info: ModelInfo, prompts: list[list[int]]) -> None:
    """Every prompt and its answer must fit into the model. Raises `EngineError` (KVS405) naming each that does not."""
    limits = [limit for limit in (info.max_model_len, spec.model.max_model_len) if limit is not None]
    limit = min(limits) if limits else None
    wrong = []
    for index, ids in enumerate(prompts):
        if not ids:
            wrong.append(Diagnostic("KVS405", f"prompt {index} has no tokens", path="$.prompts"))
        elif limit is not None and len(ids) + spec.generation.max_tokens > limit:
            wrong.append(
                Diagnostic(
                    "KVS405",
                    f"prompt {index} has {len(ids)} tokens; with {spec.generation.max_tokens} generated ones "
                    f"it does not fit into `{spec.model.id}`",
                    path="$.prompts",
                    expected=f"at most {limit} tokens in all",
                    hint="shorten the prompt or generation.max_tokens",
                )
            )
    if wrong:
        raise EngineError(spec.placed(wrong))
