"""Bootstrap over clusters of rows for metrics that are ratios of sums (WER, CER, accuracy).

Intervals are percentile intervals (Efron & Tibshirani 1993, chapter 13; for WER: Bisani & Ney 2004). Rows that
share a speaker or a recording are not independent, so whole clusters are drawn with replacement (Cameron & Miller
2015, section VI). The interval is about other clusters of the same kind, not about other training seeds. If all
clusters agree (0 or 100 % exact match) it has no width, which is no certainty.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from steermoe.evaluation.metrics import Counts

CHUNK = 4_000_000  # drawn indices held at once
Seed = int | Sequence[int]


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """A minus B, its interval, and the two-sided p-value of no difference.

    `is_bound`: no draw was as far off, so that `p` is an upper bound. `corrected`: `p` after `holm`.
    """

    p: float
    is_bound: bool
    corrected: float | None = None


def bootstrap_interval(
    counts: Counts, samples: int, confidence: float, seed: Seed, clusters: Sequence[str] | None = None
) -> Interval:
    """Return the ratio of the sums of `counts` with its percentile interval.

    Args:
        counts: (rows,) numerators and denominators.
        samples: how many resamples are drawn.
        confidence: of the interval, 0 to 1.
        seed: of the draws.
        clusters: the cluster of each row; None: each row by itself.

    Raises:
        ValueError: the denominators sum to 0.
    """
    value, parts = ratio(counts), summed(counts, clusters)
    drawn = np.concatenate([ratios(parts, rows) for rows in resamples(len(parts[0]), samples, seed)])
    return Interval(value, *bounds(drawn, confidence))


def paired_bootstrap(
    a: Counts, b: Counts, samples: int, confidence: float, seed: Seed, clusters: Sequence[str] | None = None
) -> Difference:
    """Compare two systems' ratios on the same rows, in the same order.

    Both are resampled by the same draws (Koehn 2004). The p-value is the share of draws at least as far from the
    measured difference as that is from zero (Efron & Tibshirani 1993, section 16.4), the measurement itself included:
    at least 1 / (samples + 1). With a single cluster it is 1.
    """
    if len(a[0]) != len(b[0]):
        raise ValueError(f"paired comparison of {len(a[0])} with {len(b[0])} rows; they must be the same")
    value = ratio(a) - ratio(b)
    ours, theirs = summed(a, clusters), summed(b, clusters)
    count = len(ours[0])
    drawn = np.concatenate(
        [ratios(ours, rows) - ratios(theirs, rows) for rows in resamples(count, samples, seed)]
    )
    # Equal sums in another order differ in the last bits; such draws are as far off, not nearer.
    beyond = int(np.count_nonzero(np.abs(drawn - value)[np.isfinite(drawn)] >= abs(value) - 1e-12))
    p = (1 + beyond) / (1 + int(np.isfinite(drawn).sum())) if count > 1 else 1.0
    return Difference(value, *bounds(drawn, confidence), p, is_bound=count > 1 and not beyond)


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979), so that the chance of any false finding stays as stated."""
    values = np.array(p)
    order = np.argsort(values)
    factors = np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return corrected.tolist()


def summed(counts: Counts, clusters: Sequence[str] | None) -> Counts:
    """Return the counts of each cluster, in the order in which the clusters first appear."""
    if clusters is None:
        return counts
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    of = [numbers[name] for name in clusters]
    numerator, denominator = (np.bincount(of, weights=part) for part in counts)
    return numerator, denominator


def resamples(count: int, samples: int, seed: Seed) -> Iterator[np.ndarray]:
    """Yield numbers below `count`, drawn with replacement, in chunks of (draws, count)."""
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // max(1, count))
    for start in range(0, samples, step):
        yield rng.integers(count, size=(min(step, samples - start), count))


def ratio(counts: Counts) -> float:
    """Return the sum of numerators over the sum of denominators; ValueError if that is 0."""
    numerator, denominator = counts
    total = float(denominator.sum())
    if total == 0:
        raise ValueError(f"no rate over {len(numerator)} rows: their references hold no words")
    return float(numerator.sum()) / total


def ratios(counts: Counts, rows: np.ndarray) -> np.ndarray:
    """Return the ratio of each draw; NaN for a draw without any reference word."""
    numerator, denominator = (part[rows].sum(axis=1) for part in counts)
    return np.divide(numerator, denominator, out=np.full(len(rows), np.nan), where=denominator > 0)


def bounds(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the bounds of the central `confidence` share of the draws."""
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
