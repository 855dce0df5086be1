"""What is read as the choice of an option, in the phrasings that people and LLMs use."""

import polars as pl
import pytest

from steermoe.corpora import mmau
from steermoe.evaluation.answers import count_answers
from steermoe.evaluation.choosing import choice
from steermoe.evaluation.normalizers import Normalizer, folded, whisper_english

CITIES = ["London", "Paris", "Rome", "New York"]
SOUNDS = ["a dog", "A cat", "rain"]
# "A. Paris": where text and letter differ the text counts.
STATED = [
    "B", "b", "(B)", "(b)", "[B]", "B.", "B)", "b)", "B:", "**B**", "**B.**", "\\boxed{B}", "$B$", '"B"',
    "'B'", "B. Paris", "B) Paris", "(B) Paris", "B: Paris", "B - Paris", "B \u2013 Paris", "B, Paris",
    "B (Paris)", "b. paris", "Answer: B", "answer: b", "Answer: (B)", "Answer: **B**", "The answer is B",
    "The answer is (B).", "The answer is b.", "The correct answer is B: Paris",
    "The correct answer is: B. Paris", "the answer is option B", "Final answer: B.",
    "The answer would be B", "Correct answer: B", "Correct: B", "Option B", "option b", "Choice (B)",
    "Letter B", "I think it's B", "I think the answer is B.", "I'd say B", "I choose b",
    "I would go with B.", "It is B", "It's B.", "B is correct.", "B is the right answer",
    "It must be B, as the accent shows", "answer is option b because London is too far",
    "B because London has no tower", "B. London has no such tower.",
    "A is in England, C in Italy. The answer is B.", "Not A, but B", "The answer is B, not A.",
    "A is wrong, so B", "\uff22", "\uff08\uff22\uff09", "答案是B", "选B", "答案:B", "정답은 B입니다", "Paris",
    "paris.", "PARIS!", "It's Paris", "The city is Paris.", "Paris, not London",
    "It is not London but Paris", "The answer is Paris", "Answer: Paris",
    "Paris because London has no such tower", "I don't think it's A. Paris.", "A. Paris",
    "The correct answer is A: Paris", "B\n\nThe speaker mentions the Seine.", "B\u200b", "_B_", "__B__ Paris",
    "\u201cParis\u201d", "<b>B</b>",
]  # fmt: skip
UNDECIDED = [
    "", "I don't know", "?", "E", "Answer: E", "neither A nor B", "Neither A or B", "A or B", "A and B",
    "Both A and B", "A, B", "a, b", "A/B", "(A) and (C)", "The answer is A or B", "Answer: A, B",
    "London or Paris", "Paris and Rome", "neither London nor Paris", "A or Paris", "(A) or (B)",
    "B and Rome", "It is not Paris", "not B", "I don't think it's B", "It isn't Paris", "1", "2)",
    "A city", "I am not sure", "A Londoner", "Parisian", "B.B. King", "x-ray", "U.S.", "it's b's",
]  # fmt: skip


@pytest.mark.parametrize("normalize", [folded, whisper_english])
@pytest.mark.parametrize("text", STATED)
def test_the_second_of_four_is_chosen(text: str, normalize: Normalizer) -> None:
    assert choice(text, CITIES, normalize) == 1


@pytest.mark.parametrize("text", UNDECIDED)
def test_none_is_chosen(text: str) -> None:
    assert choice(text, CITIES, folded) is None


