"""The winner has the lowest mean error over the test sets, among arms only."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from steermoe.analysis.champion import headline_errors, measured_on, table
from steermoe.analysis.comparison import Comparison, compare
from steermoe.config import Evaluation

ARMS = ["linear", "steermoe", "lora"]


@pytest.fixture(scope="module")
def comparison(evaluations: Path, timing: Path, settings: Evaluation) -> Comparison:
    return compare(ARMS, "linear", ["synthetic", "digits"], evaluations, timing, settings, seed=1)


def test_errors_are_means_over_the_sets_lowest_first(comparison: Comparison) -> None:
    errors = headline_errors(comparison)
    assert set(errors) == set(ARMS)
    assert list(errors.values()) == sorted(errors.values())
    tree = comparison.headline()
    for arm, error in errors.items():
        sets = tree[arm]["synthetic"]
        parts = [sets["clean"]["wer"], 1 - sets["clean"]["accuracy"], sets["other"]["wer"]]
        assert math.isclose(error, sum(parts) / 3, abs_tol=1e-5)


def test_an_arm_that_trains_nothing_does_not_win(comparison: Comparison) -> None:
    best = next(iter(headline_errors(comparison)))
    rows = [replace(row, trainable=0) if row.system == best else row for row in comparison.rows]
    assert best not in headline_errors(replace(comparison, rows=rows))


def test_what_was_measured_on_tells_sets_and_protocol(comparison: Comparison) -> None:
    line = measured_on(comparison)
    assert line.startswith("synthetic/clean/transcribe:60 synthetic/clean/answer:30")
    other = replace(comparison, protocol=comparison.protocol | {"normalizer": "none"})
    assert measured_on(other) != line


def test_nothing_scored_has_no_winner(comparison: Comparison) -> None:
    empty = replace(comparison, cells=[], sets=[place for place in comparison.sets if not place.task])
    assert headline_errors(empty) == {}
    assert table({"linear": 0.25}).splitlines()[-1] == "| linear | 25.00% |"
