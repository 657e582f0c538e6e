"""Run as a program: campaigns on vLLM's V2 model runner, with the GPU's injector, on a CPU in Triton's interpreter.

    python interpreted.py MODEL SPECS OUT        SPECS: JSON, name -> spec;  OUT: JSON, name -> records by trial id

The runner, the scheduler and the model are vLLM's. The attention backend of the CPU keeps K transposed, as no GPU does,
so its write and its attention are replaced by a few lines of torch on the cache layout of vLLM 0.32's GPU backends,
`[blocks, heads, tokens, K | V]`. Environment variables must be set before Triton and vLLM are imported, hence a process
of its own.
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"

import triton.backends

# vLLM refuses the V2 runner without a Triton backend; the interpreter needs none.
always = types.SimpleNamespace(is_active=lambda: True)
triton.backends.backends["cpu"] = types.SimpleNamespace(driver=always, compiler=None)  # type: ignore[assignment]

from functools import partial  # noqa: E402

import torch  # noqa: E402
from kvspec_kernels import Tuning  # noqa: E402
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl  # noqa: E402

from kvspec.engine import session  # noqa: E402
from kvspec.engine.vllm import struck  # noqa: E402


def write(
    self: Any, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    """`do_kv_cache_update` on `[blocks, heads, tokens, 2 D]`."""
    real = slots >= 0
    at = slots[real]
    rows = torch.cat([key, value], dim=-1)[: len(slots)][real]
    tokens = kv_cache.shape[2]
    kv_cache[at // tokens, :, at % tokens] = rows


def attend(
    self: Any, layer: Any, query: torch.Tensor, key: Any, value: Any, kv_cache: torch.Tensor, metadata: Any,
    output: torch.Tensor, *_: Any, **__: Any,
) -> torch.Tensor:  # fmt: skip
    """`forward` on the same layout, one request after the other, in float32."""
    if metadata is None:
        return output.zero_()
    tokens, dim = kv_cache.shape[2], query.shape[-1]
    for i, length in enumerate(metadata.seq_lens.tolist()):
        first, stop = metadata.query_start_loc[i : i + 2].tolist()
        if stop == first:
            continue
        at = torch.arange(length)
        rows = kv_cache[metadata.block_table[i, at // tokens].long(), :, at % tokens].float()
        group = query.shape[1] // rows.shape[1]
        keys, values = (x.repeat_interleave(group, dim=1).transpose(0, 1) for x in rows.split(dim, dim=-1))
        seen = torch.ones(stop - first, length, dtype=torch.bool).tril(length - (stop - first))
        found = torch.nn.functional.scaled_dot_product_attention(
            query[first:stop].float().transpose(0, 1), keys, values, attn_mask=seen, scale=self.scale
        )
        output.view(-1, *query.shape[1:])[first:stop] = found.transpose(0, 1).to(output.dtype)
    return output


CPUAttentionBackendImpl.do_kv_cache_update = write  # type: ignore[method-assign]
CPUAttentionBackendImpl.forward = attend  # type: ignore[method-assign, assignment]
# the interpreter runs one program after the other
few = Tuning(write_programs=1, read_programs=1, inject_programs=2, event_programs=1, vocab_programs=1)
struck.Kernels = partial(struck.Kernels, tuning=few)  # type: ignore[misc, assignment]
settings = session._settings
# the cache holds the storage format itself, as on a GPU
session._settings = lambda *args: {**settings(*args), "dtype": "bfloat16"}


COUNTS = ("planned", "landed", "read_back", "mismatches", "exposed", "restored")


class Silent:
    """An observer."""

    def phase(self, text: str) -> None: ...
    def warn(self, warning: Any) -> None: ...
    def start(self, total: int, done: int) -> None: ...
    def step(self) -> None: ...
    def shrink(self, total: int) -> None: ...
    def trial(self, record: Any, identical: bool | None) -> None: ...


def listed(model: str) -> list[dict[str, Any]]:
    """Random faults of every op, of writes and of reads, listed, in requests side by side; the first has none."""
    import numpy as np

    from kvspec.engine.events import SITE_COLUMNS, TYPES, WRITE, Request, no_events, run_requests
    from kvspec.spec.model import EngineSpec, GenerationSpec, ModelSpec

    spec, generation = ModelSpec(model), GenerationSpec(max_tokens=3)
    shape = session.Shape(32, 8, None)
    rng, requests = np.random.default_rng(7), []
    with session.Session(spec, model, EngineSpec(max_num_seqs=4), "bf16", shape, reads=True, eager=True) as engine:
        geometry = engine.geometry
        for number in range(5):
            prompt = [3 + number, 5, 7, 11, 13][: 3 + number % 3]
            tops = (1, 1, geometry.layers, 2, geometry.kv_heads, len(prompt) + 2, geometry.head_size, 16)
            sites = np.stack([rng.integers(0, top, 120) for top in tops], axis=1)
            # the prefill reads event len(prompt), the two forwards behind it the two events that follow
            sites[60:, 1] = rng.integers(len(prompt), len(prompt) + 3, 60)
            sites[:60, 1] = WRITE
            sites = np.unique(sites, axis=0)
            sites = sites[(sites[:, 1] == WRITE) | (sites[:, 5] < sites[:, 1])]
            columns = [*sites.T, rng.integers(0, 3, len(sites)), np.zeros(len(sites))]
            events = {n: c.astype(t) for n, c, t in zip(SITE_COLUMNS, columns, TYPES, strict=True)}
            requests.append(Request(prompt, generation, 0, events if number else no_events()))
        answers = dict(run_requests(engine, "bf16", requests, record=True))
    return [
        {
            **{name: getattr(answers[i], name) for name in COUNTS},
            "of_reads": int((requests[i].events["step"] != WRITE).sum()),
            "logits": [digest.hex() for digest in answers[i].logits],
            **changes(requests[i], answers[i]),
        }
        for i in range(len(requests))
    ]


def changes(request: Any, answer: Any) -> dict[str, Any]:
    """Flips among the listed faults, and those found in the cache in elements that only flips hit, as sorted lists."""
    events, found = request.events, answer.changes or {}
    place = ("step", "layer", "kv", "head", "token", "elem")
    stuck = {tuple(int(events[n][i]) for n in place) for i in range(len(events["bit"])) if events["op"][i]}
    seen: dict[tuple[int, ...], int] = {}
    for i in range(len(events["bit"])):
        at = tuple(int(events[n][i]) for n in place)
        if at not in stuck:
            seen[at] = seen.get(at, 0) ^ 1 << int(events["bit"][i])
    back = {
        tuple(int(found[n][i]) for n in place): int(found["before"][i] ^ found["after"][i])
        for i in range(len(found.get("before", ())))
    }
    back = {at: bits for at, bits in back.items() if at not in stuck}
    return {
        name: sorted([*at, bits] for at, bits in x.items())
        for name, x in (("flips_listed", seen), ("flips_found", back))
    }


def main(model: str, specs: str, out: str) -> None:
    """Run every spec in an engine of its own."""
    from kvspec.engine.campaign import run_campaign
    from kvspec.plan import compile_plan
    from kvspec.records import RunStore
    from kvspec.spec import load_spec

    results = {}
    for name, spec in json.loads(Path(specs).read_text()).items():
        path = Path(out).parent / f"{name}.yaml"
        path.write_text(json.dumps({"kvspec": 1, "name": name, "model": {"id": model}, **spec}))
        folder = path.with_suffix("")
        run_campaign(compile_plan(load_spec(path)), folder, Silent())
        store = RunStore.open(folder)
        rows = {row["trial_id"]: row for row in store.table().to_pylist()}
        results[name] = {"environment": store.read_json("environment.json"), "records": rows}
    results["listed"] = listed(model)
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
