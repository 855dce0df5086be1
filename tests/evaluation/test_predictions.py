from pathlib import Path

import polars as pl
import pytest

from steermoe.config import Evaluation
from steermoe.evaluation.evaluator import measure
from steermoe.evaluation.predictions import (
    Predictions,
    System,
    batchwise,
    clusters,
    figures,
    read_json,
    read_result,
    read_results,
    samples,
    summarise,
    write_json,
    write_result,
    write_skipped,
)


@pytest.fixture
def predictions(utterances: pl.DataFrame, settings: Evaluation) -> Predictions:
    system = System(batchwise(lambda rows: ["the cat"] * len(rows)), "one text", "none")
    return measure(system, utterances, settings, seed=1)


def test_what_is_written_is_read(tmp_path: Path, predictions: Predictions, settings: Evaluation) -> None:
    summary = summarise(predictions, settings)
    for name in ("r", "again"):
        write_result(tmp_path / name, predictions, summary)
    result = read_result(tmp_path / "r")
    assert result.summary == summary and result.skipped is None
    assert result.frame.equals(predictions.frame)
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["metrics.json", "predictions.parquet"]
    first, second = ((tmp_path / name / "predictions.parquet").read_bytes() for name in ("r", "again"))
    assert first == second
    write_skipped(tmp_path / "skipped", "no network")
    result = read_result(tmp_path / "skipped")
    assert result.skipped == "no network" and result.summary == {} and result.frame.is_empty()


def test_variants_and_baselines_are_found(
    tmp_path: Path, predictions: Predictions, settings: Evaluation
) -> None:
    summary = summarise(predictions, settings)
    for folder in ("steermoe/synthetic", "linear/synthetic", "baseline/synthetic/encoder"):
        write_result(tmp_path / folder, predictions, summary)
    write_skipped(tmp_path / "steermoe/digits", "no archive")
    results = read_results(tmp_path)
    assert {name: sorted(of) for name, of in results.items()} == {
        "steermoe": ["digits", "synthetic"],
        "linear": ["synthetic"],
        "baseline/encoder": ["synthetic"],
    }


def test_bad_json_is_named_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    for content, found in (("{", "not valid JSON"), ("[1]", "found list")):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"metrics.json: {found}"):
            read_json(path)
    write_json(path, {"wer": 0.5})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"wer": float("nan")})
    assert read_json(path) == {"wer": 0.5}


def test_figures_without_their_protocol_are_not_read(
    tmp_path: Path, predictions: Predictions, settings: Evaluation
) -> None:
    summary = summarise(predictions, settings)
    write_result(tmp_path / "r", predictions, summary)
    del summary["protocol"]["normalizer"]
    write_json(tmp_path / "r" / "metrics.json", summary)
    with pytest.raises(ValueError, match=r"metrics.json: figures without their protocol \(normalizer\)"):
        read_result(tmp_path / "r")


def test_the_protocol_names_the_normaliser_that_counted(
    predictions: Predictions, settings: Evaluation
) -> None:
    """Not the one that the settings name by the time that figures are made."""
    other = settings.model_copy(update={"normalizer": "none"})
    assert summarise(predictions, other)["protocol"]["normalizer"] == "folded"


def test_figures_for_a_tracker_have_their_bounds(predictions: Predictions, settings: Evaluation) -> None:
    summary = summarise(predictions, settings)
    found = figures("synthetic", summary)
    scores = summary["own"]["clean"]["transcribe"]["wer"]
    names = ("wer", "wer_low", "wer_high")
    assert [found[f"eval/synthetic/clean/{name}"] for name in names] == [
        scores["value"],
        scores["low"],
        scores["high"],
    ]
    assert found["eval/synthetic/clean/accuracy"] == summary["own"]["clean"]["answer"]["accuracy"]["value"]
    assert found.keys().isdisjoint(figures("digits", summary))
    shuffled = {**summary, "own": {}, "shuffled": summary["own"], "speed": None}
    assert {name.split("/")[0] for name in figures("synthetic", shuffled)} == {"control"}


