import numpy as np
import pytest
from scipy import stats

from steermoe.evaluation.metrics import Counts
from steermoe.evaluation.significance import bootstrap_interval, holm, paired_bootstrap, resamples


def errors(rng: np.random.Generator, utterances: int, rate: float) -> Counts:
    words = rng.integers(3, 12, utterances).astype(float)
    return rng.binomial(words.astype(int), rate).astype(float), words


def test_interval_holds_the_value_and_is_repeatable() -> None:
    counts = errors(np.random.default_rng(0), 150, 0.2)
    first = bootstrap_interval(counts, 500, 0.95, seed=3)
    assert first == bootstrap_interval(counts, 500, 0.95, seed=3)
    assert first != bootstrap_interval(counts, 500, 0.95, seed=4)
    assert first.low < first.value < first.high
    assert first.value == counts[0].sum() / counts[1].sum()


def test_interval_agrees_with_the_normal_approximation_for_a_proportion() -> None:
    hits = np.repeat([1.0, 0.0], [120, 280])
    interval = bootstrap_interval((hits, np.ones(400)), 4000, 0.95, seed=0)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert interval.low == pytest.approx(0.3 - half, abs=0.005)
    assert interval.high == pytest.approx(0.3 + half, abs=0.005)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(errors(rng, 120, 0.25), 300, 0.9, seed=i) for i in range(300)]
    covered = np.mean([interval.low <= 0.25 <= interval.high for interval in intervals])
    assert 0.84 < covered < 0.95


def test_p_values_of_equal_systems_are_uniform() -> None:
    rng = np.random.default_rng(5)
    p = np.array([paired_bootstrap(*pair(rng, 0.3, 0.3), 300, 0.95, seed=i).p for i in range(300)])
    assert 0.02 < np.mean(p < 0.05) < 0.09
    assert 0.4 < np.mean(p < 0.5) < 0.6


def pair(
    rng: np.random.Generator, first: float, second: float, utterances: int = 150
) -> tuple[Counts, Counts]:
    words = rng.integers(3, 12, utterances)
    a, b = (rng.binomial(words, rate).astype(float) for rate in (first, second))
    return (a, words.astype(float)), (b, words.astype(float))


def test_a_real_difference_is_found_and_signed() -> None:
    better, worse = pair(np.random.default_rng(6), 0.1, 0.4)
    forward, backward = (
        paired_bootstrap(*variants, 999, 0.95, seed=0) for variants in ((better, worse), (worse, better))
    )
    assert forward.high < 0 and forward.p == pytest.approx(1 / 1000)
    assert backward.value == -forward.value and backward.p == forward.p
    assert forward.is_bound and backward.is_bound
    assert backward.low == pytest.approx(-forward.high) and backward.high == pytest.approx(-forward.low)


def test_pairing_sees_what_two_intervals_hide() -> None:
    rng = np.random.default_rng(7)
    hard = rng.integers(0, 8, 200).astype(float)  # utterances differ much more than the systems do
    slightly_worse = hard + (rng.random(200) < 0.2)
    words = np.full(200, 9.0)
    a, b = (bootstrap_interval((counts, words), 500, 0.95, seed=0) for counts in (hard, slightly_worse))
    assert a.high > b.low
    assert paired_bootstrap((slightly_worse, words), (hard, words), 500, 0.95, seed=0).p < 0.01


def test_a_system_against_itself_has_p_one() -> None:
    counts = errors(np.random.default_rng(8), 50, 0.3)
    difference = paired_bootstrap(counts, counts, 200, 0.95, seed=0)
    assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resamples(7, 20, seed=1)))
    monkeypatch.setattr("steermoe.evaluation.significance.CHUNK", 30)
    chunks = list(resamples(7, 20, seed=1))
    assert len(chunks) == 5
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_draws_without_words_are_left_out() -> None:
    interval = bootstrap_interval((np.array([1.0, 2.0]), np.array([0.0, 4.0])), 200, 0.95, seed=0)
    assert interval.value == 0.75 and np.isfinite([interval.low, interval.high]).all()


