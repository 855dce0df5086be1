"""Sentences use known words only, parts do not overlap, and answers are right."""

import itertools

import numpy as np
import pytest

from steermoe.corpora import grammar


def some(
    part: str, count: int = 400, shares: dict[str, float] | None = None, seed: int = 0
) -> list[grammar.Sentence]:
    return list(itertools.islice(grammar.sentences(np.random.default_rng(seed), part, shares), count))


def test_every_word_is_in_the_vocabulary() -> None:
    words = set(grammar.vocabulary())
    for sentence in some("train", 3000):
        assert set(sentence.text.split()) <= words


def test_parts_do_not_share_texts() -> None:
    texts = {part: {s.text for s in some(part)} for part in ("train", "dev", "test")}
    for a, b in itertools.combinations(texts.values(), 2):
        assert not a & b
    for part, found in texts.items():
        assert {grammar.part_of(text) for text in found} == {part}


def test_the_generator_decides() -> None:
    assert some("dev", 20, seed=3) == some("dev", 20, seed=3) != some("dev", 20, seed=4)


@pytest.mark.parametrize("kind", grammar.KINDS)
def test_shares_choose_the_kind(kind: str) -> None:
    assert {s.kind for s in some("train", 30, {kind: 1.0})} == {kind}


def test_answers_are_words_of_the_text_and_sums_are_right() -> None:
    asked = [s for s in some("train", 1500) if s.question]
    assert {s.kind for s in asked} == {"deal", "place", "own", "meet", "sum"}
    for sentence in asked:
        if sentence.kind != "sum":
            assert sentence.answer in sentence.text.split()
            continue
        words = sentence.text.split()
        before, change = grammar.NUMBERS.index(words[2]), grammar.NUMBERS.index(words[6])
        after = before + change if words[5] in ("got", "found") else before - change
        assert grammar.NUMBERS[after] == sentence.answer
