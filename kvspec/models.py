"""Which model a spec names: its folder, geometry, limits and tokenizer. Never imports torch or vLLM.

A model id is one of three things: `bundled:smollm2` (carried by a Python package, converted once into the user's
cache), the path of a local folder in Hugging Face layout, or the name of a repository on the hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvspec.bundled import BUNDLED, converted_folder
from kvspec.errors import KvspecError, PrerequisiteError
from kvspec.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shape of the KV cache of one request: what decides how many bits can flip."""

    layers: int
    kv_heads: int
    """Global number of KV heads per layer, before any tensor-parallel split."""
    head_size: int
    """Elements per (token, head) row."""
    planes: int = 2
    """K and V."""

    @property
    def rows_per_token(self) -> int:
        """(K|V, head) rows of one token in one layer."""
        return self.planes * self.kv_heads

    def bits_per_token(self, bits_per_element: int) -> int:
        """Stored bits of one token over all layers."""
        return self.layers * self.rows_per_token * self.head_size * bits_per_element


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known about a model without loading it."""

    id: str
    folder: Path | None
    """Where its files are on this machine; `None` if they are not here yet."""
    geometry: Geometry | None
    max_model_len: int | None
    """Longest sequence in tokens."""
    parameters: int | None
    """Approximate number of weights, for cost estimates only."""


_KNOWN: dict[str, ModelInfo] = {
    info.id: info
    for info in (
        ModelInfo(BUNDLED, None, Geometry(30, 3, 64), 8192, 135_000_000),
        ModelInfo("gpt2", None, Geometry(12, 12, 64), 1024, 124_000_000),
        ModelInfo("openai-community/gpt2", None, Geometry(12, 12, 64), 1024, 124_000_000),
        ModelInfo("HuggingFaceTB/SmolLM2-135M-Instruct", None, Geometry(30, 3, 64), 8192, 135_000_000),
        ModelInfo("meta-llama/Llama-3.1-8B", None, Geometry(32, 8, 128), 131072, 8_030_000_000),
        ModelInfo("meta-llama/Llama-3.1-8B-Instruct", None, Geometry(32, 8, 128), 131072, 8_030_000_000),
    )
}
"""Models whose shape is public knowledge, so that a plan can be made before anything is downloaded. The engine checks
the real geometry against the plan's."""


def is_local(model_id: str) -> bool:
    """Whether a model id means a folder: it exists, or it is written like a path."""
    return model_id.startswith((".", "/", "~")) or Path(model_id).is_dir()


def describe(model: ModelSpec) -> ModelInfo:
    """Everything known about a model from this machine's files and from the table of well-known shapes.

    Raises `PrerequisiteError` (KVS902) for a local path that is not a model folder.
    """
    known = _KNOWN.get(model.id, ModelInfo(model.id, None, None, None, None))
    if model.id.startswith("bundled:"):
        if model.id != BUNDLED:
            raise PrerequisiteError.one(
                "KVS902", f"no bundled model is called `{model.id}`", path="$.model.id", expected=BUNDLED
            )
        folder = converted_folder()
        return replace(known, folder=folder if folder.is_dir() else None)
    if is_local(model.id):
        folder = Path(model.id).expanduser()
        if not (folder / "config.json").is_file():
            raise PrerequisiteError.one(
                "KVS902",
                f"`{model.id}` is not a model folder",
                path="$.model.id",
                expected="a folder in Hugging Face layout, with config.json",
                hint=ways_to_get("the model"),
            )
        return _from_folder(replace(known, folder=folder))
    cached = _hub_file(model, "config.json")
    return _from_folder(replace(known, folder=cached.parent)) if cached else known


def ways_to_get(name: str) -> str:
    """The three ways to have a model, for hints."""
    return (
        f"three ways to get {name}: (1) from the hub: connect to the network and let vLLM download it "
        "(set HF_TOKEN for gated models); (2) from a local folder: `--set model.id=/path/to/folder`; "
        f"(3) without any download, the bundled model: `--set model.id={BUNDLED}`"
    )


def load_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a model folder. Raises `PrerequisiteError` (KVS902) if it cannot be read."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise PrerequisiteError.one(
            "KVS902",
            f"the tokenizer of `{folder}` cannot be read: {error}",
            expected="a tokenizer.json beside config.json",
            hint=ways_to_get("a model with its tokenizer"),
        ) from error


def find_tokenizer(model: ModelSpec, info: ModelInfo) -> Any | None:
    """The `tokenizers.Tokenizer` of a model, or `None` if it is not on this machine or cannot be read."""
    path = None
    if info.folder is not None and (info.folder / "tokenizer.json").is_file():
        path = info.folder
    elif not model.id.startswith("bundled:") and (cached := _hub_file(model, "tokenizer.json")):
        path = cached.parent
    try:
        return None if path is None else load_tokenizer(path)
    except KvspecError:
        return None


def prompt_lengths(model: ModelSpec, info: ModelInfo, texts: Iterable[str]) -> tuple[list[int], bool]:
    """Tokens of each prompt, and whether they are exact.

    Exact where the tokenizer is on this machine; otherwise four characters count as a token, which is close enough
    to plan with and is marked as an estimate.
    """
    tokenizer = find_tokenizer(model, info)
    if tokenizer is None:
        return [max(1, len(text) // 4) for text in texts], False
    return [len(e.ids) for e in tokenizer.encode_batch(list(texts))], True


def geometry_from_config(config: dict[str, Any]) -> Geometry | None:
    """KV-cache shape from the words that Hugging Face configs use; `None` if they do not say it."""
    layers = config.get("num_hidden_layers") or config.get("n_layer")
    heads = config.get("num_attention_heads") or config.get("n_head")
    hidden = config.get("hidden_size") or config.get("n_embd")
    if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(hidden, int) and heads > 0):
        return None
    kv_heads = config.get("num_key_value_heads") or heads
    head_size = config.get("head_dim") or hidden // heads
    return Geometry(layers, int(kv_heads), int(head_size))


def _from_folder(info: ModelInfo) -> ModelInfo:
    assert info.folder is not None
    try:
        config = json.loads((info.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrerequisiteError.one(
            "KVS902", f"the config.json of `{info.folder}` cannot be read: {error}", path="$.model.id"
        ) from error
    if not isinstance(config, dict):
        config = {}
    limit = config.get("max_position_embeddings") or config.get("n_positions")
    return replace(
        info,
        geometry=geometry_from_config(config) or info.geometry,
        max_model_len=limit if isinstance(limit, int) else info.max_model_len,
    )


def _hub_file(model: ModelSpec, name: str) -> Path | None:
    """A file of a hub repository that is already in the local hub cache. Never touches the network."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model.id, name, revision=model.revision)
    except Exception:  # a malformed id or cache: the engine reports it with the hub's own words
        return None
    return Path(found) if isinstance(found, str) else None
