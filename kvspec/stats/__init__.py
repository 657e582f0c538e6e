"""The formulas behind every figure with an interval or a p-value: one definition each, with its source.

Pure functions of counts; nothing of kvspec is imported, and scipy only where it is needed, for `kvspec check` reads
this package too. `docs/statistics.md` says what each of them keeps in simulation, `tools/statistics_proof.py` shows it.
"""
