"""The pages of docs/results: made from run folders alone, and without a path of the machine that made them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from kvspec.models import describe, prompt_lengths
from kvspec.plan import Trial, compile_plan
from kvspec.records import Record, RunStore
from kvspec.score import Proportion
from kvspec.score.anatomy import Anatomy, SiteMap, Square
from kvspec.score.scores import Scored, score_whole
from kvspec.spec import load_spec
from kvspec.spec.model import ModelSpec
from tests.run_folders import make_plan, sdc, write_run
from tools.findings import contrasts, formats, published
from tools.gpu_results import CACHE_GIB, HOURS, JOBS
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
    index = (tmp_path / "pages" / "README.md").read_text(encoding="utf-8")
    assert found["report"]["verdict"][1] in index
    assert not any(str(tmp_path) in text for text in (page, index, json.dumps(figures)))


def test_formats_are_compared(tmp_path: Path) -> None:
    plan = make_plan(per_prompt=20)
    calm = write_run(tmp_path / "a", plan)
    hurt = write_run(tmp_path / "b", plan, lambda t, r: sdc(r) if t.cell == 1 else r)
    assert results("--out", tmp_path, calm, hurt).returncode == 0
    page = (tmp_path / "synthetic.md").read_text(encoding="utf-8")
    assert "Equal faults per bit: 1 of 3 pairs of formats differ (exact test within prompts, Holm)" in page
    assert "at 1e-07 bf16 100.0% ~ bf16 100.0%; at 1e-05 bf16 100.0% > bf16 0.0%" in page
    assert "Equal faults per element: 0 of 1 pairs of formats differ" in page
    # GPT-2 in bf16: 12 layers x 24 rows x 128 bytes are 36 KiB a token, 32 of them 1.125 MiB.
    assert "| requests that a GiB holds | 910 | 910 |" in page
    assert "1 of 3 pairs of formats differ (log ratio, Holm)" in page
    assert "at 1e-05 per bit bf16 0 < bf16 910" in page


def test_losses_per_gib_weigh_what_a_gib_holds(tmp_path: Path) -> None:
    """As many broken requests in a format that holds about twice as many are about twice the losses."""
    plan = make_plan(per_prompt=100)
    narrow = compile_plan(replace(plan.spec, model=ModelSpec("gpt2", kv_cache_dtype="int8_per_token_head")))
    half = [
        write_run(tmp_path / name, one, lambda t, r: sdc(r) if t.cell == 1 and t.trial % 2 else r)
        for name, one in (("wide", plan), ("narrow", narrow))
    ]
    found = {one.title: one.sentences[0] for one in formats([score_whole(path) for path in half])}
    assert "0 of 3 pairs of formats differ" in found["Formats per bit"]
    assert "at 1e-05 per bit bf16 455 < int8_per_token_head 857" in found["Formats per GiB"]


def test_contrasts_are_tested_within_prompts(tmp_path: Path) -> None:
    def change(trial: Trial, record: Record) -> Record:
        return sdc(record) if trial.trial < 10 * trial.cell + (5 if trial.cell == 3 else 0) else record

    run = score_whole(write_run(tmp_path / "run", make_plan(per_prompt=40), change))
    names = [cell.plan.name for cell in run.scores.cells]
    found = contrasts(run, [[names[1], names[0]], [names[3], names[2]], names[:3]])
    assert found is not None
    (sentence,) = found.sentences
    assert "2 of 3 differ" not in sentence
    assert "3 of 3 differ" in sentence
    assert f"{names[1]} against {names[0]} -25.0% [" in sentence
    assert f"{names[0]} to {names[2]} from 100.0% to 50.0%, z = -" in sentence
    assert sentence.startswith("Contrasts (exact test within prompts and Mantel's trend, Holm)")
    same = contrasts(run, [[names[0], names[0]]])
    assert same is not None
    assert same.sentences[0] == "Contrasts (McNemar, Holm): 0 of 1 differ.", "a cell shares its draws with itself"
    assert contrasts(run, []) is None
    with pytest.raises(KeyError):
        contrasts(run, [["no such cell", names[0]]])


@pytest.mark.parametrize("name", JOBS)
def test_every_job_of_the_gpu_script_is_a_plan(name: str) -> None:
    kind, spec, *rest = JOBS[name].split()
    assert kind in ("run", "search")
    compile_plan(load_spec(ROOT / spec, [word for word in rest if "=" in word]))
    assert set(HOURS) | set(CACHE_GIB) <= set(JOBS)


@pytest.mark.parametrize("name", ["context_length", "zombie"])
def test_long_prompts_are_never_cut_into_chunks(name: str) -> None:
    """As many as may run at once fit into one step, so that golden and its controls are computed alike."""
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
    assert {name for contrast in said["contrasts"] or [] for name in contrast} <= names
    assert all(isinstance(text, str) for text in said["answer"] or [])


def test_published_figures_are_compared_by_the_rule_of_the_spec() -> None:
    def square(plane: str, bit: str, k: int) -> Square:
        return Square(bit, plane, Proportion.of(k, 100))

    here = [square(p, b, k) for p in "KV" for b, k in (("14", 90), ("0", 5), ("7", 40), ("3", 50))]
    anatomy = Anatomy(800, 0, (SiteMap("bit", "Bit", "K or V", tuple(here)),), ())
    run = SimpleNamespace(scores=SimpleNamespace(anatomy=anatomy))
    figures = {
        "source": "them",
        "n": 100,
        "K": {"14": 95, "0": 50, "7": 5},  # 14 > 0 > 7; here 14 > 7 > 0
        "V": {"14": 95, "3": 60, "7": 30},  # 14 > 3 > 7; here 3 and 7 overlap
    }
    found = published(cast("Scored", run), figures)
    assert found is not None
    (sentence,) = found.sentences
    assert "of 6 pairs" in sentence
    assert "4 are told apart here in the same order, 1 in the other order, 1 are not told apart here" in sentence
    assert "| 14 in K | 95.0% [88.8%, 97.8%], n = 100 | 90.0% [82.6%, 94.5%], n = 100 |" in found.table
    nothing = SimpleNamespace(scores=SimpleNamespace(anatomy=None))
    assert published(cast("Scored", nothing), figures) is None


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    made = results("--out", tmp_path, tmp_path)
    assert made.returncode == 2
    assert made.stderr.startswith("error[KVS502]")
    a, b = (write_run(tmp_path / name, make_plan(name=name)) for name in ("a", "b"))
    assert "of several specs: a, b" in results("--out", tmp_path, a, b).stderr
    assert RunStore.open(a).digest


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_committed_pages_follow_from_their_figures(file: Path) -> None:
    figures = json.loads(file.read_text(encoding="utf-8"))
    page, index = (path.read_text(encoding="utf-8") for path in (file.with_suffix(".md"), RESULTS / "README.md"))
    assert not re.search(r"/(tmp|root|work|home)/", page + file.read_text())
    assert all(sentence in page and sentence in index for sentence in figures["findings"])
    for run in figures["runs"]:
        assert run["report"]["run"]["plan_digest"] in page
        for sentence in run["report"]["verdict"]:
            assert sentence in page
            assert sentence in index
