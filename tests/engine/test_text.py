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

from kvspec.engine import text
from kvspec.engine.text import ByteLevelText, streamed, token_ends
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


@settings(max_examples=1500, deadline=None)
@given(prompt=st.lists(TOKENS, min_size=1, max_size=12), sampled=st.lists(TOKENS, max_size=12))
def test_ends_are_those_of_every_shorter_answer(prompt: list[int], sampled: list[int]) -> None:
    made = made_with(chain)
    mine = ByteLevelText.of(made)
    assert mine is not None
    whole, ends = mine.text(prompt, sampled), mine.ends(prompt, sampled)
    assert [whole[:end] for end in ends] == [mine.text(prompt, sampled[: i + 1]) for i in range(len(sampled))]
    assert ends == sorted(ends)
    assert not ends or ends[-1] == len(whole)
    assert streamed(made, prompt, sampled) == (whole, ends)
    assert token_ends(mine, prompt, sampled, whole) == token_ends(made, prompt, sampled, whole) == ends


@cache
def bundled() -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    from kvspec.bundled import convert

    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(convert())
    return found


@settings(max_examples=300, deadline=None)
@given(answer=st.text(max_size=40), more=st.lists(st.integers(0, 49_151), max_size=6))
def test_ends_of_a_real_tokenizer(answer: str, more: list[int]) -> None:
    """Characters of every plane, split over tokens, and tokens that end within one."""
    made = bundled()
    mine = ByteLevelText.of(made)
    assert mine is not None
    prompt, sampled = made.encode("Q: How many?\nA:"), [*made.encode(answer), *more]
    whole = mine.text(prompt, sampled)
    assert [whole[:end] for end in mine.ends(prompt, sampled)] == [
        streamed(made, prompt, sampled[: i + 1])[0] for i in range(len(sampled))
    ]


def test_what_stops_an_answer_is_no_part_of_it() -> None:
    made = bundled()
    mine = ByteLevelText.of(made)
    assert mine is not None
    prompt, sampled = made.encode("A:"), made.encode(" is naïve: 名前.\n\nQ: and")
    assert "名" not in [made.decode([token]) for token in sampled]  # one character, several tokens
    for made_by in (mine, made):
        ends = token_ends(made_by, prompt, sampled, " is naïve: 名前.")
        assert ends[-3:] == [14, 14, 14]
        assert ends.count(10) > 1


@cache
def made_with(decoder: Any) -> PreTrainedTokenizerFast:
    made: PreTrainedTokenizerFast = decoder(tokenizer())
    return made


def test_most_answers_need_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer()
    mine = ByteLevelText.of(made)
    assert mine is not None
    monkeypatch.setattr(text, "streamed", lambda *_: pytest.fail("streamed"))
    assert mine.ends(made.encode("x"), made.encode(" é€!")) == [1, 1, 2, 2, 2, 3, 4]
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
    assert {t: r["token_ends"] for t, r in mine.items()} == {t: r["token_ends"] for t, r in theirs.items()}


def test_a_golden_record_says_where_its_tokens_end(run: Run) -> None:
    spec = {
        "model": {"id": "bundled:smollm2"},
        "prompts": {"inline": ["The word for name in Japanese is", "1, 2, 3,"]},
        "generation": {"max_tokens": 12, "stop": ["10"]},
        "faults": [{"name": "W", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": 1e-6}}],
        "trials": 1,
    }
    rows = run(spec).values()
    golden = [row for row in rows if row["kind"] == "golden"]
    assert {row["kind"] for row in rows if row["token_ends"] is None} == {row["kind"] for row in rows} - {"golden"}
    made = bundled()
    for row, prompt in zip(golden, spec["prompts"]["inline"], strict=True):
        ids, ends, whole = row["token_ids"], row["token_ends"], row["text"]
        assert len(ends) == len(ids)
        shown = [streamed(made, made.encode(prompt), ids[: i + 1])[0] for i in range(len(ids))]
        assert [whole[:end] for end in ends] == [found[: len(whole)] for found in shown]
        assert ends[-1] == len(whole)
