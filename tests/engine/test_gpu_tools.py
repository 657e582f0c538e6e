"""What the GPU tools work out from what an engine gave them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvspec import _native
from kvspec.engine.session import ON_NO_BACKEND, QUANTIZED, STORAGE_DTYPES, Shape, _settings
from kvspec.errors import EngineError
from kvspec.plan import compile_plan
from kvspec.spec import load_spec
from kvspec.spec.model import STORAGE_FORMATS, EngineSpec, ModelSpec
from tools import gpu_session
from tools.gpu import guide
from tools.gpu.campaign import STRETCH, fastest, interleaved, ratios, undisturbed
from tools.gpu.floor import _difference
from tools.gpu.look import watched
from tools.gpu.report import markdown
from tools.gpu.variants import compared


@pytest.mark.parametrize("storage", ["int8_per_token_head", "int4_per_token_head"])
def test_codes_are_compared_one_by_one(storage: str) -> None:
    rows = np.random.default_rng(5).normal(size=(2, 16, 3, 64)).astype(np.float32)
    held = rows.copy()
    scales = _native.quantize(storage, held.reshape(-1, 64)).reshape(2, 16, 3)
    native = _native.encode(storage, held, scales).astype(np.uint8)
    assert compared(storage, rows, native, scales) == {
        "codes": 6144, "codes_equal": 6144, "codes_most_apart": 0,
        "scales": 96, "scales_equal": 96, "scales_most_apart": 0,
    }  # fmt: skip
    mask = (1 << _native.format_bits(storage)) - 1
    native[0, 1, 2, 3] = (native[0, 1, 2, 3] + 1) & mask  # next to the highest code lies the lowest
    native[1, 0, 0, 0] = (native[1, 0, 0, 0] - 2) & mask
    scales[1, 2, 0] = np.nextafter(scales[1, 2, 0], np.float32(9))
    found = compared(storage, rows, native, scales)
    assert (found["codes_equal"], found["codes_most_apart"]) == (6142, 2)
    assert (found["scales_equal"], found["scales_most_apart"]) == (95, 1)


def test_an_answer_of_stock_vllm_differs_where_it_leaves_the_one_alone() -> None:
    def answer(*tokens: int) -> Any:
        likely = [{1: SimpleNamespace(logprob=-0.25), 2: SimpleNamespace(logprob=-1.5)} for _ in tokens]
        return SimpleNamespace(token_ids=tokens, logprobs=likely)

    assert _difference(answer(1, 2, 3), answer(1, 2, 3)) is None
    assert _difference(answer(1, 2, 3), answer(1, 7, 3)) == {"token": 1, "margin": 1.25}


def test_settings_of_the_floor_share_the_gpus(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    seen: dict[str, str] = {}

    def part(*_: Any, name: str, extra: dict[str, str]) -> dict[str, Any]:
        seen[name] = extra["CUDA_VISIBLE_DEVICES"]
        return {}

    monkeypatch.setattr(gpu_session, "part", part)
    gpu_session.floor(tmp_path, tmp_path, 60, gpu_session.FLOOR[:3])
    assert sorted(seen.values()) == ["2", "2", "5"]


def test_every_format_is_native_on_a_gpu_or_refused_by_name() -> None:
    def settings(storage: str) -> dict[str, Any]:
        return _settings(ModelSpec("m"), "m", EngineSpec(), storage, Shape(64, 4, None), "cuda")

    assert set(STORAGE_FORMATS) == {*STORAGE_DTYPES, *QUANTIZED, *ON_NO_BACKEND}
    for storage in QUANTIZED:
        assert settings(storage)["kv_cache_dtype"] == storage
    with pytest.raises(EngineError, match=r"fp8_e5m2 cache is not injected on a GPU: FLASH_ATTN") as error:
        settings("fp8_e5m2")
    assert error.value.diagnostics[0].code == "KVS401"


def test_variants_are_compared_in_the_trials_that_they_share(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        {"flips": {"a": 3, "b": 1}, "token_ids": {"a": [1], "b": [2]}},
        {"flips": {"a": 3, "b": 2, "scales": 9}, "token_ids": {"a": [7], "b": [2], "scales": [5]}},
        {"process": {"exit": 1}},
    ]
    monkeypatch.setattr(gpu_session, "part", lambda *_, name, **__: found[int(name[-1])])
    same, other, failed = gpu_session.variants(tmp_path, tmp_path, 60, [{"n": n} for n in range(3)]).values()
    assert same == {"flips_as_first": [2, 2], "outputs_as_first": [2, 2]}
    assert other == {"flips_as_first": [1, 2], "outputs_as_first": [1, 2]}
    assert failed == {"process": {"exit": 1}}


class Clock:
    """Time that passes when a side runs."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


