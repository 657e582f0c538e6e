"""The math-needle prompts: facts hidden in filler, and questions that need one of them, both, or a step beyond.

    four worked examples with other variables, then
    The old river was built near the quiet market. ... The value of var_a is 7. ...
    ... The value of var_b is 3. ...
    Question: What is var_a * var_b?
    Answer:

All questions of an item stand below the same text, and only the question line differs. So a fault in the text can reach
every task, and tasks are compared on common items. The worked examples are the same too, and take turns over the tasks;
or, for small models that need it, they show the task that is asked (`examples_of: task`).

Every word of the filler is one token for byte-pair tokenizers of English (after a space), so a context has its length
in tokens of the model without a tokenizer at hand; `kvspec plan` counts with the real one where it is on this machine.

Draws are Philox blocks: items are the same everywhere, and do not depend on how many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from kvspec import _native
from kvspec.spec.model import Task
from kvspec.spec.needle_scene import RETRIEVAL, STATING, WORDINGS, Scene, Values

ADJECTIVES = ("old", "quiet", "narrow", "bright", "wooden", "northern", "famous", "small", "busy", "distant", "green",
              "gentle", "heavy", "modern", "local", "early")  # fmt: skip
NOUNS = ("river", "market", "bridge", "library", "garden", "harbor", "village", "museum", "forest", "station", "valley",
         "tower", "school", "mill", "farm", "theater")  # fmt: skip
VERBS = ("was built near", "stands beside", "was named after", "attracts visitors from", "lies west of",
         "supplies stone to", "was restored by people from", "is older than")  # fmt: skip
NAMES = ("Anna", "David", "Grace", "Frank", "Jack", "Henry", "Clara", "Elena")

EXAMPLE_SENTENCES = 2
"""Filler sentences of a worked example."""
SENTENCES_PER_LINE = 5
MAX_PRODUCTS = 1_000_000
"""Pairs of values that the chance level of `product` counts at most."""


@dataclass(frozen=True, slots=True)
class Needles:
    """What the generator is asked for."""

    contexts: tuple[int, ...]
    """Tokens of filler and facts, examples and question apart."""
    items: int
    """Items per context."""
    tasks: tuple[str, ...]
    wording: str
    """`variables` or `goods`."""
    values: Values
    examples: int
    """Worked examples before the context."""
    examples_of: str
    """`item`: all tasks have the same examples; `task`: all examples show the task that is asked."""
    seed: int


class _Draw:
    """A stream of draws of one item: words of Philox blocks, key = seed, counter = (block, item, context, stream)."""

    def __init__(self, seed: int, item: int, context: int) -> None:
        self._key = (seed & 0xFFFFFFFF, seed >> 32)
        self._rest = (item, context, 0x6E65_6564)
        self._block = 0
        self._words: list[int] = []

    def below(self, n: int) -> int:
        if not self._words:
            self._words = list(_native.philox((self._block, *self._rest), self._key))
            self._block += 1
        return self._words.pop() * n >> 32

    def pick(self, words: Sequence[str]) -> str:
        return words[self.below(len(words))]

    def sample(self, words: Sequence[str], count: int) -> list[str]:
        left = list(words)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def within(self, ends: tuple[int, int]) -> int:
        return ends[0] + self.below(ends[1] - ends[0] + 1)


def math_needle(needles: Needles) -> Iterator[tuple[str, Task]]:
    """Prompts in order of context, item, task, each with what it asks for."""
    chances = {task: _chance(task, needles) for task in needles.tasks}
    wording = WORDINGS[needles.wording]
    for context in needles.contexts:
        for number in range(needles.items):
            draw = _Draw(needles.seed, number, context)
            names, people = _names(draw, wording.POOL, needles.examples), draw.sample(NAMES, len(NAMES))
            examples = [
                _Example.draw(needles, draw, names[3 * i : 3 * i + 3], people[2 + 2 * (i % 3) : 4 + 2 * (i % 3)])
                for i in range(needles.examples)
            ]
            scene = wording.draw(needles.values, draw, wording.MAIN, people[:2])
            haystack = _haystack(draw, scene.facts(needles.tasks), context)
            for task in needles.tasks:
                shown = [
                    example.text(task if needles.examples_of == "task" else _turn(needles, place))
                    for place, example in enumerate(examples)
                ]
                asked = Task(
                    name=task,
                    kind="retrieval" if task in RETRIEVAL else "reasoning",
                    item=str(number),
                    context=context,
                    grader=scene.grader(task),
                    operands=(scene.a, scene.b) if task in STATING else (),
                    chance=chances[task],
                )
                text = "\n\n".join([*shown, haystack])
                yield f"{text}\nQuestion: {scene.question(task)}\nAnswer:", asked


@dataclass(frozen=True, slots=True)
class _Example:
    """What a worked example is made of, whatever task it shows."""

    scene: Scene
    sentences: list[str]

    @classmethod
    def draw(cls, needles: Needles, draw: _Draw, names: Sequence[str], people: Sequence[str]) -> _Example:
        scene = WORDINGS[needles.wording].draw(needles.values, draw, names, people)
        return cls(scene, [_sentence(draw) for _ in range(EXAMPLE_SENTENCES)])

    def text(self, task: str) -> str:
        lines = _lines(_insert(self.sentences, self.scene.facts([task])))
        return f"{lines}\nQuestion: {self.scene.question(task)}\nAnswer: {self.scene.answer(task)}"


def _names(draw: _Draw, pool: Sequence[str], examples: int) -> list[str]:
    """Three names per example, all different as far as there are so many."""
    whole = len(pool) // 3
    return [name for start in range(0, examples, whole) for name in draw.sample(pool, 3 * min(whole, examples - start))]


def _turn(needles: Needles, place: int) -> str:
    """Examples take turns over the tasks, and the last example shows the last task."""
    return needles.tasks[(place - needles.examples) % len(needles.tasks)]


def _haystack(draw: _Draw, facts: list[tuple[float, str]], tokens: int) -> str:
    left = tokens - sum(count_tokens(fact) for _, fact in facts)
    sentences = []
    while left > 0:
        sentences.append(_sentence(draw))
        left -= count_tokens(sentences[-1])
    return _lines(_insert(sentences, facts))


def count_tokens(sentence: str) -> int:
    """Words and the stop; a name such as var_a is three tokens, a number its digits and a space."""

    def tokens(word: str) -> int:
        digits = sum(c.isdigit() for c in word)
        return 3 if word.startswith("var_") else digits + 1 if digits else 1

    return sum(map(tokens, sentence.split())) + 1


def _sentence(draw: _Draw) -> str:
    return (
        f"The {draw.pick(ADJECTIVES)} {draw.pick(NOUNS)} {draw.pick(VERBS)} "
        f"the {draw.pick(ADJECTIVES)} {draw.pick(NOUNS)}."
    )


def _insert(sentences: list[str], facts: list[tuple[float, str]]) -> list[str]:
    count = len(sentences)
    placed = list(sentences)
    for position, fact in sorted(facts, reverse=True):
        placed.insert(int(position * count), fact)
    return placed


def _lines(sentences: list[str]) -> str:
    return "\n".join(
        " ".join(sentences[i : i + SENTENCES_PER_LINE]) for i in range(0, len(sentences), SENTENCES_PER_LINE)
    )


def _chance(task: str, needles: Needles) -> float:
    """How often a guess is right: a value named in the text, or for arithmetic always the most common result.

    The two values are drawn independently, so they are the same with probability p = |A and B| / (|A| |B|), and then
    either one is right. Naming one of the two at random is right with p + (1 - p) / 2, naming two of them, each at
    random, with p + (1 - p) / 4 (twice, if the same are named again): 5/9 and 1/3 for two values of [1, 9], 1/2 and 1/4
    for values that cannot meet. The room of `variables` is one of two that always differ.
    """
    first, second = (range(low, high + 1) for low, high in (needles.values.a, needles.values.b))
    if task == "sum":  # the sums in the middle come about in as many ways as the smaller range has values
        return 1 / max(len(first), len(second))
    if task == "product":
        results = Counter(a * b for a, b in product(first, second))
        return max(results.values()) / results.total()
    shared = len(range(max(first.start, second.start), min(first.stop, second.stop)))
    same = 0.0 if task == "two_hop" and needles.wording == "variables" else shared / (len(first) * len(second))
    return same + (1 - same) / (4 if task in STATING else 2)
