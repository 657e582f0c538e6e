"""The resolved spec as immutable values: what a lab declared, with every default filled in.

These classes mirror `schemas/spec.schema.json` one to one. They are built by `kvspec.spec.load_spec`, which has
validated everything; they hold no logic beyond the conversion from and to plain data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from kvspec.errors import Diagnostic, Mark

if TYPE_CHECKING:
    from kvspec.stats.design import Looks  # only a design with looks needs it, and it takes a while to import

SITES = ("KV_WRITE", "KV_READ", "BOTH")
TARGETS = ("values", "scales")
OPS = ("flip", "set0", "set1")
FAULT_MODELS = ("random", "burst", "msb_biased", "page_local")
MSB_POLICIES = ("BYTE_TOPBITS", "FP16_EXPONENT", "INT4_NIBBLE")
BIT_FIELDS = ("all", "sign", "exponent", "mantissa")
RATE_UNITS = ("per_bit", "per_element", "per_row", "per_token", "per_page", "fit")
STORAGE_FORMATS = ("bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8_per_token_head", "int4_per_token_head")
METRICS = (
    "exact_match",
    "char_drift",
    "token_drift",
    "first_divergence",
    "token_edit_distance",
    "char_edit_distance",
    "outcome",
    "kl",
    "top1_agreement",
)
LOGPROB_METRICS = ("kl", "top1_agreement")
"""Metrics that need `generation.logprobs`."""

Range = tuple[int, int | None]
"""Half-open `[start, stop)`; `None` as stop means open-ended."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model runs, and what its cache holds."""

    id: str
    """`bundled:smollm2`, a hub id such as `gpt2`, or a local folder."""
    revision: str | None = None
    """Commit of the hub repository; `None` takes the default branch and is recorded."""
    dtype: str = "auto"
    """Compute type: auto, float32, bfloat16 or float16. `auto` is float32 on a CPU without bf16 units."""
    kv_cache_dtype: str = "auto"
    """Storage format whose bits flip: auto or one of `STORAGE_FORMATS`. `auto` is bf16."""
    max_model_len: int | None = None
    """Longest request in tokens; `None` takes the model's own limit."""

    @property
    def storage_format(self) -> str:
        """The storage format that `kv_cache_dtype` stands for."""
        return "bf16" if self.kv_cache_dtype == "auto" else self.kv_cache_dtype


@dataclass(frozen=True, slots=True)
class Grader:
    """When an answer is right (`kvspec.score.grading`)."""

    kind: Literal["exact", "regex", "choice", "numeric", "lm_eval"]
    expected: str | float
    """The text, the pattern, the choice or the number; for lm_eval the task and its document as JSON."""
    choices: tuple[str, ...] = ()
    """choice: the words to choose from; the first one in the answer counts. lm_eval: the continuations of a task that
    compares their likelihoods; `generation.choices` lists them."""
    tolerance: float = 0.0
    """numeric only: how far the last number of the answer may be off."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a prompt asks for, so that its answers can be graded and compared."""

    name: str
    """Answers are reported per task."""
    kind: Literal["retrieval", "reasoning", "other"]
    item: str
    """Prompts of one item and context pair with each other."""
    context: int
    """Length of the context in tokens; 0 if that is not a dimension."""
    grader: Grader
    operands: tuple[float, ...] = ()
    """Numbers that an answer states first, in this order, if it has retrieved them."""
    chance: float | None = None
    """How often a guess is right, where that is known."""


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """The requests of the campaign, in order. The index of a prompt is its `request` coordinate."""

    texts: tuple[str, ...]
    """All prompts, `inline`, `file` and `generator` in this order and `repeat` applied."""
    tasks: tuple[Task | None, ...] = ()
    """What each prompt asks for; empty if no prompt is graded."""


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """Decoding parameters, the same for golden and faulty requests."""

    max_tokens: int = 50
    temperature: float = 0.0
    ignore_eos: bool = True
    seed: int | None = None
    """Sampling seed when temperature is above 0; `None` takes the seed of the spec."""
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many of the likeliest tokens are recorded with their logprobs at each position; `None`: none."""
    choices: tuple[str, ...] = ()
    """Texts of one token each: the answer is the likeliest of them. Empty: any text."""


@dataclass(frozen=True, slots=True)
class Selector:
    """The sites at which faults are shown. Narrowing it leaves all other flips unchanged."""

    layers: tuple[Range, ...] | None = None
    """Global layer indices; `None` is all."""
    heads: tuple[Range, ...] | None = None
    """Global KV heads; `None` is all."""
    cache: tuple[Literal["K", "V"], ...] = ("K", "V")
    tokens: Literal["all", "prompt", "decode"] | tuple[Range, ...] = "all"
    """Logical positions: all, those of the prompt, those generated, or explicit ranges."""
    steps: Literal["all", "prefill", "decode"] | tuple[Range, ...] = "all"
    """KV_READ only: read events. 0 is the prefill, i the i-th decode forward."""


@dataclass(frozen=True, slots=True)
class Rate:
    """One dose with its unit."""

    unit: str
    """One of `RATE_UNITS`."""
    value: float
    """Probability per unit; for `fit` the raw failures in time per Mbit (2^20 bits)."""
    residency_hours: float | None = None
    """`fit` only: how long a value rests in the cache before it is used."""

    def __str__(self) -> str:
        """The dose as tables show it."""
        return f"{self.value:g} {self.unit}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault model at one dose and one site: the concrete fault of a cell, all sweeps expanded."""

    name: str
    """Name of the entry in the spec."""
    index: int
    """Index of the entry in the spec's fault list: the `fault` word of the counter."""
    site: str
    model: str
    rate: Rate
    burst_len: int = 1
    """Consecutive eligible bits of a burst; 1 unless `model` is burst."""
    msb_policy: str | None = None
    bits: tuple[int, ...] | Literal["all", "sign", "exponent", "mantissa"] = "all"
    """Eligible bits of every element, 0 the least significant."""
    page_tokens: int = 16
    """page_local only: consecutive logical tokens of a page."""
    page_density: float = 1.0e-3
    """page_local only: flip probability per eligible bit inside a hit page."""
    where: Selector = field(default_factory=Selector)
    op: str = "flip"
    """What happens to a bit that is hit: flip, set0 or set1 (stuck-at). The sites are the same."""
    target: str = "values"
    """values, or scales: of int8 or int4 caches the float32 that the codes of a row (token, layer, K|V, head) share."""