def test_sides_take_turns_and_are_saved_after_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order, saved = Clock(), [], []
    monkeypatch.setattr("tools.gpu.campaign.time", clock)

    def side(name: str, seconds: float) -> float:
        order.append(name)
        clock.now += seconds
        return seconds

    sides = {
        "stock": lambda: side("stock", 4.0),
        "stock_ids": lambda: side("ids", 2.0),
        "campaign": lambda: side("c", 3),
    }
    interleaved(sides, lambda: nullcontext({}), 5, 27.0, lambda times, _: saved.append(ratios(times)))
    assert order == ["stock", "ids", "c", "stock", "c", "ids", "c", "stock", "ids"]  # a fourth round would end at 36
    assert [found["rounds"] for found in saved] == [1, 2, 3]
    assert (saved[-1]["campaign_to_stock"], saved[-1]["campaign_to_stock_ids_paired"]) == (0.75, 1.5)
    assert ratios({"stock": [4, 5], "stock_ids": [2, 2], "campaign": [5, 5]})["campaign_to_stock_paired"] == 1.125
    speed = {
        **saved[-1],
        "armed": 3.0,
        **{f"armed_to_{b}{p}": 1.0 for b in ("stock", "stock_ids") for p in ("", "_paired")},
    }
    text = markdown({"machine": {"gpus": []}, "command": "x", "speed": {"speed": speed, "process": {"exit": 0}}})
    assert "3 rounds, **fewer than 5**;" in text
    assert "the campaign: 3.000 s, 0.7500 and 0.7500 of the requests on stock vLLM, 1.5000 and 1.5000 of on" in text


def rounds_of(each: int, outside: float, noise: dict[int, int]) -> tuple[list[float], list[dict[str, Any]]]:
    """A round for each noisy step, 2 x STRETCH steps of `each` us: their seconds and what `watched` found."""
    looks = []
    for step, more in noise.items():
        looks.append({"each_us": [each] * (2 * STRETCH), "ended": [[50, 256], [101, 9]]})
        looks[-1]["each_us"][step] += more
    return [sum(look["each_us"]) / 1e6 + outside + 0.01 * n for n, look in enumerate(looks)], looks


def test_the_fastest_rounds_take_the_noise_out_and_only_of_rounds_that_do_the_same_steps() -> None:
    stock, seen = rounds_of(5000, 0.1, {3: 700_000, 99: 400_000, 7: 900_000})
    base = 2 * STRETCH * 0.005 + 0.1
    assert min(stock) > 1.6 * base  # no round is free of noise
    assert fastest(stock, seen, 1) == pytest.approx(base)
    assert fastest(stock, seen, STRETCH) == pytest.approx(base)  # each half is free of it in another round
    assert fastest(stock[:1], seen[:1], 1) == pytest.approx(stock[0])
    # work that a timer moves is in every round, each time in another step of the second half: stretches keep it
    moved, looked = rounds_of(5100, 0.2, {60: 300_000, 70: 300_000, 80: 300_000})
    assert fastest(moved, looked, 1) == pytest.approx(2 * STRETCH * 0.0051 + 0.2)
    assert fastest(moved, looked, STRETCH) == pytest.approx(2 * STRETCH * 0.0051 + 0.2 + 0.3)
    one_more = {**seen[1], "each_us": [*seen[1]["each_us"], 5000]}
    elsewhere = {**seen[1], "ended": [[49, 256], [101, 9]]}
    for other in (one_more, elsewhere, {}):
        assert fastest(stock, [seen[0], other, seen[2]], 1) is None
    times = {"stock": stock, "stock_ids": stock, "armed": stock, "campaign": moved}
    found = undisturbed(
        times, {"stock": seen, "stock_ids": [seen[0], elsewhere, seen[2]], "armed": seen, "campaign": looked}
    )
    assert found["steps"]["campaign_to_stock"] == pytest.approx((2 * STRETCH * 0.0051 + 0.2) / base)
    assert found["stretches"]["campaign_to_stock"] == pytest.approx((2 * STRETCH * 0.0051 + 0.5) / base)
    assert found["steps"]["stock_ids"] is found["steps"]["campaign_to_stock_ids"] is None
    speed = {**ratios(times), "undisturbed": json.loads(json.dumps(found))}
    text = markdown({"machine": {"gpus": []}, "command": "x", "speed": {"speed": speed, "process": {"exit": 0}}})
    told = (
        "all steps as in their fastest rounds: the requests on stock vLLM: 0.610 s; on stock vLLM without texts: none, "
    )
    assert told + "its rounds differ in their steps; as many trials" in text
    assert "the campaign: 0.720 s, 1.1807 of the requests on stock vLLM\n- all stretches as" in text
    assert "the campaign: 1.020 s, 1.6725 of the requests on stock vLLM\n" in text


