"""The page in a real Chromium, headless: it loads alone and in silence, and works by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvspec.plan import Trial
from kvspec.records import Record
from kvspec.report.html import html_report
from tests.chromium import Chromium, find_chromium
from tests.run_folders import in_cell, make_plan, nonfinite, sdc, write_run
from tests.test_report_html import HOSTILE, hostile_plan

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with 18 cells, mismatches in five of them."""
    folder = tmp_path_factory.mktemp("page")
    plan = make_plan([10.0**-e for e in range(1, 18)], per_prompt=5)
    changes = [in_cell(1, 4, sdc), in_cell(2, 3, nonfinite), *(in_cell(cell, 1, sdc) for cell in (4, 5, 6))]

    def change(trial: Trial, record: Record) -> Record:
        for one in changes:
            record = one(trial, record)
        return record

    run = write_run(folder / "run", plan, change, expected=dict.fromkeys(range(18), 0.5))
    page = folder / "report.html"
    page.write_text(html_report(run), encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture
def page(browser: Chromium, file: Path) -> Chromium:
    browser.console.clear()
    browser.requests.clear()
    browser.media()
    browser.size(1280, 900)
    browser.open(file)
    browser.wait("document.documentElement.dataset.ready")
    browser.wait("[...document.querySelectorAll('.chart')].every(c => c.dataset.drawn || !c.clientWidth)")
    return browser


def test_it_loads_alone_and_in_silence(page: Chromium, file: Path) -> None:
    assert page.console == []
    assert page.requests == [file.resolve().as_uri()]
    assert page.run("document.documentElement.dataset.broken") is None
    shown = page.run("[...document.querySelectorAll('.chart')].filter(c => c.clientWidth).length")
    assert shown == page.run("document.querySelectorAll('.chart svg').length") == 4
    assert page.run("document.querySelectorAll('#chart-survival path').length") > 2
    assert page.run("document.querySelectorAll('.chart svg:not([aria-hidden=true])').length") == 0


def test_the_dose_switch_by_keyboard(page: Chromium) -> None:
    page.run("document.querySelector('input[name=dose]').focus()")
    for dose, title in (("expected", "Expected flips per request"), ("landed", "Landed flips per request")):
        page.key("ArrowRight")
        page.wait(f"document.querySelector('.dose:not([hidden])').dataset.dose === '{dose}'")
        page.wait("document.querySelector('.dose:not([hidden]) svg')")
        assert page.run("document.querySelectorAll('.dose:not([hidden])').length") == 1
        assert title in page.run("document.querySelector('.dose:not([hidden]) svg').textContent")
    assert page.console == []


def test_a_mark_tells_its_numbers(page: Chromium) -> None:
    page.hover("#chart-dose-response-rate-per_bit .mark-symbol.role-mark path")
    page.wait("!document.querySelector('#tip').hidden")
    assert "equal golden [" in page.run("document.querySelector('#tip').textContent")
    page.hover("h1")
    page.wait("document.querySelector('#tip').hidden")


def test_the_trials_by_keyboard(page: Chromium) -> None:
    assert page.run("document.querySelectorAll('.trial:not([hidden])').length") == 1
    page.run("document.querySelector('[role=tab][aria-selected=true]').focus()")
    seen = [page.run("document.querySelector('.trial:not([hidden])').id")]
    for key in ("ArrowDown", "End", "ArrowDown", "ArrowUp", "Home"):
        page.key(key)
        seen.append(page.run("document.querySelector('.trial:not([hidden])').id"))
        assert page.run("document.activeElement.getAttribute('aria-controls')") == seen[-1]
    last = page.run("document.querySelectorAll('[role=tab]').length") - 1
    assert seen == [f"trial-{n}" for n in (0, 1, last, 0, last, 0)]
    assert page.run("[...document.querySelectorAll('[role=tab]')].filter(t => t.tabIndex === 0).length") == 1
    page.key("Tab")
    assert page.run("document.activeElement.id") == "trial-0", "one more Tab enters the trial"
    assert page.run("document.querySelectorAll('.trial:not([hidden]) ins.first').length") == 1


def test_the_first_tab_skips_to_the_verdict(page: Chromium) -> None:
    page.key("Tab")
    assert page.run("document.activeElement.className") == "skip"
    assert page.run("document.activeElement.getBoundingClientRect().left") >= 0
    page.key("Enter")
    page.wait("document.activeElement.id === 'verdict'")


def test_sorting_and_filtering(page: Chromium) -> None:
    first = "document.querySelector('#cell-table tbody tr th').textContent"
    page.run("document.querySelectorAll('#cell-table thead button')[3].focus()")
    page.key("Enter")
    assert page.run("document.querySelectorAll('#cell-table thead th')[3].ariaSort") == "ascending"
    assert page.run(first) == "BitRot[0.01]", "the lowest accuracy first"
    page.key("Enter")
    assert page.run("document.querySelectorAll('#cell-table thead th')[3].ariaSort") == "descending"
    page.run("const f = document.querySelector('#filter'); f.value = 'burst'; f.dispatchEvent(new Event('input'))")
    assert page.run("document.querySelectorAll('#cell-table tbody tr:not([hidden])').length") == 1
    assert page.run("document.querySelector('#filter-count').textContent") == "1 of 18 cells"


BACKGROUND = "getComputedStyle(document.body).backgroundColor"
LABEL = "getComputedStyle(document.querySelector('#chart-outcomes .role-axis-label text')).fill"


def test_dark_mode_and_print_repaint_the_charts(page: Chromium) -> None:
    light = page.run(BACKGROUND), page.run(LABEL)
    page.media(dark=True)
    dark = page.run(BACKGROUND), page.run(LABEL)
    assert dark[0] == "rgb(18, 22, 27)"
    assert dark[1] != light[1]
    page.media(dark=True, printed=True)
    assert page.run(BACKGROUND) == "rgb(255, 255, 255)"
    assert page.run(LABEL) != dark[1]
    shown = "[...document.querySelectorAll('.trial')].every(t => getComputedStyle(t).display !== 'none')"
    assert page.run(shown), "on paper every trial is there"
    page.media()
    for wanted in ("rgb(255, 255, 255)", "rgb(18, 22, 27)"):
        page.run("document.querySelector('#theme').click()")
        assert page.run(BACKGROUND) == wanted
    page.run("document.querySelector('#theme').click()")


LEGENDS = """[...document.querySelectorAll('.chart svg')].every(svg =>
    [...svg.querySelectorAll('.role-legend-label text')].every(label => {
        const [inner, outer] = [label.getBoundingClientRect(), svg.getBoundingClientRect()];
        return inner.right <= outer.right && inner.top >= outer.top - 2;
    }))"""
"""No legend is cut off."""


@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
def test_no_width_makes_the_page_scroll_sideways(page: Chromium, width: int) -> None:
    page.size(width, 800)
    page.wait("document.documentElement.scrollWidth <= innerWidth")
    page.wait(LEGENDS)


def test_a_table_wider_than_the_page_says_that_it_scrolls(page: Chromium) -> None:
    hint = "document.querySelector('#cells .sideways')"
    page.size(500, 900)
    page.wait(f"!{hint}.hidden")
    assert page.run(f"{hint}.nextElementSibling.scrollWidth > {hint}.nextElementSibling.clientWidth")
    page.size(2400, 900)
    page.wait(f"{hint}.hidden")


def test_it_prints(page: Chromium, tmp_path: Path) -> None:
    page.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_hostile_text_runs_nothing(browser: Chromium, tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", hostile_plan(), lambda t, r: replace(sdc(r), text=HOSTILE) if t.kind == "fault" else r
    )
    file = tmp_path / "page.html"
    file.write_text(html_report(run), encoding="utf-8")
    browser.console.clear()
    browser.requests.clear()
    browser.open(file)
    browser.wait("document.documentElement.dataset.ready")
    browser.wait("document.querySelectorAll('.chart svg').length >= 3")
    assert browser.console == []
    assert browser.requests == [file.resolve().as_uri()]
    assert browser.run("document.images.length") == 0


def test_without_scripts_everything_is_there(browser: Chromium, file: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(file)
        text = browser.run("document.body.innerText")
        hidden = browser.run("document.querySelectorAll('.trial[hidden], .dose[hidden]').length")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "The floor is clean" in text
    assert "BitRot[0.01]" in text
    assert hidden == 0
