"""The guide's own Python with one import changed."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from kvspec.errors import EngineError, KvspecError, SpecError
from kvspec.vllm import LLM, SamplingParams

PROMPTS = ["Explain quantum entanglement in one sentence.", "The capital of France is"] * 2


def params(**changes: Any) -> Any:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 20, "ignore_eos": True, **changes})


def test_the_smoke_test_and_the_benchmark_loop_of_the_guide(gpt2: Path) -> None:
    llm = LLM(model=str(gpt2), enforce_eager=True)
    outputs = llm.generate(PROMPTS, params())
    gold = [output.outputs[0].text for output in outputs]
    assert [output.prompt for output in outputs] == PROMPTS
    assert gold[:2] == gold[2:]
    assert all(len(output.outputs[0].token_ids) == 20 for output in outputs)
    del llm
    gc.collect()

    matches = []
    for rate, model, more in (
        (0.0, "random", {}),
        (1e-7, "random", {}),
        (1e-2, "burst", {"fault_injection_burst_len": 8}),
        (1e-1, "msb_biased", {"fault_injection_msb_policy": "FP16_EXPONENT"}),
        (1.0, "random", {}),
    ):
        llm = LLM(
            model=str(gpt2),
            enforce_eager=True,
            fault_injection_enabled=True,
            fault_injection_site="KV_WRITE",
            fault_injection_model=model,
            fault_injection_rate=rate,
            fault_injection_seed=42,
            **more,
        )
        outputs = llm.generate(PROMPTS, params())
        again = llm.generate(PROMPTS, params())
        assert [o.outputs[0].token_ids for o in again] == [o.outputs[0].token_ids for o in outputs]
        matches.append(sum(o.outputs[0].text == text for o, text in zip(outputs, gold, strict=True)))
        if rate == 1.0:
            written = len(outputs[0].prompt_token_ids) + 19
            assert outputs[0].flips_landed == written * 4 * 2 * 4 * 32  # one flip per element
        del llm
    assert matches[0] == matches[1] == 4
    assert matches[3:] == [0, 0]


def test_a_later_llm_closes_the_one_before_it(gpt2: Path) -> None:
    first = LLM(model=str(gpt2), max_model_len=64)
    second = LLM(model=str(gpt2), max_model_len=64)
    assert len(second.generate("The sun is", params())) == 1
    with pytest.raises(EngineError, match="closed"):
        first.generate("The sun is", params())
    with pytest.raises(SpecError, match="presence_penalty"):
        second.generate("The sun is", params(presence_penalty=0.5))
    with pytest.raises(SpecError, match="list"):
        second.generate(["a", "b"], [params(), params()])
    with pytest.raises(KvspecError) as caught:
        second.generate("a" * 100, params())
    assert caught.value.diagnostics[0].code == "KVS405"
    second.close()


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"tensor_parallel_size": 2}, "KVS202"),
        ({"quantization": "awq"}, "KVS202"),
        ({"kv_cache_dtype": "nvfp4"}, "KVS203"),
        ({"fault_injection_site": "READ"}, "KVS203"),
        ({"fault_injection_model": "bitrot"}, "KVS203"),
        ({"fault_injection_msb_policy": "TOP"}, "KVS203"),
        ({"fault_injection_rate": 1.5}, "KVS205"),
        ({"fault_injection_rate": float("nan")}, "KVS205"),
        ({"fault_injection_enabled": "false"}, "KVS201"),
        ({"fault_injection_enabled": 1}, "KVS201"),
        ({"fault_injection_enabled": None}, "KVS201"),
        ({"enforce_eager": "no"}, "KVS201"),
        ({"fault_injection_rate": "1e-5"}, "KVS201"),
        ({"fault_injection_rate": True}, "KVS201"),
        ({"fault_injection_rate": None}, "KVS201"),
        ({"fault_injection_seed": 1.5}, "KVS201"),
        ({"fault_injection_burst_len": "8"}, "KVS201"),
        ({"fault_injection_seed": -1}, "KVS205"),
        ({"fault_injection_burst_len": 0}, "KVS205"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(wrong: dict[str, Any], code: str) -> None:
    with pytest.raises(SpecError) as caught:
        LLM(model="gpt2", **wrong)
    found = caught.value.diagnostics[0]
    assert found.code == code
    assert found.path in wrong
    assert found.expected
    assert (found.hint == "write it without quotes") == (code == "KVS201" and "'" in found.message)