def test_bad_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="no rate over 2 rows"):
        bootstrap_interval((np.ones(2), np.zeros(2)), 10, 0.95, seed=0)
    with pytest.raises(ValueError, match="comparison of 3 with 2 rows"):
        paired_bootstrap((np.ones(3), np.ones(3)), (np.ones(2), np.ones(2)), 10, 0.95, seed=0)


def test_rows_repeated_within_their_clusters_change_nothing() -> None:
    rng = np.random.default_rng(9)
    a, b = pair(rng, 0.2, 0.3, utterances=60)
    clusters = [f"c{number // 3}" for number in range(60)]
    c, d = ((np.repeat(errors, 3), np.repeat(words, 3)) for errors, words in (a, b))
    again = [name for name in clusters for _ in range(3)]
    assert bootstrap_interval(a, 500, 0.95, 0, clusters) == bootstrap_interval(c, 500, 0.95, 0, again)
    assert paired_bootstrap(a, b, 500, 0.95, 0, clusters) == paired_bootstrap(c, d, 500, 0.95, 0, again)


def test_interval_of_alike_rows_is_that_of_the_speakers_means() -> None:
    """Scipy resamples the means of speakers whose rows are all equal; over rows the interval would be too narrow."""
    means = np.random.default_rng(13).uniform(0, 1, 12)
    counts = np.repeat(means, 20), np.ones(240)
    speakers = [f"s{number // 20}" for number in range(240)]
    expected = stats.bootstrap(
        (means,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(0)
    )
    found = bootstrap_interval(counts, 20000, 0.95, 1, speakers)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.005)
    rows = bootstrap_interval(counts, 2000, 0.95, 1)
    assert rows.high - rows.low < 0.4 * (found.high - found.low)


def test_paired_difference_of_speakers_is_that_of_their_mean_differences() -> None:
    rng = np.random.default_rng(14)
    a, b = rng.uniform(0, 1, (2, 10))
    ours, theirs = ((np.repeat(means, 15), np.ones(150)) for means in (a, b))
    speakers = [f"s{number // 15}" for number in range(150)]
    expected = stats.bootstrap(
        (a - b,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(0)
    )
    found = paired_bootstrap(ours, theirs, 20000, 0.95, 1, speakers)
    assert found.value == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.01)


def test_rows_each_in_a_cluster_of_their_own_are_rows() -> None:
    counts = errors(np.random.default_rng(10), 40, 0.3)
    names = [f"r{-number}" for number in range(40)]
    assert bootstrap_interval(counts, 300, 0.95, 0, names) == bootstrap_interval(counts, 300, 0.95, 0)


def test_cluster_intervals_cover_the_truth_where_rows_are_alike_within() -> None:
    """30 speakers of 8 rows each, whose error rates differ: intervals over rows cover it far too seldom."""
    rng = np.random.default_rng(11)
    speakers = [f"s{number // 8}" for number in range(240)]
    covered = {"rows": 0, "speakers": 0}
    for seed in range(150):
        rates = np.repeat(rng.beta(2, 6, 30), 8)  # their mean is 0.25
        counts = rng.binomial(6, rates).astype(float), np.full(240, 6.0)
        for unit, clusters in (("rows", None), ("speakers", speakers)):
            found = bootstrap_interval(counts, 200, 0.9, seed, clusters)
            covered[unit] += found.low <= 0.25 <= found.high
    assert covered["rows"] < 0.7 * 150 < 0.82 * 150 < covered["speakers"]


def test_one_cluster_finds_nothing() -> None:
    a, b = pair(np.random.default_rng(12), 0.1, 0.9, utterances=20)
    found = paired_bootstrap(a, b, 100, 0.95, 0, ["clip"] * 20)
    assert found.value < -0.5 and found.p == 1 and not found.is_bound


def test_holm_is_that_of_r() -> None:
    """Of R's `p.adjust(c(0.01, 0.04, 0.03, 0.005, 0.8), "holm")`."""
    assert holm([0.01, 0.04, 0.03, 0.005, 0.8]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.8])
    assert holm([]) == [] and holm([0.5, 0.9]) == [1.0, 1.0]
