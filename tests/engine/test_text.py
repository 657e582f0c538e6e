"""Text made from the token ids of an answer, against the text that vLLM makes token by token."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kvspec.engine.text import ByteLevelText
from kvspec.errors import EngineError
from kvspec.plan.lengths import choice_ids

Run = Callable[..., dict[str, dict[str, Any]]]
# ASCII, first and continuation bytes, whole characters of several bytes, an added and a special token, no token
TOKENS = st.integers(0, 275) | st.sampled_from([0, *range(200, 275)])


def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(["<eos>", *alphabet, "âĤ¬", "Ã©", "<0x41>"])}, merges=[])
    )
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_tokens([AddedToken("名 前", special=False), AddedToken("<pad>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token="<eos>")


def by_vllm(made: PreTrainedTokenizerFast, prompt: list[int], sampled: list[int]) -> str:
    from types import SimpleNamespace

    from vllm import SamplingParams
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    request: Any = SimpleNamespace(request_id="0", prompt_token_ids=prompt, sampling_params=SamplingParams())
    stream = FastIncrementalDetokenizer(made, request)
    for token in sampled:
        stream.update([token], False)
    return stream.get_next_output_text(True, False)


def chain(made: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The decoder that transformers 5.17 gives to the tokenizer of a GGUF file."""
    steps = [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " "), decoders.ByteLevel()]
    made._tokenizer.decoder = decoders.Sequence(steps)
    return made


@pytest.mark.parametrize("decoder", [lambda made: made, chain], ids=["byte-level", "chain"])
@settings(max_examples=1500, deadline=None)
@given(prompt=st.lists(TOKENS, min_size=1, max_size=12), sampled=st.lists(TOKENS, max_size=12))
def test_the_text_is_that_of_vllms_stream(decoder: Any, prompt: list[int], sampled: list[int]) -> None:
    made = made_with(decoder)
    mine = ByteLevelText.of(made)
    assert mine is not None
    assert mine.text(prompt, sampled) == by_vllm(made, prompt, sampled)


@cache
def made_with(decoder: Any) -> PreTrainedTokenizerFast:
    made: PreTrainedTokenizerFast = decoder(tokenizer())
    return made


def test_most_answers_need_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer()
    mine = ByteLevelText.of(made)
    assert mine is not None
    monkeypatch.setattr(ByteLevelText, "_streamed", lambda *_: pytest.fail("streamed"))
    assert mine.text(made.encode("The answer"), made.encode(" is naïve: €")) == " is naïve: €"
    assert mine.text(made.encode("x"), made.encode("é")[:1]) == ""


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Metaspace(),
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
        decoders.Sequence([decoders.Replace("a", "b"), decoders.ByteLevel()]),
    ],
)
def test_other_decoders_are_left_to_vllm(decoder: Any) -> None:
    made = tokenizer()
    made._tokenizer.decoder = decoder
    assert ByteLevelText.of(made) is None


def test_choices_are_single_tokens() -> None:
    made = tokenizer()
    assert choice_ids(made.encode, ["A", "名 前"]) == [made.encode("A")[0], made.encode("名 前")[0]]
    assert choice_ids(made.encode, []) == []
    with pytest.raises(EngineError, match="2 tokens of the model"):
        choice_ids(made.encode, ["A", " B"])
    made._tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(EngineError, match="the choice `a` is 1 token of the model, that of `A`"):
        choice_ids(made.encode, ["A", "a"])


def test_a_campaign_records_the_texts_that_vllm_makes(gpt2: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {
        "model": {"id": str(gpt2)},
        "prompts": {"inline": ["The capital of France is", "naïve: 名"]},
        "generation": {"max_tokens": 24, "ignore_eos": False},
        "faults": [{"name": "W", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": [1e-4, 1e-2]}}],
        "trials": 12,
    }
    mine = run(spec)
    monkeypatch.setattr(ByteLevelText, "of", classmethod(lambda *_: None))
    theirs = run(spec)
    assert {row["finish_reason"] for row in mine.values()} == {"stop", "length"}
    assert [row["text"] for row in mine.values()] == [row["text"] for row in theirs.values()]
    assert {t: r["token_ids"] for t, r in mine.items()} == {t: r["token_ids"] for t, r in theirs.items()}
