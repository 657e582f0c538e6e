"""The only file that knows vLLM's model runners: how to learn the rows of a step, and where its block table is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvspec.errors import EngineError

OnStep = Callable[[Any, Sequence[str]], None]
OnLogits = Callable[[torch.Tensor, torch.Tensor], None]
"""Called with (final hidden states `[rows, hidden]`, logits `[rows, vocabulary]`), one row per request."""


class RunnerV1:
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

    def block_table(self, rows: int) -> NDArray[np.int32]:
        """Block ids of the current step, `[rows, blocks]`, KV-cache group 0."""
        table = self._runner.input_batch.block_table[0].get_device_tensor(rows)
        return np.ascontiguousarray(table.numpy(), dtype=np.int32)

    def hook(self, on_step: OnStep, on_dummy: Callable[[], None], on_logits: OnLogits) -> None:
        """Call `on_step(scheduler_output, request ids in row order)` before every forward, `on_dummy` before
        profiling and padding runs, and `on_logits` with the final hidden states and logits of a step."""
        runner = self._runner
        prepare, dummy, logits = runner._prepare_inputs, runner._dummy_run, runner.model.compute_logits

        def prepare_inputs(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            result = prepare(scheduled, *args, **kwargs)
            on_step(scheduled, runner.input_batch.req_ids)
            return result

        def dummy_run(*args: Any, **kwargs: Any) -> Any:
            on_dummy()
            return dummy(*args, **kwargs)

        def compute_logits(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            result = logits(hidden, *args, **kwargs)
            if result is not None:
                on_logits(hidden, result)
            return result

        runner._prepare_inputs = prepare_inputs
        runner._dummy_run = dummy_run
        runner.model.compute_logits = compute_logits


class RunnerV2:
    """vLLM's V2 model runner (0.25.1 and later). A request keeps its slot in the device tables while it lives."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._scheduled: Any = None

    @property
    def name(self) -> str:
        """Class of the runner, for the fingerprint."""
        return f"{type(self._runner).__module__}.{type(self._runner).__name__}"

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
    def block_table(self) -> torch.Tensor:
        """Block ids of the current step on the device, `[requests, blocks]`, KV-cache group 0; a fixed address."""
        return self._runner.block_tables.input_block_tables[0]

    def slot(self, request: str) -> int:
        """Slot of a live request."""
        return int(self._runner.req_states.req_id_to_index[request])

    def check_cache(self) -> None:
        """Refuse caches with several groups of layers (KVS402)."""
        _check_groups(self._runner.kv_cache_config)

    def hook(
        self,
        on_requests: Callable[[Any], None],
        on_step: Callable[[Any, Any], None],
        on_dummy: Callable[[], None],
        on_logits: OnLogits,
    ) -> None:
        """Call `on_requests(scheduler_output)` when new requests have their slots, `on_step(scheduler_output, batch)`
        before every forward, `on_dummy` before profiling and padding runs, and `on_logits` as `RunnerV1.hook` does."""
        runner = self._runner
        update, attend, dummy = runner.update_requests, runner.prepare_attn, runner.prepare_dummy_attn
        logits = runner.model.compute_logits

        def update_requests(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            result = update(scheduled, *args, **kwargs)
            self._scheduled = scheduled
            on_requests(scheduled)
            return result

        def prepare_attn(batch: Any, *args: Any, **kwargs: Any) -> Any:
            result = attend(batch, *args, **kwargs)
            on_step(self._scheduled, batch)
            return result

        def prepare_dummy_attn(*args: Any, **kwargs: Any) -> Any:
            on_dummy()
            return dummy(*args, **kwargs)

        def compute_logits(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            result = logits(hidden, *args, **kwargs)
            if result is not None:
                on_logits(hidden, result)
            return result

        runner.update_requests = update_requests
        runner.prepare_attn = prepare_attn
        runner.prepare_dummy_attn = prepare_dummy_attn
        runner.model.compute_logits = compute_logits


def _check_groups(config: Any) -> None:
    """A block table belongs to one group of layers only. Raises `EngineError` (KVS402) for several."""
    groups = config.kv_cache_groups
    if len(groups) != 1:
        raise EngineError.one(
            "KVS402", f"the cache has {len(groups)} groups of layers", expected="one group: plain full attention"
        )


def adapter(runner: Any) -> RunnerV1 | RunnerV2:
    """The adapter of a model runner. Raises `EngineError` (KVS402) for one that is not known."""
    if hasattr(runner, "_prepare_inputs") and hasattr(runner, "input_batch"):
        return RunnerV1(runner)
    if all(hasattr(runner, name) for name in ("update_requests", "prepare_attn", "prepare_dummy_attn", "req_states")):
        return RunnerV2(runner)
    kind = type(runner)
    raise EngineError.one(
        "KVS402",
        f"the model runner `{kind.__module__}.{kind.__name__}` is not supported",
        expected="vLLM's V1 or V2 model runner",
    )