@dataclass(frozen=True, slots=True)
class Controls:
    """Trials without faults that measure the golden floor."""

    null_trials: int = 1
    """Per prompt: requests that run through the armed injector at rate 0."""
    golden_repeats: int = 2
    """Per prompt: repetitions of the fault-free request, spread over the campaign."""


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """How many trials each cell gets."""

    per_prompt: int
    """Trials per prompt and cell, with `looks` the most; n of a cell is this times the number of prompts."""
    looks: Looks | None = None
    """When a cell may stop before; `None`: all cells get the same number of trials."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How the engine runs. Never changes which faults are injected, hence not part of the plan digest."""

    max_num_seqs: int = 256
    """Requests that decode together."""
    block_size: int | None = None
    """Tokens per cache block; `None` takes the backend's."""
    max_num_batched_tokens: int | None = None
    """Tokens per scheduler step; smaller values chunk the prefill."""
    kv_cache_gib: float | None = None
    """Memory of the cache in GiB; `None` sizes it so that no request is preempted, up to 2."""
    submission_seed: int | None = None
    """Shuffles the order in which requests are submitted; `None` keeps the order of the plan."""
    tensor_parallel: int = 1
    """GPUs among which the heads of every layer are dealt out."""
    data_parallel: int = 1
    """Engines among which the trials are dealt out, each with `tensor_parallel` GPUs."""
    attention_backend: str | None = None
    """vLLM's attention backend on a GPU, one of those that are injected; `None` leaves the choice to vLLM."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A validated spec with every default resolved and every sweep still in `faults` expanded to cells."""

    name: str
    model: ModelSpec
    prompts: PromptSpec
    generation: GenerationSpec
    faults: tuple[Fault, ...]
    """One per cell, in file order; within an entry by site, target, op, burst_len, msb_policy, where, rate."""
    controls: Controls
    trials: TrialSpec
    seed: int
    metrics: tuple[str, ...]
    engine: EngineSpec = field(default_factory=EngineSpec)
    description: str = ""
    source: str = ""
    """Path of the file it came from; not part of the plan digest."""
    marks: Mapping[str, Mark] = field(default_factory=dict, compare=False, repr=False)
    """Where each JSON path was written. Not part of the spec's identity nor of `to_json`."""

    def mark(self, path: str) -> Mark | None:
        """Where the value at a JSON path, or the nearest value around it, was written."""
        while path and path not in self.marks:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.marks.get(path)

    def placed(self, diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
        """The same findings, each once, with the place in the file that their JSON path means."""
        return [
            replace(d, mark=self.mark(d.path)) if d.mark is None and d.path else d for d in dict.fromkeys(diagnostics)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data, the canonical resolved form written beside every run."""
        data = asdict(replace(self, marks={}))
        del data["marks"]
        for fault in data["faults"]:
            if fault["target"] == "values":
                del fault["target"]  # a plan without faults of scales has the digest that it always had
        if not self.prompts.tasks:
            del data["prompts"]["tasks"]  # likewise
        for part, key in (("trials", "looks"), ("generation", "logprobs"), ("generation", "choices")):
            if data[part][key] in (None, ()):
                del data[part][key]  # likewise
        return data
