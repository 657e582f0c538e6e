"""Progress of a campaign: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import io
import os
import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kvspec.errors import Diagnostic
from kvspec.records import Record

PLAIN_SECONDS = 10.0
"""Pause between plain lines."""


def _has_descriptor(stream: TextIO) -> bool:
    try:
        return stream.fileno() >= 0
    except (OSError, io.UnsupportedOperation):  # replaced by a test or a notebook
        return False


class _Display:
    """A live bar on a terminal, plain lines elsewhere, nothing if quiet. Writes to stderr only."""

    def __init__(self, *columns: ProgressColumn, quiet: bool) -> None:
        # A descriptor of its own: the engine silences the usual ones while it loads a model.
        self._stream = os.fdopen(os.dup(sys.stderr.fileno()), "w") if _has_descriptor(sys.stderr) else sys.stderr
        console = Console(file=self._stream)
        self._live = console.is_terminal and not quiet
        self._quiet = quiet
        self._progress = Progress(
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            *columns,
            console=console,
            disable=not self._live,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None, counts="")
        self._total = self._done = 0
        self._shown = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def phase(self, text: str) -> None:
        """Show what is going on."""
        self._progress.update(self._task, description=text)
        self._line(f"{text} ...")

    def _line(self, text: str) -> None:
        if not self._live and not self._quiet:
            print(f"kvspec: {text}", file=self._stream, flush=True)


class CampaignProgress(_Display):
    """Shows phases, trials done, time left, and how the trials turned out so far."""

    def __init__(self, *, quiet: bool = False) -> None:
        counts = TextColumn("{task.fields[counts]}")
        super().__init__(TextColumn("left"), TimeRemainingColumn(), counts, quiet=quiet)
        self._before = self._steps = 0
        self._began = self._shown
        self._counts = {"masked": 0, "sdc": 0, "due": 0, "control differs": 0}

    def warn(self, warning: Diagnostic) -> None:
        """Print a warning above the bar."""
        self._progress.console.print(str(warning), markup=False, highlight=False, soft_wrap=True)

    def start(self, total: int, done: int) -> None:
        """Trials begin."""
        self._total, self._done, self._before = total, done, done
        self._steps, self._counts = 0, dict.fromkeys(self._counts, 0)  # a search has several campaigns
        self._began = self._shown = time.monotonic()
        self._progress.update(self._task, description="trials", total=total, completed=done)
        resumed = f", {done} already recorded" if done else ""
        self._line(f"{total} trials{resumed}")

    def shrink(self, total: int) -> None:
        """Cells ended early."""
        self._total = total
        self._progress.update(self._task, total=total)

    def trial(self, record: Record, identical: bool | None) -> None:
        """Count a finished trial."""
        self._done += 1
        if record.kind == "fault":
            due = record.error is not None or record.nonfinite_at is not None
            self._counts["due" if due else "masked" if identical else "sdc"] += 1
        elif identical is False:
            self._counts["control differs"] += 1
        self._progress.update(self._task, completed=self._done, counts=self._words())
        now = time.monotonic()
        if now - self._shown >= PLAIN_SECONDS or self._done == self._total:
            self._shown = now
            self._line(f"{self._done}/{self._total} trials, {self._words()}{self._left(now)}")

    def step(self) -> None:
        """Say that the engine is alive: in a large batch the first trials end late, and many at once."""
        self._steps += 1
        now = time.monotonic()
        if now - self._shown >= PLAIN_SECONDS:
            self._shown = now
            self._line(f"{self._done}/{self._total} trials, engine step {self._steps}, {self._words()}")

    def _left(self, now: float) -> str:
        """Time left, once enough trials have ended to tell: the first batch ends all at once."""
        here = self._done - self._before
        if here * 10 < self._total - self._before or self._done == self._total:
            return ""
        return f", about {(self._total - self._done) * (now - self._began) / here:.0f} s left"

    def _words(self) -> str:
        shown = [f"{name} {n}" for name, n in self._counts.items() if n or name != "control differs"]
        return "  ".join(shown) if self._live else ", ".join(shown)


class RequestProgress(_Display):
    """Shows phases and how many requests have ended."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)

    def start(self, total: int) -> None:
        """That many requests begin."""
        self._total, self._done, self._shown = total, 0, time.monotonic()
        self._progress.update(self._task, description="requests", total=total, completed=0)

    def done(self) -> None:
        """One of them has ended."""
        self._done += 1
        self._progress.update(self._task, completed=self._done)
        now = time.monotonic()
        if now - self._shown >= PLAIN_SECONDS or self._done == self._total:
            self._shown = now
            self._line(f"{self._done}/{self._total} requests")
