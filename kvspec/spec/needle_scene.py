"""What a needle text is about: its facts, the questions below it, and their worked answers, in one of two wordings.

`variables`, the guide's: "The value of var_a is 7." The two-hop task has facts of its own (a key, its box, its room).

`goods`: "The number of apples is 7. Anna bought the apples." Answers repeat the facts word for word, and names are
words that no other name resembles, which lets a small model find and copy them. The two-hop task asks for one of the
values, so every task needs the same two numbers.

`retrieve_twice` is the control of length: it computes nothing, and in `Goods` with values of one digit its answer goes
on about as long as that of a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kvspec.spec.model import Grader

TASKS = ("retrieve_a", "retrieve_b", "retrieve_both", "retrieve_twice", "sum", "product", "two_hop", "chain")
RETRIEVAL = ("retrieve_a", "retrieve_b", "retrieve_both", "retrieve_twice")
STATING = ("retrieve_both", "retrieve_twice", "sum", "product")
"""Tasks whose answers state both values first, so that one answer shows its operands and its result."""

LETTERS = "defghjkmnpqrstuvwxyz"
GOODS = ("cherries", "grapes", "oranges", "peaches", "nuts", "beans", "carrots", "onions", "tomatoes", "potatoes",
         "eggs", "cakes", "books", "lamps", "chairs", "cups", "plates", "shirts", "shoes", "hats", "bags")  # fmt: skip
BOXES = ("red", "blue", "green", "yellow", "black", "white", "silver", "brown")
ROOMS = ("kitchen", "garage", "attic", "bedroom", "office", "cellar", "bathroom", "hallway")


class Draws(Protocol):
    """The draws of one item."""

    def sample(self, words: Sequence[str], count: int) -> list[str]:
        """Different words."""

    def within(self, ends: tuple[int, int]) -> int:
        """A number, both ends included."""


@dataclass(frozen=True, slots=True)
class Values:
    """Where two values lie, and where they stand."""

    a: tuple[int, int]
    b: tuple[int, int]
    """Ranges, both ends included."""
    positions: tuple[float, float]
    """Fractions of the context."""
    fact: str
    """Wording of a fact about a variable, with `{name}` and `{value}`."""


class Scene(Protocol):
    """The names and values of one text."""

    @property
    def a(self) -> int:
        """The early value."""

    @property
    def b(self) -> int:
        """The late value."""

    def facts(self, tasks: Sequence[str]) -> list[tuple[float, str]]:
        """(position, sentence) of what the tasks need."""

    def question(self, task: str) -> str:
        """The question of a task."""

    def answer(self, task: str) -> str:
        """Its worked answer."""

    def grader(self, task: str) -> Grader:
        """When an answer is right. Small models ramble on, so the first number, or the first result, counts."""


@dataclass(frozen=True, slots=True)
class Variables:
    """The guide's wording."""

    values: Values
    names: Sequence[str]
    """The early and the late variable, and the one that is the same as the early one."""
    people: Sequence[str]
    a: int
    b: int
    boxes: Sequence[str]
    rooms: Sequence[str]

    POOL = LETTERS
    MAIN = ("a", "b", "c")

    @classmethod
    def draw(cls, values: Values, draw: Draws, names: Sequence[str], people: Sequence[str]) -> Variables:
        """A scene with these names."""
        a, b = draw.within(values.a), draw.within(values.b)
        variables = [f"var_{letter}" for letter in names]
        return cls(values, variables, people, a, b, draw.sample(BOXES, 2), draw.sample(ROOMS, 2))

    def facts(self, tasks: Sequence[str]) -> list[tuple[float, str]]:
        """Those of the values, unless only the room of a key is asked for."""
        early, late = self.values.positions
        x, y, z = self.names
        fact = self.values.fact
        facts = [(early, fact.format(name=x, value=self.a)), (late, fact.format(name=y, value=self.b))]
        if tuple(tasks) == ("two_hop",):
            facts = []
        if "chain" in tasks:
            facts.append(((early + late) / 2, fact.format(name=z, value=f"the same as {x}")))
        if "two_hop" in tasks:
            inner = (late - early) / 6
            for person, box, room, shift in zip(self.people, self.boxes, self.rooms, (0.0, inner), strict=True):
                facts.append((early + shift, f"{person} put the key in the {box} box."))
                facts.append((late - shift, f"The {box} box is in the {room}."))
        return facts

    def question(self, task: str) -> str:
        """Asks for variables by name."""
        x, y, z = self.names
        return {
            "retrieve_a": f"What is {x}?",
            "retrieve_b": f"What is {y}?",
            "retrieve_both": f"What are {x} and {y}?",
            "retrieve_twice": f"What are {x} and {y}, stated twice?",
            "sum": f"What is {x} + {y}?",
            "product": f"What is {x} * {y}?",
            "two_hop": f"In which room is the key of {self.people[0]}?",
            "chain": f"What is {z}?",
        }[task]

    def answer(self, task: str) -> str:
        """States the operands first."""
        (x, y, z), a, b = self.names, self.a, self.b
        both = f"{x} is {a} and {y} is {b}"
        person, box, room = self.people[0], self.boxes[0], self.rooms[0]
        return {
            "retrieve_a": f"{x} is {a}.",
            "retrieve_b": f"{y} is {b}.",
            "retrieve_both": f"{both}.",
            "retrieve_twice": f"{both}, so {x} and {y} are {a} and {b}.",
            "sum": f"{both}, so {x} + {y} = {a} + {b} = {a + b}.",
            "product": f"{both}, so {x} * {y} = {a} * {b} = {a * b}.",
            "two_hop": f"{person} put the key in the {box} box, and the {box} box is in the {room}.",
            "chain": f"{z} is the same as {x}, so {z} = {a}.",
        }[task]

    def grader(self, task: str) -> Grader:
        """The room, or the number."""
        if task == "two_hop":
            return Grader("choice", self.rooms[0], choices=ROOMS)
        return _number(self, task, self.a)


