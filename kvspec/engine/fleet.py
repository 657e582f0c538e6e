"""Several engines side by side, each in a process and on GPUs of its own, that take requests like one `Session`.

Trials are independent and their faults follow from who they are, so it does not matter which engine runs which. The
campaign stays in one process: it alone decides what is due and writes records, so resuming, early stops and Ctrl-C are
those of one engine, and a run may go on under another number of engines.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Self

from kvspec.engine.session import MANY, PATIENCE, Finished, Session
from kvspec.errors import Diagnostic, EngineError, KvspecError
from kvspec.models import Geometry
from kvspec.records.environment import differences
from kvspec.spec.model import GenerationSpec

TICK = 0.2
"""Seconds after which a step returns without an ended request, so that whoever waits sees life."""
CLOSING = 30.0
"""Seconds that an engine may take to close before its process is ended."""
HANG = 600.0
"""Seconds without a sign of life after which an engine that has requests is taken to hang. A step may compile kernels,
and one of a large model on a CPU takes minutes."""
BEATS = 20
"""Signs of life in that time, from between the steps of an engine."""
GLANCE = 5 * TICK
"""Most seconds of silence that count between two looks at the engines. Where more went by, this process did not run
(Ctrl-Z, a suspended machine, a caller that was busy), and an engine that stood still with it does not hang."""
KEPT = "finished trials are kept, and the same command goes on; KVSPEC_TRACEBACK=1 shows what it wrote"
GPUS = "CUDA_VISIBLE_DEVICES"

Start = Callable[[], Session]


@dataclass
class _Engine:
    """One engine as its parent sees it."""

    number: int
    process: BaseProcess
    pipe: Connection
    running: set[int] = field(default_factory=set)
    """Entries submitted and not ended."""
    silent: float = 0.0
    """Seconds since it last gave a sign of life, or got something to do, in which the fleet watched it."""
    looked: float = 0.0
    """When the fleet last looked."""
    given: int | None = None
    """Entry that was submitted last."""
    ended: int | None = None
    """Entry that ended last."""

    def heard(self) -> None:
        """It gave a sign of life, or got something to do."""
        self.silent, self.looked = 0.0, time.monotonic()

    def glance(self) -> float:
        """Count the silence since the last look; how long it is by now."""
        now = time.monotonic()
        self.silent, self.looked = self.silent + min(now - self.looked, GLANCE), now
        return self.silent


class Fleet:
    """Engines that were started alike. Raises what a `Session` raises, and `EngineError` (KVS406) if one dies or does
    nothing any more."""

    def __init__(
        self, start: Start, engines: int, *, gpus_each: int = 1, patience: float = PATIENCE, hang: float = HANG
    ) -> None:
        """Start `engines` processes that call `start`, all at once. On a machine with GPUs each sees `gpus_each`.
        `patience`: seconds that ended requests may wait for others before they are told. `hang`: seconds without a
        sign of life from an engine that has requests before it is ended.

        Raises `EngineError`: KVS401 if there are not so many GPUs, and whatever the first engine that fails raises.
        """
        self._engines: list[_Engine] = []
        self._hang = hang
        self.name: Callable[[int], str] = "request {}".format
        """How errors call an entry."""
        self._ended: list[Finished] = []
        self._counts: dict[int, dict[str, int]] = {}
        self._owner: dict[int, _Engine] = {}
        context = multiprocessing.get_context("spawn")
        try:
            for number, gpus in enumerate(_shares(engines, gpus_each)):
                ours, theirs = context.Pipe()
                # not a daemon: with tensor parallelism it starts workers of its own. It ends when our end is closed.
                process = context.Process(target=_serve, args=(theirs, start, patience, hang / BEATS), daemon=False)
                with _visible(gpus):
                    process.start()
                theirs.close()
                self._engines.append(_Engine(number, process, ours))
            self.geometry: Geometry = self.each(_geometry)[0]
            """Geometry of the loaded model."""
        except BaseException:
            self.close(seconds=0.0)  # vLLM may be in the midst of its start, and nothing can be lost yet
            raise

    def each(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(session, *args)` in every engine, side by side; one answer each. Only while nothing is pending."""
        for engine in self._engines:
            self._send(engine, "call", function, args)
        return [self._answer(engine) for engine in self._engines]

    def rpc(self, method: str, *args: Any) -> Any:
        """Call a method of every worker of every engine; the answer of the first one."""
        return self.each(_rpc, method, *args)[0]

    @property
    def engines(self) -> int:
        """Engines that requests are dealt out to."""
        return len(self._engines)

    @property
    def pending(self) -> int:
        """Requests that are queued or running."""
        return sum(len(engine.running) for engine in self._engines) + len(self._ended)

    def submit(
        self, entry: int, prompt: list[int], generation: GenerationSpec, seed: int, token_ends: bool = False
    ) -> None:
        """Queue one request in the engine that has the fewest; one that ran before, in the engine that knows it."""
        engine = self._owner.get(entry) or min(self._engines, key=lambda e: len(e.running))
        self._owner[entry] = engine
        if not engine.running:
            engine.heard()
        engine.running.add(entry)
        engine.given = entry
        self._send(engine, "submit", entry, prompt, generation, seed, token_ends)

    def step(self) -> list[Finished]:
        """Wait for requests to end, not longer than a moment."""
        if not self._ended:
            by_pipe = {engine.pipe: engine for engine in self._engines}
            for pipe in wait(list(by_pipe), timeout=TICK):
                self._receive(by_pipe[pipe])  # type: ignore[index]
            self._watch()
        ended, self._ended = self._ended, []
        return ended

    def tally(self, entries: list[int]) -> dict[str, list[int]]:
        """Counts of ended entries, as `Session.tally`; each can be asked for once."""
        found = [self._counts.pop(entry) for entry in entries]
        return {name: [counts[name] for counts in found] for name in (found[0] if found else ())}

    def close(self, seconds: float = CLOSING) -> None:
        """Stop all engines. A process that takes longer is ended."""
        for engine in self._engines:
            engine.pipe.close()
        deadline = time.monotonic() + seconds
        for engine in self._engines:
            engine.process.join(max(0.1, deadline - time.monotonic()))
            if engine.process.is_alive():
                engine.process.kill()
                engine.process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, engine: _Engine, *message: Any) -> None:
        try:
            engine.pipe.send(message)
        except OSError:
            # it may have said why before it ended
            while True:
                self._receive(engine)

    def _watch(self) -> None:
        """End an engine that lives and does nothing. What it has sent was heard before, however long that lay here."""
        for engine in self._engines:
            if (silent := engine.glance()) > self._hang and engine.running:
                engine.process.kill()
                last = "none has ended" if engine.ended is None else f"the last that ended is {self.name(engine.ended)}"
                assert engine.given is not None
                raise EngineError.one(
                    "KVS406",
                    f"engine {engine.number + 1} of {len(self._engines)} hangs: no step has ended for {silent:.0f} s. "
                    f"It has {len(engine.running)} requests; the last that it was given is {self.name(engine.given)}, "
                    f"{last}",
                    hint=KEPT,
                )

    def _answer(self, engine: _Engine) -> Any:
        while True:
            kind, *content = self._receive(engine)
            if kind == "answer":
                return content[0]

    def _receive(self, engine: _Engine) -> tuple[Any, ...]:
        """The next message of an engine. Raises what it failed with, or that it is gone."""
        try:
            message: tuple[Any, ...] = engine.pipe.recv()
        except (EOFError, OSError) as error:
            engine.process.join(CLOSING)
            raise EngineError.one(
                "KVS406",
                f"engine {engine.number + 1} of {len(self._engines)} is gone (exit code {engine.process.exitcode})",
                hint=KEPT,
            ) from error
        engine.heard()
        if message[0] == "failed":
            kind, diagnostics = message[1:]
            raise kind(diagnostics)
        if message[0] == "ended":
            for finished, counts in message[1]:
                engine.running.discard(finished.entry)
                engine.ended = finished.entry
                self._ended.append(finished)
                self._counts[finished.entry] = counts
        return message


