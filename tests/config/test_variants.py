"""Variants are resolved to what they say and stay so through JSON; mistaken overrides are reported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steermoe import config

ROOT = Path(__file__).parents[2]
Edit = Callable[[dict[str, Any]], None]
Problems = Callable[[], list[str]]
LESSON = {"teacher": "folder", "logits": 1.0, "temperature": 2.0, "hidden": 0.0}
SHARED = "one of seed, projector.*, prompts.*, encoder.*, video, llm.*, selection.*, training.*"
LORA = SHARED.replace("seed, ", "seed, lora.*, ")
DOWNSAMPLERS = "one of average, max, concat, conv, none"
OVERRIDES = [  # variant and method, path, value, what follows the place
    (
        "linear",
        "projector.downsample_factor",
        4,
        ": found 4; allowed: a value that differs from the shared one",
    ),
    (
        "linear",
        "projector.downsample",
        "mx",
        f': found "mx"; allowed: {DOWNSAMPLERS}; did you mean max?',
    ),
    ("lora", "lora.targets", ["fc1", 2], ": found 2; allowed: text that is not empty"),
    (
        "lora",
        "lora.rnak",
        3,
        ": no such value; allowed: one of lora.rank, lora.alpha, lora.dropout, lora.targets; "
        "did you mean lora.rank?",
    ),
    (
        "linear",
        "projector",
        {"downsample_factor": 3},
        f": no such value; allowed: one of {', '.join(f'projector.{n}' for n in config.Projector.model_fields)}; "
        "did you mean projector.width?",
    ),
    (
        "linear",
        "evaluation.confidence",
        0.9,
        f": no such value; allowed: {SHARED}; did you mean selection.dev?",
    ),
    (
        "linear",
        "steering.num_experts",
        3,
        f": of method steering, without effect on linear; allowed: {SHARED}",
    ),
    (
        "lora",
        "training.steering_max_grad_norm",
        0.5,
        f": of method steering, without effect on lora; allowed: {LORA}",
    ),
    (
        "linear",
        "training.learning_rates.lora.lora",
        3.0,
        f": of method lora, without effect on linear; allowed: {SHARED}",
    ),
]


def test_overrides_change_the_named_values_only(edit: Edit, params: Path) -> None:
    overrides = {
        "projector.downsample_factor": 2,
        "training.learning_rates.linear.projection": 0.5,
        "seed": 3,
    }
    edit({"variants.linear-concat": {"method": "linear", "overrides": overrides}})
    loaded = config.load(params)
    plain, other = loaded.variant("linear").model_dump(), loaded.variant("linear-concat").model_dump()
    plain["name"], plain["seed"], plain["projector"]["downsample_factor"] = "linear-concat", 3, 2
    plain["training"]["learning_rates"]["projection"] = 0.5
    assert plain == other


def test_variants_have_what_their_methods_read_and_survive_json() -> None:
    loaded = config.load(ROOT / "params.yaml")
    for variant in loaded.variants.values():
        check(loaded, variant)


def check(loaded: config.Config, variant: config.VariantConfig) -> None:
    ingredients = variant.method.split("+")
    rates: dict[str, float] = {}
    for ingredient in reversed(ingredients):
        rates |= getattr(loaded.training.learning_rates, ingredient).model_dump()
    assert variant.training.learning_rates == rates
    for section in ("steering", "lora", "llm_lora"):
        assert (getattr(variant, section) is not None) is (section in ingredients)
    assert variant.train_splits == {corpus: section.train for corpus, section in loaded.corpora.items()}
    assert variant.dev_splits == {corpus: section.dev for corpus, section in loaded.corpora.items()}
    again = config.VariantConfig.from_json(variant.to_json())
    assert again == variant
    assert again.to_json() == variant.to_json()


def test_variant_from_wrong_json() -> None:
    text = config.load(ROOT / "params.yaml").variant("linear").to_json()
    with pytest.raises(
        config.ConfigError, match=r"method: found \"linea\"; allowed: .*; did you mean linear"
    ):
        config.VariantConfig.from_json(text.replace('"method": "linear"', '"method": "linea"'))
    with pytest.raises(config.ConfigError) as caught:
        config.VariantConfig.from_json(text.replace('"method": "linear"', '"method": "lora"'))
    section, rates = caught.value.lines
    assert section == "variant's configuration: lora: found null; allowed: a section, as the method is lora"
    assert rates.startswith("variant's configuration: training: found {") and "of projection, lora" in rates


def test_unknown_variant() -> None:
    with pytest.raises(ValueError, match=r"allowed: one of steermoe, linear, .*; did you mean linear"):
        config.load(ROOT / "params.yaml").variant("liner")


@pytest.mark.parametrize(("method", "path", "value", "rest"), OVERRIDES)
def test_mistaken_override_is_reported(
    edit: Edit, problems: Problems, method: str, path: str, value: Any, rest: str
) -> None:
    edit({f"variants.{method}": {"method": method, "overrides": {path: value}}})
    assert problems() == [f"params.yaml: variants.{method}.overrides.{path}{rest}"]


def test_override_that_clashes_with_a_shared_value(edit: Edit, problems: Problems) -> None:
    edit({"mini:training.max_steps": 300, "mini:training.eval_steps": 200, "mini:training.warmup_steps": 10})
    edit({"variants.linear": {"method": "linear", "overrides": {"training.max_steps": 150}}})
    place = "params.yaml: variants.linear.overrides, leading to training.eval_steps"
    assert problems() == [f"{place}: found 200; allowed: at most training.max_steps, which is 150"]


def test_name_that_cannot_be_a_folders(edit: Edit, problems: Problems) -> None:
    legal = "allowed: a name of lower-case letters, digits, - and _, but not baseline"
    edit({"variants": {name: {"method": name, "overrides": {}} for name in ("steering", "linear", "lora")}})
    edit({"variants.Big": {"method": "linear", "overrides": {}}, "compare": ["linear", "lora"]})
    edit({"variants.baseline": {"method": "linear", "overrides": {}}})
    assert problems() == [
        f'params.yaml: variants.{name}: found "{name}"; {legal}' for name in ("Big", "baseline")
    ]


def test_unselected_row_may_coincide_with_the_shared_values(
    edit: Edit, problems: Problems, params: Path
) -> None:
    edit({"steering.num_experts": 16})  # as `dvc exp run -S steering.num_experts=16` does
    assert (
        config.load(params).variant("steermoe").steering
        == config.load(params).variant("steermoe-16").steering
    )
    edit({"compare": ["steermoe", "steermoe-16", "linear"]})
    assert problems() == [
        "params.yaml: variants.steermoe-16.overrides.steering.num_experts: found 16; "
        "allowed: a value that differs from the shared one"
    ]


def test_unselected_row_may_be_impossible_with_the_shared_values(
    edit: Edit, problems: Problems, params: Path
) -> None:
    edit({"steering.num_experts": 2})  # two groups of one expert each
    assert "steermoe-hierarchical" not in config.load(params).variants
    edit({"compare": ["steermoe-hierarchical", "linear"]})
    assert problems() == [
        "params.yaml: variants.steermoe-hierarchical.overrides.steering.groups: found 2; "
        "allowed: a number that divides steering.num_experts ([2]) and is smaller"
    ]


def test_two_equal_selected_variants(edit: Edit, problems: Problems) -> None:
    edit({"variants.lora": {"method": "linear", "overrides": {}}})
    assert "variants.lora: the same as variants.linear" in problems()[0]


def test_a_variant_learns_from_a_teacher(edit: Edit, params: Path) -> None:
    """The shared value is null: the override is the whole section."""
    overrides = {"encoder.layers": 2, "training.distillation": LESSON}
    edit({"variants.small": {"method": "linear", "overrides": overrides}, "compare": ["small", "linear"]})
    loaded = config.load(params)
    small, linear = loaded.variant("small"), loaded.variant("linear")
    assert small.training.distillation == config.Distillation(**LESSON) and small.encoder.layers == 2
    assert linear.training.distillation is None and linear.encoder.layers == "all"
    assert config.VariantConfig.from_json(small.to_json()) == small


@pytest.mark.parametrize(
    ("value", "rest"),
    [
        (None, ": found null; allowed: a value that differs from the shared one"),
        (LESSON | {"hidden": -1}, ".hidden: found -1; allowed: a number >= 0"),
        (
            LESSON | {"temprature": 1},
            ".temprature: unknown key; allowed: one of teacher, logits, temperature, hidden; did you mean "
            "temperature?",
        ),
    ],
)
def test_mistake_in_an_overriding_section_is_reported(
    edit: Edit, problems: Problems, value: Any, rest: str
) -> None:
    edit({"variants.linear": {"method": "linear", "overrides": {"training.distillation": value}}})
    assert problems() == [f"params.yaml: variants.linear.overrides.training.distillation{rest}"]
