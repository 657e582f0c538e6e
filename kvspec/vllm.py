"""The guide's Python with one import changed: `from kvspec.vllm import LLM, SamplingParams`.

A thin face of the campaign engine: `LLM(...)` starts it, every `generate` is a plan of one cell with one trial per
prompt. What a parameter asks for is done, or it is an error. The rate is per *element*, as in the guide's table. Flips
are proven as in a campaign: a start-up canary, and planned against landed for every request.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

from kvspec.engine.canary import run_canary
from kvspec.engine.planned import PlannedFlips
from kvspec.engine.prompts import check_lengths, load_tokenizer, materialize, tokenize
from kvspec.engine.session import Finished, Session, Shape, default_sampling_params
from kvspec.engine.table import TableData, build_table
from kvspec.errors import Diagnostic, EngineError, SpecError
from kvspec.models import describe
from kvspec.plan import Trial, compile_plan
from kvspec.plan.model import NO_CELL
from kvspec.spec.model import (
    FAULT_MODELS,
    METRICS,
    MSB_POLICIES,
    SITES,
    STORAGE_FORMATS,
    Controls,
    EngineSpec,
    Fault,
    GenerationSpec,
    ModelSpec,
    PromptSpec,
    Rate,
    Spec,
    TrialSpec,
)

CACHE_DTYPES = {
    "auto": "auto",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "fp8": "fp8_e4m3",
    **{name: name for name in STORAGE_FORMATS},
}
"""vLLM's words for `kv_cache_dtype`, and kvspec's."""

_HONOURED = ("temperature", "max_tokens", "ignore_eos", "stop", "seed")
"""Sampling parameters that reach the engine; all others must have their defaults."""


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """The answer of a request, with the names that vLLM gives it."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A finished request."""

    request_id: str
    prompt: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True
    flips_planned: int = 0
    flips_landed: int = 0


@dataclass(frozen=True)
class _Fault:
    """The guide's `fault_injection_*` parameters."""

    enabled: bool = False
    site: str = "KV_WRITE"
    model: str = "random"
    rate: float = 0.0
    seed: int = 0
    burst_len: int = 8
    msb_policy: str = "BYTE_TOPBITS"

    def check(self) -> None:
        """Raise `SpecError` (KVS201, KVS203, KVS205) with everything that is wrong."""
        wrong = [
            Diagnostic("KVS203", f"`{value}` is not allowed here", None, f"fault_injection_{name}", ", ".join(words))
            for name, value, words in (
                ("site", self.site, SITES),
                ("model", self.model, FAULT_MODELS),
                ("msb_policy", self.msb_policy, MSB_POLICIES),
            )
            if value not in words
        ]
        wrong += _switch("fault_injection_enabled", self.enabled)
        numbers: tuple[tuple[str, Any, int, int], ...] = (  # Any: callers are not type-checked
            ("rate", self.rate, 0, 1),
            ("seed", self.seed, 0, 2**64 - 1),
            ("burst_len", self.burst_len, 1, 32768),
        )
        for name, value, low, high in numbers:
            kind, wanted = (Real, "a number") if name == "rate" else (Integral, "a whole number")
            fits = isinstance(value, kind) and not isinstance(value, bool)
            if not fits:
                problem, hint = f"`{value!r}` is not {wanted}", "write it without quotes" * isinstance(value, str)
                expected = f"{wanted} from {low} to {high}"
                wrong.append(
                    Diagnostic("KVS201", problem, None, f"fault_injection_{name}", expected, hint=hint or None)
                )
            elif not low <= value <= high:
                problem = f"`{value}` is out of range"
                wrong.append(Diagnostic("KVS205", problem, None, f"fault_injection_{name}", f"from {low} to {high}"))
        if wrong:
            raise SpecError(wrong)

    def faults(self) -> tuple[Fault, ...]:
        if not self.enabled:
            return ()
        return (
            Fault(
                name="LLM",
                index=0,
                site=self.site,
                model=self.model,
                rate=Rate("per_element", float(self.rate)),
                burst_len=int(self.burst_len) if self.model == "burst" else 1,
                msb_policy=self.msb_policy if self.model == "msb_biased" else None,
            ),
        )


