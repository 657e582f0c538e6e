"""What the injector of each device can do. The spec may declare more; it is refused before anything starts."""

from __future__ import annotations

from kvspec.errors import Diagnostic, EngineError
from kvspec.spec.model import OPS, SITES, Spec

SITES_ON = {"cpu": SITES, "cuda": SITES}
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
            f"{key} `{value}` of `{fault.name}` is not injected on {device} yet",
            path=f"$.faults[{fault.index}].{key}",
            expected=" or ".join(supported[device]),
        )
        for fault in spec.faults
        for key, value, supported in (("site", fault.site, SITES_ON), ("op", fault.op, OPS_ON))
        if value not in supported[device]
    ]
    if wrong:
        raise EngineError(spec.placed(wrong))