def require_alike(fingerprints: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fingerprint that all engines have. Raises `EngineError` (KVS406) naming the fields in which one differs:
    golden answers hold for one kind of machine."""
    for number, other in enumerate(fingerprints[1:], 2):
        if found := differences(fingerprints[0], other):
            raise EngineError(
                Diagnostic("KVS406", f"`{name}` is {first} in the first engine and {second} in engine {number}")
                for name, first, second in found
            )
    return fingerprints[0]


def _shares(engines: int, gpus_each: int) -> list[str | None]:
    """What each engine may see, as CUDA_VISIBLE_DEVICES has it; nothing on a machine without GPUs."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        return [None] * engines
    given = os.environ.get(GPUS)
    names = given.split(",")[:count] if given else [str(i) for i in range(count)]
    if len(names) < engines * gpus_each:
        each = f" x {gpus_each} GPUs" if gpus_each > 1 else ""
        fit = len(names) // gpus_each
        raise EngineError.one(
            "KVS401",
            f"{engines} engines{each} do not fit on the {len(names)} GPUs that are visible",
            # where not even one engine fits, fewer of them would not help
            path="$.engine.data_parallel" if fit else "$.engine.tensor_parallel",
            expected=f"at most {fit or len(names)}",
        )
    return [",".join(names[i * gpus_each : (i + 1) * gpus_each]) for i in range(engines)]


@contextmanager
def _visible(gpus: str | None) -> Iterator[None]:
    """Let a process that starts now see these GPUs: it reads the variable before anything of ours runs in it."""
    before = os.environ.get(GPUS)
    try:
        if gpus is not None:
            os.environ[GPUS] = gpus
        yield
    finally:
        if before is None:
            os.environ.pop(GPUS, None)
        else:
            os.environ[GPUS] = before


def _geometry(session: Session) -> Geometry:
    return session.geometry


def _rpc(session: Session, method: str, *args: Any) -> Any:
    return session.rpc(method, *args)


def _serve(pipe: Connection, start: Start, patience: float, beat: float) -> None:
    """The process of an engine, until the other end of the pipe is closed."""
    # Ctrl-C reaches every process of the terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Always read: two ends that wait until the other one has read would wait for ever.
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    with suppress(ConnectionError):  # nobody is there to be told
        try:
            with start() as session:
                _drive(pipe, inbox, session, patience, beat)
        except ConnectionError:
            raise
        except KvspecError as error:
            pipe.send(("failed", type(error), error.diagnostics))
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            pipe.send(("failed", EngineError, (Diagnostic("KVS406", f"the engine failed: {text}"),)))
    # the engine is closed, and taking torch and CUDA apart takes seconds
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _listen(pipe: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    with suppress(EOFError, OSError):
        while True:
            inbox.put(pipe.recv())
    inbox.put(None)


def _drive(pipe: Connection, inbox: queue.SimpleQueue[Any], session: Session, patience: float, beat: float) -> None:
    ended: list[Finished] = []
    oldest = told = 0.0
    while True:
        while not session.pending or not inbox.empty():  # with nothing to run, wait for the parent
            if (message := inbox.get()) is None:
                return
            kind, *content = message
            if kind == "submit":
                session.submit(*content)
            else:
                function, args = content
                pipe.send(("answer", function(session, *args)))
        found = session.step()
        if time.monotonic() - told >= beat:
            told = time.monotonic()
            pipe.send(("alive",))
        if found:
            oldest = oldest if ended else time.monotonic()
            ended += found
        if ended and (len(ended) >= MANY or not session.pending or time.monotonic() - oldest >= patience):
            batch, ended = ended, []
            counts = session.tally([finished.entry for finished in batch])
            rows = [{name: column[i] for name, column in counts.items()} for i in range(len(batch))]
            pipe.send(("ended", list(zip(batch, rows, strict=True))))
