"""The fault maps of docs/results: whole, and what the committed profile gives, so nobody has to trust a file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvspec.maps import explicit, maps_of_trial, read_map, verify_map
from kvspec.plan import Trial, compile_plan
from kvspec.spec import load_spec

RESULTS = Path(__file__).parents[1] / "docs" / "results"
FILES = sorted(RESULTS.rglob("maps/*.parquet"))
FOLDERS = sorted({file.parent.parent for file in FILES})


def short(path: Path) -> str:
    return str(path.relative_to(RESULTS))


def test_there_are_maps() -> None:
    assert len(FILES) >= 4


@pytest.mark.parametrize("file", FILES, ids=short)
def test_a_map_is_what_its_trial_of_the_profile_gives(file: Path) -> None:
    """Key, selector, prompt and flips follow from the profile; of the record that a map has, only the answer does not.

    The digest of a plan may have changed since a search that a later one has replaced; no flip may.
    """
    verify_map(file)
    found = read_map(file)
    header, plan = found.header, compile_plan(load_spec(file.parent.parent / "profile.yaml"))
    assert header.trial is not None
    trial = Trial("fault", header.trial["cell_index"], header.trial["request"], header.trial["trial"])
    made = {
        one.header.site: one.header
        for one in maps_of_trial(
            plan,
            trial,
            header.geometry.shape,
            prompt_len=header.coverage.prompt_tokens,
            written=header.coverage.tokens,
            record=header.record,
        )
    }
    if file.parent.parent.name == "earlier":
        header = replace(header, plan=plan.digest)
    assert made[header.site] == header
    assert header.record is not None
    assert header.record["flips_landed"] == len(found), "what was planned landed"
    flips = explicit(found)
    assert flips.columns is not None
    assert {len(column) for column in flips.columns.values()} == {len(found)}
    sites = np.rec.fromarrays(list(flips.columns.values()))
    assert len(np.unique(sites)) == len(found) > 0


@pytest.mark.parametrize("folder", FOLDERS, ids=short)
def test_the_figures_name_every_map_in_pairs(folder: Path) -> None:
    states = json.loads((folder / "profile.json").read_text(encoding="utf-8"))["states"]
    told = {one["file"]: one for state in states for one in state.get("maps", [])}
    assert set(told) == {f"maps/{file.name}" for file in (folder / "maps").iterdir()}
    assert all(len(read_map(folder / name)) == one["flips"] for name, one in told.items())
    pairs = Counter((Path(name).name.partition("-")[0], one["item"]) for name, one in told.items())
    assert set(pairs.values()) == {2}, "retrieval and reasoning of an item"
