"""Processor time that counting the planned flips takes beside the engine: the campaigns of `tools/gpu`, cell by cell.

    uv run --extra cpu python benches/planned.py

A GPU's steps are bound by the host, so whatever works beside the engine slows it. No engine is started. One line of
JSON per cell: core-seconds for as many trials as the campaign has.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvspec.bundled import convert  # noqa: E402
from kvspec.engine.campaign import Inputs  # noqa: E402
from kvspec.engine.planned import PlannedFlips  # noqa: E402
from kvspec.engine.table import build_table  # noqa: E402
from tools.gpu.campaign import READS, WRITES, plan_of  # noqa: E402

MOST = 40
"""Trials of a cell that are counted."""


def main() -> None:
    """Count some trials of each cell of both campaigns."""
    with tempfile.TemporaryDirectory() as folder:
        for name, spec in (("writes", WRITES), ("reads", READS)):
            plan = plan_of(Path(folder), name, Path(convert()), spec)
            inputs, trials = Inputs.of(plan), list(plan.trials())
            assert inputs.info.geometry is not None
            lengths = [len(ids) for ids in inputs.prompts]
            table = build_table(plan, trials, lengths, inputs.info.geometry)
            for number, cell in enumerate(plan.cells):
                mine = [i for i, trial in enumerate(trials) if trial.kind == "fault" and trial.cell == number]
                few = mine[:MOST]
                written = [lengths[trials[i].request] + plan.spec.generation.max_tokens - 1 for i in few]
                with PlannedFlips(table, inputs.info.geometry) as planned:
                    began = time.process_time()
                    flips = sum(planned.count_all(few, written))
                    seconds = (time.process_time() - began) * len(mine) / len(few)
                figures = {"trials": len(mine), "core_seconds": round(seconds, 3), "flips_a_trial": flips / len(few)}
                print(json.dumps({"campaign": name, "cell": cell.name, **figures}), flush=True)


if __name__ == "__main__":
    main()
