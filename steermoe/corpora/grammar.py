"""A small English of our own: statements, word lists, digit strings and word problems, with questions to them.

Every word is one that a speech synthesiser says unambiguously (no homophones). A sentence belongs to exactly one
of the parts `train`, `dev`, `test` by the CRC-32 of its text, so that no held-out text can occur in training.
"""

import dataclasses
import zlib
from collections.abc import Iterator

import numpy as np

NAMES = (
    "anna ben clara david emma frank grace henry irene jack kate liam maria noah olive peter quinn rosa simon tina"
).split()
DIGITS = "zero one two three four five six seven eight nine".split()
NUMBERS = [
    *DIGITS,
    *"ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split(),
]
COLOURS = "red blue green yellow black white brown pink purple silver".split()
OBJECTS = (
    "apple book lamp chair hat cake ring boat drum shoe clock kite stone bottle pencil basket "
    "mirror hammer carpet candle wallet ladder button guitar"
).split()
PLACES = (
    "school garden kitchen market forest office river station island village museum harbor castle library"
).split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
QUALITIES = "old new small big happy tired quiet heavy clean broken".split()
ANIMALS = "cat dog horse bird fish mouse lion rabbit sheep tiger".split()
VERBS = {"bought": "buy", "sold": "sell", "found": "find", "lost": "lose", "made": "make", "drew": "draw"}
LIST_WORDS = [*NAMES, *NUMBERS, *COLOURS, *OBJECTS, *PLACES, *DAYS, *QUALITIES, *ANIMALS]


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence; `question` and `answer` are empty where nothing is asked about it."""

    kind: str
    text: str
    question: str = ""
    answer: str = ""


def plural(noun: str) -> str:
    """The plural of one of OBJECTS, all of which are regular."""
    return noun + "s"


class _Draw:
    """Random choices by one generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def one(self, words) -> str:
        words = list(words)
        return words[self.rng.integers(len(words))]

    def some(self, words, count: int) -> list[str]:
        words = list(words)
        return [words[i] for i in self.rng.choice(len(words), count, replace=False)]


def _deal(draw: _Draw) -> Sentence:
    name, verb, number = draw.one(NAMES), draw.one(VERBS), draw.one(NUMBERS[2:])
    colour, thing, place = draw.one(COLOURS), plural(draw.one(OBJECTS)), draw.one(PLACES)
    questions = [
        (f"who {verb} the {thing}", name),
        (f"how many {thing} did {name} {VERBS[verb]}", number),
        (f"what color were the {thing}", colour),
        (f"what did {name} {VERBS[verb]}", thing),
    ]
    text = f"{name} {verb} {number} {colour} {thing}"
    if draw.rng.random() < 0.6:
        text += f" in the {place}"
        questions.append((f"where did {name} {VERBS[verb]} the {thing}", place))
    else:
        day = draw.one(DAYS)
        text += f" on {day}"
        questions.append((f"when did {name} {VERBS[verb]} the {thing}", day))
    question, answer = questions[draw.rng.integers(len(questions))]
    return Sentence("deal", text, question, answer)


def _place(draw: _Draw) -> Sentence:
    quality, animal, place, day = (draw.one(w) for w in (QUALITIES, ANIMALS, PLACES, DAYS))
    text = f"the {quality} {animal} was in the {place} on {day}"
    questions = [
        (f"where was the {animal}", place),
        (f"who was in the {place}", animal),
        (f"when was the {animal} in the {place}", day),
    ]
    question, answer = questions[draw.rng.integers(3)]
    return Sentence("place", text, question, answer)


def _own(draw: _Draw) -> Sentence:
    name, (first, second), colours = draw.one(NAMES), draw.some(OBJECTS, 2), draw.some(COLOURS, 2)
    text = f"{name} has the {colours[0]} {first} and the {colours[1]} {second}"
    questions = [
        (f"what color is the {first}", colours[0]),
        (f"what color is the {second}", colours[1]),
        (f"who has the {draw.one([first, second])}", name),
    ]
    question, answer = questions[draw.rng.integers(3)]
    return Sentence("own", text, question, answer)


def _meet(draw: _Draw) -> Sentence:
    first, second = draw.some(NAMES, 2)
    place, animal = draw.one(PLACES), draw.one(ANIMALS)
    text = f"{first} and {second} are at the {place} with the {animal}"
    questions = [
        (f"who is with {first}", second),
        (f"where are {first} and {second}", place),
        ("which animal is it", animal),
    ]
    question, answer = questions[draw.rng.integers(3)]
    return Sentence("meet", text, question, answer)


def _sum(draw: _Draw) -> Sentence:
    name, thing = draw.one(NAMES), plural(draw.one(OBJECTS))
    a, b = (int(i) for i in draw.rng.integers(0, 11, 2))
    if draw.rng.random() < 0.5:
        verb, result = draw.one(["got", "found"]), a + b
    else:
        a, verb, result = a + b, draw.one(["lost", "sold"]), a
    text = f"{name} had {NUMBERS[a]} {thing} and {verb} {NUMBERS[b]}"
    return Sentence("sum", text, f"how many {thing} does {name} have now", NUMBERS[result])


def _words(draw: _Draw) -> Sentence:
    return Sentence("words", " ".join(draw.some(LIST_WORDS, int(draw.rng.integers(4, 8)))))


def _digits(draw: _Draw) -> Sentence:
    return Sentence("digits", " ".join(draw.one(DIGITS) for _ in range(draw.rng.integers(4, 8))))


KINDS = {
    "deal": _deal,
    "place": _place,
    "own": _own,
    "meet": _meet,
    "sum": _sum,
    "words": _words,
    "digits": _digits,
}
SHARES = {"deal": 0.2, "place": 0.12, "own": 0.12, "meet": 0.12, "sum": 0.12, "words": 0.22, "digits": 0.1}


def part_of(text: str) -> str:
    """`test` and `dev` are 5 % of all texts each; the rest is `train`."""
    return {0: "test", 1: "dev"}.get(zlib.crc32(text.encode()) % 20, "train")


def sentences(
    rng: np.random.Generator, part: str, shares: dict[str, float] | None = None
) -> Iterator[Sentence]:
    """Endless random sentences whose texts belong to `part`; `shares` gives the probability of each kind."""
    shares = shares or SHARES
    kinds = list(shares)
    weights = np.array([shares[k] for k in kinds])
    weights = weights / weights.sum()
    draw = _Draw(rng)
    while True:
        sentence = KINDS[kinds[rng.choice(len(kinds), p=weights)]](draw)
        if part_of(sentence.text) == part:
            yield sentence


def vocabulary() -> list[str]:
    """Every word that can be spoken, sorted."""
    function_words = "the a in on at was has and are with had got".split()
    words = {*LIST_WORDS, *map(plural, OBJECTS), *VERBS, *function_words}
    return sorted(words)
