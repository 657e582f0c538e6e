"""Golden diffing against named peers: same inputs, same process, interleaved rounds, best of each.

    python benches/drift/peers.py [--seconds S] [--out FILE.json] [CASE ...]

Prints a Markdown table per case: our time, the best peer and its time, and the ratio peer / ours (above 1: we are
faster). Peers that are not installed are left out and named. Each candidate must return the same distances before it
is timed. Candidates take turns, each for a burst of calls, and the least time of one call counts: it is what the
machine can do when nobody else uses it. Ours runs with its default threads and, in a column of its own, with one.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import data
import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Hamming, Indel, Levenshtein

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


def text_indel(g: list[str], f: list[str]) -> dict[str, Call]:
    """Indel distance of text pairs, from `list[str]`. Ours returns common ends and mismatches besides."""
    index = np.arange(len(g), dtype=np.uint32)
    return {
        OURS: lambda: _native.detail_texts(g, f, index)["indel_distance"],
        OURS_ONE_THREAD: lambda: _native.detail_texts(g, f, index, threads=1)["indel_distance"],
        "rapidfuzz Indel cpdist": lambda: process.cpdist(g, f, scorer=Indel.distance, dtype=np.uint32),
        "rapidfuzz Indel cpdist, 2 workers": lambda: process.cpdist(
            g, f, scorer=Indel.distance, dtype=np.uint32, workers=2
        ),
        "rapidfuzz Indel per pair": lambda: [Indel.distance(a, b) for a, b in zip(g, f, strict=True)],
    }


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
    "texts-indel": ("Indel distance, 1,000 x 300 chars, list[str]", data.texts, 1000, 300, text_indel),
    "texts-drift": ("guide drift, 1,000 x 300 chars, list[str]", data.texts, 1000, 300, text_positional),
    "one-golden": ("edit distance, 1 golden x 1,000 texts of 300 chars", data.texts, 1000, 300, golden_against_many),
    "long": ("edit distance, 20 x 10,000 chars, list[str]", data.texts, 20, 10_000, text_edits),
    "long-indel": ("Indel distance, 20 x 10,000 chars, list[str]", data.texts, 20, 10_000, text_indel),
    "long-drift": ("guide drift, 20 x 10,000 chars, list[str]", data.texts, 20, 10_000, text_positional),
}


# What issue I asks of the ratio, by kind of pair.
GOALS = {
    "tokens": dict.fromkeys(data.KINDS, 3.0),
    "tokens-converted": dict.fromkeys(data.KINDS, 10.0),
    "texts": dict.fromkeys(data.KINDS, 4.0),
    "long": {"identical": 30.0, "1 % edits": 30.0, "half diverged": 1.5, "unrelated": 1.5},
}
BURST = 0.002
"""Seconds that a candidate runs at a time: its data is in the caches again after the first call."""


def timed(call: Call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def burst(call: Call) -> float:
    """Least seconds of a call in a row of calls."""
    end = time.perf_counter() + BURST
    best = min(timed(call), timed(call))
    while time.perf_counter() < end:
        best = min(best, timed(call))
    return best


def best_times(calls: dict[str, Call], seconds: float) -> dict[str, float]:
    """Least time of each call over interleaved bursts. A call ten times slower than the best peer runs twice."""
    best = {name: min(timed(call), timed(call)) for name, call in calls.items()}
    fastest_peer = min(value for name, value in best.items() if not name.startswith(OURS))
    close = {name: call for name, call in calls.items() if best[name] < 10 * fastest_peer}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for name, call in close.items():
            best[name] = min(best[name], burst(call))
        rounds += 1
    return best


def measure(case: str, seconds: float) -> list[dict[str, object]]:
    """One row per kind of pair. Times are in nanoseconds per pair."""
    _, make, pairs, size, candidates = CASES[case]
    rows: list[dict[str, object]] = []
    for kind in data.KINDS:
        calls = candidates(*make(pairs, size, kind))
        want = np.asarray(calls[OURS]())
        for other, call in calls.items():
            if not np.array_equal(np.asarray(call()), want):
                raise SystemExit(f"{other} disagrees")
        best = {name: round(value / pairs * 1e9, 1) for name, value in best_times(calls, seconds).items()}
        ours, single = best.pop(OURS), best.pop(OURS_ONE_THREAD)
        peer = min(best, key=best.__getitem__)
        rows.append(
            {
                "kind": kind,
                "ours_ns": ours,
                "one_thread_ns": single,
                "peer": peer,
                "peer_ns": best[peer],
                "ratio": round(best[peer] / ours, 2),
                "ratio_one_thread": round(best[peer] / single, 2),
                "goal": GOALS.get(case, {}).get(kind),
                "peers_ns": best,
            }
        )
    return rows


def markdown(title: str, rows: list[dict[str, object]]) -> str:
    """The rows as a table."""
    lines = [
        f"**{title}** (ns per pair)",
        "",
        "| pairs | kvspec | 1 thread | best peer | | ratio | 1 thread | goal |",
        "|---|--:|--:|--:|---|--:|--:|--:|",
    ]
    for row in rows:
        goal = f"{row['goal']:g}" if row["goal"] else ""
        lines.append(
            f"| {row['kind']} | {row['ours_ns']:,.0f} | {row['one_thread_ns']:,.0f} | {row['peer_ns']:,.0f} |"
            f" {row['peer']} | {row['ratio']:.1f} | {row['ratio_one_thread']:.1f} | {goal} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    names = [
        "rapidfuzz",
        "Levenshtein",
        "polyleven",
        "edlib",
        "polars-distance",
        "stringzillas-cpus",
        "numpy",
        "kvspec",
    ]
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line.split() for line in lines if line.startswith("flags")), [])
    return {
        "processor": next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine()),
        "vectors": "AVX-512" if "avx512bw" in features else "AVX2" if "avx2" in features else "portable",
        "processors": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[[], *CASES], help=f"of {', '.join(CASES)}")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each row")
    parser.add_argument("--out", type=Path, help="write the figures of every candidate as JSON")
    args = parser.parse_args()
    host = machine()
    missing = [name for name, version in host["versions"].items() if version is None]
    print(f"{host['processor']}, {host['vectors']}, {host['processors']} processors, load {host['load_average']}")
    print("not installed: " + (", ".join(missing) or "none"))
    results = []
    for name in args.cases or CASES:
        rows = measure(name, args.seconds)
        print("\n" + markdown(CASES[name][0], rows), flush=True)
        results.append({"case": name, "title": CASES[name][0], "rows": rows})
    slower = [f"{result['case']} {row['kind']}" for result in results for row in result["rows"] if row["ratio"] < 1]
    print("\nslower than the best peer: " + (", ".join(slower) or "nowhere"))
    if args.out:
        command = "python benches/drift/peers.py " + " ".join(sys.argv[1:])
        report = {"command": command, "machine": host, "unit": "ns per pair", "results": results}
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
