import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import jiwer
import numpy as np
import polars as pl
import pytest
import torch

from steermoe.audio import io as waveform
from steermoe.audio.io import RATE, encode_flac
from steermoe.config import Evaluation, Generation
from steermoe.data import video
from steermoe.data.dataset import UtteranceDataset, collate
from steermoe.evaluation.baselines import shuffled_audio
from steermoe.evaluation.evaluator import adapter, evaluate, measure
from steermoe.evaluation.normalizers import folded
from steermoe.evaluation.predictions import Predictions, System, batchwise, remarks, summarise
from steermoe.models.steermoe import SteerMoE


@pytest.fixture(scope="module")
def model(tiny_variant: Callable[..., Any]) -> SteerMoE:
    decided = {"steering.scale_init": 1.0, "steering.vector_std": 1.0}
    return SteerMoE.from_config(tiny_variant("steering", decided))


@pytest.fixture(scope="module")
def predictions(
    model: SteerMoE, utterances: pl.DataFrame, settings: Evaluation, generation: Generation
) -> Predictions:
    return evaluate(model, utterances, settings, generation, seed=3)


def listener(rows: pl.DataFrame) -> System:
    """A system that knows every recording by heart, and hears nothing else."""
    known = dict(rows.select("audio", "target").iter_rows())
    return System(batchwise(lambda batch: [known[audio] for audio in batch["audio"]]), "by heart", "cpu")


def test_answers_are_the_models_own_in_the_order_of_the_rows(
    model: SteerMoE,
    predictions: Predictions,
    utterances: pl.DataFrame,
    settings: Evaluation,
    generation: Generation,
) -> None:
    own = predictions.frame.filter(audio="own")
    assert own["source_id"].to_list() == utterances["source_id"].to_list()
    dataset = UtteranceDataset(utterances, model.features, model.tokenizer, model.config.prompts)
    for row in range(len(utterances)):
        batch = collate([dataset[row]])
        [tokens] = model.generate(batch, generation)
        assert own["hypothesis"][row] == model.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert own["hypothesis"].n_unique() > 3  # else the order would not be tested
    for budget in (1.0, 1000.0):  # other batches change nothing
        batches = settings.model_copy(update={"max_batch_seconds": budget})
        assert evaluate(model, utterances, batches, generation, seed=3).frame.equals(predictions.frame)


def test_shuffled_rows_get_what_the_audio_they_hear_says(
    utterances: pl.DataFrame, settings: Evaluation
) -> None:
    rows = utterances.filter(task="transcribe")
    found = measure(listener(rows), rows, settings, seed=3, audio=("own", "shuffled")).frame
    own, shuffled = found.filter(audio="own"), found.filter(audio="shuffled")
    assert own["errors"].sum() == 0 and own["exact"].all()
    texts = dict(rows.select("source_id", "target").iter_rows())
    assert shuffled["hypothesis"].to_list() == [texts[name] for name in shuffled["heard"]]
    assert not shuffled["exact"].any()


def test_what_was_asked_before_is_not_answered_again(
    model: SteerMoE,
    predictions: Predictions,
    utterances: pl.DataFrame,
    settings: Evaluation,
    generation: Generation,
) -> None:
    system, passes = adapter(model, generation, seed=3), list[pl.DataFrame]()

    def respond(batches: Iterable[pl.DataFrame]) -> Iterator[tuple[int, str]]:
        heard = list(batches)
        passes.append(pl.concat(heard))
        yield from system.respond(heard)

    counted = replace(system, respond=respond)
    again = measure(counted, utterances, settings, seed=3, audio=("own", "shuffled")).frame
    assert again.equals(predictions.frame)
    own, shuffled = passes
    assert len(own) == len(utterances) and 0 < len(shuffled) < len(utterances)
    # the questions that met other audio, and what is transcribed by one who asked about its own audio only
    before = set(own.select("audio", "prompt", "task").rows())
    assert before.isdisjoint(shuffled.select("audio", "prompt", "task").rows())
    alone = measure(system, shuffled_audio(utterances, 3), settings, seed=3).frame
    assert alone["hypothesis"].equals(again.filter(audio="shuffled")["hypothesis"])
    asked = utterances.filter(task="transcribe")
    passes.clear()
    measure(counted, asked, settings, seed=3, audio=("own", "shuffled"))
    assert [len(rows) for rows in passes] == [len(asked)]


