"""Cost of injection: the armed campaign of a spec against the same requests on unhooked vLLM, in turns.

    uv run --extra cpu python benches/overhead.py [SPEC] [--rounds 3]

Each measurement is a process of its own (stock, armed, stock, armed, ...), timed from the first submitted request to
the last finished one. Prints every figure and the ratio of the minima.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(side: str, spec_path: Path) -> float:
    """Seconds for all requests of the plan on one side."""
    from kvspec.engine.campaign import Inputs, run_campaign
    from kvspec.engine.session import Session, Shape
    from kvspec.plan import compile_plan
    from kvspec.spec import load_spec

    plan = compile_plan(load_spec(spec_path))
    if side == "armed":

        class Silent:
            def phase(self, *_: object) -> None: ...

            def shrink(self, *_: object) -> None: ...
            def step(self) -> None: ...
            def warn(self, *_: object) -> None: ...
            def start(self, *_: object) -> None: ...
            def trial(self, *_: object) -> None: ...

        with tempfile.TemporaryDirectory() as folder:
            return run_campaign(plan, Path(folder) / "run", Silent()).seconds
    inputs = Inputs.of(plan)
    spec = plan.spec
    longest = max(map(len, inputs.prompts)) + spec.generation.max_tokens
    shape = Shape(longest, len(plan), inputs.info.geometry)
    session = Session(spec.model, inputs.source, spec.engine, spec.model.storage_format, shape, hooked=False)
    # The same warm-up that the canary gives the armed side.
    session.generate([inputs.prompts[0]], spec.generation, spec.seed)
    prompts = [inputs.prompts[trial.request] for trial in plan.trials()]
    began = time.monotonic()
    session.generate(prompts, spec.generation, spec.seed)
    return time.monotonic() - began


def main() -> None:
    """Measure both sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", nargs="?", type=Path, default=Path("specs/quickstart.yaml"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["stock", "armed"])
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.spec)))
        return
    seconds: dict[str, list[float]] = {"stock": [], "armed": []}
    for _ in range(args.rounds):
        for side, values in seconds.items():
            command = [sys.executable, __file__, str(args.spec), "--side", side]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            values.append(float(out.splitlines()[-1]))
            print(f"{side} {values[-1]:.2f} s", flush=True)
    armed, stock = min(seconds["armed"]), min(seconds["stock"])
    print(f"armed / stock = {armed / stock:.3f} (minima of {args.rounds}: {armed:.2f} s / {stock:.2f} s)")


if __name__ == "__main__":
    main()
