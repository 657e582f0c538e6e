"""Which models are taken, by name: anything whose cache could be mis-addressed is refused before it is touched."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from kvspec.engine.vllm.layers import SUPPORTED, attention_layers, geometry
from kvspec.errors import EngineError


def attention(backend="FLASH_ATTN", *, includes_write=False, **attributes):
    """An attention layer of vLLM's class, without its engine."""
    from vllm.model_executor.layers.attention import Attention

    layer = Attention.__new__(Attention)
    torch.nn.Module.__init__(layer)
    layer.attn_backend = SimpleNamespace(get_name=lambda: backend, forward_includes_kv_cache_update=includes_write)
    for name, value in {"num_kv_heads": 2, "head_size": 64, "sliding_window": None, **attributes}.items():
        setattr(layer, name, value)
    return layer


def model(*layers, first=0):
    return {f"model.layers.{first + i}.self_attn.attn": layer for i, layer in enumerate(layers)}


@pytest.mark.parametrize("backend", SUPPORTED)
def test_full_attention_of_a_supported_backend_is_taken_in_layer_order(backend):
    layers = [attention(backend) for _ in range(11)]
    found = attention_layers(dict(reversed(model(*layers).items())))
    assert [a.index for a in found] == list(range(11))
    assert [a.layer for a in found] == layers
    assert geometry(found, 4).kv_heads == 4


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (
            lambda: model(attention(), attention("FLASHINFER")),
            "attention backend `FLASHINFER` of layer `model.layers.1",
        ),
        (lambda: model(attention("TRITON_MLA")), "`TRITON_MLA`"),
        (lambda: model(attention(includes_write=True)), "writes its cache inside forward"),
        (lambda: model(attention(kv_sharing_target_layer_name="model.layers.0")), "shares the cache of another layer"),
        (lambda: model(attention(sliding_window=128)), "uses a sliding window"),
        (lambda: {**model(attention()), "model.layers.1.mixer": object()}, "layer `model.layers.1.mixer` is a object"),
        (lambda: model(attention(), first=1), "attention layers [1]"),
        (dict, "attention layers []"),
    ],
)
def test_anything_else_is_refused_by_name(context, words):
    with pytest.raises(EngineError) as caught:
        attention_layers(context())
    (found,) = caught.value.diagnostics
    assert found.code == "KVS402"
    assert words in found.message
    assert found.expected


def test_a_backend_that_is_not_injected_says_how_to_have_another():
    with pytest.raises(EngineError) as caught:
        attention_layers(model(attention("FLASHINFER")))
    assert "attention_backend" in caught.value.diagnostics[0].hint


def test_layers_of_unlike_shapes_are_refused():
    with pytest.raises(EngineError, match="layers differ"):
        geometry(attention_layers(model(attention(), attention(num_kv_heads=1))))