@pytest.mark.parametrize(
    ("text", "options", "chosen"),
    [
        ("U.S.", ["U.K.", "U.S."], 1),
        ("The U.S.", ["U.K.", "U.S."], 1),
        ("It is the U.S., I think", ["U.K.", "U.S."], 1),
        ("B. The U.S.", ["U.K.", "U.S."], 1),
        ("B.B. King", ["B.B. King", "Elvis"], 0),
        ("It was B.B. King.", ["Elvis", "B.B. King"], 1),
        ("A. Vivaldi", ["J. S. Bach", "A. Vivaldi"], 1),
        ("A. Vivaldi was the composer", ["J. S. Bach", "A. Vivaldi"], 1),
        ("Vivaldi", ["J. S. Bach", "A. Vivaldi"], 1),
        ("B: A. Vivaldi", ["J. S. Bach", "A. Vivaldi"], 1),
        ("I, robot", ["I, robot", "x"], 0),
        ("I", ["I", "II", "IV"], 0),
        ("II", ["I", "II", "IV"], 1),
        ("A dog", SOUNDS, 0),
        ("The dog.", SOUNDS, 0),
        ("I hear a cat", SOUNDS, 1),
        ("A cat!", SOUNDS, 1),
        ("A", SOUNDS, 0),
        ("a", SOUNDS, 0),
        ("The answer is A.", SOUNDS, 0),
        ("The answer is a dog.", SOUNDS, 0),
        ("The answer is a cat", SOUNDS, 1),
        ("A: a dog", SOUNDS, 0),
        ("C) rain", SOUNDS, 2),
        ("A dog and a cat", SOUNDS, None),
        ("the answer is A\u2019s", SOUNDS, None),
        ("There is no rain, only a dog", SOUNDS, 0),
        ("a black dog", ["dog", "black dog"], 1),
        ("I hear a man and a woman talking", ["a man", "a woman", "a man and a woman"], 2),
        ("New York", ["York", "New York"], 1),
        ("C", ["G", "C", "D", "A"], 1),  # musical keys: the option's own text
        ("The key is C.", ["G", "C", "D", "A"], 1),
        ("(A)", ["G", "C", "D", "A"], 3),
        ("Answer: B", ["G", "C", "D", "A"], 1),
        ("C#", ["C", "C#", "D"], 1),
        ("It is in C#.", ["C", "C#", "D"], 1),
        ("C", ["C", "C#", "D"], 0),
        ("C major", ["A minor", "C major", "G major"], 1),
        ("It's C major", ["A minor", "C major", "G major"], 1),
        ("vitamin C", ["Vitamin D", "Vitamin C", "Vitamin A"], 1),
        ("-5", ["5", "-5"], 1),
        ("+", ["+", "-"], 0),
        ("$5", ["$5", "5 euros"], 0),
        ("It costs $5.", ["$50", "$5"], 1),
        ("snake_case", ["snake_case", "camel"], 0),
        ('"Stop", he says', ["He says nothing", 'He says "stop"'], None),
        ('He says "stop"!', ["He says nothing", 'He says "stop"'], 1),
        ("2", ["1", "2", "3"], 1),
        ("There are 2 dogs", ["1", "2", "3"], 1),
        ("B", ["A", "B", "C"], 1),
        ("B. Paris", ["A", "B", "C"], 1),
        ("Yes, it does.", ["Yes", "No"], 0),
        ("No, it does not.", ["Yes", "No"], 1),
        ("same", ["same", "same", "other"], None),
        ("A", ["same", "same", "other"], 0),
        ("Don't stop", ["Don\u2019t stop", "Stop"], 0),
        ("北京", ["上海", "北京"], 1),
        ("我听到的是北京", ["上海", "北京"], 1),
        ("", ["", "a"], None),
    ],
)
def test_options_of_every_shape(text: str, options: list[str], chosen: int | None) -> None:
    assert choice(text, options, folded) == chosen


@pytest.mark.parametrize(
    ("texts", "answer", "right"),
    [
        (["London", "Paris"], "B", True),
        (["London", "Paris"], "Paris", True),
        (["London", "Paris"], "It's Paris.", True),
        (["London", "Paris"], "London", False),
        (["London", "Paris"], "A. Paris", True),
        (["B", "C", "D"], "B", True),  # a list of keys: the letter of the list
        (["B", "C", "D"], "C", False),
        (["two\nlines", "one"], "B", True),
    ],
)
def test_where_letters_are_asked_for_a_text_counts_too(texts: list[str], answer: str, right: bool) -> None:
    row = {
        "task": "answer", "prompt": mmau.ask("Where?", texts), "choices": mmau.offered(texts, "letter"),
        "target": "B", "answers": [],
    }  # fmt: skip
    rows = pl.DataFrame(
        [row], schema_overrides={"answers": pl.List(pl.String), "choices": pl.List(pl.String)}
    )
    assert count_answers(rows, [answer], folded)["choice_exact"].to_list() == [right]