@dataclass(frozen=True, slots=True)
class Goods:
    """The wording that small models follow."""

    values: Values
    names: Sequence[str]
    """The early and the late good, and the one that there are as many of as of the early one."""
    people: Sequence[str]
    a: int
    b: int
    swapped: bool
    """Whether the first person bought the late good."""

    POOL = GOODS
    MAIN = ("apples", "lemons", "pears")

    @classmethod
    def draw(cls, values: Values, draw: Draws, names: Sequence[str], people: Sequence[str]) -> Goods:
        """A scene with these names."""
        a, b = draw.within(values.a), draw.within(values.b)
        return cls(values, list(names), list(people), a, b, bool(draw.within((0, 1))))

    @property
    def bought(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """What the first and the second person bought, each with its number."""
        early, late = (self.names[0], self.a), (self.names[1], self.b)
        return (late, early) if self.swapped else (early, late)

    def facts(self, tasks: Sequence[str]) -> list[tuple[float, str]]:
        """The numbers, and what links names to them."""
        early, late = self.values.positions
        x, y, z = self.names
        quarter = (late - early) / 4
        facts = [(early, f"The number of {x} is {self.a}."), (late, f"The number of {y} is {self.b}.")]
        if "chain" in tasks:
            facts.append((early + 2 * quarter, f"There are as many {z} as {x}."))
        if "two_hop" in tasks:
            for person, (good, _), place in zip(self.people, self.bought, (1, 3), strict=True):
                facts.append((early + place * quarter, f"{person} bought the {good}."))
        return facts

    def question(self, task: str) -> str:
        """Asks for numbers by the good."""
        x, y, z = self.names
        return {
            "retrieve_a": f"What is the number of {x}?",
            "retrieve_b": f"What is the number of {y}?",
            "retrieve_both": f"What are the numbers of {x} and {y}?",
            "retrieve_twice": f"What are the numbers of {x} and {y}, stated twice?",
            "sum": f"What is the number of {x} plus the number of {y}?",
            "product": f"What is the number of {x} times the number of {y}?",
            "two_hop": f"What is the number of what {self.people[0]} bought?",
            "chain": f"How many {z} are there?",
        }[task]

    def answer(self, task: str) -> str:
        """Repeats the facts word for word."""
        (x, y, z), a, b = self.names, self.a, self.b
        both = f"The number of {x} is {a} and the number of {y} is {b}"
        good, number = self.bought[0]
        return {
            "retrieve_a": f"The number of {x} is {a}.",
            "retrieve_b": f"The number of {y} is {b}.",
            "retrieve_both": f"{both}.",
            "retrieve_twice": f"{both}, so the numbers are {a} and {b}.",
            "sum": f"{both}, so {a} + {b} = {a + b}.",
            "product": f"{both}, so {a} * {b} = {a * b}.",
            "two_hop": f"{self.people[0]} bought the {good}, and the number of {good} is {number}.",
            "chain": f"There are as many {z} as {x}, and the number of {x} is {a}.",
        }[task]

    def grader(self, task: str) -> Grader:
        """The number."""
        return _number(self, task, self.bought[0][1] if task == "two_hop" else self.a)


WORDINGS: dict[str, type[Variables] | type[Goods]] = {"variables": Variables, "goods": Goods}


def _number(scene: Scene, task: str, single: int) -> Grader:
    """The number of an answer; `single` is that of a task that asks for one value.

    A value asked for is the first number of the answer, two are its first two, two stated twice its first four. A
    result is the number behind the last `=` of the first sentence with a `=` (small models go on with sentences of
    their own). Where none has one it is the last number of the answer, unless that is the second, for operands restated
    are no result; and a result that is one of its operands (1 * 7 is 7) must then stand alone.
    Numbers are whole: 1,250 and 1250.0 are 1250, while 1250.75, -1250 and 11250 are not.
    """
    if task in ("sum", "product"):
        number = scene.a + scene.b if task == "sum" else scene.a * scene.b
        result = _spelled(number)
        end = r"(?:[.!?]+(?:\s|$)|\n|\s*$)"
        go_on = r"(?:\s*[^\s0-9.,!?=+*/×-]|,[^0-9=]|[.!?]+[^\s0-9=.!?])"  # neither a digit nor an operator
        rest = rf"(?:,?{end}|{go_on}(?:[^=.!?\n]|[.!?]+[^\s=.!?])*{end})"
        equation = rf"^[^=]*=(?:{_INSIDE}*=)?(?:[^0-9=.!?\n]*[^0-9=.!?\n-])?{result}{rest}"
        others = r"(?:[^0-9=]*(?:[0-9][0-9.,]*[^0-9.,=][^0-9=]*)+[0-9][0-9.,]*[^0-9.,=])?"
        bare = rf"^{others}(?:[^0-9=]*[^0-9=-])?{result}[^0-9=]*$"
        if number in (scene.a, scene.b):
            bare = rf"^\s*{result}[.!]?\s*$"
        return Grader("regex", rf"{equation}|{bare}")
    first = rf"^(?:[^0-9]*(?:[^0-9-]|[A-Za-z_.]-))?{_spelled(scene.b if task == 'retrieve_b' else single)}"
    for number in {"retrieve_both": (scene.b,), "retrieve_twice": (scene.b, scene.a, scene.b)}.get(task, ()):
        comma = "|," if len(str(number)) != 3 else ""  # 50,250 is one number
        first += rf"(?:[^0-9]*(?:[^0-9.,-]|[^0-9][.,]|[A-Za-z_.]-)|-{comma}){_spelled(number)}"
    return Grader("regex", first + r"(?:[^0-9.,]|[.]+(?:[^0-9.]|$)|,(?:[^0-9]|$|[0-9]{1,2}(?:[^0-9]|$)|[0-9]{4})|$)")


_INSIDE = r"(?:[^.!?\n]|[.!?]+[^\s.!?])"
"""What stands inside a sentence: a stop ends it only before a space or at the end."""


def _spelled(number: int) -> str:
    """The pattern of a number, with or without separators of thousands."""
    plain, grouped = str(number), f"{number:,}"
    return rf"0*(?:{plain}|{grouped})(?:\.0+)?" if grouped != plain else rf"0*{plain}(?:\.0+)?"
