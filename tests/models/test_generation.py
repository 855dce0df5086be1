"""What each setting of `generation` does to the answers of tiny LLMs."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steermoe.config import Llm
from steermoe.models.generation import LONGEST_CYCLE, cycle, decode, describe, ended
from steermoe.models.llm import CausalLM, load_llm
from steermoe.models.packing import pack

Rows = tuple[torch.Tensor, torch.Tensor]
IDS = st.lists(st.integers(0, 2), max_size=40)


@pytest.fixture(scope="module")
def llm(tiny_llm_dir: Path) -> CausalLM:
    return load_llm(
        Llm(path=str(tiny_llm_dir), revision=None, dtype="float32", quantization="none", layers="all")
    )[0]


@pytest.fixture
def rows() -> Rows:
    torch.manual_seed(0)
    padded = torch.randn(3, 9, 32)
    return pack([padded], [torch.tensor([9, 2, 5])], "left")


# sampling


def test_the_same_seed_samples_the_same_whatever_happened_before(
    llm: CausalLM, rows: Rows, greedy: Callable[..., Any]
) -> None:
    sampled = greedy(12, strategy="sample", temperature=1.5, top_p=0.95)
    first = decode(llm, *rows, sampled, seed=4)
    state = torch.manual_seed(99).get_state()
    assert decode(llm, *rows, sampled, seed=4) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert decode(llm, *rows, sampled, seed=5) != first
    assert first != decode(llm, *rows, greedy(12))


def test_a_low_temperature_or_a_small_nucleus_is_greedy(
    llm: CausalLM, rows: Rows, greedy: Callable[..., Any]
) -> None:
    expected = decode(llm, *rows, greedy(12))
    for settings in ({"temperature": 1e-4}, {"temperature": 1.0, "top_p": 1e-6}):
        assert decode(llm, *rows, greedy(12, strategy="sample", **settings), seed=1) == expected


@torch.no_grad()
def test_samples_come_as_often_as_their_probability_says(llm: CausalLM, greedy: Callable[..., Any]) -> None:
    """All of the vocabulary is drawn from: transformers' own default leaves all but 50 tokens out."""
    prompt = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    settings, count = greedy(1, strategy="sample", temperature=3.0), 6000
    many = prompt.expand(count, -1, -1)
    stops = llm.generation_config.eos_token_id
    answers = decode(llm, many, torch.ones(count, 4, dtype=torch.bool), settings, seed=0)
    drawn = torch.bincount(
        torch.tensor([row[0] if row else stops[0] for row in answers]), minlength=llm.config.vocab_size
    )
    probabilities = (llm(inputs_embeds=prompt).logits[0, -1] / 3.0).softmax(-1)
    assert int((drawn > 0).sum()) > 100
    error = (drawn / count - probabilities).abs()
    assert bool((error < 5 * (probabilities / count).sqrt() + 1e-3).all())


# beams


