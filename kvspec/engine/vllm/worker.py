"""The hook: vLLM's own worker, with an injector attached once the model is loaded.

Installed by `LLM(worker_cls="kvspec.engine.vllm.worker.KvspecWorker")`. No class of vLLM is patched and nothing is
active in processes that do not ask for it. `load_model` is the right moment: the attention layers exist, the cache
does not yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.distributed.parallel_state import get_tp_group
from vllm.platforms import current_platform

from kvspec.engine.events import EventData
from kvspec.engine.table import TableData
from kvspec.engine.vllm.canary import Watch
from kvspec.engine.vllm.layers import Shard, attention_layers
from kvspec.engine.vllm.runner import RunnerV1, adapter

if TYPE_CHECKING:
    from kvspec.engine.vllm.cpu import CpuInjector
    from kvspec.engine.vllm.cuda import CudaInjector
if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Base
else:
    from vllm.v1.worker.gpu_worker import Worker as Base

CONFIG_KEY = "kvspec"
"""Key in vLLM's `additional_config` under which the engine tells its workers what the cache stores, whether reads have
faults, and whether these may be stuck-ats."""


class KvspecWorker(Base):  # type: ignore[misc]
    """A worker of this platform that injects the faults of the loaded trial table.

    Methods are called by `collective_rpc`.
    """

    injector: CpuInjector | CudaInjector

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Load the model, then hook its runner and attention layers."""
        result = super().load_model(*args, **kwargs)
        layers = attention_layers(self.vllm_config.compilation_config.static_forward_context)
        runner, options = adapter(self.model_runner), self.vllm_config.additional_config[CONFIG_KEY]
        if isinstance(runner, RunnerV1):
            from kvspec.engine.vllm.cpu import CpuInjector

            self.injector = CpuInjector(runner, layers, options["storage_format"])
        else:
            from kvspec.engine.vllm.cuda import CudaInjector

            group = get_tp_group()
            shard = Shard.of(
                self.vllm_config.model_config.get_total_num_kv_heads(), group.rank_in_group, group.world_size
            )
            self.injector = CudaInjector(runner, layers, shard=shard, **options)
        return result

    def determine_available_memory(self) -> int:
        """Bytes for the cache: what vLLM has found, less what the injector will take. A size that was given stays."""
        available = int(super().determine_available_memory())
        given = self.vllm_config.cache_config.kv_cache_memory_bytes
        return available if given is not None else self.injector.needs.left(available)

    def initialize_from_config(self, *args: Any, **kwargs: Any) -> Any:
        """Allocate the cache, then let the injector find its way in it, before anything is captured."""
        result = super().initialize_from_config(*args, **kwargs)
        self.injector.bind()
        return result

    def kvspec_geometry(self) -> tuple[int, int, int]:
        """(layers, KV heads, head size) of the loaded model."""
        shape = self.injector.geometry
        return shape.layers, shape.kv_heads, shape.head_size

    def kvspec_load(self, data: TableData | EventData) -> None:
        """Load a table of trials or of listed faults; entries are numbered from 0."""
        self.injector.load(data)

    def kvspec_watch(self, watch: Watch | None) -> None:
        """Start or stop comparing cache writes."""
        self.injector.watch(watch)

    def kvspec_canary(self) -> dict[str, Any]:
        """What the watch saw."""
        watch = self.injector.canary
        return {} if watch is None else watch.result()

    def kvspec_tally(self, entries: list[int]) -> dict[str, list[int]]:
        """Counts of finished entries."""
        return self.injector.counts(entries)

    def kvspec_facts(self) -> dict[str, Any]:
        """What this worker is, for the fingerprint."""
        return {
            "backend": self.injector.layers[0].layer.attn_backend.get_name(),
            **self.injector.facts(),
        }
