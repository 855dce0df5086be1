"""Batches of utterances of similar length, with a budget of audio seconds, padding included.

Padding makes the rows of a batch equally long, and fills an encoder's window: where the encoder always computes a
window of 30 s, every row costs 30 s.
"""

import math
from collections.abc import Sequence

import numpy as np

BUCKET_RATIO = 1.1  # longest to shortest utterance of a bucket: at most 10 % of a batch is padding, mostly


def bucketed_batches(
    seconds: Sequence[float], budget: float, seed: int | None, epoch: int, window: float = 0.0
) -> list[list[int]]:
    """Return batches of indices of `seconds`, each in exactly one batch.

    In a batch, longest utterance (or `window`, if that is longer) x number of utterances <= `budget`; an utterance
    that costs more is a batch of its own. The utterances of a length bucket are shuffled, cut into batches, and the
    batches shuffled: the same for the same (seed, epoch). A bucket's last utterances go with the next bucket's first.

    Args:
        seconds: length of every utterance.
        budget: padded seconds a batch.
        seed: None sorts by length and shuffles nothing, which pads least: for evaluation.
        epoch: other epochs are cut and ordered otherwise.
        window: seconds that every utterance is padded to (`Encoder.window_seconds`).

    Raises:
        ValueError: a length or the budget is not a positive number.
    """
    lengths = np.asarray(seconds, dtype=np.float64)
    if not (math.isfinite(budget) and budget > 0):
        raise ValueError(f"a budget of {budget} s a batch, expected a positive number")
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(bad):
        raise ValueError(f"utterance {bad[0]} lasts {lengths[bad[0]]} s, expected a positive number")
    if seed is None:
        return _cut(np.argsort(lengths, kind="stable"), np.maximum(lengths, window), budget)
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(lengths))
    buckets = np.floor(np.log(lengths[shuffled]) / math.log(BUCKET_RATIO))
    batches = _cut(shuffled[np.argsort(buckets, kind="stable")], np.maximum(lengths, window), budget)
    return [batches[i] for i in rng.permutation(len(batches))]


def _cut(order: np.ndarray, costs: np.ndarray, budget: float) -> list[list[int]]:
    """Cut `order` into batches as large as the budget allows; `costs` are seconds of every utterance."""
    batches: list[list[int]] = []
    longest = math.inf  # so that the first utterance opens a batch
    for index, length in zip(order.tolist(), costs[order].tolist(), strict=True):
        longest = max(longest, length)
        if longest * (len(batches[-1]) + 1 if batches else 1) > budget:
            batches.append([])
            longest = length
        batches[-1].append(index)
    return batches
