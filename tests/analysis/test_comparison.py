import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from steermoe.analysis.comparison import Comparison, compare, configurations, dev_losses, measured_on
from steermoe.config import Evaluation, VariantConfig
from steermoe.evaluation.metrics import METRICS
from steermoe.evaluation.predictions import Predictions, read_result, write_result, write_skipped
from steermoe.evaluation.significance import holm, paired_bootstrap

VARIANTS = ["linear", "steermoe", "lora", "steermoe-seed2"]
CORPORA = ["synthetic", "digits"]


@pytest.fixture(scope="module")
def comparison(
    configs: dict[str, VariantConfig], evaluations: Path, timing: Path, settings: Evaluation
) -> Comparison:
    return compare(configs, "linear", CORPORA, evaluations, timing, settings, seed=1)


@pytest.fixture(scope="module")
def frames(evaluations: Path) -> dict[str, pl.DataFrame]:
    """What each variant answered of `clean`, to transcribe."""
    of = {name: read_result(evaluations / name / "synthetic").frame for name in VARIANTS}
    return {
        name: frame.filter(audio="own", split="clean", task="transcribe").sort("source_id")
        for name, frame in of.items()
    }


def test_rows_are_the_variants_between_their_bars_with_their_costs(
    comparison: Comparison, evaluations: Path
) -> None:
    assert [(row.system, row.audio) for row in comparison.rows] == [
        ("baseline/encoder", "own"),
        ("baseline/cascade", "own"),
        ("linear", "own"),
        ("seeds/steermoe", "own"),
        ("steermoe", "own"),
        ("steermoe-seed2", "own"),
        ("lora", "own"),
        *((variant, "shuffled") for variant in ("linear", "steermoe", "lora")),
        ("baseline/text-only", "own"),
        ("baseline/constant", "own"),
    ]
    rows = {row.system: row for row in comparison.rows if row.kind == "variant"}
    assert rows["steermoe"].trainable == 1200 and rows["linear"].trainable == 1000
    assert rows["linear"].seconds_per_step == 0.25 and rows["linear"].cut == 0
    speed = read_result(evaluations / "linear" / "synthetic").summary["speed"]
    assert rows["linear"].real_time_factor == speed["wall_seconds"] / speed["audio_seconds"]


def test_sets_follow_the_tasks_and_a_missing_corpus_is_named(comparison: Comparison) -> None:
    assert [(place.title, place.task, place.n) for place in comparison.sets] == [
        ("synthetic clean WER", "transcribe", 60),
        ("synthetic other WER", "transcribe", 40),
        ("synthetic clean accuracy", "answer", 30),
    ]
    assert comparison.missing == {"digits": "no archive"}


def test_variants_that_differ_in_name_and_seed_are_one_configuration(
    configs: dict[str, VariantConfig],
) -> None:
    assert configurations(configs) == {
        "linear": ["linear"],
        "seeds/steermoe": ["steermoe", "steermoe-seed2"],
        "lora": ["lora"],
    }
    other = configs["steermoe"].training.model_copy(update={"max_steps": 7})
    changed = configs | {"steermoe-seed2": configs["steermoe-seed2"].model_copy(update={"training": other})}
    assert list(configurations(changed)) == VARIANTS


def test_a_configuration_is_the_mean_of_its_runs(
    comparison: Comparison, frames: dict[str, pl.DataFrame], settings: Evaluation
) -> None:
    place = comparison.sets[0]
    rows = {row.system: row for row in comparison.rows if row.audio == "own"}
    mean, *runs = (
        comparison.cell(rows[name], place, "wer") for name in ("seeds/steermoe", "steermoe", "steermoe-seed2")
    )
    assert mean is not None and all(run is not None and run.against is None for run in runs)
    assert mean.seeds == tuple(run.value for run in runs if run)
    assert mean.value == pytest.approx(sum(mean.seeds) / 2) and mean.low < mean.value < mean.high
    # An independent bootstrap of the mean: by rows, which are texts of their own here.
    wer = METRICS["wer"].counts
    errors = (wer(frames["steermoe"])[0] + wer(frames["steermoe-seed2"])[0]) / 2
    drawn = np.random.default_rng(0).integers(60, size=(4000, 60))
    rates = errors[drawn].sum(1) / wer(frames["linear"])[1][drawn].sum(1)
    assert (mean.low, mean.high) == pytest.approx(np.quantile(rates, [0.025, 0.975]), abs=0.01)
    assert mean.against is not None
    assert mean.against.value == pytest.approx(mean.value - wer(frames["linear"])[0].sum() / 360)
    further = comparison.cell(rows["seeds/steermoe"], place, "cer")
    assert further is not None and further.seeds and further.against is None


def test_a_reference_of_several_seeds_is_their_mean(
    configs: dict[str, VariantConfig], evaluations: Path, timing: Path, settings: Evaluation
) -> None:
    found = compare(configs, "steermoe-seed2", CORPORA, evaluations, timing, settings, seed=1)
    rows = {row.system: row for row in found.rows if row.audio == "own"}
    lora, mean = (found.cell(rows[name], found.sets[0], "wer") for name in ("lora", "seeds/steermoe"))
    assert lora is not None and mean is not None and lora.against is not None and mean.against is None
    assert lora.against.value == pytest.approx(lora.value - mean.value)


