"""Whether a trial equals its golden run, as soon as both have ended: what progress shows and looks are made of.

The rules are those of `kvspec.score`, which has the last word: an interrupted run decides the same when it goes on.
"""

from __future__ import annotations

from collections import defaultdict

from kvspec.plan import Trial
from kvspec.records import Record

FINISHED = ("length", "stop")


class Judge:
    """Remembers golden answers, and the trials that ended before theirs did."""

    def __init__(self) -> None:
        """Start with no golden answer."""
        self._golden: dict[int, list[int] | None] = {}
        """Token ids by request; `None` for a golden run that nothing can be compared with."""
        self._early: dict[int, list[Record]] = defaultdict(list)

    def identical(self, record: Record) -> bool | None:
        """Whether the token ids are the golden ones; `None` if that is not known."""
        golden = self._golden.get(record.request)
        return None if golden is None else golden == list(record.token_ids)

    def take(self, record: Record) -> list[tuple[Trial, bool | None]]:
        """Hear of a record; the fault trials that this decides, each with whether it counts as equal to golden.

        `None` stands for a trial that is not scored: its flips did not land as planned, or its golden run failed.
        """
        if record.kind == "golden":
            usable = record.finish_reason in FINISHED and record.error is None and record.nonfinite_at is None
            usable = usable and not record.flips_planned and not record.flips_landed
            self._golden[record.request] = list(record.token_ids) if usable else None
            return [(_trial(early), self._matched(early)) for early in self._early.pop(record.request, ())]
        if record.kind != "fault":
            return []
        if record.request not in self._golden:
            self._early[record.request].append(record)
            return []
        return [(_trial(record), self._matched(record))]

    def _matched(self, record: Record) -> bool | None:
        finished = record.finish_reason in FINISHED
        wrong = record.flips_planned != record.flips_landed or record.flips_exposed != record.flips_restored
        if self._golden[record.request] is None or (finished and wrong):
            return None
        return finished and record.error is None and self.identical(record) is True


def _trial(record: Record) -> Trial:
    return Trial("fault", record.cell, record.request, record.trial)
