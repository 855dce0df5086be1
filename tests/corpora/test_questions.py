"""Questions from WordNet, divided by their words; and the LLM's answers, as the library's own decoding gives them."""

import json
from pathlib import Path
from typing import Any

import pytest

from steermoe.config import Llm
from steermoe.corpora import answers as answering
from steermoe.corpora import questions as asking
from steermoe.corpora.answers import INSTRUCTION, MAX_TOKENS, answers

LLM = Path(__file__).parents[2] / "pretrained" / "llm"
ENTRIES = {
    "noun": [
        ("05", ["dog", "hound"], "", "a tame animal; \"the dog barked\""),
        ("05", ["horse"], "", "a large animal with hooves"),
        ("06", ["oven"], "", "a box for baking"),
        ("13", ["apple"], "", "a fruit with red or yellow or green skin"),
        ("20", ["tree"], "", "a tall plant"),
        ("18", ["king_of_beasts"], "", "formal name"),
        ("18", ["slur"], "", "(offensive) the tree called the horse a slur"),
    ],
    "verb": [("29", ["run"], "", "move fast (on foot)")],
    "adj": [("00", ["hot"], "! 00000101 a 0101", "having much heat"), ("00", ["cold"], "! 00000100 a 0101", "chilly")],
    "adv": [("02", ["fast"], "", "quickly; \"the dog, the horse, the oven, an apple, a tree: run, hot, cold\"")],
}  # fmt: skip


@pytest.fixture
def wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small WordNet, in which a word is common that occurs once."""
    monkeypatch.setattr(asking, "COMMON", 1)
    for part, entries in ENTRIES.items():
        lines = ["  1 This software and database is being provided to you"]
        for number, (kind, words, pointer, gloss) in enumerate(entries):
            listed = " ".join(f"{word} 0" for word in words)
            pointers = f"001 {pointer}" if pointer else "000"
            lines.append(f"{number:08d} {kind} {part[0]} {len(words):02x} {listed} {pointers} | {gloss}  ")
        (tmp_path / f"data.{part}").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_questions(wordnet: Path) -> None:
    asked = asking.questions(wordnet, 1)
    every = {question: split for split, questions in asked.items() for question in questions}
    assert len(every) == sum(map(len, asked.values()))
    assert {
        "What does the word run mean?", "What is the opposite of hot?", "What is the opposite of cold?",
        "What does a dog eat?", "What is an oven used for?", "What does apple taste like?", "Where does a tree grow?",
        "Can a horse swim?", "What is another word for fast?",
    } <= every.keys()  # fmt: skip
    assert not [
        question for question in every if "beasts" in question or "hound" in question or "on foot" in question
    ]
    assert asking.questions(wordnet, 1) == asked != asking.questions(wordnet, 2)
    pairs = {frozenset(("a dog", "a horse")) for question in every if question.startswith("Which is faster")}
    assert len(pairs) == (asking.split_of("dog", 1) == asking.split_of("horse", 1))


def test_no_word_is_asked_about_in_two_splits(wordnet: Path) -> None:
    for seed in range(8):
        for split, questions in asking.questions(wordnet, seed).items():
            for question in questions:
                words = question.rstrip("?").split()
                about = {
                    word for word in ("dog", "horse", "oven", "tree", "run", "hot", "cold") if word in words
                }
                assert {asking.split_of(word, seed) for word in about} <= {split}


@pytest.fixture(scope="module")
def section() -> Llm:
    return Llm(path=str(LLM), revision=None, dtype="float32", quantization="none", layers="all")


def test_answers_are_those_of_the_library(section: Llm, tmp_path: Path) -> None:
    """One by one, decoded as an adapter's answers are; what has not ended is "". A second time no LLM is loaded."""
    from steermoe.models.generation import GREEDY, answer_texts
    from steermoe.models.llm import load_llm

    names = [json.loads(line)["prompt"] for line in (LLM / "text_tasks.jsonl").read_text().splitlines()[:40]]
    given = list(answers(section, names, tmp_path))
    llm, tokenizer = load_llm(section)
    generation = GREEDY.model_copy(update={"max_new_tokens": MAX_TOKENS, "max_repeats": None})
    for name, answer in zip(names, given, strict=True):
        ids = tokenizer.encode(f"{name} {INSTRUCTION}", add_special_tokens=False)
        (alone,) = answer_texts(llm, tokenizer, [ids], generation, 0)
        assert answer in (alone, "")
    assert sum(map(bool, given)) > 20


def test_answers_are_kept(section: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run goes on; another LLM, question or dtype is answered anew."""
    asked: list[list[str]] = []

    class Echo:
        def __init__(self, section: Llm) -> None: ...

        def __call__(self, questions: list[str]) -> list[str]:
            asked.append(questions)
            return [question.upper() for question in questions]

    monkeypatch.setattr(answering, "Answerer", Echo)
    monkeypatch.setattr(answering, "BATCH", 2)
    names = ["a", "b", "c", "d", "e"]
    run = answers(section, names, tmp_path)
    assert [next(run), next(run), next(run)] == ["A", "B", "C"]
    assert asked == [["a", "b"], ["c", "d"]]
    assert list(answers(section, names, tmp_path)) == ["A", "B", "C", "D", "E"]
    assert asked == [["a", "b"], ["c", "d"], ["e"]]
    list(answers(section.model_copy(update={"dtype": "bfloat16"}), names[:2], tmp_path))
    assert asked[3:] == [["a", "b"]]


def test_a_model_that_is_not_there(section: Llm, tmp_path: Path) -> None:
    missing: Any = section.model_copy(update={"path": "./nothing"})
    with pytest.raises(ValueError, match=r"llm\.path: found '\./nothing'"):
        list(answers(missing, ["a"], tmp_path))
