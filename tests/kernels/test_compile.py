"""Every kernel compiles for sm_90 with every combination of compile-time constants. The interpreter accepts code that
does not compile, and no GPU is needed for this. The machine code must not spill to speak of."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import triton
from kvspec_kernels.events import inject_events_kernel
from kvspec_kernels.inject import inject_reads_kernel, inject_writes_kernel
from kvspec_kernels.launch import LANES
from kvspec_kernels.nonfinite import find_nonfinite_kernel
from kvspec_kernels.step import list_cells_kernel
from kvspec_kernels.store import store_kernel
from kvspec_kernels.zero import zero_blocks_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

pytestmark = pytest.mark.skipif(
    not isinstance(store_kernel, triton.runtime.JITFunction), reason="Triton was imported with TRITON_INTERPRET=1"
)

INT64 = {"thresholds_ptr", "tally_ptr", "slot_mapping_ptr", "blocks_ptr", "starts_ptr"}
HALF = {"key_ptr", "value_ptr", "key_cache_ptr", "value_cache_ptr"}
# 30 layers: division by a number that is not a power of two
LIST = [(list_cells_kernel, {"READ": read, "LAYERS": n, "BLOCK": 128}, 4) for read in (False, True) for n in (30, 32)]
INJECT = [
    (kernel, {"BITS": bits, "LANES": LANES, **keep}, 1)
    for kernel, keeps in ((inject_writes_kernel, [{}]), (inject_reads_kernel, [{"KEEP": False}, {"KEEP": True}]))
    for bits in (4, 8, 16, 32)
    for keep in keeps
]
STORE = [
    (
        store_kernel,
        {"BLOCK_TOKENS": 16, "HEADS": heads, "HEAD_SIZE": dim, "TILE": tile, "BITS": bits, "LANES": LANES},
        warps,
    )
    for bits, heads, dim, tile, warps in ((16, 8, 128, 1024, 4), (16, 3, 64, 256, 1), (32, 4, 80, 512, 2))
]
EVENTS = [
    (inject_events_kernel, {"READ": read, "BITS": bits, "BLOCK": LANES, "KEEP": keep}, 4)
    for read, keep in ((False, False), (True, False), (True, True))
    for bits in (4, 8, 16, 32)
]
NONFINITE = [
    (find_nonfinite_kernel, {"EXPONENT": exponent, "SAFE": safe, "BLOCK": 2048}, 4)
    for exponent, safe in ((0x7F80, 0x7149), (0x7C00, 0), (0x7F800000, 0x7149F2CA))
]

ZERO = (zero_blocks_kernel, {"BLOCK": 1024}, 4)


def signature(name: str, constants: dict[str, int]) -> str:
    """The type of an argument as the launcher passes it."""
    if name in constants:
        return "constexpr"
    if name in INT64 or (name == "place_ptr" and not constants["READ"]):
        return "*i64"
    if name in HALF:
        return "*bf16" if constants["BITS"] == 16 else "*fp32"
    if name == "logits_ptr":
        return "*i32" if constants["EXPONENT"] > 0xFFFF else "*i16"
    if name.endswith("_ptr"):
        return "*i32"
    return "i64" if name in ("block_stride", "behind", "span") else "i32"


@pytest.mark.parametrize(
    ("kernel", "constants", "warps"), [*LIST, *INJECT, *STORE, *EVENTS, *NONFINITE, ZERO],
    ids=lambda x: getattr(x, "__name__", None) or ("-".join(map(str, x.values())) if isinstance(x, dict) else ""),
)  # fmt: skip
def test_compiles_for_sm90(kernel, constants, warps, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: signature(name, constants) for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK"))
    # ptxas may park a few words of the hit path; a tile too large for the registers would need kilobytes
    assert stack <= 64, f"{registers} registers, {stack} bytes of stack"
    assert registers <= 160
