"""The text of sampled tokens, made once per answer instead of token by token.

vLLM detokenizes every token as it comes, which takes a good part of a step's time on the host. For byte-level
tokenizers the same text follows from the token ids alone:

    text = UTF-8(bytes of the tokens, special ones left out), without an end that is no complete character

because vLLM's stream holds tokens back as long as its text ends in U+FFFD, and what it has shown it never takes back.
Where a token does not stand for its bytes (an added one with a space, say), vLLM's own stream is run over the answer.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Self

TAIL = 8
"""Tokens at the end of a prompt that show whether it ends with a complete character."""
BROKEN = "\N{REPLACEMENT CHARACTER}"
FALLBACK = re.compile("<0x[0-9A-Fa-f]{2}>")
"""A token that stands for a byte where the decoder has a fallback for bytes."""


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable characters stand for themselves, the other bytes for characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_of_character()


class ByteLevelText(dict[int, bytes | None]):
    """Bytes of each token that has been seen, `None` for one that does not stand for its bytes; and texts."""

    def __init__(self, tokenizer: Any) -> None:
        """Of a Hugging Face tokenizer with a byte-level decoder."""
        super().__init__()
        self._tokenizer = tokenizer
        self._backend = tokenizer._tokenizer
        added = self._backend.get_added_tokens_decoder().values()
        self._special = {token.content for token in added if token.special}

    @classmethod
    def of(cls, tokenizer: Any) -> Self | None:
        """`None` if a tokenizer's text is not that of the bytes of its tokens."""
        decoder = getattr(getattr(tokenizer, "_tokenizer", None), "decoder", None)
        return cls(tokenizer) if decoder is not None and _byte_level(json.loads(decoder.__getstate__())) else None

    def __missing__(self, token_id: int) -> bytes | None:
        token = self._backend.id_to_token(token_id)
        found: bytes | None = None
        if token is None or token in self._special:
            found = b""
        elif all(character in BYTES for character in token) and not FALLBACK.fullmatch(token):
            found = bytes(BYTES[character] for character in token)
        self[token_id] = found
        return found

    def text(self, prompt: Sequence[int], token_ids: Sequence[int]) -> str:
        """What vLLM shows of the tokens sampled after a prompt."""
        text = self._decode(token_ids)
        if text is None or not self._whole(prompt):
            return streamed(self._tokenizer, prompt, token_ids)[0]
        while text.endswith(BROKEN):
            token_ids = token_ids[:-1]
            text = self._decode(token_ids) or ""
        return text

    def _decode(self, token_ids: Sequence[int]) -> str | None:
        pieces = [self[token_id] for token_id in token_ids]
        return None if None in pieces else b"".join(pieces).decode("utf-8", "replace")  # type: ignore[arg-type]

    def ends(self, prompt: Sequence[int], token_ids: Sequence[int]) -> list[int]:
        """Characters that vLLM shows after each token sampled after a prompt `[T]`, in one pass: for every i those of
        `text(prompt, token_ids[:i + 1])`."""
        pieces = [self[token_id] for token_id in token_ids]
        if None in pieces or not self._whole(prompt):
            return streamed(self._tokenizer, prompt, token_ids)[1]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        ends, shown, seen, broken = [], 0, 0, False
        for piece in pieces:
            made = decoder.decode(piece or b"")
            seen += len(made)
            if piece:
                broken = bool(decoder.getstate()[0]) or made.endswith(BROKEN)
            shown = shown if broken else seen
            ends.append(shown)
        return ends

    def _whole(self, prompt: Sequence[int]) -> bool:
        # after half a character the stream repeats the prompt, and other tokens change what their neighbours stand for
        before = self._decode(prompt[-TAIL:])
        return bool(before) and not str(before).endswith(BROKEN) and self._decode(prompt) is not None


def token_ends(made: ByteLevelText | Any, prompt: Sequence[int], token_ids: Sequence[int], text: str) -> list[int]:
    """Characters of an answer's `text` after each of its tokens `[T]`, by what makes texts: a `ByteLevelText`, or the
    tokenizer whose texts vLLM makes itself."""
    ends = made.ends(prompt, token_ids) if isinstance(made, ByteLevelText) else streamed(made, prompt, token_ids)[1]
    # what stopped the answer is no part of its text
    return [min(end, len(text)) for end in ends]


def streamed(tokenizer: Any, prompt: Sequence[int], token_ids: Sequence[int]) -> tuple[str, list[int]]:
    """What vLLM itself shows of the tokens sampled after a prompt: the text, and its characters after each `[T]`."""
    from vllm import SamplingParams
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    request: Any = SimpleNamespace(
        request_id="", prompt_token_ids=list(prompt), prompt_embeds=None, sampling_params=SamplingParams()
    )
    stream = IncrementalDetokenizer.from_new_request(tokenizer, request)
    ends = []
    for token_id in token_ids:
        stream.update([token_id], False)
        ends.append(len(stream.get_next_output_text(True, False)))
    return str(stream.get_next_output_text(True, False)), ends


def _byte_level(decoder: dict[str, Any]) -> bool:
    """Whether tokens of characters of the alphabet, and no others, become their bytes."""
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    *first, last = [step["type"] for step in steps]
    # replacing a character that is not in the alphabet changes none of these tokens
    replaced = [step["pattern"].get("String", "") for step in steps if step["type"] == "Replace"]
    harmless = all(text and not any(character in BYTES for character in text) for text in replaced)
    return last == "ByteLevel" and harmless and set(first) <= {"ByteFallback", "Fuse", "Replace"}
