"""Decoding: what each setting of `generation` does, packing, and continuous batching against `generate`."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steermoe.config import Llm
from steermoe.models import continuous_batching
from steermoe.models.continuous_batching import DecodeSlots, Prompt, answers, continues
from steermoe.models.generation import (
    LONGEST_CYCLE,
    cycle,
    decode,
    describe,
    ended,
    generation_settings,
    log_likelihoods,
)
from steermoe.models.llm import CausalLM, load_llm
from steermoe.models.packing import pack, target_rows

Rows = tuple[torch.Tensor, torch.Tensor]
IDS = st.lists(st.integers(0, 2), max_size=40)


def section(path: Path) -> Llm:
    return Llm(path=str(path), revision=None, dtype="float32", quantization="none", layers="all")


@pytest.fixture(scope="module")
def llm(tiny_llm_dir: Path) -> CausalLM:
    return load_llm(section(tiny_llm_dir))[0]


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
    found = decode(llm, many, torch.ones(count, 4, dtype=torch.bool), settings, seed=0)
    drawn = torch.bincount(
        torch.tensor([row[0] if row else stops[0] for row in found]), minlength=llm.config.vocab_size
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
    found = decode(llm, *rows, greedy(2, strategy="beam", num_beams=vocabulary - 1, min_new_tokens=2))
    table = llm.get_input_embeddings().weight
    better = 0
    for row, valid, answer in zip(*rows, found, strict=True):
        prompt = row[valid].expand(vocabulary, -1, -1)
        scores = llm(inputs_embeds=torch.cat([prompt, table[:, None]], dim=1)).logits[:, -2:].log_softmax(-1)
        scores[:, :, ends] = -torch.inf
        pairs = scores[0, 0][:, None] + scores[:, 1]
        assert answer == [int(pairs.argmax()) // vocabulary, int(pairs.argmax()) % vocabulary]
        better += answer[0] != int(scores[0, 0].argmax())
    assert better or found == decode(llm, *rows, greedy(2, min_new_tokens=2))


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
    assert cycle(list(range(LONGEST_CYCLE)) * 3, 2) == LONGEST_CYCLE
    assert cycle(list(range(LONGEST_CYCLE + 1)) * 3, 2) == 0  # longer ones are not searched for


@given(IDS, st.integers(1, 4), st.integers(1, 4))
def test_surplus_repeats_are_cut(start: list[int], length: int, most: int) -> None:
    unit = list(range(10, 10 + length))
    assert ended(start + unit * (most + 3), set(), None) == start + unit * (most + 3)
    cut = ended(start + unit * (most + 3), set(), most)
    assert cut == start + unit * most or cut == ended(start, set(), most)
    assert ended(start + unit * most, {unit[-1]}, None) == start + unit[:-1]


def test_the_description_has_what_was_set(greedy: Callable[..., Any]) -> None:
    assert describe(greedy(48, max_repeats=None), 3) == "greedy, at most 48 new tokens"
    sampled = greedy(9, strategy="sample", temperature=0.7, top_p=0.9, min_new_tokens=2)
    assert describe(sampled, 3) == (
        "sampled at temperature 0.7, top-p 0.9, seed 3, at most 9 new tokens, at least 2, "
        "ended where a tail comes more than 8 times"
    )


# packing


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=5))
def test_rows_are_joined_without_gaps(lengths: list[tuple[int, ...]]) -> None:
    values = iter(range(1000))
    rows = [
        [torch.tensor([float(next(values)) for _ in range(n)]).view(-1, 1) for n in row] for row in lengths
    ]
    parts = [
        torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True, padding_value=-1.0)
        for part in zip(*rows, strict=True)
    ]
    counts = [torch.tensor(part) for part in zip(*lengths, strict=True)]
    expected = [torch.cat(row) for row in rows]
    width = max(map(len, expected))
    for side in ("left", "right"):
        packed, valid = pack(parts, counts, side)
        assert packed.shape == (len(rows), width, 1)
        for row, whole in enumerate(expected):
            assert torch.equal(packed[row][valid[row]], whole)
            mask = [True] * len(whole) + [False] * (width - len(whole))
            assert valid[row].tolist() == (mask if side == "right" else mask[::-1])


def test_targets_are_predicted_by_the_tokens_before_them() -> None:
    rows, columns = target_rows(torch.tensor([5, 3]), torch.tensor([2, 3]), 4)
    assert (rows.tolist(), columns.tolist()) == ([0, 0, 1, 1, 1], [4, 5, 2, 3, 4])


# continuous batching

PROMPTS = 23


@pytest.fixture(scope="module")
def quick(save_tiny_llm: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random LLM whose answers end soon: every eighth token is an end token."""
    torch.manual_seed(0)
    llm, _ = load_llm(section(save_tiny_llm(tmp_path_factory.mktemp("llm"), "qwen2")))
    llm.generation_config.eos_token_id = list(range(0, llm.config.vocab_size, 8))
    return llm