@torch.no_grad()
def test_beams_as_many_as_tokens_find_the_likeliest_answer(
    llm: CausalLM, rows: Rows, greedy: Callable[..., Any]
) -> None:
    """Of two tokens, neither of them an end: compared with all pairs."""
    vocabulary, ends = llm.config.vocab_size, llm.generation_config.eos_token_id
    answers = decode(llm, *rows, greedy(2, strategy="beam", num_beams=vocabulary - 1, min_new_tokens=2))
    table = llm.get_input_embeddings().weight
    better = 0
    for row, valid, answer in zip(*rows, answers, strict=True):
        prompt = row[valid].expand(vocabulary, -1, -1)
        scores = llm(inputs_embeds=torch.cat([prompt, table[:, None]], dim=1)).logits[:, -2:].log_softmax(-1)
        scores[:, :, ends] = -torch.inf
        pairs = scores[0, 0][:, None] + scores[:, 1]
        assert answer == [int(pairs.argmax()) // vocabulary, int(pairs.argmax()) % vocabulary]
        better += answer[0] != int(scores[0, 0].argmax())
    assert better or answers == decode(llm, *rows, greedy(2, min_new_tokens=2))


def test_beam_answers_do_not_depend_on_the_batch(
    llm: CausalLM, rows: Rows, greedy: Callable[..., Any]
) -> None:
    settings = greedy(8, strategy="beam", num_beams=4)
    together = decode(llm, *rows, settings)
    embeddings, valid = rows
    for row in range(3):
        alone = embeddings[row][valid[row]][None]
        assert decode(llm, alone, torch.ones(alone.shape[:2], dtype=torch.bool), settings) == [together[row]]


# lengths and repetition


def test_no_answer_ends_before_the_least_number_of_tokens(
    llm: CausalLM, rows: Rows, greedy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    firsts = [row[0] for row in decode(llm, *rows, greedy(1))]
    monkeypatch.setattr(llm.generation_config, "eos_token_id", sorted(firsts))
    assert decode(llm, *rows, greedy(6)) == [[], [], []]
    longer = decode(llm, *rows, greedy(6, min_new_tokens=3))
    assert min(len(row) for row in longer) >= 3
    assert not set(firsts) & {token for row in longer for token in row[:3]}


def test_ngrams_come_once(llm: CausalLM, rows: Rows, greedy: Callable[..., Any]) -> None:
    free = decode(llm, *rows, greedy(40, max_repeats=None))
    assert any(len(set(row)) < len(row) for row in free)
    for row in decode(llm, *rows, greedy(40, no_repeat_ngram_size=1)):
        assert len(set(row)) == len(row)
    for row in decode(llm, *rows, greedy(40, no_repeat_ngram_size=2, max_repeats=None)):
        pairs = list(pairwise(row))
        assert len(set(pairs)) == len(pairs)


def test_rows_that_repeat_themselves_are_ended(
    llm: CausalLM, rows: Rows, greedy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the free answers cut where the surplus begins, each row by itself, and generation stops by then."""
    free = decode(llm, *rows, greedy(150, max_repeats=None))
    calls = []
    forward = llm.forward
    monkeypatch.setattr(llm, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    for most in (2, 5):
        calls.clear()
        guarded = decode(llm, *rows, greedy(150, max_repeats=most))
        assert guarded == [ended(row, set(), most) for row in free]
        assert all(len(short) < len(long) for short, long in zip(guarded, free, strict=True))
        assert all(cycle(row, most) == 0 for row in guarded)
        assert len(calls) < 150


@given(IDS, st.integers(1, 5))
def test_a_cycle_is_found_where_there_is_one(ids: list[int], most: int) -> None:
    by_hand = [
        length for length in range(1, len(ids) + 1)
        if len(ids) >= length * (most + 1) and ids[-length * (most + 1) :] == ids[-length:] * (most + 1)
    ]  # fmt: skip
    assert cycle(ids, most) == min(by_hand, default=0)


@given(IDS, st.integers(1, 4), st.integers(1, 4))
def test_surplus_repeats_are_cut(start: list[int], length: int, most: int) -> None:
    unit = list(range(10, 10 + length))
    assert ended(start + unit * (most + 3), set(), None) == start + unit * (most + 3)
    cut = ended(start + unit * (most + 3), set(), most)
    assert cut == start + unit * most or cut == ended(start, set(), most)
    assert ended(start + unit * most, {unit[-1]}, None) == start + unit[:-1]


def test_cycles_longer_than_the_longest_are_let_be() -> None:
    assert cycle(list(range(LONGEST_CYCLE)) * 3, 2) == LONGEST_CYCLE
    assert cycle(list(range(LONGEST_CYCLE + 1)) * 3, 2) == 0


def test_the_words_say_what_was_set(greedy: Callable[..., Any]) -> None:
    plain = {"max_repeats": None}
    assert describe(greedy(48, **plain), 3) == "greedy, at most 48 new tokens"
    assert describe(greedy(9, strategy="beam", num_beams=4, no_repeat_ngram_size=3, **plain), 3) == (
        "beam search, 4 beams, at most 9 new tokens, no 3-gram twice"
    )
    sampled = greedy(9, strategy="sample", temperature=0.7, top_p=0.9, min_new_tokens=2)
    assert describe(sampled, 3) == (
        "sampled at temperature 0.7, top-p 0.9, seed 3, at most 9 new tokens, at least 2, "
        "ended where a tail comes more than 8 times"
    )
