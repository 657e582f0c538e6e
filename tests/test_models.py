"""Model ids, geometry and limits, without torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvspec.bundled import BUNDLED
from kvspec.errors import PrerequisiteError
from kvspec.models import Geometry, describe, geometry_from_config, prompt_lengths
from kvspec.spec.model import ModelSpec


@pytest.mark.parametrize(
    ("config", "geometry"),
    [
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, Geometry(12, 12, 64)),
        (
            {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576},
            Geometry(30, 3, 64),
        ),
        (
            {
                "num_hidden_layers": 2,
                "num_attention_heads": 8,
                "num_key_value_heads": 1,
                "hidden_size": 512,
                "head_dim": 96,
            },
            Geometry(2, 1, 96),
        ),
        ({"num_hidden_layers": 2}, None),
        ({"num_hidden_layers": "2", "num_attention_heads": 8, "hidden_size": 512}, None),
        ({"num_hidden_layers": 2, "num_attention_heads": 0, "hidden_size": 512}, None),
    ],
)
def test_geometry_is_read_from_either_dialect(config: dict[str, object], geometry: Geometry | None) -> None:
    assert geometry_from_config(config) == geometry


def test_a_local_folder_is_described(tmp_path: Path) -> None:
    config = {"n_layer": 3, "n_head": 2, "n_embd": 64, "n_positions": 77}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = describe(ModelSpec(str(tmp_path)))
    assert found.geometry == Geometry(3, 2, 32)
    assert found.max_model_len == 77
    assert found.folder == tmp_path


@pytest.mark.parametrize("content", [None, "not json", "[1]"])
def test_a_folder_without_a_usable_config(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    if content == "[1]":
        assert describe(ModelSpec(str(tmp_path))).geometry is None
        return
    with pytest.raises(PrerequisiteError) as caught:
        describe(ModelSpec(str(tmp_path)))
    assert caught.value.diagnostics[0].code == "KVS902"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "bundled:other"])
def test_missing_models_say_how_to_get_one(name: str) -> None:
    with pytest.raises(PrerequisiteError) as caught:
        describe(ModelSpec(name))
    (found,) = caught.value.diagnostics
    assert found.code == "KVS902"
    assert BUNDLED in f"{found.hint} {found.expected}"


def test_lengths_are_estimates_where_no_tokenizer_is() -> None:
    lengths, exact = prompt_lengths(ModelSpec("nobody/nothing"), describe(ModelSpec("nobody/nothing")), ["a" * 40, ""])
    assert (lengths, exact) == ([10, 1], False)
