"""What the injector of each device can do. The spec may declare more; it is refused before anything starts."""

from __future__ import annotations

from kvspec.errors import Diagnostic, EngineError
from kvspec.spec.model import OPS, Spec

OPS_ON = {"cpu": OPS, "cuda": ("flip",)}


def device() -> str:
    """Where vLLM will run: `cuda` or `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def refuse_unsupported(spec: Spec, device: str) -> None:
    """Faults that the schema knows and this device's injector does not. Raises `EngineError` (KVS401)."""
    wrong = [
        Diagnostic(
            "KVS401",
            f"op `{fault.op}` of `{fault.name}` is not injected on {device} yet",
            path=f"$.faults[{fault.index}].op",
            expected=" or ".join(OPS_ON[device]),
        )
        for fault in spec.faults
        if fault.op not in OPS_ON[device]
    ]
    if wrong:
        raise EngineError(spec.placed(wrong))
