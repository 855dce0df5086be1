"""The registered best is chosen on dev: whatever the test sets say, the lowest dev loss wins."""

from dataclasses import replace
from pathlib import Path

import pytest

from steermoe.analysis.champion import dev_losses, judged_by, table
from steermoe.analysis.comparison import Comparison, compare
from steermoe.config import Evaluation, VariantConfig

VARIANTS = ["linear", "steermoe", "lora"]


@pytest.fixture(scope="module")
def comparison(evaluations: Path, timing: Path, settings: Evaluation) -> Comparison:
    return compare(VARIANTS, "linear", ["synthetic", "digits"], evaluations, timing, settings, seed=1)


@pytest.fixture
def variants(tiny_variant) -> dict[str, VariantConfig]:
    return {
        "linear": tiny_variant("linear"),
        "steermoe": tiny_variant("steering"),
        "lora": tiny_variant("lora"),
    }


def test_the_lowest_dev_loss_is_first_whatever_the_test_sets_say(
    comparison: Comparison, variants: dict[str, VariantConfig]
) -> None:
    found = dev_losses(comparison, variants)
    assert list(found) == ["linear", "lora", "steermoe"]  # on the test sets steermoe is best, linear worst
    other = replace(comparison, cells=[replace(cell, value=1 - cell.value) for cell in comparison.cells])
    assert dev_losses(other, variants) == found


@pytest.mark.parametrize(
    "change",
    [
        {"dev_splits": {"digits": ["dev"]}},
        {"prompts": {"transcribe": "write: "}},
        {"llm": {"path": "elsewhere"}},
    ],
)
def test_losses_that_do_not_compare_are_left_out(
    comparison: Comparison, variants: dict[str, VariantConfig], change: dict
) -> None:
    for name, value in change.items():
        section = getattr(variants["linear"], name)
        changed = value if name == "dev_splits" else section.model_copy(update=value)
        variants["lora"] = variants["lora"].model_copy(update={name: changed})
    assert "lora" not in dev_losses(comparison, variants)
    assert judged_by(variants["lora"]) != judged_by(variants["linear"])


def test_a_variant_that_trains_nothing_or_has_no_loss_does_not_win(
    comparison: Comparison, variants: dict[str, VariantConfig]
) -> None:
    timing = dict(comparison.timing)
    timing["linear"] = timing["linear"] | {"trainable_parameters": {}}
    del timing["lora"]
    assert list(dev_losses(replace(comparison, timing=timing), variants)) == ["steermoe"]
    assert dev_losses(replace(comparison, timing={}), variants) == {}
    assert table({"linear": 0.25}).splitlines()[-1] == "| linear | 0.2500 |"
