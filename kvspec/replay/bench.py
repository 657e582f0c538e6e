"""An engine for the model of some maps: the one place where replay, shrinking and maps meet vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, Self

from kvspec.engine.canary import LENGTH as CANARY_LENGTH
from kvspec.engine.canary import run_canaries
from kvspec.engine.events import Answer, Columns, Request, run_requests
from kvspec.engine.fingerprint import facts
from kvspec.engine.prompts import load_tokenizer, materialize
from kvspec.engine.session import Session, Shape
from kvspec.errors import EngineError
from kvspec.maps import MapGeometry, require_geometry
from kvspec.models import describe
from kvspec.replay.case import Case, refused
from kvspec.spec.model import EngineSpec, ModelSpec


class Phases(Protocol):
    """Hears what takes long."""

    def phase(self, text: str) -> None:
        """A long step begins."""


class Bench:
    """A started engine and the requests of some cases. A context manager."""

    def __init__(
        self, cases: Sequence[Case], model: ModelSpec, engine: EngineSpec, observer: Phases, *, requests: int
    ) -> None:
        """Check all that can be checked, then start vLLM. `requests` is how many will run at most.

        Raises `RecordsError` (KVS512 another geometry, KVS515 another tokenizer), `EngineError` (KVS401, KVS403,
        KVS405, KVS406), `PrerequisiteError` (9xx).
        """
        self.cases, self.model = cases, model
        reads = any(m.header.site == "read" for case in cases for m in case.maps)
        scales = any(m.header.target == "scales" for case in cases for m in case.maps)
        observer.phase("preparing the model")
        source = materialize(model)
        self.tokenizer = load_tokenizer(model, source)
        self._prompts = [_tokens(self.tokenizer, case) for case in cases]
        info = describe(model)
        if info.geometry is not None:
            self._require_geometry(MapGeometry.of(info.geometry, model.storage_format))
        longest = max(len(ids) + c.generation.max_tokens for ids, c in zip(self._prompts, cases, strict=True))
        if info.max_model_len is not None and longest > info.max_model_len:
            raise EngineError.one(
                "KVS405",
                f"a map asks for {longest} tokens, prompt and answer together",
                path="$.generation.max_tokens",
                expected=f"at most {info.max_model_len}, the limit of `{model.id}`",
            )
        longest = min(max(longest, CANARY_LENGTH), info.max_model_len or 2**31)
        observer.phase("starting vLLM")
        shape = Shape(longest, requests, info.geometry)
        kinds = {"reads": reads, "scales": scales}
        self.session = Session(model, source, engine, model.storage_format, shape, **kinds, eager=True)
        try:
            self._require_geometry(MapGeometry.of(self.session.geometry, model.storage_format))
            observer.phase("checking the injector")
            run_canaries(self.session, self._prompts[0], model.storage_format, seed=0, scales=scales)
            self.environment = facts(self.session)
        except BaseException:
            self.session.close()
            raise

    def _require_geometry(self, geometry: MapGeometry) -> None:
        for case in self.cases:
            for fault_map in case.maps:
                require_geometry(fault_map.header, geometry)

    def request(self, case: int, events: Columns | None) -> Request:
        """The request of a case with these faults; `None` is the fault-free request, not even armed."""
        chosen = self.cases[case]
        faults = {} if events is None else {"events": events}
        return Request(self._prompts[case], chosen.generation, chosen.seed, armed=events is not None, **faults)

    def run(self, requests: Iterable[Request], **how: Any) -> Iterator[tuple[int, Answer]]:
        """Run requests; (index, answer) as they end. Takes the keywords of `run_requests`."""
        return run_requests(self.session, self.model.storage_format, requests, **how)

    def text(self, token_ids: Sequence[int]) -> str:
        """Tokens as text."""
        return str(self.tokenizer.decode(list(token_ids)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()


def _tokens(tokenizer: Any, case: Case) -> list[int]:
    """The prompt as tokens. Raises KVS515 where this tokenizer gives another number than the map says."""
    ids = list(tokenizer.encode(case.text))
    tokens = (case.header.prompt or {}).get("tokens")
    if len(ids) != tokens:
        raise refused(
            f"the prompt of `{case.files[0]}` has {len(ids)} tokens here, the map says {tokens}",
            "the tokenizer of the model that the map was made with",
            "$.prompt.tokens",
        )
    return ids
