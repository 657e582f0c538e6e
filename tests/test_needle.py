"""The math-needle prompts: what stands in them and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kvspec.errors import SpecError
from kvspec.score.grading import RIGHT, STATED, Graders
from kvspec.spec.needle import ADJECTIVES, NOUNS, VERBS, count_tokens
from kvspec.spec.needle_scene import GOODS, TASKS, WORDINGS
from tests.needle_specs import asdict_task, load, needle


@pytest.mark.parametrize("wording", WORDINGS)
def test_all_questions_of_an_item_stand_below_one_text(tmp_path: Path, wording: str) -> None:
    prompts = needle(tmp_path, f", tasks: [{', '.join(TASKS)}], wording: {wording}").prompts
    assert len(prompts.texts) == len(prompts.tasks) == 2 * 5 * 8
    assert len(set(prompts.texts)) == 80
    for start in range(0, 80, 8):
        heads = {text.rsplit("\nQuestion:", 1)[0] for text in prompts.texts[start : start + 8]}
        assert len(heads) == 1
        tasks = [task for task in prompts.tasks[start : start + 8] if task]
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
    tasks = "retrieve_a, retrieve_b, retrieve_both, retrieve_twice, sum, product"
    prompts = needle(tmp_path, f", a: [10, 99], b: 25, tasks: [{tasks}]").prompts
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
            "retrieve_twice": f" var_a is {a} and var_b is {b}, so var_a and var_b are {a} and {b}.",
            "sum": f" var_a is {a} and var_b is {b}, so var_a + var_b = {a} + {b} = {a + b}.",
            "product": f" var_a is {a} and var_b is {b}, so var_a * var_b = {a} * {b} = {a * b}.",
        }[task.name]
        graders = Graders([json.loads(json.dumps(asdict_task(task)))])
        assert graders.flags(0, right) == RIGHT + (STATED if task.operands else 0)
        assert graders.flags(0, re.sub(r"\b\d+\b", "7", right)) == 0
        assert graders.flags(0, right + " The value of var_c is 3, and 1 = 1.") & RIGHT
        assert graders.flags(0, "!!!!") == 0


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
            "retrieve_twice": f"{both}, so the numbers are {a} and {b}.",
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
    for name in ("retrieve_both", "retrieve_twice"):
        assert tasks[name].chance == pytest.approx(sum(both) / len(both)), name
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


@pytest.mark.parametrize("fact", ["{name.__class__} {value}", "{name} is here", "{value} {name}"])
def test_a_wrong_fact_names_what_it_must_hold(tmp_path: Path, fact: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, f'{{generator: math_needle, fact: "{fact}"}}')
    (found,) = caught.value.diagnostics
    assert found.code == "KVS210"
    assert "{name} and {value} once each" in str(found.expected)
