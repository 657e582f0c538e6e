"""One vLLM engine with the hook installed: start, submit, step, ask the workers. The only file that drives vLLM."""

from __future__ import annotations

import functools
import gc
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from kvspec.engine.requirements import require_vllm
from kvspec.engine.supported import device
from kvspec.engine.text import ByteLevelText, token_ends
from kvspec.engine.vllm.sockets import worker_sockets
from kvspec.engine.vllm.tally import FLIPS
from kvspec.errors import EngineError, KvspecError
from kvspec.models import Geometry
from kvspec.plan.lengths import choice_ids
from kvspec.spec.model import EngineSpec, GenerationSpec, ModelSpec

WORKER = "kvspec.engine.vllm.worker.KvspecWorker"
BLOCK_TOKENS = 32
"""Default tokens per cache block on the CPU: the smallest that its attention supports, so that short requests
waste, and scrubbing clears, as little as possible."""
DEFAULT_CACHE_GIB = 2.0
PATIENCE = 0.5
"""Seconds that ended requests wait for their counts: asking a GPU what landed makes it wait."""
MANY = 256
"""Ended requests that are not kept waiting."""
GUARD = 0.1
"""Share of a GPU's memory that must be free at the start where the size of the cache is given."""
STORAGE_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
"""vLLM's names of the compute types whose caches store these formats natively."""
QUANTIZED = ("fp8_e4m3", "int8_per_token_head", "int4_per_token_head")
"""Formats that a GPU's cache stores natively under any compute type."""
ON_NO_BACKEND = {
    "fp8_e5m2": "FLASH_ATTN does not take it; TRITON_ATTN lists it, but asserts that queries are not e5m2 and views "
    "the cache as e4m3; FLASHINFER reads it, and is not injected"
}
"""Formats that no attention backend holds which the injector knows, and what each of vLLM 0.25.1's makes of it."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that ended."""

    entry: int
    token_ids: list[int]
    """As sampled; never re-tokenized."""
    text: str
    finish_reason: str
    logprob_ids: list[int] | None = None
    """The k likeliest tokens per position, one position after the other; `None` if they were not asked for."""
    logprobs: list[float] | None = None
    token_ends: list[int] | None = None
    """Characters of the text after each token; `None` if they were not asked for."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the engine must be able to hold."""

    longest: int
    """Longest request, prompt and generated tokens."""
    requests: int
    """Requests of the campaign."""
    geometry: Geometry | None


