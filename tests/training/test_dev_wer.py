"""The WER on dev rows: of the right rows, by the right normaliser, as in the evaluation; and what it decides."""

import csv
from typing import Any

import jiwer
import polars as pl
import pytest

from steermoe.config import Evaluation
from steermoe.config.run import Ctc
from steermoe.evaluation.evaluator import adapter, measure
from steermoe.models.steermoe import SteerMoE
from steermoe.training.dev_wer import DevWer
from steermoe.training.rows import read_data, spoken_tokens
from steermoe.training.train import train

SCORED: dict[str, Any] = {"criterion": "wer", "wer_rows": 4, "wer_normalizers": {"tones": "folded"}}
KINDS = [  # corpus, language, task, target
    ("loose", "en", "transcribe", "One, TWO three"),
    ("strict", "en-GB", "transcribe", "One, TWO three"),
    ("loose", "zh", "transcribe", "one two three"),
    ("loose", "en", "answer", "one two three"),
    ("strict", "en", "caption", "one two three"),
]


def rows_of(*numbers: int) -> pl.DataFrame:
    columns = ["corpus", "language", "task", "target"]
    return pl.DataFrame([KINDS[number] for number in numbers], schema=columns, orient="row")


def test_transcriptions_with_words_are_counted_by_the_normaliser_of_their_corpus(quick_variant) -> None:
    normalizers = {"loose": "folded", "strict": "none"}
    variant = quick_variant("linear", criterion="wer", wer_rows=9, wer_normalizers=normalizers)
    tokenizer = SteerMoE.from_config(variant).tokenizer
    wer = DevWer(variant, rows_of(2, 0, 3, 1, 4), tokenizer)
    assert wer.rows == [1, 3]
    said = tokenizer("one two", add_special_tokens=False).input_ids
    heard = tokenizer.decode(said)
    strict = jiwer.process_words("One, TWO three", heard)
    assert wer.count({1: said}) == (1, 3)
    assert wer.count({1: said, 3: said}) == (1 + strict.substitutions + strict.deletions, 6)
    assert wer.count({1: []}) == (3, 3)
    for wrong, words in (
        (rows_of(2, 3, 4), "no row of"),
        (rows_of(0).with_columns(target=pl.lit("!")), "no word"),
    ):
        with pytest.raises(ValueError, match=words):
            DevWer(variant, wrong, tokenizer)


@pytest.mark.parametrize("ctc_weight", [0.0, 0.9])
def test_it_is_the_wer_of_the_evaluation_on_the_same_rows(
    ctc_weight, quick_variant, make_trainer, shards
) -> None:
    """By the LLM alone, and with CTC."""
    ctc = Ctc(steps=3, coef=0.5, soft_tokens=True, spelling=False, num_sampled=None) if ctc_weight else None
    variant = quick_variant("steering", **SCORED, ctc=ctc, wer_ctc_weight=ctc_weight)
    data = read_data(variant, shards)
    dev = data.dev
    trainer = make_trainer(variant)
    if trainer.model.ctc is not None:
        trainer.model.ctc.allow(spoken_tokens(data, trainer.model.tokenizer))
    trainer.wer = wer = DevWer(variant, dev, trainer.model.tokenizer)
    assert len(wer.rows) == 4 < len(dev)
    assert wer.rows == DevWer(quick_variant("linear", **SCORED), dev, trainer.model.tokenizer).rows
    settings = Evaluation(
        normalizer="folded",
        max_batch_seconds=3.0,
        bootstrap_samples=100,
        confidence=0.95,
        normalizers={},
        bootstrap_unit="row",
    )
    assert wer.generation.ctc_weight == ctc_weight
    found = trainer.evaluate()["dev_wer"]
    counts = measure(adapter(trainer.model, wer.generation, seed=1), dev[wer.rows], settings, seed=1).frame
    assert found == counts.select(pl.col("errors").sum() / pl.col("words").sum()).item()


def test_it_chooses_the_checkpoint_and_ends_the_training(
    quick_variant, shards, tmp_path, monkeypatch
) -> None:
    errors = iter([9, 5, 7, 6, 8])  # the loss falls all the time
    whole = DevWer.count
    monkeypatch.setattr(
        DevWer, "count", lambda self, rows: (next(errors), 10) if any(rows.values()) else whole(self, rows)
    )
    variant = quick_variant("linear", max_steps=20, patience=2, **SCORED)
    results = train(variant, shards, tmp_path / "out", tmp_path)
    assert results["stopped_early"] and (results["steps"], results["best_step"]) == (8, 4)
    assert results["best_dev_wer"] == 0.5
    history = list(csv.DictReader((tmp_path / "out" / "history.csv").read_text().splitlines()))
    assert [float(row["dev_wer"]) for row in history] == [0.9, 0.5, 0.7, 0.6]
    losses = [float(row["dev_loss"]) for row in history]
    assert losses == sorted(losses, reverse=True)
