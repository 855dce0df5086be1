"""The registered best is chosen on dev: whatever the test sets say, the lowest dev loss wins."""

from dataclasses import replace
from pathlib import Path

import pytest

from steermoe.analysis.champion import dev_losses, judged_by, table
from steermoe.analysis.comparison import Comparison, compare
from steermoe.config import ArmConfig, Evaluation

ARMS = ["linear", "steermoe", "lora"]


@pytest.fixture(scope="module")
def comparison(evaluations: Path, timing: Path, settings: Evaluation) -> Comparison:
    return compare(ARMS, "linear", ["synthetic", "digits"], evaluations, timing, settings, seed=1)


@pytest.fixture
def arms(tiny_arm) -> dict[str, ArmConfig]:
    return {"linear": tiny_arm("linear"), "steermoe": tiny_arm("steering"), "lora": tiny_arm("lora")}


def test_the_lowest_dev_loss_is_first_whatever_the_test_sets_say(
    comparison: Comparison, arms: dict[str, ArmConfig]
) -> None:
    found = dev_losses(comparison, arms)
    assert list(found) == ["linear", "lora", "steermoe"]  # on the test sets steermoe is best, linear worst
    other = replace(comparison, cells=[replace(cell, value=1 - cell.value) for cell in comparison.cells])
    assert dev_losses(other, arms) == found


@pytest.mark.parametrize(
    "change",
    [
        {"dev_splits": {"digits": ["dev"]}},
        {"prompts": {"transcribe": "write: "}},
        {"llm": {"path": "elsewhere"}},
    ],
)
def test_losses_that_do_not_compare_are_left_out(
    comparison: Comparison, arms: dict[str, ArmConfig], change: dict
) -> None:
    for name, value in change.items():
        section = getattr(arms["linear"], name)
        changed = value if name == "dev_splits" else section.model_copy(update=value)
        arms["lora"] = arms["lora"].model_copy(update={name: changed})
    assert "lora" not in dev_losses(comparison, arms)
    assert judged_by(arms["lora"]) != judged_by(arms["linear"])


def test_an_arm_that_trains_nothing_or_has_no_loss_does_not_win(
    comparison: Comparison, arms: dict[str, ArmConfig]
) -> None:
    timing = dict(comparison.timing)
    timing["linear"] = timing["linear"] | {"trainable_parameters": {}}
    del timing["lora"]
    assert list(dev_losses(replace(comparison, timing=timing), arms)) == ["steermoe"]
    assert dev_losses(replace(comparison, timing={}), arms) == {}
    assert table({"linear": 0.25}).splitlines()[-1] == "| linear | 0.2500 |"
