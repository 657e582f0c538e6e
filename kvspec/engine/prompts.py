"""The model's files and the prompts as token ids, before the engine starts."""

from __future__ import annotations

from typing import Any

from kvspec.bundled import convert
from kvspec.engine.session import prepare_environment, quiet
from kvspec.errors import EngineError, PrerequisiteError
from kvspec.models import ModelInfo, describe, is_local, ways_to_get
from kvspec.plan.lengths import misfits
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
    with quiet():
        from transformers import AutoConfig, AutoTokenizer
    try:
        with quiet():
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
    if wrong := misfits(spec, info, [len(ids) for ids in prompts]):
        raise EngineError(spec.placed(wrong))
