"""The pages of docs/results: made from run folders alone, and without a path of the machine that made them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from kvspec.models import describe, prompt_lengths
from kvspec.plan import Trial, compile_plan
from kvspec.records import Record
from kvspec.report import to_json
from kvspec.score import Proportion, Scores
from kvspec.score.anatomy import Anatomy, SiteMap, Square
from kvspec.score.scores import score_whole
from kvspec.spec import load_spec
from kvspec.spec.model import ModelSpec
from kvspec.stats.exact import holm, mcnemar
from tests.run_folders import make_plan, sdc, write_run
from tools import formats, gpu_results, gpu_session, measured
from tools.answers import TESTS, Measured, answer
from tools.figures import scores as read_back
from tools.findings import contrasts, equal_flips, published
from tools.gpu import PATH
from tools.gpu_results import CACHE_GIB, HOURS, JOBS
from tools.results import Page, index, render
from tools.spec_index import SPECS, declared

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = sorted(RESULTS.glob("*.json"))


def results(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/results.py", "--command", "kvspec run x.yaml", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_page_says_what_was_run_and_found(tmp_path: Path) -> None:
    plan = make_plan(per_prompt=20, name="context_length")
    expected = {cell.index: 2.5 for cell in plan.cells}
    run = write_run(
        tmp_path / "run", plan, lambda t, r: sdc(r) if t.cell == 1 and t.trial < 15 else r, expected=expected
    )
    made = results("--out", tmp_path / "pages", run)
    assert made.returncode == 0, made.stderr
    page = (tmp_path / "pages" / "context_length.md").read_text(encoding="utf-8")
    figures = json.loads((tmp_path / "pages" / "context_length.json").read_text(encoding="utf-8"))
    assert plan.digest in page
    assert "kvspec run x.yaml" in page
    assert "bf16, emulated on test cpu" in page
    assert "| BitRot[1e-05] | 1e-05/bit | 2.5 | 2 | 25.0% [14.2%, 40.2%], n = 40 |" in page
    assert "Is a long context hurt more" in page  # of the spec of that name
    (found,) = figures["runs"]
    assert all(f"- {sentence}" in page for sentence in found["report"]["verdict"])
    assert found["report"]["cells"][1]["exact_match"]["k"] == 10
    row = (tmp_path / "pages" / "README.md").read_text(encoding="utf-8")
    assert "| [context_length](context_length.md) | Is a long context hurt more" in row
    assert not any(str(tmp_path) in text for text in (page, row, json.dumps(figures)))
    made = results("--again", "--out", tmp_path / "pages")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "pages" / "context_length.md").read_text(encoding="utf-8") == page, "runs are not needed again"


def test_formats_are_compared(tmp_path: Path) -> None:
    plan = make_plan(prompts=20, per_prompt=2)
    calm = write_run(tmp_path / "a", plan)
    hurt = write_run(tmp_path / "b", plan, lambda t, r: sdc(r) if t.cell == 1 else r)
    assert results("--out", tmp_path, calm, hurt).returncode == 0
    page = (tmp_path / "synthetic.md").read_text(encoding="utf-8")
    assert "Equal faults per bit: 1 of 3 pairs of formats differ (exact test within prompts, Holm)" in page
    assert "at 1e-07 bf16 100.0% ~ bf16 100.0%; at 1e-05 bf16 100.0% > bf16 0.0%" in page
    assert "Equal faults per element: 0 of 1 pairs of formats differ" in page
    # GPT-2 in bf16: 12 layers x 24 rows x 128 bytes are 36 KiB a token, 32 of them 1.125 MiB.
    assert "| requests that a GiB holds | 910 | 910 |" in page
    assert "1 of 3 pairs of formats differ (t-test with prompts as clusters, Holm)" in page
    assert "at 1e-05 per bit bf16 0 < bf16 910" in page


def _told(runs: list[Scores], compared: dict[str, object]) -> dict[str, str]:
    names = [scores.run.storage_format for scores in runs]
    return {one.title: " ".join(one.sentences) for one in formats.compared(names, runs, ["here"] * len(runs), compared)}


def test_losses_per_gib_weigh_what_a_gib_holds(tmp_path: Path) -> None:
    """As many broken requests in a format that holds about twice as many are about twice the losses."""
    plan = make_plan(prompts=20, per_prompt=10)
    narrow = compile_plan(replace(plan.spec, model=ModelSpec("gpt2", kv_cache_dtype="int8_per_token_head")))
    half = [
        write_run(tmp_path / name, one, lambda t, r: sdc(r) if t.cell == 1 and t.trial % 2 else r)
        for name, one in (("wide", plan), ("narrow", narrow))
    ]
    runs = [score_whole(path) for path in half]
    found = _told([run.scores for run in runs], measured.formats(runs))
    assert "0 of 3 pairs of formats differ" in found["Formats per bit"]
    assert "at 1e-05 per bit bf16 455 < int8_per_token_head 857" in found["Formats per GiB"]
    assert found["Formats per GiB"].endswith("The intervals of its table have prompts as clusters as well.")


def test_losses_per_gib_of_a_few_prompts_are_not_those_of_others(tmp_path: Path) -> None:
    """As many trials are broken, but all of three prompts in twenty: another twenty might have none, or six."""
    plan = make_plan(prompts=20, per_prompt=10)
    narrow = compile_plan(replace(plan.spec, model=ModelSpec("gpt2", kv_cache_dtype="fp8_e4m3")))
    runs = [
        score_whole(
            write_run(tmp_path / name, one, lambda t, r, of=of: sdc(r) if t.cell == 1 and t.request in of else r)
        )
        for name, one, of in (("wide", plan, range(3)), ("narrow", narrow, range(8, 14)))
    ]
    found = measured.formats(runs)
    told = _told([run.scores for run in runs], found)
    assert "at 1e-05 bf16 85.0% > fp8_e4m3 70.0%" in told["Formats per bit"]
    assert "at 1e-05 per bit bf16 137 ~ fp8_e4m3 546" in told["Formats per GiB"]


def test_formats_have_an_answer_per_question_and_say_what_bears_on_it(tmp_path: Path) -> None:
    """The narrow format is hurt less at 1e-5 per bit, but a GiB of it holds about twice the requests."""
    plan = make_plan(prompts=20, per_prompt=10)
    narrow = compile_plan(replace(plan.spec, model=ModelSpec("gpt2", kv_cache_dtype="int4_per_token_head")))

    def hurt(some: int, controls: int) -> Callable[[Trial, Record], Record]:
        def change(trial: Trial, record: Record) -> Record:
            faulted = trial.kind == "fault" and trial.cell == 1 and trial.trial < some
            return sdc(record) if faulted or (trial.kind == "null" and trial.request < controls) else record

        return change

    runs = [
        score_whole(write_run(tmp_path / name, one, hurt(*how)))
        for name, one, how in (("wide", plan, (9, 0)), ("narrow", narrow, (7, 1)))
    ]
    beyond = {"formats": measured.formats(runs)}
    found = answer({"test": "formats"}, [Measured(run.scores, {}) for run in runs], beyond)
    assert found.text.startswith(
        "Faults, against bf16 at equal doses (masked: fewer answers are lost, amplified: more): "
        "per bit int4 masked at 1e-05; per element int4 not told apart; "
    )
    assert found.text.endswith("; per GiB int4 amplified at 1e-05.")
    assert "at 1e-05 per bit int4 30.0% > bf16 10.0% right" in found.figure
    three, labels = [*runs, runs[1]], ["bf16", "int4_per_token_head", "int4 (CPU)"]
    beside = {"formats": measured.formats(three)}
    far = answer({"test": "formats"}, [Measured(run.scores, {}) for run in three], beside, labels)
    assert "(CPU)" not in far.text, "place and format together are no answer"
    assert "per bit int4 (CPU) masked at 1e-05" in far.apart
    scores = [run.scores for run in runs]
    here = " ".join(_told(scores, beyond["formats"])["What is compared"].split())
    floors = [f"{one.run.storage_format} {one.floor.combined.k} of {one.floor.combined.n}" for one in scores]
    assert scores[1].floor.combined.k < scores[1].floor.combined.n
    assert ", ".join(floors) + " (stock vLLM does not repeat" in here
    assert "place" not in here
    (*_, apart) = formats.compared(
        ["bf16", "int4"], scores, ["a GPU in bfloat16", "a CPU in float32"], beyond["formats"]
    )
    assert "bf16 on a GPU in bfloat16; int4 on a CPU in float32" in apart.sentences[-1]


def test_runs_of_other_prompts_are_not_compared(tmp_path: Path) -> None:
    plan = make_plan(per_prompt=20)
    prompts = replace(plan.spec.prompts, texts=tuple(f"{text}?" for text in plan.spec.prompts.texts))
    other = compile_plan(replace(plan.spec, prompts=prompts))
    made = results("--out", tmp_path, write_run(tmp_path / "a", plan), write_run(tmp_path / "b", other))
    assert made.returncode == 0, made.stderr
    page = (tmp_path / "synthetic.md").read_text(encoding="utf-8")
    assert "They asked different prompts, 2 and 2 of them, and are not compared with each other." in page
    assert "Equal faults per" not in page


def test_contrasts_are_tested_within_prompts(tmp_path: Path) -> None:
    def change(trial: Trial, record: Record) -> Record:
        return sdc(record) if trial.trial < 10 * trial.cell + (5 if trial.cell == 3 else 0) else record

    run = score_whole(write_run(tmp_path / "run", make_plan(per_prompt=40), change))
    names = [cell.plan.name for cell in run.scores.cells]
    tests = measured.contrasts(run, [[names[1], names[0]], [names[3], names[2]], names[:3]])
    found = contrasts(run.scores, tests)
    assert found is not None
    (sentence,) = found.sentences
    assert "2 of 3 differ" not in sentence
    assert "3 of 3 differ" in sentence
    assert f"{names[1]} against {names[0]} -25.0% [" in sentence
    assert f"{names[0]} to {names[2]} from 100.0% to 50.0%, z = -" in sentence
    assert sentence.startswith("Contrasts (exact test within prompts and Mantel's trend, Holm)")
    same = contrasts(run.scores, measured.contrasts(run, [[names[0], names[0]]]))
    assert same is not None
    assert same.sentences[0] == "Contrasts (McNemar, Holm): 0 of 1 differ.", "a cell shares its draws with itself"
    assert contrasts(run.scores, []) is None
    with pytest.raises(KeyError):
        measured.contrasts(run, [["no such cell", names[0]]])
    # The words of the outcome that the test gives, and the figure of the contrast that decides.
    words = {"higher": "up", "lower": "down", "neither": "no"}
    of_run = Measured(run.scores, {"contrasts": tests})
    said = answer({"test": "contrast", "cells": [names[1], names[0]], **words}, [of_run], {})
    assert said.text == "down"
    assert said.figure.startswith(f"{names[1]} 75.0%, {names[0]} 100.0%: -25.0% [")
    assert answer({"test": "contrast", "cells": list(names[:3]), **words}, [of_run], {}).text == "down"
    none = Measured(run.scores, {"contrasts": measured.contrasts(run, [[names[0], names[0]]])})
    assert answer({"test": "contrast", "cells": [names[0], names[0]], **words}, [none], {}).text == "no"


def test_an_interval_for_other_prompts_is_wider_where_prompts_differ(tmp_path: Path) -> None:
    def change(trial: Trial, record: Record) -> Record:
        return sdc(record) if trial.cell == 1 and trial.request % 2 else record  # half of the prompts lose all

    run = score_whole(write_run(tmp_path / "run", make_plan(prompts=12, per_prompt=10), change))
    names = [cell.plan.name for cell in run.scores.cells]
    (one,) = measured.contrasts(run, [[names[1], names[0]]])
    low, high = one["clustered"]
    assert one["difference"]["value"] == pytest.approx(-0.5)
    assert low < one["difference"]["low"] - 0.1
    assert high > one["difference"]["high"] + 0.1
    figure = answer(
        {"test": "contrast", "cells": [names[1], names[0]]}, [Measured(run.scores, {"contrasts": [one]})], {}
    )
    assert f"; for other prompts [{low:+.1%}, {high:+.1%}]" in figure.figure


def test_series_are_compared_at_equal_flips(tmp_path: Path) -> None:
    """More flips at the same rate are no reason; the same number of them that does more is one."""

    def change(trial: Trial, record: Record, more: int) -> Record:
        flips = {0: 1, 1: 2, 2: 4, 3: 1}[max(trial.cell, 0)] if trial.kind == "fault" else 0
        record = replace(record, flips_planned=flips, flips_landed=flips)
        return sdc(record) if trial.kind == "fault" and trial.trial < 3 * flips + more * (trial.cell == 3) else record

    series = [["BitRot", "Burst"]]
    for more, p, value in ((0, 1.0, 0.0), (10, None, 10 / 20)):
        path = write_run(tmp_path / f"run{more}", make_plan(per_prompt=20), lambda t, r, more=more: change(t, r, more))
        run = score_whole(path)
        (one,) = measured.equal_flips(run, path, series)
        assert one["counts"][0]["n"] == one["counts"][1]["n"] == 40, "only the cell with one flip has partners"
        assert one["difference"]["value"] == pytest.approx(value)
        assert one["p"] == p if p else one["p"] < 0.001
        found = equal_flips([one])
        assert found is not None
        assert "BitRot against Burst" in found.sentences[0]
        said = answer(
            {"test": "equal flips", "series": series[0], "higher": "Burst", "neither": "alike"},
            [Measured(run.scores, {"equal_flips": [one]})],
            {},
        )
        assert said.text == ("Burst" if more else "alike")
    with pytest.raises(KeyError):
        measured.equal_flips(run, path, [["BitRot", "Bits"]])


@pytest.mark.parametrize("name", JOBS)
def test_every_job_of_the_gpu_script_is_a_plan(name: str) -> None:
    kind, spec, *rest = JOBS[name].split()
    assert kind in ("run", "search")
    compile_plan(load_spec(ROOT / spec, [word for word in rest if "=" in word]))
    assert set(HOURS) | set(CACHE_GIB) <= set(JOBS)


@pytest.mark.parametrize("name", ["context_length", "zombie"])
def test_long_prompts_are_never_cut_into_chunks(name: str) -> None:
    """As many as may run at once fit into one step."""
    _, spec, *rest = JOBS[name].split()
    plan = compile_plan(load_spec(ROOT / spec, [word for word in rest if "=" in word])).spec
    lengths, _ = prompt_lengths(plan.model, describe(plan.model), plan.prompts.texts)
    assert plan.engine.max_num_batched_tokens is not None
    assert plan.engine.max_num_seqs * max(lengths) <= plan.engine.max_num_batched_tokens


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_a_spec_declares_exists(path: Path) -> None:
    """A contrast names cells of its own plan, whatever the runs are."""
    said = declared(path)
    names = {cell.name for cell in compile_plan(load_spec(path)).cells}
    contrasted, series = said["contrasts"] or [], said["equal-flips"] or []
    assert {name for contrast in contrasted for name in contrast} <= names
    stems = {name.partition("[")[0] for name in names}
    assert {name.partition("[")[0] for pair in series for name in pair} <= stems
    if (found := said["answer"]) is None:
        return
    assert found["test"] in {*TESTS, "formats", "search"}
    outcomes = {
        "contrast": {"cells", "higher", "lower", "neither"},
        "equal flips": {"series", "higher", "lower", "neither"},
        "lengths": {"higher", "lower", "mixed", "neither"},
        "pairs": {"shown", "neither"},
        "floor": {"cell", "shown", "neither"},
    }
    assert outcomes.get(found["test"], set()) <= set(found), "every outcome has its words before the run"
    assert found.get("cells") is None or found["cells"] in contrasted
    assert found.get("series") is None or found["test"] == "half" or found["series"] in series
    assert found.get("cell", next(iter(names))) in names


def test_published_figures_are_compared_by_the_rule_of_the_spec() -> None:
    def square(plane: str, bit: str, k: int) -> Square:
        return Square(bit, plane, Proportion.of(k, 100))

    here = [square(p, b, k) for p in "KV" for b, k in (("14", 90), ("0", 5), ("7", 40), ("3", 50))]
    anatomy = Anatomy(800, 0, (SiteMap("bit", "Bit", "K or V", tuple(here)),), ())
    run = SimpleNamespace(anatomy=anatomy)
    figures = {
        "source": "them",
        "n": 100,
        "K": {"14": 95, "0": 50, "7": 5},  # 14 > 0 > 7; here 14 > 7 > 0
        "V": {"14": 95, "3": 60, "7": 30},  # 14 > 3 > 7; here 3 and 7 overlap
    }
    found = published(cast("Scores", run), figures)
    assert found is not None
    (sentence,) = found.sentences
    assert "of 6 pairs" in sentence
    assert "4 are told apart here in the same order, 1 in the other order, 1 are not told apart here" in sentence
    # 90 against 95 twice and 50 against 60 overlap; 5 against 50 in K is lower, 40 against 5 in K higher, as against 30
    # in V they overlap.
    assert "Of 6 shares 4 agree within their intervals (14 in K, 14 in V, 3 in V, 7 in V), 1 are higher " in sentence
    assert "| 14 in K | 95.0% [88.8%, 97.8%], n = 100 | 90.0% [82.6%, 94.5%], n = 100 |" in found.table
    nothing = SimpleNamespace(anatomy=None)
    assert published(cast("Scores", nothing), figures) is None


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    made = results("--out", tmp_path, tmp_path)
    assert made.returncode == 2
    assert made.stderr.startswith("error[KVS502]")
    a, b = (write_run(tmp_path / name, make_plan(name=name)) for name in ("a", "b"))
    assert "of several specs: a, b" in results("--out", tmp_path, a, b).stderr


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_committed_pages_are_what_todays_code_says_of_their_figures(file: Path) -> None:
    """Pages cannot go stale in silence: sentences, adjusted p-values and tables follow from the stored counts."""
    text = file.read_text(encoding="utf-8")
    figures = json.loads(text)
    for run in figures["runs"]:
        report = run["report"]
        again = read_back(report)
        assert list(again.verdict) == report["verdict"]
        assert list(again.warnings) == report["warnings"]
        assert json.loads(json.dumps(to_json(again))) == report
        tasks = again.tasks.pairs
        families = [[pair for pair in tasks if pair.same_operands == same] for same in (True, False)]
        for family in (*families, again.pairs):
            assert [pair.p_holm for pair in family] == pytest.approx(holm([pair.p for pair in family]))
        for pair in tasks:
            assert pair.p == pytest.approx(mcnemar(pair.only_retrieval, pair.only_reasoning))
        for cells in again.pairs:
            assert cells.p == pytest.approx(mcnemar(cells.only_first, cells.only_second))
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    assert render(Page.read(figures)) == page, "run: python3 tools/results.py --again"
    assert not re.search(r"/(tmp|root|work|home)/", page + text)


def test_the_committed_index_is_what_todays_code_says() -> None:
    pages = [Page.read(json.loads(file.read_text(encoding="utf-8"))) for file in PAGES]
    rows = index(RESULTS, pages)
    assert rows == (RESULTS / "README.md").read_text(encoding="utf-8"), "run: python3 tools/results.py --again"
    assert all(len(line) < 900 for line in rows.splitlines()), "a cell of the table holds a sentence and a figure"
    legend, _, table = (part.lower() for part in rows.partition("\n| spec |"))
    for term in ("equal exposure", "token that decides", "comparisons", "pairs", "equal flips", "†", "‡"):
        assert term in legend or term not in table, f"the legend does not explain {term}"


def test_the_processes_of_the_gpu_tools_find_kvspec_in_one_place(tmp_path: Path) -> None:
    went = gpu_session.process("where", ["-c", "import os; print(os.environ['PYTHONPATH'])"], 60, tmp_path)
    assert went["output"] == PATH
    assert gpu_results.PATH is PATH
    for folder in PATH.split(os.pathsep)[:2]:
        assert any((Path(folder) / name).is_dir() for name in ("kvspec", "kvspec_kernels"))