@pytest.mark.parametrize("column", ["prompt", "language", "task"])
def test_another_question_about_audio_that_was_heard_is_answered(
    utterances: pl.DataFrame, settings: Evaluation, column: str
) -> None:
    rows = utterances.filter(task="transcribe", split="clean")[:2]
    rows = rows.with_columns(pl.Series(column, ["transcribe", "answer"]))
    said = dict(rows.select("audio", "source_id").iter_rows())

    def respond(batch: pl.DataFrame) -> list[str]:
        return [f"{said[audio]} {asked}" for audio, asked in batch.select("audio", column).iter_rows()]

    system = System(batchwise(respond), "by heart", "cpu")
    found = measure(system, rows, settings, seed=3, audio=("own", "shuffled")).frame.filter(audio="shuffled")
    expected = [f"{name} {asked}" for name, asked in zip(found["heard"], rows[column], strict=True)]
    assert found["hypothesis"].to_list() == expected
    assert found["heard"].to_list() == rows["source_id"].to_list()[::-1]


def test_speed_counts_the_seconds_that_are_encoded(
    predictions: Predictions, utterances: pl.DataFrame, settings: Evaluation
) -> None:
    assert predictions.speed is not None and predictions.speed["wall_seconds"] > 0
    assert predictions.speed["audio_seconds"] == pytest.approx(utterances["seconds"].sum())
    assert predictions.speed["threads"] == torch.get_num_threads() and predictions.speed["device"] == "cpu"
    found = measure(replace(listener(utterances), max_seconds=0.5), utterances, settings, seed=0)
    assert found.speed is not None
    assert found.speed["audio_seconds"] == pytest.approx(sum(min(s, 0.5) for s in utterances["seconds"]))
    assert summarise(replace(predictions, speed=None), settings)["speed"] is None


@pytest.mark.parametrize("most", [2, 6])
def test_references_and_answers_at_the_limit_of_tokens_are_counted(
    model: SteerMoE,
    utterances: pl.DataFrame,
    settings: Evaluation,
    greedy: Callable[..., Generation],
    most: int,
) -> None:
    system = adapter(model, greedy(most), seed=3)
    found = measure(system, utterances, settings, seed=3)
    lengths = [len(model.tokenizer.encode(text, add_special_tokens=False)) for text in utterances["target"]]
    assert found.frame["target_fits"].to_list() == [length + 1 <= most for length in lengths]
    dataset = UtteranceDataset(utterances, model.features, model.tokenizer, model.config.prompts)
    inputs = collate([dataset[row] for row in range(len(dataset))])
    ids = {each.row: each.ids for each in model.generate_all([inputs], greedy(most))}
    assert found.frame["cut"].to_list() == [len(ids[row]) == most for row in range(len(utterances))]
    assert found.frame["cut"].any()
    counts = summarise(found, settings)["protocol"]["texts"]["clean"]["answer"]
    rows = found.frame.filter(split="clean", task="answer")
    assert counts["n"] == len(rows) == 3
    assert counts.get("references_beyond_limit", 0) == (~rows["target_fits"]).sum()
    assert counts.get("answers_cut", 0) == rows["cut"].sum()


@pytest.mark.parametrize(("emptied", "rate"), [(1, True), (6, False)])
def test_references_without_a_word_are_counted_and_do_not_end_an_evaluation(
    utterances: pl.DataFrame, settings: Evaluation, emptied: int, rate: bool
) -> None:
    rows = utterances.filter(split="other")
    targets = pl.Series(
        "target", ["...", "\u266a", "?!", "\u200b", " ", "-"][:emptied] + rows["target"].to_list()[emptied:]
    )
    frame = pl.concat([utterances.filter(split="clean"), rows.with_columns(targets)])
    system = System(batchwise(lambda batch: ["two words"] * len(batch)), "two words", "none")
    summary = summarise(measure(system, frame, settings, seed=1), settings)
    scores = summary["own"]["other"]["transcribe"]
    assert summary["protocol"]["texts"]["other"]["transcribe"] == {"n": 6, "empty_references": emptied}
    assert ("wer" in scores) == ("cer" in scores) == rate and scores["exact_match"]["value"] == 0
    assert "wer" in summary["own"]["clean"]["transcribe"]
    if rate:  # what is written where nothing was said is an error
        said = [folded(text) for text in frame.filter(split="other")["target"]]
        assert scores["wer"]["value"] == pytest.approx(jiwer.wer(said, ["two words"] * 6))
    [remark] = remarks("synthetic", summary)
    assert remark.startswith(f"synthetic other (transcribe): of 6 references {emptied} are empty")


