import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from steermoe.analysis.comparison import Comparison, cells_of, compare, dev_losses, measured_on
from steermoe.config import Evaluation, VariantConfig
from steermoe.evaluation.metrics import METRICS
from steermoe.evaluation.predictions import Predictions, read_result, write_result, write_skipped
from steermoe.evaluation.significance import holm, paired_bootstrap

VARIANTS = ["linear", "steermoe", "lora"]
CORPORA = ["synthetic", "digits"]


@pytest.fixture(scope="module")
def comparison(evaluations: Path, timing: Path, settings: Evaluation) -> Comparison:
    return compare(VARIANTS, "linear", CORPORA, evaluations, timing, settings, seed=1)


def test_rows_are_the_variants_between_their_bars_with_their_costs(
    comparison: Comparison, evaluations: Path
) -> None:
    assert [(row.system, row.audio) for row in comparison.rows] == [
        ("baseline/encoder", "own"),
        *((variant, "own") for variant in VARIANTS),
        *((variant, "shuffled") for variant in VARIANTS),
        ("baseline/text-only", "own"),
        ("baseline/constant", "own"),
    ]
    rows = {row.system: row for row in comparison.rows if row.kind == "variant"}
    assert rows["steermoe"].trainable == 1200 and rows["linear"].trainable == 1000
    assert rows["linear"].seconds_per_step == 0.25
    speed = read_result(evaluations / "linear" / "synthetic").summary["speed"]
    assert rows["linear"].real_time_factor == speed["wall_seconds"] / speed["audio_seconds"]


def test_sets_follow_the_corpora_and_keep_the_missing_one(comparison: Comparison) -> None:
    assert [(place.title, place.task, place.n) for place in comparison.sets] == [
        ("synthetic clean", "transcribe", 60),
        ("synthetic clean", "answer", 30),
        ("synthetic other", "transcribe", 40),
        ("digits", "", 0),
    ]
    assert comparison.missing == {"digits": "no archive"}
    assert [place.title for place in comparison.sets_of("answer")] == ["synthetic clean"]


def test_differences_are_the_paired_bootstraps(
    comparison: Comparison, evaluations: Path, settings: Evaluation
) -> None:
    place = comparison.sets[0]
    rows = {row.system: row for row in comparison.rows if row.kind == "variant"}
    frames = {
        variant: read_result(evaluations / variant / "synthetic").frame.filter(
            audio="own", split="clean", task="transcribe"
        )
        for variant in VARIANTS
    }
    for variant in ("steermoe", "lora"):
        cell = comparison.cell(rows[variant], place, "wer")
        assert cell is not None and cell.against is not None
        ours, theirs = (METRICS["wer"].counts(frames[name]) for name in (variant, "linear"))
        plain = paired_bootstrap(ours, theirs, 4000, settings.confidence, seed=0)
        found = cell.against
        assert found.value == plain.value and found.high == pytest.approx(plain.high, abs=0.02)
        assert cell.against.value < 0 and cell.against.p < 0.05
    reference = comparison.cell(rows["linear"], place, "wer")
    assert reference is not None and reference.against is None


def test_p_values_are_corrected_for_all_comparisons_of_the_table(comparison: Comparison) -> None:
    tested = [cell.against for cell in comparison.cells if cell.against is not None]
    assert comparison.tests == len(tested) == 2 * (3 + 1 + 3)  # variants x metrics of the sets
    assert [each.corrected for each in tested] == holm([each.p for each in tested])
    assert all(each.corrected is not None and each.corrected >= each.p for each in tested)
    systems = {(cell.system, cell.audio) for cell in comparison.cells if cell.against is not None}
    assert systems == {("steermoe", "own"), ("lora", "own")}  # neither controls nor baselines


def test_comparisons_draw_independently(comparison: Comparison, evaluations: Path) -> None:
    """Two equal comparisons have other resamples: their intervals differ a little."""
    result = {variant: read_result(evaluations / variant / "synthetic") for variant in VARIANTS}
    twice = {"linear": {"synthetic": result["linear"]}} | {a: {"synthetic": result["lora"]} for a in "ab"}
    rows = [row for row in comparison.rows if row.system == "lora" and row.audio == "own"]
    settings = Evaluation(
        normalizer="folded", max_batch_seconds=5, bootstrap_samples=200, confidence=0.95, normalizers={}
    )
    first, second = (
        cells_of(replace(rows[0], system=name), twice, "linear", settings, 1)[0].against for name in "ab"
    )
    assert first is not None and second is not None
    assert first.value == second.value and first.low != second.low


def test_it_is_plain_data(comparison: Comparison) -> None:
    tree = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert len(tree["cells"]) == len(comparison.cells)
    headline = comparison.headline()
    assert headline["baseline/encoder"]["synthetic"].keys() == {"clean", "other"}
    assert set(headline["lora"]["synthetic"]["clean"]) == {"wer", "cer", "exact_match", "accuracy"}


def test_variants_that_do_not_compare_are_refused(
    evaluations: Path, timing: Path, settings: Evaluation, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match="reference variant 'loar' is not among the compared variants: linear"
    ):
        compare(VARIANTS, "loar", CORPORA, evaluations, timing, settings, seed=1)
    with pytest.raises(ValueError, match="variant 'lora' lacks evaluations of fleurs"):
        compare(["lora"], "lora", ["synthetic", "fleurs"], evaluations, timing, settings, seed=1)
    shutil.copytree(evaluations, tmp_path, dirs_exist_ok=True)
    write_skipped(tmp_path / "lora" / "synthetic", "gone")
    with pytest.raises(ValueError, match="synthetic was skipped for one of lora, linear"):
        compare(VARIANTS, "linear", CORPORA, tmp_path, timing, settings, seed=1)
    result = read_result(evaluations / "lora" / "synthetic")
    fewer = Predictions(result.frame.filter(pl.col("source_id") != "u001"), "", 0, None, "folded")
    write_result(tmp_path / "lora" / "synthetic", fewer, result.summary)
    with pytest.raises(ValueError, match=r"synthetic clean: .* different utterances \(59 and 60 rows\)"):
        compare(VARIANTS, "linear", CORPORA, tmp_path, timing, settings, seed=1)


@pytest.fixture
def variants(tiny_variant) -> dict[str, VariantConfig]:
    methods = {"linear": "linear", "steermoe": "steering", "lora": "lora"}
    return {name: tiny_variant(method) for name, method in methods.items()}


def test_the_best_model_is_chosen_on_dev_whatever_the_test_sets_say(
    comparison: Comparison, variants: dict[str, VariantConfig]
) -> None:
    found = dev_losses(comparison, variants)
    assert list(found) == ["linear", "lora", "steermoe"]  # on the test sets steermoe is best, linear worst
    other = replace(comparison, cells=[replace(cell, value=1 - cell.value) for cell in comparison.cells])
    assert dev_losses(other, variants) == found
    timing = dict(comparison.timing)
    timing["linear"] = timing["linear"] | {"trainable_parameters": {}}
    del timing["lora"]
    assert list(dev_losses(replace(comparison, timing=timing), variants)) == ["steermoe"]
    assert dev_losses(replace(comparison, timing={}), variants) == {}


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
    assert measured_on(variants["lora"]) != measured_on(variants["linear"])
