"""The text of sampled tokens, made once per answer instead of token by token.

vLLM detokenizes every token as it comes, which takes a good part of a step's time on the host. For byte-level
tokenizers the same text follows from the token ids alone:

    text = UTF-8(bytes of the tokens, special ones left out), without an end that is no complete character

because vLLM's stream holds tokens back as long as its text ends in U+FFFD, and what it has shown it never takes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

TAIL = 8
"""Tokens at the end of a prompt that are looked at."""
BROKEN = "\N{REPLACEMENT CHARACTER}"


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable characters stand for themselves, the other bytes for characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_of_character()


class ByteLevelText(dict[int, bytes]):
    """Bytes of each token that has been seen, and the text of many."""

    def __init__(self, tokenizer: Any) -> None:
        """Of a `tokenizers.Tokenizer` with a byte-level decoder."""
        super().__init__()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = {token.content for token in added if token.special}

    @classmethod
    def of(cls, tokenizer: Any) -> Self | None:
        """For a Hugging Face tokenizer; `None` if its text is not that of the bytes of its tokens."""
        from tokenizers.decoders import ByteLevel

        backend = getattr(tokenizer, "_tokenizer", None)
        return cls(backend) if isinstance(getattr(backend, "decoder", None), ByteLevel) else None

    def __missing__(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token in self._special:
            found = b""
        elif all(character in BYTES for character in token):
            found = bytes(BYTES[character] for character in token)
        else:
            found = token.encode()  # an added token, which stands for itself
        self[token_id] = found
        return found

    def whole(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt surely ends with a complete character: after another one, vLLM's stream repeats it."""
        text = self._decode(prompt[-TAIL:])
        return bool(text) and not text.endswith(BROKEN)

    def text(self, token_ids: Sequence[int]) -> str:
        """What vLLM's stream shows of sampled tokens."""
        text = self._decode(token_ids)
        while text.endswith(BROKEN):
            token_ids = token_ids[:-1]
            text = self._decode(token_ids)
        return text

    def _decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(map(self.__getitem__, token_ids)).decode("utf-8", "replace")
