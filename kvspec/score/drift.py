"""Golden diffing: how far faulty outputs are from their golden ones, in one call for a whole campaign.

```python
import kvspec

kvspec.score("the cat sat", ["the cat sat", "the bat sat!"])["drift"]        # array([0, 2], dtype=uint32)
kvspec.score([[5, 6, 7]], [[5, 6, 9], [5, 6]], golden_index=[0, 0])["first_divergence"]    # array([2, 2])
```

`kvspec.score(...)` is `kvspec.score.drift.score(...)`. This module itself needs numpy, and pyarrow for Arrow input.

Outputs are texts (a list of `str` or an Arrow array of them, measured in Unicode code points) or token ids: an Arrow
list array, a pair of arrays `(values, offsets)`, a two-dimensional array, or a list of arrays or lists. The first two
are read without a Python object per token. A str with a lone surrogate is not Unicode text and raises ValueError.

With `g` the golden and `f` the faulty sequence, the metrics are:

======================== ======= =======================================================================================
`exact`                  bool    `g == f`
`first_divergence`       int64   least `i` with `g[i] != f[i]`; `min(|g|, |f|)` if one begins the other; -1 if identical
`first_divergence_bytes` int64   the same of the UTF-8 bytes of two texts
`drift`                  uint32  `sum(a != b for a, b in zip(g, f)) + abs(|g| - |f|)`
`edit_distance`          uint32  Levenshtein: least number of insertions, deletions and substitutions from `g` to `f`
`edit_rate`              float64 `edit_distance / max(|g|, |f|)`; 0 for two empty sequences
`mismatches`             uint32  `sum(a != b for a, b in zip(g, f))`: the Hamming distance where the lengths are equal
`common_prefix`          uint32  greatest `p` with `g[:p] == f[:p]`
`common_suffix`          uint32  greatest `s` with equal last `s` symbols; it may overlap the prefix
`lcs`                    uint32  length of the longest common subsequence
`indel_distance`         uint32  `|g| + |f| - 2 lcs`: least number of insertions and deletions
`indel_ratio`            float64 `2 lcs / (|g| + |f|)`; 1 for two empty sequences
`golden_length`          uint32  `|g|`
`length`                 uint32  `|f|`
======================== ======= =======================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import index as as_int
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvspec import _native

Column = NDArray[Any]

CHEAP = ("exact", "first_divergence", "drift")
EDIT = ("edit_distance", "edit_rate")
INDEL = ("indel_distance", "indel_ratio", "lcs")
DETAIL = ("mismatches", "common_prefix", "common_suffix", "golden_length", "length")
TEXT_ONLY = ("first_divergence_bytes",)
METRICS = CHEAP + EDIT + INDEL + DETAIL + TEXT_ONLY
"""Every metric that `score` knows."""
UNLIMITED = ("edit_rate", "indel_ratio", "lcs")
"""Metrics that need distances without a limit."""
DEFAULT = (*CHEAP, "edit_distance")
"""What `score` computes unless told otherwise."""


class Ragged(NamedTuple):
    """Token ids of many outputs in one buffer: row `i` is `values[offsets[i]:offsets[i + 1]]`."""

    values: NDArray[np.uint32]
    offsets: NDArray[np.int64]


def score(
    golden: Any,
    faulty: Any,
    golden_index: ArrayLike | None = None,
    *,
    metrics: Iterable[str] = DEFAULT,
    limit: int | None = None,
    threads: int = 0,
) -> dict[str, Column]:
    """Compares every faulty output with its golden one. Returns one array per metric, one entry per faulty output.

    Args:
        golden: the golden outputs; a single `str` is one output.
        faulty: the faulty outputs, of the same kind.
        golden_index: `[n]`, the golden output of each faulty one. Left out, a single golden output serves all, and
            otherwise both sides are paired in order.
        metrics: names from the table above.
        limit: edit and Indel distances above it are reported as `limit + 1`, which saves the time to find them out.
            Does not go with `edit_rate`, `indel_ratio` and `lcs`.
        threads: at most so many; 0 takes all. The result does not depend on it.

    Raises:
        ValueError: an unknown metric, arrays that do not fit each other, token ids outside 0 .. 2^32 - 1, a null, a
            lone surrogate, a sequence of 2^31 symbols or more, or a limit or a number of threads out of range.
        TypeError: outputs of a kind that is not listed above, token ids or offsets that are not integers, texts against
            token ids, or token ids for a metric of texts.
    """
    wanted = [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = sorted(set(wanted) - set(METRICS))
    if unknown:
        raise ValueError(f"unknown metrics {unknown}; known are {list(METRICS)}")
    unlimited = [name for name in wanted if name in UNLIMITED]
    if limit is not None and unlimited:
        raise ValueError(f"`{unlimited[0]}` needs the full distance; leave `limit` out")
    if limit is not None and not 0 <= limit < 2**32 - 1:
        raise ValueError(f"limit {limit} is not in 0 .. 2^32 - 2")
    if threads < 0:
        raise ValueError(f"{threads} threads are less than none")

    golden_texts, faulty_texts = _texts(golden), _texts(faulty)
    by_byte = any(name in TEXT_ONLY for name in wanted)
    if by_byte or golden_texts is not None or faulty_texts is not None:
        # A list without outputs is one of texts as well as one of token ids.
        golden_texts = [] if golden_texts is None and _is_empty(golden) else golden_texts
        faulty_texts = [] if faulty_texts is None and _is_empty(faulty) else faulty_texts
        if golden_texts is None or faulty_texts is None:
            if by_byte and golden_texts is faulty_texts:
                raise TypeError(f"{list(TEXT_ONLY)} need texts")
            raise TypeError(
                "golden and faulty outputs must both be texts, each side a list of str, or both be token ids; "
                f"golden is a {type(golden).__name__}, faulty a {type(faulty).__name__}"
            )
    indel = any(name in INDEL for name in wanted)
    detailed = indel or "edit_rate" in wanted or any(name in DETAIL for name in wanted)
    edit_distance = any(name in EDIT for name in wanted)
    found: dict[str, Column] = {}
    if golden_texts is not None and faulty_texts is not None:
        index = _index(golden_index, len(golden_texts), len(faulty_texts))
        if detailed:
            found |= _native.detail_texts(
                golden_texts, faulty_texts, index, indel_distance=indel, limit=limit, threads=threads
            )
        drift = _native.score_texts(
            golden_texts, faulty_texts, index, edit_distance=edit_distance, limit=limit, threads=threads
        )
        if by_byte:
            found["first_divergence_bytes"] = _native.score_texts(
                golden_texts, faulty_texts, index, edit_distance=False, by_byte=True, threads=threads
            )["first_divergence"]
    else:
        g, f = ragged(golden), ragged(faulty)
        index = _index(golden_index, len(g.offsets) - 1, len(f.offsets) - 1)
        if detailed:
            found |= _native.detail_tokens(*g, *f, index, indel_distance=indel, limit=limit, threads=threads)
        drift = _native.score_tokens(*g, *f, index, edit_distance=edit_distance, limit=limit, threads=threads)
    found |= {name.removeprefix("token_").removeprefix("char_"): column for name, column in drift.items()}
    if detailed:
        found |= _derived(found)
    return {name: found[name] for name in wanted}


def repetition(outputs: Any, *, longest_period: int = 16, repeats: int = 4, symbols: int = 16) -> dict[str, Column]:
    """Finds outputs that collapsed into repeating themselves, such as `!!!!!!!!`.

    `tail_length` is the length of the longest end `s` of an output with `s[i] == s[i - p]` for all `i >= p`, over
    periods `p` up to `longest_period`, of which `tail_period` is the smallest one that reaches it. A period above 1
    must occur twice. `collapsed` is `tail_length >= symbols and tail_length >= repeats * tail_period`.

    Golden outputs of small models repeat themselves too: compare the two sides before blaming a fault.
    """
    texts = _texts(outputs)
    if texts is None:
        rows = ragged(outputs)
    else:
        rows = ragged([_code_points(text, number) for number, text in enumerate(texts)])
    length, period = _native.periodic_tails(*rows, longest_period)
    # Divided, because a product could overflow.
    held = length / np.maximum(period, 1)
    return {
        "tail_length": length,
        "tail_period": period,
        "collapsed": (period > 0) & (length >= symbols) & (held >= repeats),
    }


def position_counts(
    golden: Any, faulty: Any, golden_index: ArrayLike | None = None
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Counts differing token ids per position `t` of the longest golden output.

    `compared[t]` is the number of trials of which both outputs have a position `t`, and `differing[t]` of how many of
    those the tokens differ there. Token ids only.
    """
    g, f = ragged(golden), ragged(faulty)
    return _native.position_counts(*g, *f, _index(golden_index, len(g.offsets) - 1, len(f.offsets) - 1))


