"""What became of a trial: one decision table, evaluated for a whole batch at once.

First row that applies decides:

| finished | error | landed = planned | golden | logits | token ids | outcome | status |
|---|---|---|---|---|---|---|---|
| yes | any | no | any | any | any | invalid | - |
| any | any | any | missing | any | any | unscored | - |
| no | any | any | there | any | any | due (error, or unfinished) | crash |
| yes | yes | yes | there | any | any | due (error) | crash |
| yes | no | yes | there | not finite | any | due (nonfinite) | ok |
| yes | no | yes | there | finite | same | masked | ok |
| yes | no | yes | there | finite | differ | sdc | ok |

*Finished* means that the engine ended the request by itself: finish reason `length` or `stop`. An invalid trial
measured another dose than the plan's; it enters no proportion, and the report says so loudly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]

OUTCOMES = ("masked", "sdc", "due", "invalid", "unscored")
MASKED, SDC, DUE, INVALID, UNSCORED = range(5)
REASONS = ("", "error", "unfinished", "nonfinite")
NO_REASON, ERROR, UNFINISHED, NONFINITE = range(4)
FINISHED = ("length", "stop")


def classify(
    *, finished: Bools, error: Bools, landed: Bools, golden: Bools, nonfinite: Bools, identical: Bools
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Bools]:
    """Evaluate the table for trials `[N]`.

    Args:
        finished: the engine ended the request by itself.
        error: the record holds an error text.
        landed: flips landed equal flips planned.
        golden: a usable golden record of the same request exists.
        nonfinite: some logits were not finite.
        identical: the token ids equal the golden ones.

    Returns:
        Index into `OUTCOMES`, index into `REASONS`, and whether the status is crash, each `[N]`.
    """
    invalid = finished & ~landed
    crash = ~finished | (error & landed)
    rows = [invalid, ~golden, crash, nonfinite, identical]
    outcome = np.select(rows, [INVALID, UNSCORED, DUE, DUE, MASKED], SDC).astype(np.uint8)
    why = np.select([error, crash, nonfinite], [ERROR, UNFINISHED, NONFINITE], NO_REASON)
    reason = np.where(outcome == DUE, why, NO_REASON).astype(np.uint8)
    return outcome, reason, crash & (outcome == DUE)
