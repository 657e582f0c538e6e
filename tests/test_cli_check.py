"""The command line: `kvspec check`, `kvspec schema`, and how every command fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from tokenizers import Tokenizer, models, pre_tokenizers

from kvspec import _native
from kvspec.cli import COMMANDS, main
from kvspec.errors import CODES, EngineError

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "specs" / "quickstart.yaml"
BAD = "kvspec: 1\nname: t\nmodel: {id: gpt2}\nprompts: {inline: []}\nfaults: []\ntrials: 1\n"


def kvspec(*args: str | Path, color: bool = False) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], color=color, prog_name="kvspec")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    return path


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Add a command `fail` that raises."""

    @click.command()
    @click.option("--format", "output", default="text")
    def command(output: str) -> None:
        raise error

    monkeypatch.setattr(sys.modules[__name__], "command", command, raising=False)
    monkeypatch.setitem(COMMANDS, "fail", (f"{__name__}:command", "Fail."))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def test_check_prints_the_size_of_valid_specs() -> None:
    result = kvspec("check", QUICKSTART, "--set", "trials=3")
    assert result.exit_code == 0
    assert result.stdout == f"{QUICKSTART}: quickstart, 8 cells, 5 prompts, 120 trials\n"
    assert result.stderr == ""


def test_plan_counts_its_cell_and_the_graded_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"text": "1 + 1 =", "numeric": 2}\n{"text": "The sun"}\n')
    spec = tmp_path / "s.yaml"
    fault = "{name: F, model: random, site: KV_WRITE, rate: {per_bit: 1e-3}}"
    spec.write_text(
        f"kvspec: 1\nname: t\nmodel: {{id: gpt2}}\nprompts: {{file: p.jsonl}}\nfaults: [{fault}]\ntrials: 1\n"
    )
    lines = kvspec("plan", spec).stdout.splitlines()
    assert lines[0].startswith("t: 1 cell, ")
    assert "graded    1 of 2 prompts" in lines
    assert "graded" not in kvspec("plan", QUICKSTART).stdout


