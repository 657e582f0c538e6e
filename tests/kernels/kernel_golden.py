"""The golden vectors of sampling.md and sampling-scales.md, through the whole chain: keys, cells, cache words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from kernel_rig import Fault, Geometry, Request, Rig, applied

from kvspec import _native

FOLDER = Path(__file__).parents[1] / "vectors"
DOCUMENT, SCALES = (json.loads((FOLDER / f"{name}.json").read_text()) for name in ("sampling", "sampling_scales"))
CASES = {case["name"]: case for case in [*DOCUMENT["cases"], *SCALES["cases"]]}


def check_case(case: dict[str, Any]) -> None:
    """Inject a golden case, at the write or around the read, and compare every code of its tokens."""
    shape, model = case["layer_shape"], dict(case["model"])
    geometry = Geometry(shape["dim"], shape["heads"], shape["bits"], shape["planes"], shape["first_plane"])
    fault = Fault(geometry, model.pop("rate"), model.pop("mask"), op=case["op"], **model)
    assert fault.sampler().level == case["level"]
    start, count, layer = case["first_token"], case["tokens"], case["layer"]
    write_key, master = _native.derive_keys(
        int(case["seed"], 16), int(case["experiment"], 16), case["trial"], case["fault"], case.get("target", "values")
    )
    read = case["site"] == "KV_READ"
    request = Request(
        2, start, count, fault, case["request"], case["step"] if read else 0,
        None if read else write_key, master if read else None,
    )  # fmt: skip
    rig = Rig(
        geometry, layers=1, first_layer=layer, block_tokens=16, blocks=-(-(start % 16 + count) // 16) + 1,
        layout="packed",
    )  # fmt: skip
    rig.enter([request])
    masks = np.zeros((count, 2, geometry.heads, geometry.head_size), np.uint32)
    for kv, head, token, elem, bit in case["flips"]:
        masks[token, kv, head, elem] |= np.uint32(1) << np.uint32(bit)
    before, whole = rig.codes(0, 0, start, count), rig.snapshot()
    if read:
        assert start == 0
        rig.begin(writes=False, reads=True)
        rig.injector.reads(0, rig.block_table)
    else:
        rig.write()
    np.testing.assert_array_equal(rig.codes(0, 0, start, count), applied(before, masks, case["op"]))
    changed = sum(int(np.bitwise_count(a ^ b).sum()) for a, b in zip(whole, rig.snapshot(), strict=True))
    landed = rig.tallies(1 if read else 0)
    assert landed == [changed + rig.tallies(5)[0]] == [len(case["flips"])]
    if case["op"] == "flip":
        assert changed == len(case["flips"])
    if read:
        rig.injector.reads(1, rig.block_table)
        assert all((a == b).all() for a, b in zip(whole, rig.snapshot(), strict=True))
        assert rig.tallies(2) == rig.tallies(4) == landed
