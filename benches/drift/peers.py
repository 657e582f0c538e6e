"""Golden diffing against named peers: same inputs, same process, interleaved rounds, best of each.

    python benches/drift/peers.py [--seconds S] [CASE ...]

Every table row names our time, the best peer and its time, and the ratio peer / ours (above 1: we are faster). Peers
that are not installed are left out and named. Each candidate must return the same distances before it is timed. Ours
runs with its default threads and, in a column of its own, with one.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable

import data
import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Hamming, Levenshtein

from kvspec import _native
from kvspec.score.drift import ragged, score

Call = Callable[[], object]
OURS, OURS_ONE_THREAD = "kvspec", "kvspec, 1 thread"


def optional(name: str) -> object | None:
    """The module, if it is installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


edlib, polyleven, python_levenshtein = optional("edlib"), optional("polyleven"), optional("Levenshtein")
polars, polars_distance = optional("polars"), optional("polars_distance")
stringzilla, stringzillas = optional("stringzilla"), optional("stringzillas")


def guide(golden: object, faulty: object) -> int:
    """The reference guide's drift, as it stands there."""
    return sum(a != b for a, b in zip(golden, faulty, strict=False)) + abs(len(golden) - len(faulty))


def text_edits(g: list[str], f: list[str]) -> dict[str, Call]:
    """Levenshtein of text pairs, from `list[str]`."""
    index = np.arange(len(g), dtype=np.uint32)
    calls: dict[str, Call] = {
        OURS: lambda: _native.score_texts(g, f, index)["char_edit_distance"],
        OURS_ONE_THREAD: lambda: _native.score_texts(g, f, index, threads=1)["char_edit_distance"],
        "rapidfuzz cpdist": lambda: process.cpdist(g, f, scorer=Levenshtein.distance, dtype=np.uint32),
        "rapidfuzz cpdist, 2 workers": lambda: process.cpdist(
            g, f, scorer=Levenshtein.distance, dtype=np.uint32, workers=2
        ),
        "rapidfuzz cpdist, hint 64": lambda: process.cpdist(
            g, f, scorer=Levenshtein.distance, dtype=np.uint32, score_hint=64
        ),
        "rapidfuzz per pair": lambda: [Levenshtein.distance(a, b) for a, b in zip(g, f, strict=True)],
    }
    if polyleven:
        calls["polyleven"] = lambda: [polyleven.levenshtein(a, b) for a, b in zip(g, f, strict=True)]
    if python_levenshtein:
        calls["python-Levenshtein"] = lambda: [python_levenshtein.distance(a, b) for a, b in zip(g, f, strict=True)]
    if edlib:
        calls["edlib"] = lambda: [edlib.align(a, b, task="distance")["editDistance"] for a, b in zip(g, f, strict=True)]
    if polars and polars_distance:
        frame = polars.DataFrame({"g": g, "f": f})
        column = polars_distance.col("g").dist_str.levenshtein("f")
        calls["polars-distance, frame prebuilt"] = lambda: frame.select(column)["g"].to_numpy()
    if stringzillas:
        engine = stringzillas.LevenshteinDistances()
        calls["stringzillas per pair"] = lambda: [
            int(engine(stringzilla.Strs([a]), stringzilla.Strs([b]))[0, 0]) for a, b in zip(g, f, strict=True)
        ]
    return calls


def text_positional(g: list[str], f: list[str]) -> dict[str, Call]:
    """The guide's drift of text pairs, from `list[str]`."""
    index = np.arange(len(g), dtype=np.uint32)
    calls: dict[str, Call] = {
        OURS: lambda: _native.score_texts(g, f, index, edit_distance=False)["char_drift"],
        OURS_ONE_THREAD: lambda: _native.score_texts(g, f, index, edit_distance=False, threads=1)["char_drift"],
        "rapidfuzz Hamming cpdist": lambda: process.cpdist(g, f, scorer=Hamming.distance, dtype=np.uint32),
        "rapidfuzz Hamming per pair": lambda: [Hamming.distance(a, b) for a, b in zip(g, f, strict=True)],
        "pure Python (guide)": lambda: [guide(a, b) for a, b in zip(g, f, strict=True)],
    }
    return calls


