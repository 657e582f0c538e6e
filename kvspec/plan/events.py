"""The read events of a request (docs/sampling.md, section 7): one for the prefill, one per decode forward."""

from __future__ import annotations

import numpy as np

from kvspec.spec.model import Selector


def read_events(prompt: int, written: int) -> range:
    """The events of a request with `written` tokens in the cache, `prompt` of them from the prompt.

    An event is named by its step: `prompt` for the prefill, the number of cached tokens for a decode forward. Event s
    reads the tokens below s.
    """
    return range(prompt, max(prompt, written) + 1)


def shown_events(where: Selector, events: range) -> list[int]:
    """The events that a selector shows, ascending."""
    match where.steps:
        case "all":
            return list(events)
        case "prefill":
            return list(events[:1])
        case "decode":
            return list(events[1:])
        case ranges:
            # A mask, so that a thousand overlapping ranges cost no more than the events that there are.
            shown = np.zeros(len(events), bool)
            for start, stop in ranges:
                shown[start:stop] = True
            return [events[i] for i in np.flatnonzero(shown).tolist()]
