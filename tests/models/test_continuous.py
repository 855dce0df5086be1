"""Continuous batching: the answers and likelihoods of rows that are decoded alone, whoever shares the batch."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from steermoe.config import Llm
from steermoe.models import continuous_batching as continuous
from steermoe.models.continuous_batching import DecodeSlots, Prompt, answers, continues
from steermoe.models.generation import decode, log_likelihoods
from steermoe.models.llm import load_llm, narrows

PROMPTS = 23


@pytest.fixture(scope="module")
def llm(save_tiny_llm: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Random, and quick to end: every eighth token does."""
    torch.manual_seed(0)
    path = str(save_tiny_llm(tmp_path_factory.mktemp("llm"), "qwen2"))
    llm, _ = load_llm(Llm(path=path, revision=None, dtype="float32", quantization="none", layers="all"))
    llm.generation_config.eos_token_id = list(range(0, llm.config.vocab_size, 8))
    return llm


def prompts(llm: Any, prefixes: tuple[tuple[int, ...], ...] = ((),)) -> list[Prompt]:
    generator = torch.Generator().manual_seed(1)
    width = llm.config.hidden_size
    lengths = torch.randint(1, 12, (PROMPTS,), generator=generator).tolist()
    return [
        Prompt(
            key,
            torch.tensor(prefixes[key * len(prefixes) // PROMPTS], dtype=torch.int64),
            torch.randn(length, width, generator=generator),
        )
        for key, length in enumerate(lengths)
    ]


def alone(llm: Any, prompt: Prompt, generation: Any) -> tuple[list[int], list[float]]:
    """By transformers' `generate`, and one more pass for the likelihoods."""
    before = llm.get_input_embeddings()(prompt.prefix_ids)
    rows = torch.cat([before, prompt.embeddings])[None]
    valid = torch.ones(rows.shape[:2], dtype=torch.bool)
    (ids,) = decode(llm, rows, valid, generation)
    (scores,) = log_likelihoods(llm, rows, valid, [ids]) if ids else ([],)
    return ids, scores


SETTINGS: list[dict[str, Any]] = [
    {},
    {"min_new_tokens": 6},
    {"no_repeat_ngram_size": 1},
    {"max_repeats": 1},
    {"max_repeats": 1, "min_new_tokens": 9},
]


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("prefixes", [((),), ((3, 1, 4),), ((3, 1, 4), (), (1, 5, 9, 2))])
@pytest.mark.parametrize(("most", "narrow"), [(1, False), (5, True), (64, True)])
def test_answers_and_likelihoods_are_those_of_rows_alone(
    llm: Any, greedy: Any, settings: dict[str, Any], prefixes: Any, most: int, narrow: bool
) -> None:
    asked, generation = prompts(llm, prefixes), greedy(20, **{"max_repeats": None} | settings)
    assert narrows(llm) and continues(llm, generation)
    slots = DecodeSlots(llm, generation, scored=True, narrow=narrow)
    found = {key: (ids, scores) for key, ids, scores in answers(slots, asked, most)}
    assert len(found) == len(asked) and not slots.live and not slots.take()
    lengths = set()
    for prompt in asked:
        ids, scores = alone(llm, prompt, generation)
        assert found[prompt.key][0] == ids
        assert found[prompt.key][1] == pytest.approx(scores, abs=1e-3)
        lengths.add(len(ids))
    assert len(lengths) > 2  # or nothing was tried


def test_room_is_taken_again_when_it_is_full(llm: Any, greedy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, generation = prompts(llm), greedy(20, max_repeats=None, min_new_tokens=15)
    expected = {key: ids for key, ids, _ in answers(DecodeSlots(llm, generation), asked, 4)}
    monkeypatch.setattr("steermoe.models.continuous_batching.AHEAD", 1)
    assert {key: ids for key, ids, _ in answers(DecodeSlots(llm, generation), asked, 4)} == expected


def test_no_token_is_written_behind_an_end(llm: Any, greedy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the batches that the LLM computes, against the tokens of the answers."""
    asked, generation = prompts(llm), greedy(20, max_repeats=None)
    computed = 0

    def count(_: Any, __: Any, inputs: Any) -> None:
        nonlocal computed
        computed += inputs["inputs_embeds"].shape[0]

    counting = llm.base_model.register_forward_pre_hook(count, with_kwargs=True)
    tokens = sum(min(20, len(ids) + 1) for _, ids, _ in answers(DecodeSlots(llm, generation), asked, 8))
    counting.remove()
    assert tokens <= computed <= tokens / (1 - continuous.REFILL)


def test_prompts_are_taken_when_there_is_room(llm: Any, greedy: Any) -> None:
    taken = 0

    def lazily() -> Iterator[Prompt]:
        nonlocal taken
        for prompt in prompts(llm):
            taken += 1
            yield prompt

    ended = 0
    for _ in answers(DecodeSlots(llm, greedy(20, max_repeats=None)), lazily(), 4):
        ended += 1
        assert taken <= ended + 4 + 3  # those that end in one step are told one by one
    assert taken == ended == PROMPTS


def test_what_is_dropped_ends_as_it_is(llm: Any, greedy: Any) -> None:
    asked, generation = prompts(llm)[:6], greedy(20, max_repeats=None, min_new_tokens=18)
    expected = {key: ids for key, ids, _ in answers(DecodeSlots(llm, generation), asked, 6)}
    slots = DecodeSlots(llm, generation)
    slots.read(asked)
    for _ in range(4):
        slots.step()
    slots.drop({2, 3})
    assert {key: ids for key, ids, _ in slots.take()} == {key: expected[key][:5] for key in (2, 3)}
    while slots.live:
        slots.step()
    rest = {key: ids for key, ids, _ in slots.take()}
    assert rest == {key: ids for key, ids in expected.items() if key not in (2, 3)}


def test_windows_and_draws_are_left_to_generate(
    llm: Any, greedy: Any, save_tiny_llm: Callable[..., Path], tmp_path: Path
) -> None:
    assert not continues(llm, greedy(4, strategy="sample", temperature=1.0))
    assert not continues(llm, greedy(4, strategy="beam", num_beams=2))
    path = str(save_tiny_llm(tmp_path, "gemma2", head_dim=8))
    windowed, _ = load_llm(Llm(path=path, revision=None, dtype="float32", quantization="none", layers="all"))
    assert not continues(windowed, greedy(4))