def test_steps_are_watched_from_the_last_table_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("tools.gpu.look.time", clock)

    class Session:
        made = 0

        def step(self) -> list[int]:
            clock.now += 0.5 if self.made < 2 else 0.25
            self.made += 1
            return [7] * (self.made == 4)

        def rpc(self, method: str, *_: Any) -> str:
            clock.now += 1.0
            return method

    session = Session()
    with watched(session) as found:
        assert session.rpc("kvspec_load", "the canary's") == "kvspec_load"
        session.step()
        session.step()
        session.rpc("kvspec_load", "the campaign's")
        session.rpc("kvspec_tally")
        session.step()
        session.step()
    assert (found["each_us"], found["ended"]) == ([250_000, 250_000], [[1, 1]])
    assert (found["steps"], found["before"], found["between"], found["in_steps"]) == (4, 1.0, 2.0, 1.5)
    assert not vars(session).keys() - {"made"}  # as it was


@pytest.mark.parametrize("gpus", [["0"], ["0", "1"]])
def test_the_guides_benchmark_counts_what_is_warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: Any) -> None:
    clock, ran = Clock(), []
    monkeypatch.setattr(guide, "time", clock)
    monkeypatch.setattr(guide, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(guide.os, "sched_getaffinity", lambda _: set(range(4)))

    def timed(command: list[str], place: Any) -> tuple[float, str]:
        where = Path(command[-1]) if "--out" in command else None
        script = command[2] == guide.SCRIPT
        name = where.name.partition("-")[0] if where else "script" if script else "theirs"
        looked = command[1] == "-c" and where is not None
        ran.append((name, looked, place))
        cold = sum(other[0] == name for other in ran) <= guide.WARM_UPS
        seconds = {"ours": 30.0, "theirs": 40.0, "ours_320": 50.0, "script": 90.0}[name] + 100 * cold
        clock.now += seconds if len(gpus) == 1 else seconds / 2
        if script:
            return seconds, json.dumps({"import": 6.0, "engines": [12.0] * int(command[-1])}) + "\n"
        if where is None:
            return seconds, 'noise\n{"load": 1}\n'
        where.mkdir()
        manifest = {"recorded": 100, "sessions": [{"timings_s": {"trials": 1.0}}]}
        (where / "run.json").write_text(json.dumps(manifest))
        if looked:
            where.with_suffix(".samples.json").write_text('{"samples": 7}')
        return seconds, ""

    monkeypatch.setattr(guide, "timed", timed)
    results = gpu_session.Saved(tmp_path / "guide.json")
    guide.measure(results, tmp_path, 2400.0, tmp_path)
    saved = json.loads((tmp_path / "guide.json").read_text())
    assert saved["ratio_7"] == pytest.approx(7 * 40 / 30)
    assert saved["ratio_320_of_minima"] == pytest.approx(320 * 40 / 50)
    plans = [compile_plan(load_spec(tmp_path / name)) for name in ("guide.yaml", "guide320.yaml")]
    assert [len(plan.cells) for plan in plans] == [6, 320]
    assert saved["ratio_7_of_script"] == pytest.approx(90 / 30)
    assert saved["ratio_320_of_script"] == pytest.approx((90 + 313 * 12) / 50)
    assert [len(run["engines"]) for run in saved["script"]][:3] == [1, 1, 7]
    assert clock.now <= 2400
    assert saved["samples_ours_320"] == {"samples": 7}
    warming = ran[: 4 * guide.WARM_UPS]
    assert sorted({name for name, _, _ in warming}) == ["ours", "ours_320", "script", "theirs"]
    assert all(looked == name.startswith("ours") for name, looked, _ in warming)
    assert not any(looked for _, looked, _ in ran[len(warming) :])
    assert saved["measured_loads"] >= 2
    if len(gpus) == 2:
        assert {place[0] for name, _, place in ran if name.startswith("ours")} == {"0"}
        assert {place[0] for name, _, place in ran if not name.startswith("ours")} == {"1"}
    text = markdown({"machine": {"gpus": gpus}, "command": "x", "guide": {**saved, "process": {"exit": 0}}})
    assert "320 cells, its side extrapolated: 50.0 s, ratio 256.00" in text
    assert "golden and 6 experiments, against eager engines in one process: ratio 3.00" in text
    assert "every run of ours, in seconds: 130.0 (warming up), 130.0 (warming up), 30.0" in text


@pytest.mark.parametrize(("seconds", "engines"), [(480.0, [1, 1, 7]), (340.0, [1, 1])])
def test_the_guides_benchmark_begins_what_ends_in_time_and_goes_on_without_what_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, engines: list[int]
) -> None:
    clock = Clock()
    monkeypatch.setattr(guide, "time", clock)
    monkeypatch.setattr(guide, "visible_gpus", lambda: ["0"])

    def timed(command: list[str], _: Any) -> tuple[float, str]:
        if "--out" not in command:
            count = int(command[-1]) if command[2] == guide.SCRIPT else 0
            took = 20.0 + 15.0 * count
            clock.now += took
            return took, json.dumps({"engines": [15.0] * count} if count else {"load": 1})
        where = Path(command[-1])
        if where.name.startswith("ours_320"):
            raise RuntimeError("no such cell")
        clock.now += 30
        where.mkdir()
        (where / "run.json").write_text(json.dumps({"recorded": 1, "sessions": [{"timings_s": {}}]}))
        return 30.0, ""

    monkeypatch.setattr(guide, "timed", timed)
    results: dict[str, Any] = {}
    with pytest.raises(RuntimeError, match="ours_320 failed: RuntimeError: no such cell"):
        guide.measure(results, tmp_path, seconds, tmp_path)
    assert clock.now <= seconds
    assert [len(run["engines"]) for run in results["script"]] == engines
    assert results["ratio_7"] == pytest.approx(7 * 20 / 30)
    assert ("ratio_7_of_script" in results) == (7 in engines)


