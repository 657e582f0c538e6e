"""The only file that knows vLLM's model runners: how to learn the rows of a step, and where its block table is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kvspec.errors import EngineError

OnStep = Callable[[Any, Sequence[str]], None]
OnLogits = Callable[[torch.Tensor, torch.Tensor], None]
"""Called with (final hidden states `[rows, hidden]`, logits `[rows, vocabulary]`), one row per request."""


class _V1:
    """vLLM's V1 model runner (`GPUModelRunner` and its CPU subclass). Methods are wrapped on the instance."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    @property
    def name(self) -> str:
        """Class of the runner, for the fingerprint."""
        return f"{type(self._runner).__module__}.{type(self._runner).__name__}"

    def check_cache(self) -> None:
        """Refuse caches with several groups of layers (KVS402)."""
        _check_groups(self._runner.kv_cache_config)

    def _hook_forward(
        self, on_prepared: Callable[[Any], None], on_dummy: Callable[[], None], on_logits: OnLogits
    ) -> None:
        runner = self._runner
        prepare, dummy = runner._prepare_inputs, runner._dummy_run

        def prepare_inputs(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            result = prepare(scheduled, *args, **kwargs)
            on_prepared(scheduled)
            return result

        def dummy_run(*args: Any, **kwargs: Any) -> Any:
            on_dummy()
            return dummy(*args, **kwargs)

        runner._prepare_inputs = prepare_inputs
        runner._dummy_run = dummy_run
        _hook_logits(runner.model, on_logits)


class RunnerV1(_V1):
    """vLLM's V1 model runner on a CPU."""

    def block_table(self, rows: int) -> NDArray[np.int32]:
        """Block ids of the current step, `[rows, blocks]`, KV-cache group 0."""
        table = self._runner.input_batch.block_table[0].get_device_tensor(rows)
        return np.ascontiguousarray(table.numpy(), dtype=np.int32)

    def hook(self, on_step: OnStep, on_dummy: Callable[[], None], on_logits: OnLogits) -> None:
        """Call `on_step(scheduler_output, request ids in row order)` before every forward, `on_dummy` before
        profiling and padding runs, and `on_logits` with the final hidden states and logits of a step."""
        self._hook_forward(lambda scheduled: on_step(scheduled, self._runner.input_batch.req_ids), on_dummy, on_logits)


@dataclass(frozen=True, slots=True)
class Batch:
    """The requests of one forward, in row order."""

    req_ids: Sequence[str]
    slot: NDArray[np.int64]
    """Request slot of each."""
    start: NDArray[np.int64]
    """Tokens in the cache before this forward."""
    count: NDArray[np.int64]
    """Tokens that this forward writes."""
    slots: torch.Tensor
    """`slot` on the device, int32."""
    query_start: torch.Tensor
    """int32 `[requests + 1]` on the device: first row of each request."""
    seq_lens: torch.Tensor
    """int32 on the device: tokens in the cache after this forward. Exact also where the host runs ahead."""


class DeviceRunner(Protocol):
    """What injection on a device needs of a model runner."""

    @property
    def name(self) -> str:
        """Class of the runner, for the fingerprint."""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""

    @property
    def max_requests(self) -> int:
        """Request slots."""

    @property
    def max_tokens(self) -> int:
        """Rows of the largest batch."""

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request."""

    @property
    def block_table(self) -> torch.Tensor:
        """Block ids of the current step on the device, int32 `[requests, blocks]`; a fixed address."""

    def check_cache(self) -> None:
        """Refuse caches with several groups of layers (KVS402)."""

    @property
    def blocks(self) -> int:
        """Blocks that the scheduler hands out."""

    def entering(self, scheduled: Any) -> list[tuple[str, int]]:
        """Requests that start, or start over, in this step: (id, slot). Once per step, before the forward."""

    def hook(
        self,
        on_requests: Callable[[Any], None],
        on_step: Callable[[Any, Batch], None],
        on_dummy: Callable[[], None],
        on_logits: OnLogits,
    ) -> None:
        """Call `on_requests(scheduler_output)` when the requests of a step are known,
        `on_step(scheduler_output, batch)` before every forward, `on_dummy` before profiling and padding runs, and
        `on_logits` with the final hidden states and logits of a step."""


class _Sizes:
    """What both model runners call alike."""

    _runner: Any

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._runner.device

    @property
    def max_requests(self) -> int:
        """Request slots."""
        return int(self._runner.max_num_reqs)

    @property
    def max_tokens(self) -> int:
        """Rows of the largest batch."""
        return int(self._runner.max_num_tokens)

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request."""
        return int(self._runner.max_model_len)


class DeviceRunnerV1(_Sizes, _V1):
    """vLLM's V1 model runner on a GPU. It has no slots that a request keeps, so they are kept here."""

    def __init__(self, runner: Any) -> None:
        super().__init__(runner)
        self._free = list(range(self.max_requests))
        self._slot: dict[str, int] = {}

    @property
    def block_table(self) -> torch.Tensor:
        """Block ids of the current step on the device, KV-cache group 0; a fixed address."""
        return self._runner.input_batch.block_table[0].block_table.gpu

    @property
    def blocks(self) -> int:
        """Blocks that the scheduler hands out."""
        return int(self._runner.kv_cache_config.num_blocks)

    def entering(self, scheduled: Any) -> list[tuple[str, int]]:
        """Requests that start, or start over, in this step: (id, slot)."""
        cached = scheduled.scheduled_cached_reqs
        again = [request for request in cached.req_ids if request in cached.resumed_req_ids]
        for request in scheduled.finished_req_ids:
            if (slot := self._slot.pop(request, None)) is not None:
                self._free.append(slot)
        for request in scheduled.preempted_req_ids or ():
            # it is out of the batch and may stay so for long: others need its slot
            if (slot := self._slot.pop(request, None)) is not None:
                self._free.append(slot)
        new = [request.req_id for request in scheduled.scheduled_new_reqs] + again
        for request in new:
            if request not in self._slot:
                self._slot[request] = self._free.pop()
        return [(request, self._slot[request]) for request in new]

    def hook(
        self,
        on_requests: Callable[[Any], None],
        on_step: Callable[[Any, Batch], None],
        on_dummy: Callable[[], None],
        on_logits: OnLogits,
    ) -> None:
        """See `DeviceRunner.hook`."""
        runner = self._runner
        update = runner._update_states

        def update_states(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            result = update(scheduled, *args, **kwargs)
            on_requests(scheduled)
            return result

        runner._update_states = update_states
        self._hook_forward(lambda scheduled: on_step(scheduled, self._batch(scheduled)), on_dummy, on_logits)

    def _batch(self, scheduled: Any) -> Batch:
        runner = self._runner
        ids = list(runner.input_batch.req_ids)
        n = len(ids)
        slot = np.array([self._slot[request] for request in ids], dtype=np.int64)
        slots = torch.from_numpy(slot.astype(np.int32))
        if self.device.type == "cuda":
            # a fresh pinned buffer each time: the copy may still run when the next step is prepared
            slots = slots.pin_memory().to(self.device, non_blocking=True)
        return Batch(
            req_ids=ids,
            slot=slot,
            start=runner.input_batch.num_computed_tokens_cpu[:n].astype(np.int64),
            count=np.array([scheduled.num_scheduled_tokens[request] for request in ids], dtype=np.int64),
            slots=slots,
            query_start=runner.query_start_loc.gpu[: n + 1],
            seq_lens=runner.seq_lens[:n],
        )


class DeviceRunnerV2(_Sizes):
    """vLLM's V2 model runner (0.25.1 and later). A request keeps its slot in the device tables while it lives."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._scheduled: Any = None

    @property
    def name(self) -> str:
        """Class of the runner, for the fingerprint."""
        return f"{type(self._runner).__module__}.{type(self._runner).__name__}"

    @property
    def block_table(self) -> torch.Tensor:
        """Block ids of the current step on the device, KV-cache group 0; a fixed address."""
        return self._runner.block_tables.input_block_tables[0]

    def check_cache(self) -> None:
        """Refuse caches with several groups of layers (KVS402)."""
        _check_groups(self._runner.kv_cache_config)

    @property
    def blocks(self) -> int:
        """Blocks that the scheduler hands out."""
        return int(self._runner.kv_cache_config.num_blocks)

    def entering(self, scheduled: Any) -> list[tuple[str, int]]:
        """Requests that start, or start over, in this step: (id, slot). A preempted request comes back as a new one."""
        slots = self._runner.req_states.req_id_to_index
        return [(new.req_id, int(slots[new.req_id])) for new in scheduled.scheduled_new_reqs]

    def hook(
        self,
        on_requests: Callable[[Any], None],
        on_step: Callable[[Any, Batch], None],
        on_dummy: Callable[[], None],
        on_logits: OnLogits,
    ) -> None:
        """See `DeviceRunner.hook`."""
        runner = self._runner
        update, attend, dummy = runner.update_requests, runner.prepare_attn, runner.prepare_dummy_attn

        def update_requests(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            result = update(scheduled, *args, **kwargs)
            self._scheduled = scheduled
            on_requests(scheduled)
            return result

        def prepare_attn(batch: Any, *args: Any, **kwargs: Any) -> Any:
            result = attend(batch, *args, **kwargs)
            n, slots = batch.num_reqs, batch.idx_mapping
            on_step(
                self._scheduled,
                Batch(
                    req_ids=batch.req_ids,
                    slot=np.asarray(batch.idx_mapping_np, dtype=np.int64),
                    start=np.asarray(batch.num_computed_tokens_np, dtype=np.int64),
                    count=np.asarray(batch.num_scheduled_tokens, dtype=np.int64),
                    slots=slots if slots.dtype == torch.int32 else slots.to(torch.int32),  # int64 from 0.32 on
                    query_start=batch.query_start_loc[: n + 1],
                    seq_lens=batch.seq_lens[:n],
                ),
            )
            return result

        def prepare_dummy_attn(*args: Any, **kwargs: Any) -> Any:
            on_dummy()
            return dummy(*args, **kwargs)

        runner.update_requests = update_requests
        runner.prepare_attn = prepare_attn
        runner.prepare_dummy_attn = prepare_dummy_attn
        _hook_logits(runner.model, on_logits)


def _hook_logits(model: Any, on_logits: OnLogits) -> None:
    logits = model.compute_logits

    def compute_logits(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = logits(hidden, *args, **kwargs)
        if result is not None:  # only the first of several tensor-parallel ranks has logits
            on_logits(hidden, result)
        return result

    model.compute_logits = compute_logits


def _check_groups(config: Any) -> None:
    """A block table belongs to one group of layers only. Raises `EngineError` (KVS402) for several."""
    groups = config.kv_cache_groups
    if len(groups) != 1:
        raise EngineError.one(
            "KVS402", f"the cache has {len(groups)} groups of layers", expected="one group: plain full attention"
        )


def adapter(runner: Any) -> RunnerV1 | DeviceRunnerV1 | DeviceRunnerV2:
    """The adapter of a model runner. Raises `EngineError` (KVS402) for one that is not known."""
    if hasattr(runner, "_prepare_inputs") and hasattr(runner, "input_batch"):
        return RunnerV1(runner) if runner.device.type == "cpu" else DeviceRunnerV1(runner)
    if all(hasattr(runner, name) for name in ("update_requests", "prepare_attn", "prepare_dummy_attn", "req_states")):
        return DeviceRunnerV2(runner)
    kind = type(runner)
    raise EngineError.one(
        "KVS402",
        f"the model runner `{kind.__module__}.{kind.__name__}` is not supported",
        expected="vLLM's V1 or V2 model runner",
    )