def golden_against_many(g: list[str], f: list[str]) -> dict[str, Call]:
    """One golden text against all faulty ones, where peers may prepare the golden text once."""
    index, golden = np.zeros(len(f), np.uint32), g[:1]
    calls: dict[str, Call] = {
        OURS: lambda: _native.score_texts(golden, f, index)["char_edit_distance"],
        OURS_ONE_THREAD: lambda: _native.score_texts(golden, f, index, threads=1)["char_edit_distance"],
        "rapidfuzz cdist": lambda: process.cdist(f, golden, scorer=Levenshtein.distance, dtype=np.uint32)[:, 0],
        "rapidfuzz cdist, golden first": lambda: process.cdist(golden, f, scorer=Levenshtein.distance, dtype=np.uint32)[
            0
        ],
    }
    if stringzillas:
        engine = stringzillas.LevenshteinDistances()
        left, right = stringzilla.Strs(golden), stringzilla.Strs(f)
        calls["stringzillas, Strs prebuilt"] = lambda: engine(left, right)[0]
    return calls


def token_edits_prebuilt(g: list[np.ndarray], f: list[np.ndarray]) -> dict[str, Call]:
    """Levenshtein of token ids, every candidate in its own prebuilt form."""
    index, left, right = np.arange(len(g), dtype=np.uint32), ragged(g), ragged(f)
    g_text, f_text = (["".join(map(chr, row)) for row in side] for side in (g, f))
    calls: dict[str, Call] = {
        OURS: lambda: _native.score_tokens(*left, *right, index)["token_edit_distance"],
        OURS_ONE_THREAD: lambda: _native.score_tokens(*left, *right, index, threads=1)["token_edit_distance"],
        "rapidfuzz cpdist, chr text": lambda: process.cpdist(
            g_text, f_text, scorer=Levenshtein.distance, dtype=np.uint32
        ),
        "rapidfuzz cpdist, chr text, 2 workers": lambda: process.cpdist(
            g_text, f_text, scorer=Levenshtein.distance, dtype=np.uint32, workers=2
        ),
    }
    if polyleven:
        calls["polyleven, chr text"] = lambda: [
            polyleven.levenshtein(a, b) for a, b in zip(g_text, f_text, strict=True)
        ]
    return calls


def token_positional_prebuilt(g: list[np.ndarray], f: list[np.ndarray]) -> dict[str, Call]:
    """The guide's drift of token ids, every candidate in its own prebuilt form."""
    index, left, right = np.arange(len(g), dtype=np.uint32), ragged(g), ragged(f)
    g_text, f_text = (["".join(map(chr, row)) for row in side] for side in (g, f))
    g_list, f_list = ([row.tolist() for row in side] for side in (g, f))
    return {
        OURS: lambda: _native.score_tokens(*left, *right, index, edit_distance=False)["token_drift"],
        OURS_ONE_THREAD: lambda: _native.score_tokens(*left, *right, index, edit_distance=False, threads=1)[
            "token_drift"
        ],
        "rapidfuzz Hamming cpdist, chr text": lambda: process.cpdist(
            g_text, f_text, scorer=Hamming.distance, dtype=np.uint32
        ),
        "rapidfuzz Hamming cpdist, list[int]": lambda: process.cpdist(
            g_list, f_list, scorer=Hamming.distance, dtype=np.uint32
        ),
        "pure Python (guide), list[int]": lambda: [guide(a, b) for a, b in zip(g_list, f_list, strict=True)],
    }


