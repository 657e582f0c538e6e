"""A worker that can be stock vLLM, or injecting, from one batch to the next: both sides of a comparison in one engine.

Everything that kvspec installs is an attribute of an instance. Taking the attribute away gives the class's own method
back, so mode "stock" runs nothing of kvspec. CUDA graphs hold what they captured: each mode has graphs of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kvspec.engine.vllm.layers import Unwrapped
from kvspec.engine.vllm.layout import NULL_BLOCK
from kvspec.engine.vllm.storage import ROTATED, _rotation
from kvspec.engine.vllm.worker import KvspecWorker

WORKER = "tools.gpu.worker.SwitchWorker"
MODES = ("stock", "writes", "reads")


class SwitchWorker(KvspecWorker):
    """Starts injecting writes and reads; `kvspec_mode` switches."""

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Load the model and remember what was installed where."""
        result = super().load_model(*args, **kwargs)
        runner, impls = self.model_runner, [a.layer.impl for a in self.injector.layers]
        names = ("update_requests", "prepare_attn", "prepare_dummy_attn")
        self._always: list[tuple[Any, str]] = [(runner, name) for name in names] + [(runner.model, "compute_logits")]
        self._always += [(impl, "do_kv_cache_update") for impl in impls]
        self._reads: list[tuple[Any, str]] = [(impl, "forward") for impl in impls]
        self._installed = {(id(on), name): vars(on)[name] for on, name in self._always + self._reads}
        self._graphs: dict[str, dict[Any, Any]] = {}
        self._mode = "reads"
        return result

    def kvspec_mode(self, mode: str) -> None:
        """Switch; captures graphs the first time a mode is asked for."""
        self.injector._end_step()  # capturing runs the model: nothing of the last step may be injected again
        graphs = self.model_runner.cudagraph_manager
        self._graphs[self._mode] = graphs.graphs
        wanted: list[tuple[Any, str]] = {
            "stock": [], "writes": self._always, "reads": self._always + self._reads,
        }[mode]  # fmt: skip
        for on, name in self._always + self._reads:
            on.__dict__.pop(name, None)
        for on, name in wanted:
            on.__dict__[name] = self._installed[id(on), name]
        self._mode = mode
        graphs.graphs = self._graphs.get(mode, {})
        if not graphs.graphs:
            self.model_runner.capture_model()


class CodesWorker(KvspecWorker):
    """Shows what the backend makes of given K and V."""

    def kvspec_codes(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes `[2, tokens, heads, D]`, the scales `[2, tokens, heads]` behind them, and the rows that they stand for,
        rotated where the format rotates: of bf16 `rows` of the same shape, written by the backend of layer 0 into the
        block that no request has."""
        attention, views = self.injector.layers[0], self.injector._views[0]  # type: ignore[union-attr]
        device = views.key.device
        at = torch.arange(rows.shape[1], device=device)
        on = rows.to(device)
        write = Unwrapped(attention.layer.impl).do_kv_cache_update
        write(attention.layer, on[0], on[1], attention.kv_cache, at + NULL_BLOCK * views.block_tokens)
        found = views.at(torch.full_like(at, NULL_BLOCK), at)
        assert found.scales is not None
        if views.storage_format == ROTATED:
            on = _rotation()(on.float()).to(on.dtype)
        return found.values.cpu(), torch.from_numpy(found.scales.view(np.float32)), on.cpu()
