"""Rows that cannot be used are named before the first step."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from transformers import AutoTokenizer

from steermoe.models.encoders import load_encoder
from steermoe.training.rows import check_lengths, read_data, spoken_tokens

LLM = Path(__file__).parents[2] / "pretrained" / "llm"


@pytest.mark.parametrize("use", ["train", "dev"])
@pytest.mark.parametrize(("found", "message"), [(5.5, "at most 4 s; 2 of"), (None, "too short")])
def test_rows_that_the_encoder_does_not_take(use, found, message, shards, quick_variant):
    """`found`: seconds of two rows; None: one has no sound at all."""
    variant = quick_variant("linear")
    encoder, data = load_encoder(variant.encoder), read_data(variant, shards)
    check_lengths(variant, data, encoder)
    rows = getattr(data, use)
    if found is None:
        encoder.output_lengths = lambda lengths_B: lengths_B * 0  # of utterances of a few samples
        named = rows.sort("seconds")["source_id"][0]
    else:
        changed = pl.when(pl.int_range(pl.len()) < 2).then(found).otherwise("seconds").alias("seconds")
        data, named = replace(data, **{use: rows.with_columns(changed)}), f"{use}-000 \\(5.50 s\\)"
    if found is None and use == "dev":
        named = "train"  # is looked at first
    with pytest.raises(ValueError, match=f"{message}.*{named}"):
        check_lengths(variant, data, encoder)


@pytest.mark.parametrize(("window", "least"), [("unpadded", "0.2"), ("full", "4")])
def test_a_batch_that_no_row_fits_into(window, least, shards, quick_variant):
    variant = quick_variant("linear", max_batch_seconds=0.19 if window == "unpadded" else 3.9)
    encoder = load_encoder(variant.encoder.model_copy(update={"window": window}))
    with pytest.raises(ValueError, match=f"training.max_batch_seconds: found .*at least {least}$"):
        check_lengths(variant, read_data(variant, shards), encoder)


def test_ctc_takes_transcriptions_alone(shards, quick_variant):
    """The words of an answer are not said."""
    data, tokenizer = (
        read_data(quick_variant("linear"), shards),
        AutoTokenizer.from_pretrained(LLM),
    )
    said = {t for row in tokenizer(data.train["target"].to_list())["input_ids"] for t in row}
    assert spoken_tokens(data, tokenizer).tolist() == sorted(said)
    spelled = set(spoken_tokens(data, tokenizer, spelling=True).tolist())
    assert said < spelled
    letters = set(tokenizer.decode(sorted(said)).lower())
    assert all(letters.issuperset(tokenizer.decode([token]).lower()) for token in spelled - said)
    answers = data.train.with_columns(task=pl.lit("answer"))
    with pytest.raises(ValueError, match=r"training\.ctc: found 24 training rows"):
        spoken_tokens(replace(data, train=answers), tokenizer)
