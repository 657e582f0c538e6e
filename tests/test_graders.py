"""Grading of answers: numbers as people write them, and the graders of specs and prompt files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kvspec.errors import SpecError
from kvspec.score.grading import grade_function, numbers
from kvspec.spec.needle_scene import Values, Variables
from tests.needle_specs import asdict_task, load

FACTORS = [(50, 25), (7, 3), (1, 7), (250, 4), (1200, 1300)]


def spellings(number: int) -> list[str]:
    return [str(number), f"{number:,}", f"{number}.0", f"{number:,}.00"]


def no_spellings(number: int) -> list[str]:
    return [
        f"{number}.5",
        f"{number:,}.75",
        f"-{number}",
        f"1{number}",
        f"{number}1",
        f"{number},250",
        f"9,{number:03}",
    ]


def scene_grade(task: str, a: int, b: int) -> Callable[[str], bool]:
    values = Values((a, a), (b, b), (0.2, 0.8), "{name} is {value}")
    scene = Variables(values, ["var_a", "var_b", "var_c"], ["Anna", "Jack"], a, b, ["red"], ["attic"])
    grader = scene.grader(task)
    return grade_function({"kind": grader.kind, "expected": grader.expected, "choices": [], "tolerance": 0.0})


@pytest.mark.parametrize(("a", "b"), FACTORS)
@pytest.mark.parametrize("task", ["sum", "product"])
def test_a_result_is_found_as_people_write_it(task: str, a: int, b: int) -> None:
    grade = scene_grade(task, a, b)
    op, result = ("+", a + b) if task == "sum" else ("*", a * b)
    ways = [
        "{}",
        " {}.",
        f" {a} {op} {b} = {{}}",
        f"{a:,} {op} {b:,} = {{}}.",
        f"var_a = {a}, var_b = {b}, so var_a {op} var_b = {a} {op} {b} = {{}}",
        f"var_a is {a} and var_b is {b}, so var_a {op} var_b = {{}}. The value of var_c is 3, and 1 = 1.",
        f"It is {a} {op} {b} = {{}}, and the number of lemons is 4.",
        f"{a} {op} {b} = {{}}\nQuestion: What is 3 + 4?",
        f'He said "{a} {op} {b} = {{}}."',
    ]
    if result not in (a, b):
        ways += ["The result is {}.", f"The result of {a} and {b} is {{}}."]
    assert [way for way in ways for number in spellings(result) if not grade(way.format(number))] == []
    wrong = [*no_spellings(result), *spellings(result + 1)]
    assert [way.format(number) for way in ways for number in wrong if grade(way.format(number))] == []
    # operands restated are no result, even where the result is one of them
    for text in (
        f"var_a is {a} and var_b is {b}.",
        f"{a} {op} {b} = {b} {op} {a}",
        f"{a} {op} {b} =",
        f"a is {a} and",
        "",
        "=",
        "!",
    ):
        assert not grade(text), text


@pytest.mark.parametrize(("a", "b"), FACTORS)
@pytest.mark.parametrize("task", ["retrieve_a", "retrieve_b", "chain"])
def test_a_value_is_the_first_number(task: str, a: int, b: int) -> None:
    grade = scene_grade(task, a, b)
    value = b if task == "retrieve_b" else a
    ways = ["{}", " var_x is {}.", "= {}, and 3", "It is {}\n7", "({})", "{}!"]
    assert [way for way in ways for number in spellings(value) if not grade(way.format(number))] == []
    wrong = [*no_spellings(value), *spellings(value + 1), f"8 {value}"]
    assert [way.format(number) for way in ways for number in wrong if grade(way.format(number))] == []


@pytest.mark.parametrize(("a", "b"), FACTORS)
def test_two_values_are_the_first_two_numbers(a: int, b: int) -> None:
    grade = scene_grade("retrieve_both", a, b)
    ways = ["{} and {}", " var_a is {} and var_b is {}.", "{}, {}", "{}\n{}", "a = {}; b = {}. 9"]
    pairs = list(zip(spellings(a), spellings(b), strict=True))
    assert [way.format(*pair) for way in ways for pair in pairs if not grade(way.format(*pair))] == []
    wrong = [(str(a), number) for number in no_spellings(b)] + [(number, str(b)) for number in no_spellings(a)]
    assert [way.format(*pair) for way in ways for pair in wrong if grade(way.format(*pair))] == []
    assert not grade(f"{a}.{b}")


@pytest.mark.parametrize(("a", "b"), FACTORS)
def test_two_values_stated_twice_are_the_first_four_numbers(a: int, b: int) -> None:
    grade = scene_grade("retrieve_twice", a, b)
    ways = ["{} and {}, so {} and {}.", " x is {} and y is {}, so the numbers are {} and {}.", "{}\n{}\n{}\n{}\n9"]
    numbers = [str(a), str(b)] * 2
    assert [way for way in ways if not grade(way.format(*numbers))] == []
    assert [
        way for way in ways for pair in zip(spellings(a), spellings(b), strict=True) if not grade(way.format(*pair * 2))
    ] == []
    for place, value in enumerate((a, b) * 2):
        for other in (*no_spellings(value), *spellings(value + 1)):
            changed = [*numbers[:place], other, *numbers[place + 1 :]]
            assert [way.format(*changed) for way in ways if grade(way.format(*changed))] == []
    assert not grade(f"{a} and {b}.")
    assert not grade(f"{a} and {b}, so {a}.")
    assert grade(f"{a} and {b}, so {b} and {a}.") == (a == b)


@pytest.mark.parametrize(
    ("grader", "right", "wrong"),
    [
        ({"exact": "Paris"}, [" Paris\n"], ["paris", "Paris.", ""]),
        ({"regex": r"^\s*(Paris|paris)\b"}, ["Paris.", " paris it is"], ["In Paris", "Pariser"]),
        ({"numeric": 1000, "tolerance": 0.5}, ["25 * 40 = 1,000.", "1000.4"], ["1000 or 999", "1,00", "none", ""]),
        ({"numeric": -3}, ["x = -3"], ["10-3", "3"]),
        ({"choice": "B", "choices": ["A", "B", "C"]}, ["(B) it is", "b"], ["A or B", "Because", ""]),
        ({"choice": "red box", "choices": ["red", "red box"]}, ["the red box"], ["the red one"]),
    ],
)
def test_graders(tmp_path: Path, grader: dict[str, object], right: list[str], wrong: list[str]) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"text": "q", **grader}) + '\n{"text": "no grader"}\n')
    spec = load(tmp_path, "{file: p.jsonl}")
    task, none = spec.prompts.tasks
    assert none is None
    assert task is not None
    assert (task.name, task.item, task.kind) == ("answer", "1", "other")
    grade = grade_function(asdict_task(task)["grader"])  # type: ignore[arg-type]
    assert [text for text in right if not grade(text)] == []
    assert [text for text in wrong if grade(text)] == []


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ({"exact": "a", "numeric": 1}, "KVS206"),
        ({"choices": ["a"]}, "KVS206"),
        ({"numeric": "1"}, "KVS201"),
        ({"numeric": True}, "KVS201"),
        ({"numeric": 1, "tolerance": -1}, "KVS205"),
        ({"numeric": 10**400}, "KVS205"),
        ({"numeric": -(10**400)}, "KVS205"),
        ({"numeric": 1, "tolerance": 10**400}, "KVS205"),
        ({"numeric": float("inf")}, "KVS205"),
        ({"exact": ""}, "KVS201"),
        ({"regex": "("}, "KVS210"),
        ({"regex": r"(a)\1"}, "KVS210"),
        ({"regex": "(?=a)b"}, "KVS210"),
        ({"regex": "(((a{1000}){1000}){1000})"}, "KVS210"),
        ({"choice": "D", "choices": ["A", "B"]}, "KVS201"),
        ({"numeric": 1, "kind": "memory"}, "KVS203"),
        ({"numeric": 1, "context": -1}, "KVS201"),
        ({"numeric": 1, "task": ["a"]}, "KVS201"),
        ({"numerc": 4}, "KVS202"),
        ({"Numeric": 4}, "KVS202"),
        ({"exact": "a", "tolerence": 4}, "KVS202"),
        ({"choice": "A", "choises": ["A", "B"]}, "KVS202"),
        ({"grader": "numeric"}, "KVS202"),
    ],
)
def test_wrong_graders_name_their_line(tmp_path: Path, line: dict[str, object], code: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"text": "fine"}\n' + json.dumps({"text": "q", **line}))
    with pytest.raises(SpecError) as caught:
        load(tmp_path, "{file: p.jsonl}")
    assert caught.value.diagnostics[0].code == code
    assert caught.value.diagnostics[0].mark is not None
    assert caught.value.diagnostics[0].mark.line == 2


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ('{"text": "q", "numerc": 4}', "did you mean `numeric`?"),
        ('{"text": "q", "regexp": "4"}', "did you mean `regex`?"),
        ('{"text": "q", "grader": "numeric"}', '"numeric": 100'),
    ],
)
def test_a_mistyped_grader_is_told_with_what_was_meant(tmp_path: Path, line: str, hint: str) -> None:
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(SpecError) as caught:
        load(tmp_path, "{file: p.jsonl}")
    assert hint in (caught.value.diagnostics[0].hint or "")


@pytest.mark.parametrize("line", ['"numeric": 4, "numeric": 5', '"text": "r"', '"own": {"a": 1, "a": 2}'])
def test_a_key_stands_once_in_a_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"text": "fine"}\n{"text": "q", ' + line + "}")
    with pytest.raises(SpecError, match="appears twice") as caught:
        load(tmp_path, "{file: p.jsonl}")
    (found,) = caught.value.diagnostics
    assert (found.code, found.mark and found.mark.line) == ("KVS103", 2)


def test_other_keys_are_the_files_own(tmp_path: Path) -> None:
    own = ["id", "number", "name", "source", "category", "question", "answer", "target", "label", "content", "x-note"]
    (tmp_path / "p.jsonl").write_text(json.dumps({"text": "q", **dict.fromkeys(own, 1)}))
    assert load(tmp_path, "{file: p.jsonl}").prompts.tasks == ()


def test_patterns_of_strangers_take_linear_time() -> None:
    # The textbook case: exponential in a backtracking engine.
    grade = grade_function({"kind": "regex", "expected": "^(a+)+$", "choices": [], "tolerance": 0})
    assert not grade("a" * 50_000 + "!")
    assert numbers("9" * 100_000) == []
