"""The part of kvspec that lives inside vLLM's worker process: the `worker_cls` hook and what it needs."""