def test_summary_is_jiwers_rate_for_each_set(
    predictions: Predictions, utterances: pl.DataFrame, settings: Evaluation
) -> None:
    summary = summarise(predictions, settings)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert {split: list(tasks) for split, tasks in summary["own"].items()} == {
        "clean": ["transcribe", "answer"],
        "other": ["transcribe"],
    }
    scores = summary["own"]["clean"]["transcribe"]
    rows = predictions.frame.filter(audio="own", split="clean", task="transcribe")
    said, read = ([folded(text) for text in rows[name]] for name in ("reference", "hypothesis"))
    assert scores["n"] == 9
    assert scores["wer"]["value"] == pytest.approx(jiwer.wer(said, read))
    assert scores["cer"]["value"] == pytest.approx(jiwer.cer(said, read))
    assert scores["wer"]["low"] <= scores["wer"]["value"] <= scores["wer"]["high"]
    assert set(summary["own"]["clean"]["answer"]) == {
        "n", "seconds", "clusters", "unit", "languages", "accuracy", "token_f1",
    }  # fmt: skip
    assert summary["shuffled"].keys() == summary["own"].keys()
    assert summary["protocol"]["normalizer"] == "folded" and summary["protocol"]["seed"] == 3
    assert summary["speed"]["real_time_factor"] > 0


def test_nothing_to_evaluate_is_an_error(utterances: pl.DataFrame, settings: Evaluation) -> None:
    with pytest.raises(ValueError, match="nothing to evaluate"):
        measure(listener(utterances), utterances.clear(), settings, seed=0)


def test_of_audio_beyond_the_encoders_window_the_beginning_is_heard(
    model: SteerMoE, utterances: pl.DataFrame, settings: Evaluation, generation: Generation
) -> None:
    longest = model.encoder.max_seconds
    assert longest == 4
    noise = 0.1 * np.random.default_rng(1).standard_normal(round(6 * RATE))
    rows = []
    for seconds in (6, 4):
        audio = encode_flac(noise[: seconds * RATE], RATE)
        changed = {"audio": audio, "seconds": float(seconds), "source_id": f"long-{seconds}"}
        rows.append(utterances.row(0, named=True) | changed)
    frame = pl.DataFrame(rows, schema=utterances.schema)
    found = evaluate(model, frame, settings, generation, seed=0)
    own = found.frame.filter(audio="own")["hypothesis"]
    assert own[0] == own[1]
    assert found.decoding.endswith("; of 1 utterances only the first 4 s are encoded")
    assert "first" not in evaluate(model, frame[1:], settings, generation, seed=0).decoding


def test_a_model_with_a_video_branch_has_controls_for_both(
    tiny_variant: Callable[..., Any],
    video_section: Callable[..., Any],
    utterances: pl.DataFrame,
    settings: Evaluation,
    generation: Generation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "steermoe.models.inference.levelled", lambda samples: samples
    )  # evaluation hears them as they are
    strong = {"steering.scale_init": 1.0, "steering.vector_std": 1.0, "video": video_section(scale_init=1.0)}
    both = SteerMoE.from_config(tiny_variant("steering", strong))
    pictures = [
        np.random.default_rng(n).integers(0, 256, (1 + n % 3, 8, 8), dtype=np.uint8) for n in range(18)
    ]
    frame = utterances.with_columns(pl.Series("video", [video.encode(one) for one in pictures], pl.Binary))
    found = evaluate(both, frame, settings, generation, seed=3).frame
    kinds = found["audio"].unique(maintain_order=True).to_list()
    assert kinds == ["own", "shuffled", "silent", "blank"]
    own, *controls = (found.filter(audio=kind)["hypothesis"].to_list() for kind in kinds)
    assert all(texts != own for texts in controls)  # ears and eyes are open
    for row in (0, 11):
        asked = (frame["task"][row], frame["prompt"][row])
        samples, options = waveform.load(frame["audio"][row]), {"generation_config": generation}
        alone = both.ask(samples, asked[1] or None, video=pictures[row], **options)
        assert alone.text == own[row]
    with pytest.raises(ValueError, match="rows without column 'video'"):
        evaluate(both, utterances, settings, generation, seed=3)
