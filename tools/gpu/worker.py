"""A worker that can be stock vLLM, or injecting, from one batch to the next: both sides of a comparison in one engine.

Everything that kvspec installs is an attribute of an instance. Taking the attribute away gives the class's own method
back, so mode "stock" runs nothing of kvspec. CUDA graphs hold what they captured: each mode has graphs of its own.
"""

from __future__ import annotations

from typing import Any

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