def _switch(name: str, value: Any) -> list[Diagnostic]:
    """What is wrong with a parameter that is on or off. `'false'` and `0` are no bools, for a text is always true."""
    if isinstance(value, bool):
        return []
    hint = "write it without quotes" if isinstance(value, str) else None
    return [Diagnostic("KVS201", f"`{value!r}` is neither True nor False", None, name, "True or False", hint=hint)]


class LLM:
    """`vllm.LLM` with the guide's fault injection. Closed by `close`, by `del`, or by the next `LLM`.

    vLLM allows one engine per process, so starting another one closes the one before it.
    """

    _current: ClassVar[weakref.ref[LLM] | None] = None

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        kv_cache_dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int | None = None,
        block_size: int | None = None,
        seed: int = 0,
        enforce_eager: bool = False,
        fault_injection_enabled: bool = False,
        fault_injection_site: str = "KV_WRITE",
        fault_injection_model: str = "random",
        fault_injection_rate: float = 0.0,
        fault_injection_seed: int = 0,
        fault_injection_burst_len: int = 8,
        fault_injection_msb_policy: str = "BYTE_TOPBITS",
        **others: Any,
    ) -> None:
        """Start the engine and check the injector.

        `model` is a hub id, a folder or `bundled:smollm2`. `kv_cache_dtype` is the format whose bits flip; on a CPU it
        is emulated. A CPU is always eager.
        Raises `SpecError` (KVS201, KVS202, KVS203, KVS205) for parameters that cannot be honoured, and what a campaign
        raises.
        """
        if others:
            known = "those of this signature"
            raise SpecError(
                Diagnostic("KVS202", f"the parameter `{name}` cannot be honoured", None, name, known) for name in others
            )
        if kv_cache_dtype not in CACHE_DTYPES:
            words = ", ".join(CACHE_DTYPES)
            raise SpecError.one(
                "KVS203", f"`{kv_cache_dtype}` is not allowed here", path="kv_cache_dtype", expected=words
            )
        self._fault = _Fault(
            fault_injection_enabled,
            fault_injection_site,
            fault_injection_model,
            fault_injection_rate,
            fault_injection_seed,
            fault_injection_burst_len,
            fault_injection_msb_policy,
        )
        self._fault.check()
        if wrong := _switch("enforce_eager", enforce_eager):
            raise SpecError(wrong)
        self._seed = seed
        self._model = ModelSpec(model, revision, dtype, CACHE_DTYPES[kv_cache_dtype], max_model_len)
        self._engine = EngineSpec(max_num_seqs, block_size, max_num_batched_tokens)
        before = None if LLM._current is None else LLM._current()
        if before is not None:
            before.close()
        source = materialize(self._model)
        self._tokenizer = load_tokenizer(self._model, source)
        self._info = describe(self._model)
        longest = max_model_len or self._info.max_model_len
        if longest is None:
            raise SpecError.one(
                "KVS204", "the longest request of this model is not known", path="max_model_len", expected="tokens"
            )
        shape = Shape(longest, max_num_seqs, self._info.geometry)
        storage = self._model.storage_format
        self._session: Session | None = Session(
            self._model, source, self._engine, storage, shape, reads=True, eager=enforce_eager
        )
        LLM._current = weakref.ref(self)
        prompt = list(self._tokenizer.encode("The start-up canary of kvspec reads back what was written."))
        self.canary = run_canary(self._session, prompt, storage, int(fault_injection_seed))

    def generate(self, prompts: str | Sequence[str], sampling_params: Any = None) -> list[RequestOutput]:
        """Answers in the order of the prompts. Prompt i has the faults of request i, the same at every call.

        `sampling_params` is a `vllm.SamplingParams`. Raises `SpecError` for what cannot be honoured, `EngineError`
        (KVS404) if other flips landed than were planned, (KVS405) for a prompt that does not fit, (KVS406) if the
        engine fails or is closed.
        """
        session = self._session
        if session is None:
            raise EngineError.one("KVS406", "this LLM is closed: a later one took its place, or `close` was called")
        texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        if not all(isinstance(text, str) for text in texts):
            raise SpecError.one("KVS201", "a prompt is not a text", path="prompts", expected="texts")
        if not texts:
            return []
        spec = self._spec(texts, self._generation(sampling_params))
        ids = tokenize(spec, self._tokenizer)
        check_lengths(spec, self._info, ids)
        plan = compile_plan(spec)
        if plan.cells:
            trials = [Trial("fault", 0, request, 0) for request in range(len(texts))]
        else:
            trials = [Trial("golden", NO_CELL, request, 0) for request in range(len(texts))]
        table = build_table(plan, trials, [len(prompt) for prompt in ids], session.geometry)
        session.rpc("kvspec_load", table)
        sampling_seed = self._seed if spec.generation.seed is None else spec.generation.seed
        for entry, prompt in enumerate(ids):
            session.submit(entry, prompt, spec.generation, sampling_seed + entry)
        found: list[RequestOutput] = []
        with PlannedFlips(table, session.geometry) as planned:
            while session.pending:
                if ended := session.step():
                    found += self._outputs(session, ended, texts, ids, planned, table)
        return sorted(found, key=lambda output: int(output.request_id))

    def _outputs(
        self,
        session: Session,
        ended: list[Finished],
        texts: Sequence[str],
        ids: list[list[int]],
        planned: PlannedFlips,
        table: TableData,
    ) -> list[RequestOutput]:
        entries = [finished.entry for finished in ended]
        tally = session.rpc("kvspec_tally", entries)
        counted = planned.count_all(entries, tally["written"])
        outputs = []
        for i, finished in enumerate(ended):
            landed, flips, entry = tally["landed"][i], counted[i], finished.entry
            if tally["preemptions"][i] and table.reads(entry):
                hint = "lower max_num_seqs, so that no request loses its cache"
                raise EngineError.one("KVS406", f"prompt {entry} was preempted, and its reads with it", hint=hint)
            if landed != flips:
                raise EngineError.one("KVS404", f"prompt {entry}: {landed} flips landed, {flips} were planned")
            answer = CompletionOutput(0, finished.text, finished.token_ids, finished.finish_reason)
            outputs.append(
                RequestOutput(str(entry), texts[entry], ids[entry], [answer], flips_planned=flips, flips_landed=landed)
            )
        return outputs

    def close(self) -> None:
        """Stop the engine. Later calls of `generate` are errors."""
        session, self._session = getattr(self, "_session", None), None  # `__init__` may have failed before it was set
        if session is not None:
            session.close()

    def __del__(self) -> None:
        """Stop the engine."""
        self.close()

    def _spec(self, texts: tuple[str, ...], generation: GenerationSpec) -> Spec:
        return Spec(
            name="llm",
            model=self._model,
            prompts=PromptSpec(texts),
            generation=generation,
            faults=self._fault.faults(),
            controls=Controls(null_trials=0, golden_repeats=0),
            trials=TrialSpec(1),
            seed=int(self._fault.seed),
            metrics=METRICS,
            engine=self._engine,
        )

    def _generation(self, params: Any) -> GenerationSpec:
        default = default_sampling_params()
        params = default if params is None else params
        if isinstance(params, (list, tuple)):
            raise SpecError.one(
                "KVS201", "sampling parameters are a list", path="sampling_params", expected="one for all prompts"
            )
        wrong = [
            Diagnostic("KVS202", f"the sampling parameter `{name}` cannot be honoured", None, name, f"{value!r}")
            for name in default.__struct_fields__
            if not name.startswith("_")
            and name not in (*_HONOURED, "output_kind", "detokenize")
            and getattr(params, name) != (value := getattr(default, name))
        ]
        if params.max_tokens is None:
            wrong.append(Diagnostic("KVS204", "`max_tokens` is missing", None, "max_tokens", "tokens to generate"))
        if wrong:
            raise SpecError(wrong)
        stop = (params.stop,) if isinstance(params.stop, str) else tuple(params.stop or ())
        return GenerationSpec(params.max_tokens, float(params.temperature), bool(params.ignore_eos), params.seed, stop)


def __getattr__(name: str) -> Any:
    """`SamplingParams`, so that one import line has both names of the guide."""
    if name == "SamplingParams":
        return type(default_sampling_params())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