def prompts(llm: Any) -> list[Prompt]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 12, (PROMPTS,), generator=generator).tolist()
    return [
        Prompt(key, torch.randn(length, llm.config.hidden_size, generator=generator))
        for key, length in enumerate(lengths)
    ]


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 1),
        ({}, 64),
        ({"min_new_tokens": 6}, 5),
        ({"no_repeat_ngram_size": 1}, 5),
        ({"max_repeats": 1}, 5),
    ],
)
def test_answers_and_likelihoods_are_those_of_rows_alone(
    quick: Any, greedy: Any, settings: dict[str, Any], most: int
) -> None:
    """By transformers' `generate`, and one more pass for the likelihoods."""
    asked, generation = prompts(quick), greedy(20, **{"max_repeats": None} | settings)
    slots = DecodeSlots(quick, generation, scored=True)
    found = {key: (ids, scores) for key, ids, scores in answers(slots, asked, most)}
    assert len(found) == len(asked) and not slots.live and not slots.take()
    lengths = set()
    for prompt in asked:
        alone = prompt.embeddings[None], torch.ones(1, len(prompt.embeddings), dtype=torch.bool)
        (ids,) = decode(quick, *alone, generation)
        assert found[prompt.key][0] == ids
        (scores,) = log_likelihoods(quick, *alone, [ids]) if ids else ([],)
        assert found[prompt.key][1] == pytest.approx(scores, abs=1e-3)
        lengths.add(len(ids))
    assert len(lengths) > 2  # else nothing was tried


def test_no_row_is_computed_after_its_end_and_prompts_are_read_as_slots_are_free(
    quick: Any, greedy: Any
) -> None:
    computed = taken = ended = tokens = 0

    def count(_: Any, __: Any, inputs: Any) -> None:
        nonlocal computed
        computed += inputs["inputs_embeds"].shape[0]

    def lazily() -> Iterator[Prompt]:
        nonlocal taken
        for prompt in prompts(quick):
            taken += 1
            yield prompt

    counting = quick.base_model.register_forward_pre_hook(count, with_kwargs=True)
    for _, ids, _ in answers(DecodeSlots(quick, greedy(20, max_repeats=None)), lazily(), 8):
        tokens += min(20, len(ids) + 1)
        ended += 1
        assert taken <= ended + 8 + 7  # those that end in one step are yielded one by one
    counting.remove()
    assert taken == ended == PROMPTS
    assert tokens <= computed <= tokens / (1 - continuous_batching.REFILL)


def test_dropped_answers_end_as_they_are(quick: Any, greedy: Any) -> None:
    asked, generation = prompts(quick)[:6], greedy(20, max_repeats=None, min_new_tokens=18)
    expected = {key: ids for key, ids, _ in answers(DecodeSlots(quick, generation), asked, 6)}
    slots = DecodeSlots(quick, generation)
    slots.read(asked)
    for _ in range(4):
        slots.step()
    slots.drop({2, 3})
    assert {key: ids for key, ids, _ in slots.take()} == {key: expected[key][:5] for key in (2, 3)}
    while slots.live:
        slots.step()
    rest = {key: ids for key, ids, _ in slots.take()}
    assert rest == {key: ids for key, ids in expected.items() if key not in (2, 3)}


def test_windows_samples_and_beams_are_left_to_generate(
    quick: Any, greedy: Any, save_tiny_llm: Callable[..., Path], tmp_path: Path
) -> None:
    assert continues(quick, greedy(4))
    assert not continues(quick, greedy(4, strategy="sample", temperature=1.0))
    assert not continues(quick, greedy(4, strategy="beam", num_beams=2))
    windowed, _ = load_llm(section(save_tiny_llm(tmp_path, "gemma2", head_dim=8)))
    assert not continues(windowed, greedy(4))


def test_another_strategy_leaves_joint_decoding_out(greedy: Any) -> None:
    """As `model.transcribe(audio, num_beams=4)` of an adapter whose transcripts are decoded with CTC."""
    joint = greedy(4, ctc_weight=0.5)
    assert generation_settings(joint, max_new_tokens=9).ctc_weight == 0.5
    changes: list[dict[str, Any]] = [{"num_beams": 4}, {"do_sample": True, "temperature": 0.7}]
    for change in changes:
        assert generation_settings(joint, **change).ctc_weight == 0.0
    with pytest.raises(ValueError, match=r"ctc_weight.*0, as generation\.strategy is beam"):
        generation_settings(joint, num_beams=4, ctc_weight=0.5)