def test_the_cost_of_a_step_is_told_with_what_lies_around_it() -> None:
    modes = {"writes": 1.004, "reads": 1.01}
    case = {
        "rounds": 12, "seconds": {"stock": 0.5}, **dict.fromkeys(("ratio", "median_ratio", "step_ratio"), modes),
        "median_step_ratio": {"writes": float("nan"), "reads": 1.0},
        "phases_ms": {"stock": {"submit": 1.5, "first step": 20.0}},
    }  # fmt: skip
    part = {"cases": {"decode 16": case}, "process": {"exit": 0}}
    lines = markdown({"machine": {"gpus": []}, "command": "x", "step": part}).splitlines()
    row = next(line for line in lines if line.startswith("| decode 16"))
    assert row == f"| decode 16 | 12 | 0.5000 | {' | '.join(['1.0040', '1.0100'] * 3)} |  | 1.0000 |"
    assert "- decode 16, stock: submit 1.50 ms, first step 20.00 ms" in lines


def test_a_session_ends_with_0_only_if_every_part_did() -> None:
    went = {"process": {"exit": 0}, "cases": {"a": [1]}}
    assert gpu_session.whole({"command": "x", "machine": {}, "step": went})
    assert not gpu_session.whole({"checks": {"tests": {"exit": 1}, "fp16": went}})
    assert not gpu_session.whole({"pair": {"2": {"process": {"exit": "stopped after 9 s"}}}})
    assert not gpu_session.whole({"guide": {"skipped": "3 s were left"}})


def test_every_part_has_its_section() -> None:
    for name in gpu_session.PARTS:
        results = {name: {"process": {"exit": "stopped after 9 s", "output": "it hung"}}}
        if name not in ("checks", "pair", "floor", "launch"):  # these have a process for each of several
            assert "it hung" in markdown({"machine": {"gpus": []}, "command": "x", **results}), name


def test_the_attention_backend_is_vllms_on_a_gpu_and_refused_on_a_cpu() -> None:
    def settings(device: str, engine: EngineSpec) -> dict[str, Any]:
        return _settings(ModelSpec("m"), "m", engine, "bf16", Shape(64, 4, None), device)

    chosen = EngineSpec(attention_backend="TRITON_ATTN")
    assert settings("cuda", chosen)["attention_config"] == {"backend": "TRITON_ATTN"}
    assert "attention_config" not in settings("cuda", EngineSpec())
    with pytest.raises(EngineError) as error:
        settings("cpu", chosen)
    assert (error.value.diagnostics[0].code, error.value.diagnostics[0].path) == (
        "KVS401",
        "$.engine.attention_backend",
    )