def prepare_environment() -> None:
    """Settings that vLLM and its libraries read from the environment, before their first import."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for bars in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(bars, "1")  # the campaign shows a progress bar of its own
    # One process: Ctrl-C stops between two steps, and nothing has to be sent through pipes.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # tensor-parallel workers; a forked one cannot use CUDA if anything touched it before
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "1" if device() == "cuda" else "0")


def default_sampling_params() -> Any:
    """vLLM's `SamplingParams()`. Raises `PrerequisiteError` (KVS901) without vLLM."""
    require_vllm()
    prepare_environment()
    with quiet():
        from vllm import SamplingParams

    return SamplingParams()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries write while a model loads (bars, notices, C++ warnings) off the terminal.

    Works on file descriptors, because native code writes there. KVSPEC_TRACEBACK=1 shows everything.
    """
    if os.environ.get("KVSPEC_TRACEBACK"):
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for number in (1, 2):
                os.dup2(log.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, original in zip((1, 2), saved, strict=True):
                os.dup2(original, number)
                os.close(original)


class Session:
    """A running engine. Raises `EngineError` for everything that vLLM refuses, with vLLM's own words in it."""

    def __init__(
        self,
        model: ModelSpec,
        source: str,
        engine: EngineSpec,
        storage_format: str,
        shape: Shape,
        *,
        reads: bool = False,
        stuck_reads: bool = False,
        scales: bool = False,
        hooked: bool = True,
        eager: bool = False,
    ) -> None:
        """Start vLLM. `reads`: whether reads of the cache will have faults; a GPU pays for them in every step.
        `stuck_reads`: whether these may be stuck-ats; a GPU pays for them with the memory of two layers' caches.
        `scales`: whether there will be faults of scales; a GPU pays for them in every step.
        `hooked=False` gives stock vLLM with the same settings, to compare with; `eager` means no graphs and no
        compilation, as always on a CPU."""
        require_vllm()
        prepare_environment()
        self.device = device()
        self.reads = reads or self.device == "cpu"
        """Whether reads can have faults."""
        self._logprobs = 0
        """Likeliest tokens that the requests ask for, the same for all of them."""
        self._shown: set[int] = set()
        """Entries whose text vLLM makes, token by token."""
        self._marked: set[int] = set()
        """Entries that ask where the text of each token ends."""
        self.settings = _settings(model, source, engine, storage_format, shape, self.device)
        self.settings["enforce_eager"] |= eager
        if hooked:
            self.settings["worker_cls"] = WORKER
            options = {"storage_format": storage_format, "reads": reads, "stuck_reads": stuck_reads, "scales": scales}
            self.settings["additional_config"] = {"kvspec": options}
        try:
            with quiet():
                from vllm import EngineArgs, SamplingParams
                from vllm.sampling_params import RequestOutputKind
                from vllm.v1.engine.llm_engine import LLMEngine

                self._engine = LLMEngine.from_engine_args(EngineArgs(**self.settings))
        except KvspecError:
            raise
        except Exception as error:
            raise EngineError.one("KVS406", f"vLLM did not start: {_words(error)}", hint=_start_hint(error)) from error
        self._text = ByteLevelText.of(self._engine.get_tokenizer())
        self._choice_ids = functools.cache(partial(choice_ids, self._engine.get_tokenizer().encode))
        # nobody else has a request's parameters, so vLLM need not copy them to the bottom
        self._sampling = partial(SamplingParams, output_kind=RequestOutputKind.FINAL_ONLY, skip_clone=True)

    def close(self) -> None:
        """Stop the engine. Must come before the next one starts: vLLM keeps one set of process groups."""
        sockets = worker_sockets(self._engine)
        self._engine.engine_core.shutdown()
        for socket in sockets:
            socket.close(linger=0)
        del self._engine
        gc.collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def engines(self) -> int:
        """Engines that requests are dealt out to; see `Fleet`."""
        return 1

    def each(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(session, *args)` in every engine; one answer each."""
        return [function(self, *args)]

    def rpc(self, method: str, *args: Any) -> Any:
        """Call a method of every worker; the answer of the first one."""
        return self.rpc_all(method, *args)[0]

    def rpc_all(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every worker; one answer per tensor-parallel rank."""
        answers: list[Any] = self._engine.collective_rpc(method, args=args)
        return answers

    def tally(self, entries: list[int]) -> dict[str, list[int]]:
        """Counts of finished entries. Each rank counts the flips of its own heads; the first one alone sees logits."""
        parts: list[dict[str, list[int]]] = self.rpc_all("kvspec_tally", entries)
        sums = {name: [sum(counts) for counts in zip(*(part[name] for part in parts), strict=True)] for name in FLIPS}
        return parts[0] | sums

    def canary(self) -> dict[str, Any]:
        """What the canary saw, on all ranks together."""
        found: list[dict[str, Any]] = self.rpc_all("kvspec_canary")
        together = {name: sum(part[name] for part in found) for name in ("checked", "checked_reads", "mismatches")}
        return {**together, "first_mismatch": next((x for part in found if (x := part["first_mismatch"])), None)}

    @property
    def max_model_len(self) -> int:
        """Longest request in tokens."""
        return int(self.settings["max_model_len"])

    @property
    def geometry(self) -> Geometry:
        """Geometry of the loaded model."""
        return Geometry(*self.rpc("kvspec_geometry"))

    def submit(
        self, entry: int, prompt: list[int], generation: GenerationSpec, seed: int, token_ends: bool = False
    ) -> None:
        """Queue one request; its faults are those of `entry` in the loaded table. `token_ends`: whether to tell where
        the text of each token ends, which takes another pass over the answer."""
        self._logprobs = generation.logprobs or 0
        if token_ends:
            self._marked.add(entry)
        if shown := bool(generation.stop) or self._text is None:
            self._shown.add(entry)
        params = self._sampling(
            temperature=generation.temperature,
            max_tokens=generation.max_tokens,
            ignore_eos=generation.ignore_eos,
            stop=list(generation.stop),
            logprobs=generation.logprobs,
            allowed_token_ids=self._choice_ids(generation.choices) or None,
            seed=seed if generation.temperature > 0 else None,
            detokenize=shown,
            extra_args={"kvspec": entry},
        )
        self._engine.add_request(str(entry), {"prompt_token_ids": prompt}, params)

    @property
    def pending(self) -> int:
        """Requests that are queued or running."""
        return int(self._engine.get_num_unfinished_requests())

    def step(self) -> list[Finished]:
        """Run one scheduler step; the requests that ended in it."""
        try:
            outputs = self._engine.step()
        except KvspecError:
            raise
        except Exception as error:
            raise EngineError.one("KVS406", f"the engine failed in a step: {_words(error)}") from error
        return [self._finished(output) for output in outputs if output.finished]

    def _finished(self, request: Any) -> Finished:
        entry, output = int(request.request_id), request.outputs[0]
        ids, reason, text = list(output.token_ids), output.finish_reason or "", output.text
        if entry in self._shown:
            self._shown.remove(entry)
        else:
            assert self._text is not None
            # the token that stopped an answer is no part of its text
            text = self._text.text(request.prompt_token_ids, ids[:-1] if reason == "stop" else ids)
        ends = None
        if entry in self._marked:
            self._marked.remove(entry)
            made = self._engine.get_tokenizer() if self._text is None else self._text
            ends = token_ends(made, request.prompt_token_ids, ids, text)
        return Finished(entry, ids, text, reason, *_likeliest(output.logprobs, self._logprobs), ends)

    def generate(self, prompts: list[list[int]], generation: GenerationSpec, seed: int) -> list[Finished]:
        """Submit entries 0 .. n - 1 and run them to the end, in order of entry."""
        for entry, prompt in enumerate(prompts):
            self.submit(entry, prompt, generation, seed)
        done: list[Finished] = []
        while self.pending:
            done += self.step()
        return sorted(done, key=lambda f: f.entry)


def _likeliest(positions: Any, k: int) -> tuple[list[int] | None, list[float] | None]:
    """Ids and logprobs of the k likeliest tokens of each position; vLLM adds the sampled token where it is another."""
    if not positions:
        return None, None
    ids: list[int] = []
    values: list[float] = []
    for tokens in positions:
        for token, found in sorted(tokens.items(), key=lambda item: item[1].rank)[:k]:
            ids.append(token)
            values.append(found.logprob)
    return ids, values


def _settings(
    model: ModelSpec, source: str, engine: EngineSpec, storage_format: str, shape: Shape, device: str
) -> dict[str, Any]:
    """Arguments of vLLM's engine. Raises `EngineError`: KVS408 for a compute type that the device cannot have, KVS401
    for what is not injected there."""
    if device == "cuda" and storage_format not in (*STORAGE_DTYPES, *QUANTIZED):
        raise EngineError.one(
            "KVS401",
            f"a {storage_format} cache is not injected on a GPU: {ON_NO_BACKEND[storage_format]}",
            path="$.model.kv_cache_dtype",
            expected=" or ".join((*STORAGE_DTYPES, *QUANTIZED)),
            hint="the CPU engine emulates it, bit for bit",
        )
    dtype = STORAGE_DTYPES.get(storage_format, "bfloat16") if device == "cuda" else "float32"
    if model.dtype not in ("auto", dtype):
        raise EngineError.one(
            "KVS408",
            f"compute type `{model.dtype}` is not supported with a {storage_format} cache on this device",
            path="$.model.dtype",
            expected=f"auto or {dtype}",
            hint="the cache format is declared apart from it, by kv_cache_dtype",
        )
    sequences = max(1, min(engine.max_num_seqs, shape.requests))
    settings: dict[str, Any] = {
        "model": source,
        "revision": model.revision,
        "dtype": dtype,
        "enforce_eager": device == "cpu",
        "seed": 0,
        "max_model_len": shape.longest,
        "max_num_seqs": sequences,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
    }
    if device == "cpu":
        for given, key, words, expected in (
            (engine.tensor_parallel > 1, "tensor_parallel", "tensor parallelism is not supported on a CPU", "1"),
            (engine.attention_backend, "attention_backend", "there is one attention backend on a CPU", "no such line"),
        ):
            if given:
                raise EngineError.one("KVS401", words, path=f"$.engine.{key}", expected=expected)
        block = engine.block_size or BLOCK_TOKENS
        return {
            **settings,
            "block_size": block,
            "kv_cache_memory_bytes": _cache_bytes(engine, shape, sequences, block),
        }
    if shape.geometry is not None:
        from kvspec.engine.vllm.layers import Shard

        Shard.of(shape.geometry.kv_heads, 0, engine.tensor_parallel)  # refuses before vLLM's assertions do
    settings["tensor_parallel_size"] = engine.tensor_parallel
    if engine.attention_backend is not None:
        settings["attention_config"] = {"backend": engine.attention_backend}
    if storage_format in QUANTIZED:
        settings["kv_cache_dtype"] = storage_format
    if engine.kv_cache_gib is not None:
        settings["kv_cache_memory_bytes"] = int(engine.kv_cache_gib * 2**30)
        # Memory that must be free before the model loads, no more than a guard here: so engines can share a GPU.
        settings["gpu_memory_utilization"] = GUARD
    return settings if engine.block_size is None else {**settings, "block_size": engine.block_size}


def _cache_bytes(engine: EngineSpec, shape: Shape, sequences: int, block: int) -> int:
    """Memory for the cache: enough that no request is ever preempted, within the limit of the spec."""
    limit = int((engine.kv_cache_gib or DEFAULT_CACHE_GIB) * 2**30)
    if shape.geometry is None or engine.kv_cache_gib is not None:
        return limit
    blocks = sequences * -(-shape.longest // block) + 8  # and a few for the null block and look-ahead
    return min(limit, blocks * block * shape.geometry.bits_per_token(32) // 8)


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."


def _start_hint(error: Exception) -> str | None:
    text = str(error).lower()
    if "memory" in text:
        return "lower engine.kv_cache_gib or engine.max_num_seqs, or free memory"
    if "max_model_len" in text or "max seq len" in text:
        return "shorten the prompts or generation.max_tokens, or raise engine.kv_cache_gib"
    return "KVSPEC_TRACEBACK=1 shows where it failed"
