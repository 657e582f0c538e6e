"""What vLLM leaves open when it ends."""

from __future__ import annotations

from typing import Any


def worker_sockets(engine: Any) -> list[Any]:
    """Sockets to tensor-parallel workers. vLLM 0.25.1 leaves them open, and the collector, which frees their context
    with them, may find the context first: it then waits for them without end."""
    executor = getattr(getattr(engine.engine_core, "engine_core", None), "model_executor", None)
    queues = [getattr(executor, "rpc_broadcast_mq", None), *getattr(executor, "response_mqs", ())]
    owners = [*queues, *(getattr(queue, "_spin_condition", None) for queue in queues)]
    return [
        value
        for owner in owners
        if owner is not None
        for name, value in vars(owner).items()
        if name.endswith("_socket") and value is not None
    ]
