"""Bootstrap over utterances for metrics that are ratios of sums (WER, CER, accuracy).

The interval is the percentile bootstrap (Efron & Tibshirani 1993, chapter 13; for WER: Bisani & Ney 2004):
whole utterances are drawn with replacement, the ratio is computed anew for each draw. It speaks for other
utterances of the same kind, not for other training seeds; utterances of one speaker are taken as independent.
Where all utterances agree (0 or 100 % exact match) the interval has no width: that is not certainty.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from steermoe.evaluation.metrics import Counts

CHUNK = 4_000_000  # drawn indices held at once


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """A minus B, its interval, and the two-sided p-value of the hypothesis that there is none."""

    p: float


def bootstrap_interval(counts: Counts, samples: int, confidence: float, seed: int) -> Interval:
    """Ratio of the sums of `counts` with its percentile interval; ValueError where the denominator is 0."""
    value = ratio(counts)
    drawn = np.concatenate([ratios(counts, rows) for rows in resamples(len(counts[0]), samples, seed)])
    return Interval(value, *bounds(drawn, confidence))


def paired_bootstrap(a: Counts, b: Counts, samples: int, confidence: float, seed: int) -> Difference:
    """Difference of two systems' ratios on the same utterances, in the same order.

    Both are resampled by the same draws (Koehn 2004). The p-value is that of the draws' distribution shifted
    to mean "no difference": the share of draws at least as far from the measured difference as that is from
    zero (Efron & Tibshirani 1993, section 16.4), counting the measurement itself: at least 1 / (samples + 1).
    """
    if len(a[0]) != len(b[0]):
        raise ValueError(
            f"paired comparison of {len(a[0])} with {len(b[0])} utterances; they must be the same"
        )
    value = ratio(a) - ratio(b)
    drawn = np.concatenate(
        [ratios(a, rows) - ratios(b, rows) for rows in resamples(len(a[0]), samples, seed)]
    )
    # Equal sums in another order differ in the last bits; such draws are as far off, not nearer.
    beyond = np.abs(drawn - value) >= abs(value) - 1e-12
    p = (1 + int(np.count_nonzero(beyond[np.isfinite(drawn)]))) / (1 + int(np.isfinite(drawn).sum()))
    return Difference(value, *bounds(drawn, confidence), p)


def resamples(utterances: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers drawn with replacement, in chunks of (draws, utterances); a function of its arguments."""
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // max(1, utterances))
    for start in range(0, samples, step):
        yield rng.integers(utterances, size=(min(step, samples - start), utterances))


def ratio(counts: Counts) -> float:
    """Sum of numerators over sum of denominators."""
    numerator, denominator = counts
    total = float(denominator.sum())
    if total == 0:
        raise ValueError(f"no rate over {len(numerator)} utterances: their references hold no words")
    return float(numerator.sum()) / total


def ratios(counts: Counts, rows: np.ndarray) -> np.ndarray:
    """The ratio of each draw; NaN for a draw without any reference word."""
    numerator, denominator = (part[rows].sum(axis=1) for part in counts)
    return np.divide(numerator, denominator, out=np.full(len(rows), np.nan), where=denominator > 0)


def bounds(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    """The central `confidence` share of the draws."""
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
