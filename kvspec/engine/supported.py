"""What the injector of each device can do. The spec may declare more; it is refused before anything starts."""

from __future__ import annotations

from kvspec.errors import Diagnostic, EngineError
from kvspec.spec.model import Spec


def device() -> str:
    """Where vLLM will run: `cuda` or `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def refuse_unsupported(spec: Spec, device: str) -> None:
    """Faults that the schema knows and this device's injector does not. Raises `EngineError` (KVS401)."""
    wrong = [
        Diagnostic(
            "KVS401",
            f"`{fault.name}` is a stuck-at of reads, not injected on {device}: only flips can be taken back",
            path=f"$.faults[{fault.index}].op",
            expected="flip, or site KV_WRITE",
        )
        for fault in spec.faults
        if device == "cuda" and fault.op != "flip" and fault.site != "KV_WRITE"
    ]
    if wrong:
        raise EngineError(spec.placed(wrong))


def refuse_listed_reads(device: str, name: str) -> None:
    """A map of reads where they are only drawn, not listed. Raises `EngineError` (KVS401)."""
    if device != "cpu":
        raise EngineError.one(
            "KVS401",
            f"`{name}` is a map of reads, which are not replayed on {device} yet",
            path="$.site",
            expected="write",
            hint="replay it on the CPU engine, or a map of writes here",
        )