def test_differences_are_the_paired_bootstraps(
    comparison: Comparison, frames: dict[str, pl.DataFrame], settings: Evaluation
) -> None:
    place = comparison.sets[0]
    rows = {row.system: row for row in comparison.rows if row.kind == "variant"}
    cell = comparison.cell(rows["lora"], place, "wer")
    assert cell is not None and cell.against is not None
    ours, theirs = (METRICS["wer"].counts(frames[name]) for name in ("lora", "linear"))
    plain = paired_bootstrap(ours, theirs, 4000, settings.confidence, seed=0)
    assert cell.against.value == plain.value and cell.against.high == pytest.approx(plain.high, abs=0.02)
    assert cell.against.value < 0 and cell.against.p < 0.05
    reference = comparison.cell(rows["linear"], place, "wer")
    assert reference is not None and reference.against is None


def test_p_values_are_corrected_for_all_comparisons_of_the_table(comparison: Comparison) -> None:
    tested = [cell.against for cell in comparison.cells if cell.against is not None]
    assert len(tested) == 2 * 3  # configurations x sets, each in its own metric
    assert [each.corrected for each in tested] == holm([each.p for each in tested])
    assert all(each.corrected is not None and each.corrected >= each.p for each in tested)
    systems = {(cell.system, cell.audio) for cell in comparison.cells if cell.against is not None}
    assert systems == {("seeds/steermoe", "own"), ("lora", "own")}  # neither controls nor baselines


def test_comparisons_draw_independently(
    configs: dict[str, VariantConfig],
    comparison: Comparison,
    evaluations: Path,
    timing: Path,
    settings: Evaluation,
    tmp_path: Path,
) -> None:
    """Two equal comparisons have other resamples: their intervals differ a little."""
    shutil.copytree(evaluations, tmp_path, dirs_exist_ok=True)
    shutil.copytree(evaluations / "lora", tmp_path / "lora2")
    twice = {name: configs[name] for name in ("linear", "lora")}
    twice["lora2"] = configs["lora"].model_copy(update={"train_splits": {"tiny": ["other"]}})
    found = compare(twice, "linear", ["synthetic"], tmp_path, timing, settings, 1)
    first, second = (
        next(cell.against for cell in found.cells if cell.system == name and cell.against)
        for name in ("lora", "lora2")
    )
    assert first.value == second.value and first.low != second.low


def test_sets_in_other_languages_are_apart(comparison: Comparison) -> None:
    """Only of a corpus that has several, and never all of a table."""
    assert comparison.by_language() == {} and comparison.main_sets() == comparison.sets
    clean, other, asked = comparison.sets
    english, french = (replace(clean, language="en"), replace(other, language="fr"))
    found = replace(comparison, sets=[english, french, replace(asked, language="en")])
    assert found.by_language() == {"synthetic": [english, french]}
    assert found.main_sets() == [english, found.sets[2]]
    elsewhere = replace(comparison, sets=[english, replace(french, corpus="mls")])
    assert elsewhere.by_language() == {} and elsewhere.main_sets() == elsewhere.sets


def test_it_is_plain_data(comparison: Comparison) -> None:
    tree = json.loads(json.dumps(asdict(comparison), allow_nan=False))
    assert len(tree["cells"]) == len(comparison.cells)
    headline = comparison.headline()
    assert headline["baseline/encoder"]["synthetic"].keys() == {"clean", "other"}
    names = {"wer", "cer", "exact_match", "accuracy", "token_f1"}
    assert set(headline["lora"]["synthetic"]["clean"]) == names


def test_variants_that_do_not_compare_are_refused(
    configs: dict[str, VariantConfig], evaluations: Path, timing: Path, settings: Evaluation, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="variant 'loar' is not among the compared variants: linear, steer"):
        compare(configs, "loar", CORPORA, evaluations, timing, settings, seed=1)
    with pytest.raises(ValueError, match="variant 'linear' lacks evaluations of fleurs"):
        compare(configs, "lora", ["synthetic", "fleurs"], evaluations, timing, settings, seed=1)
    shutil.copytree(evaluations, tmp_path, dirs_exist_ok=True)
    write_skipped(tmp_path / "lora" / "synthetic", "gone")
    with pytest.raises(ValueError, match="synthetic was skipped for one of lora, linear"):
        compare(configs, "linear", CORPORA, tmp_path, timing, settings, seed=1)
    result = read_result(evaluations / "lora" / "synthetic")
    fewer = Predictions(result.frame.filter(pl.col("source_id") != "u001"), "", 0, None, "folded")
    write_result(tmp_path / "lora" / "synthetic", fewer, result.summary)
    with pytest.raises(ValueError, match=r"synthetic clean WER: .* different utterances \(59 and 60 rows\)"):
        compare(configs, "linear", CORPORA, tmp_path, timing, settings, seed=1)


@pytest.fixture
def variants(configs: dict[str, VariantConfig]) -> dict[str, VariantConfig]:
    return dict(configs)


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
