"""1,000 trials of a mixed campaign, exported as maps and replayed: `python benches/replay.py FOLDER [--reads]`.

All trials run in one engine and one continuous batch, both times. With `--reads`, 500 trials of reads, of both sites
and of stuck-ats. FOLDER keeps the run and the maps; called again, the script goes on where it stopped. Every second map
is explicit. It prints how many trials have identical token ids, flips planned, landed and read back, and seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from kvspec.cli.progress import CampaignProgress, RequestProgress
from kvspec.engine.campaign import run_campaign
from kvspec.maps import explicit, write_map
from kvspec.maps.runs import Run, file_name
from kvspec.plan import compile_plan
from kvspec.replay.case import load_cases, one_model
from kvspec.replay.run import replay
from kvspec.spec import load_spec

PROMPTS = [
    "The capital of France is",
    "Who was the first US president?",
    "Water boils at a temperature of",
    "What is 25 * 4?",
    "The opposite of hot is",
    "Once upon a time there was",
    "The largest planet is",
    "My favourite colour is",
    "A triangle has",
    "The sun rises in the",
]


def fault(name: str, model: str, rate: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "model": model, "site": "KV_WRITE", "rate": rate, **more}


WRITES = [
    fault("Random", "random", {"per_bit": [1e-6, 1e-5, 1e-4, 1e-3]}),
    fault("Burst", "burst", {"per_bit": 1e-6}, burst_len=8),
    *(
        fault(policy, "msb_biased", {"per_element": 1e-5}, msb_policy=policy)
        for policy in ("BYTE_TOPBITS", "FP16_EXPONENT", "INT4_NIBBLE")
    ),
    fault("Page", "page_local", {"per_page": [0.003, 0.03]}),
]
READS = [
    fault("Read", "random", {"per_bit": [1e-6, 1e-5, 1e-4]}, site="KV_READ"),
    fault("Both", "random", {"per_bit": [1e-6, 1e-5]}, site="BOTH"),
    fault("Burst", "burst", {"per_bit": 1e-6}, site="KV_READ", burst_len=8),
    fault("Page", "page_local", {"per_page": 0.003}, site="BOTH"),
    fault("Window", "random", {"per_bit": 1e-5}, site="KV_READ", where={"steps": [0, "3-5"], "cache": ["V"]}),
    fault("Stuck", "random", {"per_bit": 1e-5}, site=["KV_WRITE", "KV_READ"], op="set1"),
]


def spec(model: str, tokens: int, *, reads: bool) -> dict[str, Any]:
    """10 cells x 10 prompts x 10 trials, or x 5."""
    return {
        "kvspec": 1,
        "name": "replay",
        "model": {"id": model},
        "prompts": {"inline": PROMPTS},
        "generation": {"max_tokens": tokens},
        "faults": READS if reads else WRITES,
        "trials": 5 if reads else 10,
        "seed": 7,
        "controls": {"golden_repeats": 1, "null_trials": 1},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="bundled:smollm2")
    parser.add_argument("--tokens", type=int, default=8, help="tokens that each trial generates")
    parser.add_argument("--reads", action="store_true", help="faults of reads, of both sites, and stuck-ats")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(
        json.dumps(spec(arguments.model, arguments.tokens, reads=arguments.reads)), encoding="utf-8"
    )
    with CampaignProgress() as progress:
        ran = run_campaign(compile_plan(load_spec(folder / "spec.yaml")), folder / "run", progress)
    maps = folder / "maps"
    if not maps.exists():
        maps.mkdir()
        source = Run(folder / "run")
        for number, fault_map in enumerate(source.maps(source.choose((), ()))):
            write_map(explicit(fault_map) if number % 2 else fault_map, maps / file_name(fault_map))
    cases = load_cases([maps])
    begun = time.monotonic()
    with RequestProgress() as watching:
        result = replay(cases, one_model(cases, None), watching)
    figures = {
        "model": arguments.model,
        "trials": len(result.trials),
        "identical": result.count("identical"),
        "proven": sum(t.proven for t in result.trials),
        "differ from golden": sum(t.token_ids != t.golden for t in result.trials),
        "flips planned": sum(t.planned for t in result.trials),
        "flips landed": sum(t.landed for t in result.trials),
        "flips read back": sum(t.read_back for t in result.trials),
        "bits changed by reads": sum(t.exposed for t in result.trials),
        "bits put back": sum(t.restored for t in result.trials),
        "campaign seconds": round(ran.seconds, 1),
        "replay seconds, start-up included": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures | {"environment": result.environment}, indent=1) + "\n")


if __name__ == "__main__":
    main()
