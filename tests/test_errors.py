"""The catalogue of codes is neither larger nor smaller than what the code raises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvspec.errors import CODES, Diagnostic, Mark, SpecError

PACKAGE = Path(__file__).parents[1] / "kvspec"
SOURCES = "\n".join(p.read_text(encoding="utf-8") for p in PACKAGE.rglob("*.py") if p.name != "errors.py")


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_is_raised_somewhere(code: str) -> None:
    assert f'"{code}"' in SOURCES


def test_every_code_that_is_raised_is_declared() -> None:
    assert set(re.findall(r'"(KVS\d{3})"', SOURCES)) <= set(CODES)


def test_a_diagnostic_reads_as_promised() -> None:
    found = Diagnostic("KVS202", "the key `x` is not known", Mark("a.yaml", 3, 5), "$.x", "one of: y", "say `y`")
    assert str(found) == (
        "error[KVS202]: the key `x` is not known\n  at a.yaml:3:5  $.x\n  expected one of: y\n\nhint: say `y`"
    )
    assert found.to_json()["title"] == CODES["KVS202"]


def test_errors_carry_all_diagnostics() -> None:
    error = SpecError([Diagnostic("KVS202", "a"), Diagnostic("KVS204", "b")])
    assert [d.code for d in error.diagnostics] == ["KVS202", "KVS204"]
    assert error.exit_code == 2
    with pytest.raises(ValueError, match="undeclared"):
        Diagnostic("KVS999", "x")
