"""Batches hold every utterance once, within the budget, in an order that depends on seed and epoch alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.data.batching import BUCKET_RATIO, bucketed_batches

LENGTHS = st.lists(st.floats(0.01, 60), max_size=120)


def padded(batch: list[int], seconds: list[float]) -> float:
    return max(seconds[i] for i in batch) * len(batch)


@given(LENGTHS, st.floats(0.5, 100), st.one_of(st.none(), st.integers(0, 2**32 - 1)), st.integers(0, 9))
def test_invariants(seconds: list[float], budget: float, seed: int | None, epoch: int):
    batches = bucketed_batches(seconds, budget, seed, epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(seconds)))
    assert all(batches)
    for batch in batches:
        assert len(batch) == 1 or padded(batch, seconds) <= budget * (1 + 1e-9)
    assert batches == bucketed_batches(seconds, budget, seed, epoch)


@pytest.fixture(scope="module")
def speech() -> list[float]:
    """Lengths as of read speech: 2 to 17 s."""
    return np.random.default_rng(0).gamma(6, 1.2, 3000).clip(1, 17).tolist()


def test_little_padding(speech: list[float]):
    total = sum(speech)
    for seed, most in ((None, 1.01), (3, 1.06)):
        batches = bucketed_batches(speech, 120, seed, 0)
        assert total < sum(padded(batch, speech) for batch in batches) < most * total
        assert len(batches) < 1.15 * total / 120  # the budget is used
    shuffled = np.random.default_rng(1).permutation(len(speech)).reshape(-1, 15)
    assert sum(padded(list(batch), speech) for batch in shuffled) > 1.4 * total  # what it saves


def test_other_epochs_and_seeds_differ(speech: list[float]):
    orders = [
        str(bucketed_batches(speech, 80, seed, epoch)) for seed, epoch in ((1, 0), (1, 1), (2, 0), (2, 1))
    ]
    assert len(set(orders)) == 4
    first, second = (bucketed_batches(speech, 80, 1, epoch) for epoch in (0, 1))
    assert not {tuple(sorted(batch)) for batch in first} & {tuple(sorted(batch)) for batch in second}


def test_sorted_for_evaluation(speech: list[float]):
    batches = bucketed_batches(speech, 120, None, 0)
    order = [speech[i] for batch in batches for i in batch]
    assert order == sorted(order)
    assert batches == bucketed_batches(speech, 120, None, 7)


def test_buckets_are_narrow(speech: list[float]):
    ratios = [
        max(speech[i] for i in batch) / min(speech[i] for i in batch)
        for batch in bucketed_batches(speech, 80, 1, 0)
    ]
    assert np.median(ratios) < BUCKET_RATIO


@pytest.mark.parametrize("seed", [None, 1])
def test_every_utterance_costs_the_window_at_least(speech: list[float], seed: int | None):
    batches = bucketed_batches(speech, 125, seed, 0, window=30.0)
    assert sorted(row for batch in batches for row in batch) == list(range(len(speech)))
    assert [len(batch) for batch in batches].count(4) >= len(batches) - 1 and max(map(len, batches)) == 4
    assert bucketed_batches(speech, 125, seed, 0, window=min(speech)) == bucketed_batches(
        speech, 125, seed, 0
    )


def test_an_utterance_over_the_budget_is_alone():
    for epoch in range(5):
        batches = [sorted(batch) for batch in bucketed_batches([1, 1, 50, 1], 10, 0, epoch)]
        assert sorted(batches) == [[0, 1, 3], [2]]


@pytest.mark.parametrize(
    ("seconds", "budget", "message"),
    [
        ([1.0, 0.0], 10, "utterance 1 lasts 0.0 s"),
        ([1.0, float("nan")], 10, "utterance 1 lasts nan s"),
        ([-1.0], 10, "utterance 0 lasts -1.0 s"),
        ([1.0], 0, "a budget of 0 s"),
        ([1.0], float("inf"), "a budget of inf s"),
    ],
)
def test_refused(seconds: list[float], budget: float, message: str):
    with pytest.raises(ValueError, match=message):
        bucketed_batches(seconds, budget, 0, 0)