def test_samples_are_some_of_every_split_and_the_same_each_time(predictions: Predictions) -> None:
    columns, rows = samples(predictions.frame, seed=1, count=5)
    assert columns == ["audio", "split", "task", "reference", "prediction", "errors"]
    splits = [row[1] for row in rows]
    assert {split: splits.count(split) for split in splits} == {"clean": 5, "other": 5}
    assert (columns, rows) == samples(predictions.frame, seed=1, count=5)
    assert {row[0] for row in rows} <= set(predictions.frame["source_id"])


@pytest.mark.parametrize(
    ("speakers", "texts", "setting", "unit", "clusters"),
    [
        (12, 36, "auto", "speakers", 12),
        (7, 36, "auto", "texts", 36),  # too few speakers
        (7, 6, "auto", "rows", 36),  # too few texts, too
        (7, 36, "speaker", "speakers", 7),
        (12, 6, "text", "texts", 6),
        (12, 6, "row", "rows", 36),
    ],
)
def test_what_is_resampled(
    utterances: pl.DataFrame,
    settings: Evaluation,
    speakers: int,
    texts: int,
    setting: str,
    unit: str,
    clusters: int,
) -> None:
    """And repeated questions about a recording do not narrow the interval, unless rows are resampled."""
    rows = pl.concat([utterances.filter(task="transcribe")[:12]] * 3).with_row_index("n").with_columns(
        pl.format("{}-{}", "source_id", "n").alias("source_id"),
        pl.lit("clean").alias("split"),
        pl.format("s{}", pl.col("n") % speakers).alias("speaker"),
        pl.format("Text {}!", pl.col("n") % texts).alias("transcript"),
        pl.format("{}", "n").cast(pl.Binary).alias("audio"),
    ).drop("n")  # fmt: skip
    thrice = pl.concat(
        [rows.with_columns(pl.format("{}-{}", "source_id", pl.lit(n)).alias("source_id")) for n in range(3)]
    )
    system = System(batchwise(lambda batch: ["the cat"] * len(batch)), "one text", "none")
    chosen = settings.model_copy(update={"bootstrap_unit": setting})
    once, more = (
        summarise(measure(system, frame, settings, seed=1), chosen)["own"]["clean"]["transcribe"]
        for frame in (rows, thrice)
    )
    assert (once["unit"], once["clusters"]) == (unit, clusters) and more["unit"] == unit
    bounds = [[each["wer"][name] for name in ("value", "low", "high")] for each in (once, more)]
    assert (bounds[0] == bounds[1]) == (unit != "rows")
    assert bounds[0][1] < bounds[0][2] and more["wer"]["n"] == 3 * once["wer"]["n"]


def test_rows_of_unknown_speakers_are_clusters_by_text(predictions: Predictions) -> None:
    frame = predictions.frame[:13].with_columns(
        pl.Series("speaker", [*(f"s{n}" for n in range(10)), "unknown", "unknown", "none"]),
        pl.Series("text", ["the same"] * 11 + ["other", "a third"]),
    )
    unit, names = clusters(frame, "auto")
    assert unit == "speakers" and len(set(names)) == 13
    nobody = frame.with_columns(pl.lit("unknown").alias("speaker"))
    assert clusters(nobody, "speaker") == clusters(nobody, "text") == ("texts", frame["text"].to_list())
    assert clusters(nobody, "auto")[0] == "rows"


def test_texts_are_transcripts_after_normalisation(utterances: pl.DataFrame, settings: Evaluation) -> None:
    system = System(batchwise(lambda batch: [""] * len(batch)), "none", "none")
    said = pl.Series("transcript", ["The cat.", "the cat", "", "", "a dog", "?"])
    rows = utterances[:6].with_columns(said)
    found = measure(system, rows, settings, seed=1).frame["text"].to_list()
    assert found == ["the cat", "the cat", "recording u02", "recording u03", "a dog", "recording u05"]
    # Rows about one video have one text, whatever is said in them.
    seen = rows.with_columns((pl.int_range(6) // 2).cast(pl.String).cast(pl.Binary).alias("video"))
    found = measure(system, seen, settings, seed=1).frame["text"].to_list()
    assert found == ["the cat"] * 2 + ["recording u02"] * 2 + ["a dog"] * 2