def test_plan_refuses_choices_of_several_tokens(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    config = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "max_position_embeddings": 128}
    (model / "config.json").write_text(json.dumps(config))
    words = Tokenizer(models.WordLevel({"?": 0, "Answer:": 1, "A": 2, "B": 3, "red": 4, "box": 5}, "?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(model / "tokenizer.json"))

    def plan(choices: str) -> Result:
        generation = f"generation={{max_tokens: 1, choices: {choices}}}"
        return kvspec("plan", QUICKSTART, "--set", f"model.id={model}", "--set", generation)

    assert plan('[" A", " B"]').exit_code == 0
    refused = plan('[" A", " red box"]')
    assert refused.exit_code != 0
    assert "KVS409" in refused.stderr
    assert "the choice ` red box` is 2 tokens of the model" in refused.stderr


def test_check_reports_all_errors_of_all_specs(bad: Path) -> None:
    missing = bad.with_name("missing.yaml")
    result = kvspec("check", bad, QUICKSTART, missing)
    assert result.exit_code == 2
    assert result.stdout.startswith(f"{QUICKSTART}: quickstart")
    assert (
        result.stderr
        == f"""\
error[KVS207]: the list is empty
  at {bad}:4:19  $.prompts.inline
  expected 1 to 100000 entries

error[KVS207]: the list is empty
  at {bad}:5:9  $.faults
  expected 1 to 10000 entries

error[KVS101]: `{missing}` cannot be read: no such file or directory
  at {missing}:1:1
"""
    )


def test_a_spec_of_the_library_outside_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As README writes it, somewhere else; a typo where the folder is there is only a missing file."""
    monkeypatch.chdir(tmp_path)
    outside = """\
error[KVS101]: `specs/quickstart.yaml` cannot be read: no such file or directory
  at specs/quickstart.yaml:1:1

hint: the specs of the library lie in kvspec's repository, not in its package: run this in a checkout
"""
    for command in ("check", "plan", "run", "search", "verify"):
        result = kvspec(command, "specs/quickstart.yaml")
        assert (result.exit_code, result.stderr) == (2, outside)
    (tmp_path / "specs").mkdir()
    assert kvspec("check", "specs/quickstart.yaml").stderr == outside.split("\n\n")[0] + "\n"


def test_check_json(bad: Path) -> None:
    result = kvspec("check", bad, QUICKSTART, "--format", "json")
    assert result.exit_code == 2
    assert result.stderr == ""
    data = json.loads(result.stdout)
    assert data["specs"] == [
        {"file": str(QUICKSTART), "name": "quickstart", "cells": 8, "prompts": 5, "trials": 8 * 5 * 8}
    ]
    assert data["diagnostics"][0] == {
        "code": "KVS207",
        "title": CODES["KVS207"],
        "severity": "error",
        "message": "the list is empty",
        "mark": {"file": str(bad), "line": 4, "column": 19},
        "path": "$.prompts.inline",
        "expected": "1 to 100000 entries",
        "hint": None,
    }


def test_a_bad_override_is_reported(bad: Path) -> None:
    result = kvspec("check", QUICKSTART, "--set", "seed")
    assert result.exit_code == 2
    assert "error[KVS106]: `seed` is not an override" in result.stderr


@pytest.mark.parametrize("args", [["check"], ["chekc"], ["check", "--nope"], ["schema", "record"]])
def test_wrong_usage(args: list[str]) -> None:
    result = kvspec(*args)
    assert result.exit_code == 2
    assert "Usage: kvspec" in result.stderr
    assert result.stdout == ""


def test_schema() -> None:
    result = kvspec("schema")
    assert result.exit_code == 0
    assert result.stdout == _native.schema("spec")
    assert kvspec("schema", "spec").stdout == result.stdout


def test_version() -> None:
    assert kvspec("--version").stdout == f"kvspec {_native.__version__}\n"


def test_help_names_every_command_and_every_command_has_help() -> None:
    text = kvspec("--help").stdout
    for name, (_, line) in COMMANDS.items():
        assert f"  {name} " in text
        assert line in " ".join(text.split())
        result = kvspec(name, "--help")
        assert result.exit_code == 0, result.stderr
        assert f"kvspec {name}" in result.stdout


# One place for all failures.


def test_colour_only_where_it_is_wanted(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in kvspec("check", bad, color=True).stderr
    assert "\x1b[" not in kvspec("check", bad).stderr
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in kvspec("check", bad, color=True).stderr


def test_engine_errors_exit_3(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, EngineError.one("KVS406", "the engine failed", hint="try again"))
    result = kvspec("fail")
    assert result.exit_code == 3
    assert result.stderr == "error[KVS406]: the engine failed\n\nhint: try again\n"
    for args in (["--format", "json"], ["--format=json"]):
        result = kvspec("fail", *args)
        assert result.exit_code == 3
        assert result.stderr == ""
        assert [d["code"] for d in json.loads(result.stdout)["diagnostics"]] == ["KVS406"]


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    result = kvspec("fail")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_a_bug_is_short_until_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("a\nb"))
    monkeypatch.delenv("KVSPEC_TRACEBACK", raising=False)
    result = kvspec("fail")
    assert result.exit_code == 3
    assert "internal error: ZeroDivisionError: a\n" in result.stderr
    assert "KVSPEC_TRACEBACK=1" in result.stderr
    assert "Traceback" not in result.stderr
    monkeypatch.setenv("KVSPEC_TRACEBACK", "1")
    result = kvspec("fail")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr


# Cold start.

HEAVY = {"numpy", "scipy", "pyarrow", "rich", "torch", "vllm", "transformers", "tokenizers", "statistics"}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has imported after running some code."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split("\n")[-2].split())


def test_check_imports_nothing_heavy() -> None:
    run = f"from kvspec.cli import main; main(['check', {str(QUICKSTART)!r}], standalone_mode=False)"
    modules = modules_after(run)
    assert {"kvspec", "click", "ruamel", "jsonschema"} <= modules
    assert modules & HEAVY == set()


@pytest.mark.parametrize("run", ["from kvspec.cli import main; main(['schema'], standalone_mode=False)",
                                 "import kvspec.spec.model"])  # fmt: skip
def test_jsonschema_is_imported_only_to_check(run: str) -> None:
    assert modules_after(run) & (HEAVY | {"jsonschema"}) == set()


def test_import_kvspec_imports_nothing() -> None:
    modules = modules_after("import kvspec")
    assert "kvspec" in modules
    assert modules & (HEAVY | {"click", "ruamel", "jsonschema"}) == set()


def test_public_names() -> None:
    import kvspec as package

    assert package.load_spec(QUICKSTART).name == "quickstart"
    assert package.__version__ == _native.__version__
    assert {"load_spec", "compile_plan", "__version__"} <= set(dir(package))
    with pytest.raises(AttributeError, match="nothing_such"):
        package.nothing_such  # noqa: B018
