"""The math-needle prompts, graders, and what the report says about graded answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from kvspec.errors import SpecError
from kvspec.plan import Trial, compile_plan
from kvspec.records import Record, RecordWriter, RunStore
from kvspec.report import render_text, to_json
from kvspec.report.html import html_report
from kvspec.score import Scores, score_run
from kvspec.score.grading import RIGHT, STATED, Graders, grade_function, numbers
from kvspec.spec import Spec, load_spec
from kvspec.spec.needle import ADJECTIVES, NOUNS, VERBS, count_tokens
from kvspec.spec.needle_scene import GOODS, TASKS, WORDINGS, Values, Variables

SCHEMA = json.loads(Path(__file__).parent.parent.joinpath("schemas/report.schema.json").read_text())
FAULT = "faults: [{name: F, model: random, site: KV_WRITE, rate: {per_bit: [1e-7, 1e-6]}}]\ntrials: 3\n"


def load(tmp_path: Path, prompts: str) -> Spec:
    path = tmp_path / "spec.yaml"
    path.write_text(f"kvspec: 1\nname: t\nmodel: {{id: gpt2}}\nprompts: {prompts}\n{FAULT}", encoding="utf-8")
    return load_spec(path)


def needle(tmp_path: Path, more: str = "") -> Spec:
    return load(tmp_path, f"{{generator: math_needle, contexts: [60, 300], items: 5{more}}}")


# --- the generator ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wording", WORDINGS)
def test_all_questions_of_an_item_stand_below_one_text(tmp_path: Path, wording: str) -> None:
    prompts = needle(tmp_path, f", tasks: [{', '.join(TASKS)}], wording: {wording}").prompts
    assert len(prompts.texts) == len(prompts.tasks) == 2 * 5 * 7
    assert len(set(prompts.texts)) == 70
    for start in range(0, 70, 7):
        heads = {text.rsplit("\nQuestion:", 1)[0] for text in prompts.texts[start : start + 7]}
        assert len(heads) == 1
        tasks = [task for task in prompts.tasks[start : start + 7] if task]
        assert [task.name for task in tasks] == list(TASKS)
        assert len({(task.item, task.context) for task in tasks}) == 1


def test_examples_can_show_the_task_that_is_asked(tmp_path: Path) -> None:
    tasks = f", tasks: [{', '.join(TASKS)}]"
    own, shared = (needle(tmp_path, f"{tasks}, examples_of: {of}").prompts for of in ("task", "item"))
    questions = {text.rsplit("\nQuestion:", 1)[1] for text in own.texts}
    assert questions == {text.rsplit("\nQuestion:", 1)[1] for text in shared.texts}
    for text, other, task in zip(own.texts, shared.texts, own.tasks, strict=True):
        assert task is not None
        *examples, asked = text.split("\n\n")
        assert asked == other.split("\n\n")[-1]  # the context and its facts are the same
        kinds = {re.sub(r"var_[a-z]|[A-Z][a-z]+\?", "X", e.split("Question: ")[1].split("\n")[0]) for e in examples}
        kinds |= {re.sub(r"var_[a-z]|[A-Z][a-z]+\?", "X", asked.split("Question: ")[1].split("\n")[0])}
        assert len(examples) == 4
        assert len(kinds) == 1, kinds


def test_answers_follow_from_the_text(tmp_path: Path) -> None:
    prompts = needle(tmp_path, ", a: [10, 99], b: 25").prompts
    for text, task in zip(prompts.texts, prompts.tasks, strict=True):
        assert task is not None
        facts = text.rsplit("\n\n", 1)[1]
        a, b = (int(facts.split(f"var_{name} is ", 1)[1].split(".")[0]) for name in "ab")
        assert b == 25
        assert 10 <= a <= 99
        right = {
            "retrieve_a": f" var_a is {a}.",
            "retrieve_b": f" var_b is {b}.",
            "retrieve_both": f" var_a is {a} and var_b is {b}.",
            "sum": f" var_a is {a} and var_b is {b}, so var_a + var_b = {a} + {b} = {a + b}.",
            "product": f" var_a is {a} and var_b is {b}, so var_a * var_b = {a} * {b} = {a * b}.",
        }[task.name]
        graders = Graders([json.loads(json.dumps(asdict_task(task)))])
        assert graders.flags(0, right) == RIGHT + (STATED if task.operands else 0)
        assert graders.flags(0, re.sub(r"\b\d+\b", "7", right)) == 0
        assert graders.flags(0, right + " The value of var_c is 3, and 1 = 1.") & RIGHT
        assert graders.flags(0, "!!!!") == 0


def asdict_task(task: object) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(task)  # type: ignore[call-overload, no-any-return]


def test_goods_answers_follow_from_the_text(tmp_path: Path) -> None:
    """By a reader that knows nothing but the sentences of the context."""
    more = f", wording: goods, examples: 7, tasks: [{', '.join(TASKS)}], a: [1, 9], b: [10, 99]"
    prompts = needle(tmp_path, more).prompts
    swapped = set()
    for text, task in zip(prompts.texts, prompts.tasks, strict=True):
        assert task is not None
        *examples, asked = text.split("\n\n")
        assert len(examples) == 7
        names = {name for example in examples for name in re.findall("|".join(GOODS), example)}
        assert len(names) == 3 * 7 - 6  # only the example of chain needs its third name
        assert not names & set(re.findall(r"\w+", asked))
        number = dict(re.findall(r"The number of (\w+) is (\d+)\.", asked))
        bought = dict(re.findall(r"(\w+) bought the (\w+)\.", asked))
        same = dict(re.findall(r"There are as many (\w+) as (\w+)\.", asked))
        a, b = number["apples"], number["lemons"]
        both = f" The number of apples is {a} and the number of lemons is {b}"
        (person,) = re.findall(r"what (\w+) bought\?", asked) or ["Anna"]
        good = bought.get(person, "apples")
        swapped.add(good)
        right = {
            "retrieve_a": f" The number of apples is {a}.",
            "retrieve_b": f" The number of lemons is {b}.",
            "retrieve_both": f"{both}.",
            "sum": f"{both}, so {a} + {b} = {int(a) + int(b)}.",
            "product": f"{both}, so {a} * {b} = {int(a) * int(b)}.",
            "two_hop": f" {person} bought the {good}, and the number of {good} is {number[good]}.",
            "chain": f" There are as many pears as {same['pears']}, and the number of apples is {a}.",
        }[task.name]
        graders = Graders([json.loads(json.dumps(asdict_task(task)))])
        assert graders.flags(0, right) == RIGHT + (STATED if task.operands else 0)
        assert graders.flags(0, re.sub(r"\b\d+\b", "777", right)) == 0
        other = {"retrieve_a": b, "retrieve_b": a, "two_hop": b if good == "apples" else a, "chain": b}
        assert not graders.flags(0, f" It is {other.get(task.name, 0)}.")
    assert swapped == {"apples", "lemons"}


@pytest.mark.parametrize("wording", ["variables", "goods"])
@pytest.mark.parametrize(("a", "b"), [((1, 9), (1, 9)), ((1, 3), (3, 4)), ((50, 50), (25, 25)), ((7, 7), (7, 7))])
def test_chance_is_that_of_naming_numbers_of_the_text(
    tmp_path: Path, a: tuple[int, int], b: tuple[int, int], wording: str
) -> None:
    more = f", wording: {wording}, a: {list(a)}, b: {list(b)}, tasks: [{', '.join(TASKS)}]"
    tasks = {task.name: task for task in needle(tmp_path, more).prompts.tasks if task is not None}
    drawn = [(x, y) for x in range(a[0], a[1] + 1) for y in range(b[0], b[1] + 1)]
    one = [guess == pair[0] for pair in drawn for guess in pair]
    both = [(first, second) == pair for pair in drawn for first in pair for second in pair]
    for name in ("retrieve_a", "retrieve_b", "chain", *(["two_hop"] if wording == "goods" else [])):
        assert tasks[name].chance == pytest.approx(sum(one) / len(one)), name
    assert tasks["retrieve_both"].chance == pytest.approx(sum(both) / len(both))
    for name, results in (("sum", [x + y for x, y in drawn]), ("product", [x * y for x, y in drawn])):
        assert tasks[name].chance == pytest.approx(max(map(results.count, results)) / len(drawn)), name
    if wording == "variables":
        assert tasks["two_hop"].chance == 0.5  # rooms differ


def test_the_chance_of_a_sum_needs_no_list_of_sums(tmp_path: Path) -> None:
    (task, *_) = needle(tmp_path, ", tasks: [sum], a: [0, 1000000000], b: 7").prompts.tasks
    assert task is not None
    assert task.chance == pytest.approx(1 / 1_000_000_001)


def test_facts_stand_where_they_were_put(tmp_path: Path) -> None:
    text = load(tmp_path, "{generator: math_needle, contexts: 2000, items: 1, positions: [0.1, 0.6]}").prompts.texts[0]
    context = text.rsplit("\n\n", 1)[1].rsplit("\nQuestion", 1)[0]
    assert abs(context.index("var_a is") / len(context) - 0.1) < 0.03
    assert abs(context.index("var_b is") / len(context) - 0.6) < 0.03


@pytest.mark.vllm  # the conversion of the bundled model needs its extra
def test_the_length_is_in_tokens(tmp_path: Path) -> None:
    from kvspec.bundled import convert
    from kvspec.models import load_tokenizer

    tokenizer = load_tokenizer(convert())
    for word in {*ADJECTIVES, *NOUNS, *" ".join(VERBS).split(), *GOODS, *WORDINGS["goods"].MAIN}:
        assert len(tokenizer.encode(f" {word}").ids) == 1, word
    for tokens, wording in ((100, "variables"), (2000, "variables"), (100, "goods")):
        spec = f"{{generator: math_needle, contexts: {tokens}, items: 3, wording: {wording}}}"
        prompts = load(tmp_path, spec).prompts
        for text in prompts.texts:
            context = text.rsplit("\n\n", 1)[1].rsplit("\nQuestion", 1)[0]
            assert abs(len(tokenizer.encode(context).ids) - tokens) <= 12 + tokens * 0.03
    assert count_tokens("The value of var_a is 25.") == len(tokenizer.encode("The value of var_a is 25.").ids)


def test_more_items_leave_the_first_ones_as_they_are(tmp_path: Path) -> None:
    few = load(tmp_path, "{generator: math_needle, contexts: 100, items: 2, tasks: [sum]}").prompts.texts
    many = load(tmp_path, "{generator: math_needle, contexts: 100, items: 9, tasks: [sum]}").prompts.texts
    other = load(
        tmp_path, "{generator: math_needle, contexts: 100, items: 2, tasks: [sum], item_seed: 1}"
    ).prompts.texts
    assert many[:2] == few
    assert not set(few) & set(other)


@pytest.mark.parametrize(
    ("prompts", "code", "path"),
    [
        ("{inline: [a], items: 4}", "KVS206", "$.prompts.items"),
        ("{generator: needle}", "KVS203", "$.prompts.generator"),
        ("{generator: math_needle, tasks: [sums]}", "KVS203", "$.prompts.tasks[0]"),
        ("{generator: math_needle, wording: fruit}", "KVS203", "$.prompts.wording"),
        ('{generator: math_needle, wording: goods, fact: "{name} {value}"}', "KVS206", "$.prompts.fact"),
        ("{generator: math_needle, a: [9, 1]}", "KVS205", "$.prompts.a"),
        ("{generator: math_needle, tasks: [product], a: [0, 1000000000], b: [0, 1000000000]}", "KVS205", "$.prompts"),
        ("{generator: math_needle, positions: [0.8, 0.2]}", "KVS205", "$.prompts.positions"),
        ("{generator: math_needle, positions: [0.2, 80]}", "KVS205", "$.prompts.positions[1]"),
        ("{generator: math_needle, contexts: [3]}", "KVS205", "$.prompts.contexts[0]"),
        ("{generator: math_needle, contexts: 1000000, items: 100000}", "KVS207", "$.prompts"),
        ('{generator: math_needle, fact: "{name.__class__} {value}"}', "KVS210", "$.prompts.fact"),
    ],
)
def test_wrong_parameters(tmp_path: Path, prompts: str, code: str, path: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, prompts)
    assert (caught.value.diagnostics[0].code, caught.value.diagnostics[0].path) == (code, path)


# --- numbers of answers -------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("fact", ["{name.__class__} {value}", "{name} is here", "{value} {name}"])
def test_a_wrong_fact_names_what_it_must_hold(tmp_path: Path, fact: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, f'{{generator: math_needle, fact: "{fact}"}}')
    (found,) = caught.value.diagnostics
    assert found.code == "KVS210"
    assert "{name} and {value} once each" in str(found.expected)


# --- graders ------------------------------------------------------------------------------------------------------


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
    ],
)
def test_wrong_graders_name_their_line(tmp_path: Path, line: dict[str, object], code: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"text": "fine"}\n' + json.dumps({"text": "q", **line}))
    with pytest.raises(SpecError) as caught:
        load(tmp_path, "{file: p.jsonl}")
    assert caught.value.diagnostics[0].code == code
    assert caught.value.diagnostics[0].mark is not None
    assert caught.value.diagnostics[0].mark.line == 2


def test_patterns_of_strangers_take_linear_time() -> None:
    # The textbook case: exponential in a backtracking engine.
    grade = grade_function({"kind": "regex", "expected": "^(a+)+$", "choices": [], "tolerance": 0})
    assert not grade("a" * 50_000 + "!")
    assert numbers("9" * 100_000) == []


# --- what the report says -----------------------------------------------------------------------------------------


def answer(spec: Spec, trial: Trial, lost: set[str]) -> str:
    task = spec.prompts.tasks[trial.request]
    assert task is not None
    if task.name in lost:
        return "!!!!"
    if task.operands:
        a, b = (int(x) for x in task.operands)
        result = {"sum": a + b, "product": a * b}.get(task.name)
        return f"{a} and {b}." if result is None else f"{a} and {b}, so x with y = {a} with {b} = {result}."
    return "It is " + re.findall(r"0\*(?:\(\?:)?(\d+)", str(task.grader.expected))[0]


def score(tmp_path: Path, spec: Spec, said: object) -> object:
    plan = compile_plan(spec)
    with RunStore.create(tmp_path / "run", plan, version="test") as store:
        with RecordWriter(store) as writer:
            for trial in plan.trials():
                text = said(trial)  # type: ignore[operator]
                tokens = [sum(text.encode()), len(text)]
                writer.add(
                    Record(
                        trial_id=trial.id, kind=trial.kind, cell=trial.cell, request=trial.request, trial=trial.trial,
                        prompt_tokens=4, token_ids=tokens, text=text, finish_reason="stop", tokens_written=5,
                        flips_planned=int(trial.kind == "fault"), flips_landed=int(trial.kind == "fault"),
                    )
                )  # fmt: skip
        store.finish()
    return score_run(tmp_path / "run")


def flaky(spec: Spec, lost: dict[tuple[int, str], float]) -> object:
    """Answers of which a share is lost, by (cell, task): the last trials of all items."""

    def said(trial: Trial) -> str:
        task = spec.prompts.tasks[trial.request]
        assert task is not None
        share = lost.get((trial.cell, task.name), 0.0) if trial.kind == "fault" else 0.0
        return answer(spec, trial, {task.name} if int(task.item) >= (1 - share) * spec_items(spec) else set())

    return said


def spec_items(spec: Spec) -> int:
    return len({task.item for task in spec.prompts.tasks if task})


@pytest.mark.parametrize(
    ("lost", "head"),
    [
        ({"sum", "product"}, "Reasoning breaks before retrieval of the same operands wherever"),
        ({"retrieve_a", "retrieve_b", "retrieve_both"}, "Retrieval of the same operands breaks before reasoning"),
        (set(), "This run cannot tell whether reasoning or retrieval of the same operands breaks first: of 8 comp"),
        # retrieve_a recalls one operand only, so it does not decide
        ({"sum", "retrieve_a"}, "Reasoning breaks before retrieval of the same operands wherever"),
    ],
)
def test_the_verdict_follows_from_the_tests(tmp_path: Path, lost: set[str], head: str) -> None:
    spec = needle(tmp_path)

    # the first item is never solved clean, so it is in no ratio
    def said(trial: Trial) -> str:
        task = spec.prompts.tasks[trial.request]
        assert task is not None
        if task.item == "0":
            return "no idea"
        return answer(spec, trial, lost if trial.kind == "fault" and trial.cell == 1 else set())

    scores = score(tmp_path, spec, said)
    tasks = scores.tasks  # type: ignore[attr-defined]
    assert {(c.right.k, c.right.n) for c in tasks.clean} == {(4, 5)}
    assert len(tasks.clean) == 2 * 5
    assert len(tasks.pairs) == 2 * 2 * 3 * 2  # contexts, cells, retrieval, reasoning
    assert all(pair.pairs == 4 * 3 for pair in tasks.pairs)
    for pair in tasks.pairs:
        broken = pair.cell == 1
        assert pair.only_reasoning + pair.both == 12 * (broken and pair.reasoning in lost)
        assert pair.only_retrieval + pair.both == 12 * (broken and pair.retrieval in lost)
    for found in tasks.faulted:
        assert found.kept.n == 12
        assert found.kept.k == 12 * (found.cell == 0 or found.task not in lost)
        assert found.right.n == 15
    first = next(s for s in scores.verdict if "breaks" in s)  # type: ignore[attr-defined]
    assert first.startswith(head)
    other = next(s for s in scores.verdict if s.startswith("Against retrieval of other facts"))  # type: ignore[attr-defined]
    # two contexts, two tasks each: a lost task against one that is not
    reasoning, retrieval = lost & {"sum", "product"}, lost & {"retrieve_a", "retrieve_b"}
    more = (2 * len(reasoning) * (2 - len(retrieval)), 2 * len(retrieval) * (2 - len(reasoning)))
    said = f"reasoning fails more often in {more[0]}, retrieval in {more[1]},"
    assert f"of 16 comparisons on common items at equal rates {said}" in other
    zombie = next(s for s in scores.verdict if "ombie" in s)  # type: ignore[attr-defined]
    # 12 of 12 are not enough to show 95 %
    assert zombie.startswith("A zombie state" if lost & {"sum", "product"} else "No cell is in the zombie state")
    text = render_text(scores)  # type: ignore[arg-type]
    assert "Sensitivity" in text
    data = to_json(scores)  # type: ignore[arg-type]
    assert len(data["tasks"]["pairs"]) == len(tasks.pairs)
    jsonschema.validate(data, SCHEMA)
    page = html_report(tmp_path / "run")
    section = page[page.index('<section id="tasks"') :].partition("</section>")[0]
    assert section.count("<tr>") == 2 + 2 * 5 * 3 + len(tasks.pairs)


def test_the_step_is_judged_given_the_operands(tmp_path: Path) -> None:
    spec = load(tmp_path, "{generator: math_needle, contexts: [60], items: 20, tasks: [sum]}")

    def said(trial: Trial) -> str:
        task = spec.prompts.tasks[trial.request]
        assert task is not None
        right = answer(spec, trial, set())
        if trial.kind == "fault" and trial.cell == 1:
            if int(task.item) < 10:
                return "garbage"  # operands lost: says nothing about the step
            return right.rsplit(" ", 1)[0] + " 99."  # operands stated, result wrong
        if task.item == "18":
            return "no idea"  # operands not stated even clean: no pair
        if task.item == "19":
            return right.rsplit(" ", 1)[0] + " 98."  # wrong even clean: not the fault's doing
        return right

    scores = score(tmp_path, spec, said)
    (sentence,) = (s for s in scores.verdict if "stated operands" in s)  # type: ignore[attr-defined]
    assert sentence == (
        "Faults hurt the step from stated operands to the result of sum at 60 tokens wherever a change is shown: "
        "P(right | operands stated) is 94.7% [75.4%, 99.1%] (n = 19) clean, lower in 1 of 2 cells, higher in 0, "
        "undecided 1 (McNemar against clean, Holm): 0.0% [0.0%, 11.4%] (n = 30) under F[1e-06] (p = 2.4e-07)."
    )
    tasks = scores.tasks  # type: ignore[attr-defined]
    clean, broken = tasks.faulted
    assert (clean.right_given_stated.k, clean.right_given_stated.n) == (54, 57)
    assert clean.p_holm == 1.0
    assert (broken.right_given_stated.k, broken.right_given_stated.n, broken.stated.k) == (0, 30, 30)
    assert broken.stated_pairs == (27, 24, 0)
    assert broken.p_holm is not None
    assert broken.p_holm < 1e-6
    assert tasks.pairs == ()


@pytest.mark.parametrize(
    ("lost", "head", "zombie"),
    [
        # what is lost, by (cell, task): each sentence beside the counts that make it true
        ({}, "This run cannot tell", "No cell is in the zombie state"),
        ({(0, "sum"): 0.6}, "Reasoning breaks before", "Zombie state"),
        ({(0, "sum"): 0.3}, "Reasoning breaks before", "No cell is in the zombie state"),
        ({(0, "sum"): 0.52}, "Reasoning breaks before", "A zombie state"),  # below 50 %, but by its interval not surely
        ({(0, "retrieve_both"): 0.6}, "Retrieval of the same operands breaks before", "No cell is in the zombie state"),
        ({(0, "sum"): 0.6, (0, "retrieve_both"): 0.6}, "This run cannot tell", "No cell is in the zombie state"),
        ({(0, "sum"): 0.6, (1, "retrieve_both"): 0.6}, "Neither reasoning nor retrieval", "Zombie state"),
        ({(0, "sum"): 0.02}, "This run cannot tell", "No cell is in the zombie state"),  # 6 of 300: p = 0.03, Holm 0.06
    ],
)
def test_each_verdict_is_true_of_its_counts(
    tmp_path: Path, lost: dict[tuple[int, str], float], head: str, zombie: str
) -> None:
    spec = load(tmp_path, "{generator: math_needle, contexts: [60], items: 100, tasks: [retrieve_both, sum]}")
    scores: Scores = score(tmp_path, spec, flaky(spec, lost))  # type: ignore[assignment]
    first, second = scores.verdict[_place(scores, "ombie") - 1 :][:2]
    assert first.startswith(head)
    assert second.startswith(zombie)
    apart = [pair for pair in scores.tasks.pairs if pair.p_holm < 0.05]
    assert all(pair.same_operands for pair in scores.tasks.pairs)
    losses = [(p.only_reasoning > p.only_retrieval) for p in apart]
    assert f"reasoning fails more often in {sum(losses)}, retrieval in {len(losses) - sum(losses)}" in first
    states = [
        (kept["retrieve_both"], kept["sum"])
        for cell in range(2)
        if (kept := {f.task: f.kept for f in scores.tasks.faulted if f.cell == cell})
    ]
    inside = [recall.rate >= 0.95 and reason.rate <= 0.5 for recall, reason in states]  # type: ignore[operator]
    shown = [recall.low >= 0.95 and reason.high <= 0.5 for recall, reason in states]  # type: ignore[operator]
    assert second.startswith("No cell") == (not any(inside))
    assert second.startswith("Zombie state") == any(shown)


def test_kinds_of_faults_are_told_apart_and_guesses_named(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    needles = "{generator: math_needle, contexts: [60], items: 100, tasks: [retrieve_both, retrieve_b, sum]}"
    faults = (
        "[{name: F, model: random, site: KV_WRITE, rate: {per_bit: 1e-7}, where: [{tokens: all}, {tokens: decode}]}]"
    )
    path.write_text(f"kvspec: 1\nname: t\nmodel: {{id: gpt2}}\nprompts: {needles}\nfaults: {faults}\ntrials: 3\n")
    spec = load_spec(path)
    lossy = flaky(spec, {(1, "sum"): 0.5})

    def said(trial: Trial) -> str:
        task = spec.prompts.tasks[trial.request]
        assert task is not None
        guess = task.name == "retrieve_b" and int(task.item) % 2
        return "no idea" if guess else lossy(trial)  # type: ignore[operator, no-any-return]

    scores: Scores = score(tmp_path, spec, said)  # type: ignore[assignment]
    first = scores.verdict[_place(scores, "ombie") - 2]
    names = [cell.plan.name for cell in scores.cells]
    assert f"by kind of fault: {names[0]} 0 and 0 of 1; {names[1]} 1 and 0 of 1)" in first
    clean = {sentence.split()[1]: sentence for sentence in scores.verdict if sentence.startswith("Clean ")}
    assert "50 of 100 right, chance 56% and not shown to be above it" in clean["retrieve_b"]
    assert clean["sum"].endswith("100 of 100 right, chance 11%.")


def _place(scores: Scores, word: str) -> int:
    return next(i for i, sentence in enumerate(scores.verdict) if word in sentence)


def answer_of_step(spec: Spec, trial: Trial, wrong: bool) -> str:
    right = answer(spec, trial, set())
    return right.rsplit(" ", 1)[0] + " 99." if wrong else right


@pytest.mark.parametrize(
    ("faulty", "clean", "stated", "head"),
    [
        (0.0, 0.0, True, "No fault is shown to change the step"),
        (0.05, 0.0, True, "No fault is shown to change the step"),  # 2 of 40: p = 0.5
        (0.5, 0.0, True, "Faults hurt the step"),
        (0.0, 0.5, True, "Under faults the step from stated operands to the result of sum at 60 tokens is right more"),
        (0.0, 0.0, False, "Whether faults hurt the step"),
    ],
)
def test_the_step_is_said_to_break_where_it_does(
    tmp_path: Path, faulty: float, clean: float, stated: bool, head: str
) -> None:
    spec = load(tmp_path, "{generator: math_needle, contexts: [60], items: 40, tasks: [sum]}")

    def said(trial: Trial) -> str:
        task = spec.prompts.tasks[trial.request]
        assert task is not None
        if trial.kind == "fault" and not stated:
            return "garbage"
        share = (faulty if trial.cell == 1 else 0.0) if trial.kind == "fault" else clean
        return answer_of_step(spec, trial, int(task.item) < share * 40)

    scores: Scores = score(tmp_path, spec, said)  # type: ignore[assignment]
    (sentence,) = (s for s in scores.verdict if "operands" in s and "step" in s)
    assert sentence.startswith(head)
    assert f"{20 / 40:.1%}" in sentence or max(faulty, clean) < 0.5


def test_the_step_can_change_both_ways(tmp_path: Path) -> None:
    spec = load(tmp_path, "{generator: math_needle, contexts: [60], items: 40, tasks: [sum]}")

    def said(trial: Trial) -> str:
        task = spec.prompts.tasks[trial.request]
        assert task is not None
        below = {"golden": 20, "fault": 0 if trial.cell == 0 else 40}.get(trial.kind, 20)
        return answer_of_step(spec, trial, int(task.item) < below)

    scores: Scores = score(tmp_path, spec, said)  # type: ignore[assignment]
    assert any(
        "change the step from stated operands to the result of sum at 60 tokens both ways" in s for s in scores.verdict
    )


def test_the_dose_stands_beside_every_rate(tmp_path: Path) -> None:
    """Expected flips per request of each task, at the length of its golden answer."""
    spec = load(tmp_path, "{generator: math_needle, contexts: [60, 300], items: 3, tasks: [retrieve_b, sum]}")
    plan = compile_plan(spec)
    estimate = {
        # prompts of 100 and 400 tokens with answers of 50, the last token of which is not written
        "cells": [{"expected_flips": {"per_trial": 0.25 * (c.index + 1) * (250 + 49)}} for c in plan.cells]
    }
    prompt = [100 if task and task.context == 60 else 400 for task in spec.prompts.tasks]
    with RunStore.create(tmp_path / "run", plan, version="test") as store:
        (tmp_path / "run" / "estimate.json").write_text(json.dumps(estimate))
        with RecordWriter(store) as writer:
            for trial in plan.trials():
                task = spec.prompts.tasks[trial.request]
                assert task is not None
                text = answer(spec, trial, set())
                # a faulted answer runs on, but the dose is that of the golden one
                written = prompt[trial.request] + (4 if task.name == "sum" else 1) + 30 * (trial.kind == "fault")
                writer.add(
                    Record(
                        trial_id=trial.id, kind=trial.kind, cell=trial.cell, request=trial.request, trial=trial.trial,
                        prompt_tokens=prompt[trial.request], token_ids=[1], text=text, finish_reason="stop",
                        tokens_written=written, flips_planned=0, flips_landed=0,
                    )
                )  # fmt: skip
        store.finish()
    scores = score_run(tmp_path / "run")
    found = {(f.cell, f.context, f.task): f.expected_flips for f in scores.tasks.faulted}
    assert found[0, 60, "retrieve_b"] == pytest.approx(101 * 0.25)
    assert found[1, 60, "sum"] == pytest.approx(104 * 0.5)
    assert found[1, 300, "sum"] == pytest.approx(404 * 0.5)
    (compared,) = (sentence for sentence in scores.verdict if "on common items" in sentence)
    assert "at equal rates (1 to 1 times the expected flips in reasoning)" in compared
    assert any("retrieve_b 100% [70%, 100%] at 25 expected flips" in sentence for sentence in scores.verdict)
    (row,) = (line for line in render_text(scores).splitlines() if "F[1e-06]" in line and " 200 / 202 " in line)
    assert "1e-06/bit" in row
    assert {f["expected_flips"] for f in to_json(scores)["tasks"]["faulted"]} == set(found.values())
    page = html_report(tmp_path / "run")
    section = page[page.index('<section id="tasks"') :].partition("</section>")[0]
    assert "1e-06/bit" in section
    assert ">200 / 202<" in section


def test_a_zombie_state_is_shown_by_intervals(tmp_path: Path) -> None:
    spec = load(tmp_path, "{generator: math_needle, contexts: [60], items: 40, tasks: [retrieve_a, sum]}")

    def said(trial: Trial) -> str:
        return answer(spec, trial, {"sum"} if trial.kind == "fault" and trial.cell == 1 else set())

    verdict = score(tmp_path, spec, said).verdict  # type: ignore[attr-defined]
    assert any(s.startswith("Zombie state") and "retrieve_a 100% [97%, 100%] and sum 0% [0%, 3%]" in s for s in verdict)


def test_ungraded_runs_have_no_tasks(tmp_path: Path) -> None:
    spec = load(tmp_path, "{inline: [a, b]}")
    scores = score(tmp_path, spec, lambda trial: "x")
    assert scores.tasks.clean == ()  # type: ignore[attr-defined]
    assert replace(spec.prompts) == spec.prompts
    assert "tasks" not in spec.to_json()["prompts"]