def divergence_histogram(first_divergence: ArrayLike, positions: int) -> NDArray[np.uint64]:
    """`h[t] = #{trials with first_divergence == t}` for `t < positions`; identical trials (-1) are in no bin."""
    return _native.first_divergence_histogram(_offsets(first_divergence, "a first divergence"), positions)


def survival(first_divergence: ArrayLike, lengths: ArrayLike, positions: int) -> NDArray[np.float64]:
    """Kaplan-Meier estimate of the probability `S(t)` that an output has not diverged before position `t`.

    `S(0) = 1`, `S(t + 1) = S(t) (1 - diverged(t) / at_risk(t))` for `t < positions`: `diverged(t)` trials diverge first
    at `t`, out of `at_risk(t)` that had not diverged before and go on to `t`. An identical output of `lengths` tokens
    leaves at its end without counting as diverged, so outputs of different lengths go into one curve.
    """
    return _native.survival(
        _offsets(first_divergence, "a first divergence"), _ids(np.asarray(lengths), "a length"), positions
    )


def kl_divergence(
    golden: ArrayLike,
    faulty: ArrayLike,
    *,
    golden_ids: ArrayLike | None = None,
    faulty_ids: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Kullback-Leibler divergence `D(golden || faulty)` of next-token distributions in nats, one value per row.

    Args:
        golden: `[n, vocab]` natural logarithms of probabilities, or `[n, k]` with `golden_ids`.
        faulty: the same for the faulty run; its `k` may differ.
        golden_ids: `[n, k]` the tokens that the columns stand for, each at most once in a row.
        faulty_ids: the same for the faulty run.

    Without ids the value is `sum_t p(t) (ln p(t) - ln q(t))`, infinite where `q` rules out what `p` allows. With ids,
    tokens in both lists count one by one and all others as one event, whose probability is taken as at least 1e-6
    (32-bit logarithms are no finer). Merging events can only lower the divergence: it is a lower bound of the full one.
    A row with a NaN is NaN.
    """
    p, q = np.ascontiguousarray(golden, np.float32), np.ascontiguousarray(faulty, np.float32)
    if (golden_ids is None) != (faulty_ids is None):
        raise ValueError("ids are needed for both sides or for none")
    if golden_ids is None or faulty_ids is None:
        return _native.kl_full(p, q)
    return _native.kl_topk(_ids(np.asarray(golden_ids)), p, _ids(np.asarray(faulty_ids)), q)


def topk_agreement(golden_ids: ArrayLike, faulty_ids: ArrayLike) -> NDArray[np.float64]:
    """`|G and F| / k` per row of `[n, k]` token ids, the likeliest tokens of either run; `k` is the larger one."""
    return _native.topk_agreement(_ids(np.asarray(golden_ids)), _ids(np.asarray(faulty_ids)))


def _derived(found: dict[str, Column]) -> dict[str, Column]:
    """Metrics that follow from others."""
    golden, faulty = found["golden_length"].astype(np.int64), found["length"].astype(np.int64)
    out: dict[str, Column] = {}
    if "edit_distance" in found:
        out["edit_rate"] = _quotient(found["edit_distance"], np.maximum(golden, faulty), empty=0.0)
    if "indel_distance" in found:
        common = golden + faulty - found["indel_distance"]
        out["lcs"] = (common // 2).astype(np.uint32)
        out["indel_ratio"] = _quotient(common, golden + faulty, empty=1.0)
    return out


def _quotient(over: Column, under: Column, empty: float) -> Column:
    out = np.full(len(under), empty)
    np.divide(over, under, out=out, where=under != 0)
    return out


def _texts(outputs: Any) -> list[str] | None:
    """The outputs as a list of texts, or None if they are token ids."""
    if isinstance(outputs, str):
        return [outputs]
    if _is_arrow(outputs):
        import pyarrow as pa

        kind = outputs.type if isinstance(outputs, (pa.Array, pa.ChunkedArray)) else pa.null()
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            texts: list[str] = outputs.to_pylist()
            return texts
        return None
    if isinstance(outputs, list) and outputs and isinstance(outputs[0], str):
        return outputs
    if isinstance(outputs, Sequence) and len(outputs) > 0 and isinstance(outputs[0], str):
        return list(outputs)
    return None


def _code_points(text: Any, number: int) -> NDArray[np.uint32]:
    if not isinstance(text, str):
        raise TypeError(f"`outputs[{number}]` is not a str")
    try:
        return np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4"))
    except UnicodeEncodeError as error:
        raise ValueError(
            f"`outputs[{number}]` has a lone surrogate at character {error.start}: it is not Unicode text"
        ) from None


def _is_empty(outputs: Any) -> bool:
    return isinstance(outputs, Sequence) and not isinstance(outputs, str) and len(outputs) == 0


def ragged(tokens: Any) -> Ragged:
    """Brings token ids into one buffer. Arrow list arrays and `(values, offsets)` of 32-bit integers are not copied.

    Raises:
        ValueError: nulls, negative ids, or ids of 2^32 and above.
        TypeError: not token ids.
    """
    if isinstance(tokens, Ragged):
        return Ragged(_ids(tokens.values), _offsets(tokens.offsets))
    if _is_arrow(tokens):
        return _from_arrow(tokens)
    if isinstance(tokens, np.ndarray) and tokens.ndim == 2:
        rows, width = tokens.shape
        return Ragged(_ids(tokens.reshape(-1)), np.arange(rows + 1, dtype=np.int64) * width)
    if (
        isinstance(tokens, tuple)
        and len(tokens) == 2
        and any(isinstance(x, np.ndarray) or _is_arrow(x) for x in tokens)
    ):
        values, offsets = _window(np.asarray(tokens[0]), _offsets(tokens[1]))
        return Ragged(_ids(values), offsets)
    if isinstance(tokens, list) and tokens and isinstance(tokens[0], np.ndarray):
        together = _native.concatenate(tokens)
        if together is not None:
            return Ragged(*together)
    if isinstance(tokens, Sequence) and not isinstance(tokens, (str, bytes)):
        offsets = np.zeros(len(tokens) + 1, np.int64)
        try:
            lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        except TypeError:
            raise TypeError("an output is not a sequence of token ids; a single output is a list of one") from None
        np.cumsum(lengths, out=offsets[1:])
        if not len(tokens):
            return Ragged(np.zeros(0, np.uint32), offsets)
        if isinstance(tokens[0], np.ndarray):
            # One by one: numpy's common type of all could be a float.
            arrays = [_ids(row) for row in tokens]
            if any(array.ndim != 1 for array in arrays):
                raise TypeError("an output has more than one dimension")
            return Ragged(np.concatenate(arrays), offsets)
        try:
            flat = np.fromiter(map(as_int, chain.from_iterable(tokens)), np.int64, int(offsets[-1]))
        except OverflowError:
            raise ValueError("a token id does not fit 32 bits") from None
        return Ragged(_ids(flat), offsets)
    raise TypeError(f"token ids cannot be read from {type(tokens).__name__}")


def _is_arrow(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "pyarrow"


def _from_arrow(array: Any) -> Ragged:
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if not isinstance(array, pa.Array):
        raise TypeError(f"token ids cannot be read from {type(array).__name__}")
    if array.null_count:
        raise ValueError("an output is null")
    if pa.types.is_fixed_size_list(array.type):
        offsets = np.arange(len(array) + 1, dtype=np.int64) * array.type.list_size
        values = array.flatten()
    elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        values, offsets = _window(array.values, np.asarray(array.offsets, dtype=np.int64))
    else:
        raise TypeError(f"token ids cannot be read from Arrow type {array.type}")
    if values.null_count:
        raise ValueError("a token id is null")
    if not pa.types.is_integer(values.type):
        raise TypeError(f"a token id is {values.type}, not an integer")
    return Ragged(_ids(values.to_numpy(zero_copy_only=True)), offsets)


def _window(values: Any, offsets: NDArray[np.int64]) -> tuple[Any, NDArray[np.int64]]:
    """The values between the first and the last offset: what lies around a slice is neither checked nor copied."""
    if offsets.ndim != 1 or not len(offsets):
        return values, offsets
    first, last = int(offsets[0]), int(offsets[-1])
    if not 0 <= first <= last <= len(values) or last - first == len(values):
        return values, offsets
    return values[first:last], offsets - first if first else offsets


def _ids(tokens: Any, what: str = "a token id") -> NDArray[np.uint32]:
    values: NDArray[Any] = np.ascontiguousarray(tokens)
    if values.dtype == np.uint32:
        return values if values.flags.aligned else values.copy()
    if values.size == 0:
        return np.zeros(values.shape, np.uint32)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{what} is {values.dtype}, not an integer")
    if values.dtype.kind == "i" and values.min() < 0:
        raise ValueError(f"{what} is negative")
    if values.dtype.itemsize > 4 and values.max() >= 2**32:
        raise ValueError(f"{what} does not fit 32 bits")
    # Not negative, so the bits of an int32 are those of the uint32.
    if values.dtype == np.int32 and values.flags.aligned:
        return values.view(np.uint32)
    return values.astype(np.uint32)


def _offsets(offsets: Any, what: str = "an offset") -> NDArray[np.int64]:
    values: NDArray[Any] = np.ascontiguousarray(offsets)
    if values.dtype == np.int64:
        return values if values.flags.aligned else values.copy()
    if values.size and values.dtype.kind not in "iu":
        raise TypeError(f"{what} is {values.dtype}, not an integer")
    if values.size and values.dtype == np.uint64 and values.max() >= 2**63:
        raise ValueError(f"{what} does not fit 63 bits")
    return values.astype(np.int64)


def _index(golden_index: ArrayLike | None, golden: int, faulty: int) -> NDArray[np.uint32]:
    if golden_index is not None:
        return _ids(np.asarray(golden_index), "a golden index")
    if golden < 0 or faulty < 0:
        raise ValueError("the offsets are empty; they need one entry more than there are rows")
    if golden == 1:
        return np.zeros(faulty, np.uint32)
    if golden == faulty:
        return np.arange(faulty, dtype=np.uint32)
    raise ValueError(f"{golden} golden and {faulty} faulty outputs need a `golden_index`")