def token_edits_converted(g: list[np.ndarray], f: list[np.ndarray]) -> dict[str, Call]:
    """Levenshtein from a list of numpy arrays on both sides, conversion included."""
    index = np.arange(len(g), dtype=np.uint32)

    def chr_text() -> object:
        g_text, f_text = (["".join(map(chr, row.tolist())) for row in side] for side in (g, f))
        return process.cpdist(g_text, f_text, scorer=Levenshtein.distance, dtype=np.uint32)

    return {
        OURS: lambda: score(g, f, index, metrics=["edit_distance"])["edit_distance"],
        OURS_ONE_THREAD: lambda: score(g, f, index, metrics=["edit_distance"], threads=1)["edit_distance"],
        "rapidfuzz per pair, numpy arrays": lambda: [Levenshtein.distance(a, b) for a, b in zip(g, f, strict=True)],
        "rapidfuzz cpdist, numpy arrays": lambda: process.cpdist(g, f, scorer=Levenshtein.distance, dtype=np.uint32),
        "rapidfuzz cpdist after tolist": lambda: process.cpdist(
            [a.tolist() for a in g], [b.tolist() for b in f], scorer=Levenshtein.distance, dtype=np.uint32
        ),
        "rapidfuzz cpdist after chr": chr_text,
    }


CASES = {
    "tokens": ("edit distance, 1,000 x 50 tokens, prebuilt", data.tokens, 1000, 50, token_edits_prebuilt),
    "tokens-converted": (
        "edit distance, 1,000 x 50 tokens, from numpy arrays",
        data.tokens,
        1000,
        50,
        token_edits_converted,
    ),
    "tokens-drift": ("guide drift, 1,000 x 50 tokens, prebuilt", data.tokens, 1000, 50, token_positional_prebuilt),
    "texts": ("edit distance, 1,000 x 300 chars, list[str]", data.texts, 1000, 300, text_edits),
    "texts-drift": ("guide drift, 1,000 x 300 chars, list[str]", data.texts, 1000, 300, text_positional),
    "one-golden": ("edit distance, 1 golden x 1,000 texts of 300 chars", data.texts, 1000, 300, golden_against_many),
    "long": ("edit distance, 20 x 10,000 chars, list[str]", data.texts, 20, 10_000, text_edits),
    "long-drift": ("guide drift, 20 x 10,000 chars, list[str]", data.texts, 20, 10_000, text_positional),
}


def timed(call: Call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def best_times(calls: dict[str, Call], seconds: float) -> dict[str, float]:
    """Least time of each call over interleaved rounds. A call ten times slower than the best runs once."""
    best = {name: min(timed(call), timed(call)) for name, call in calls.items()}
    fastest_peer = min(value for name, value in best.items() if not name.startswith(OURS))
    close = {name: call for name, call in calls.items() if best[name] < 10 * fastest_peer}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for name, call in close.items():
            best[name] = min(best[name], timed(call))
        rounds += 1
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[[], *CASES], help=f"of {', '.join(CASES)}")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each row")
    parser.add_argument("--all", action="store_true", help="list every candidate")
    args = parser.parse_args()
    modules = {"edlib": edlib, "polyleven": polyleven, "polars_distance": polars_distance, "stringzillas": stringzillas}
    missing = [name for name, module in modules.items() if module is None]
    print("not installed: " + (", ".join(missing) or "none"))
    for name in args.cases or CASES:
        title, make, pairs, size, candidates = CASES[name]
        print(f"\n{title} (ns per pair)")
        print(f"  {'':14} {'ours':>9} {'1 thread':>9} {'peer':>11} {'ratio':>7} {'1 thread':>8}  best peer")
        for kind in data.KINDS:
            golden, faulty = make(pairs, size, kind)
            calls = candidates(golden, faulty)
            want = np.asarray(calls[OURS]())
            for other, call in calls.items():
                if not np.array_equal(np.asarray(call()), want):
                    raise SystemExit(f"{other} disagrees")
            best = {k: v / pairs * 1e9 for k, v in best_times(calls, args.seconds).items()}
            ours, single = best.pop(OURS), best.pop(OURS_ONE_THREAD)
            peer = min(best, key=best.__getitem__)
            print(
                f"  {kind:14} {ours:9,.0f} {single:9,.0f} {best[peer]:11,.0f} {best[peer] / ours:7.2f}"
                f" {best[peer] / single:8.2f}  {peer}"
            )
            if args.all:
                for other, value in sorted(best.items(), key=lambda item: item[1]):
                    print(f"      {other:42} {value:15,.0f} {value / ours:9.2f}")


if __name__ == "__main__":
    main()
