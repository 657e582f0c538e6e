"""A YAML spec -> `Spec`: parsed, merged, validated, with every default filled in and every sweep expanded.

The pipeline is one file per step: `parse` (text -> tree), `load` and `override` (files, `include`, `--set`),
`validate` (`schema` for structure, then meaning), `resolve` (tree -> `model.Spec`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvspec.spec.load import load_tree
from kvspec.spec.model import Spec
from kvspec.spec.resolve import build_spec
from kvspec.spec.validate import check_tree

__all__ = ["Spec", "load_spec"]


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read and validate a spec file.

    `overrides` are texts such as `trials=4` or `faults[0].rate.per_bit=[1e-6, 1e-5]`, applied in order after includes.
    Raises `SpecError` with all diagnostics.
    """
    root = load_tree(path, overrides)
    return build_spec(root, check_tree(root), str(path))
