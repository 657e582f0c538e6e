"""Where the engine runs."""

from __future__ import annotations


def device() -> str:
    """Where vLLM will run: `cuda` or `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
