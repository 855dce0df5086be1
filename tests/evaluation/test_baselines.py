"""Trivial baselines give what they promise; ablations replace audio and video, and nothing else."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from steermoe.audio import io as waveform
from steermoe.config import Evaluation, Generation
from steermoe.data import video
from steermoe.data.prompts import render
from steermoe.evaluation.baselines import (
    VIDEO,
    cascade,
    constant,
    derangement,
    most_frequent,
    shuffled_audio,
    template_guess,
    text_only,
)
from steermoe.evaluation.decoders import OwnDecoder
from steermoe.evaluation.evaluator import measure
from steermoe.evaluation.normalizers import as_written, folded
from steermoe.evaluation.predictions import batchwise
from steermoe.models.generation import answer_texts, describe
from steermoe.models.steermoe import SteerMoE

SAID = ["ann has two cats", "ann has two dogs", "bob has two cats", "rain"]
ANSWERED = ["Red.", "red", "blue", "two"]
TRAIN = pl.DataFrame({"task": ["transcribe"] * 4 + ["answer"] * 4, "target": SAID + ANSWERED})


def test_template_guess_has_the_fewest_errors_of_all() -> None:
    texts = TRAIN.filter(task="transcribe")["target"].to_list()
    guess = template_guess(texts, as_written, seed=0)
    rates = {text: jiwer.wer(texts, [text] * len(texts)) for text in texts}
    assert guess in texts and rates[guess] == min(rates.values()) < sorted(rates.values())[1]


def test_most_frequent_counts_after_normalisation() -> None:
    texts = ["blue", "Red.", "two", "red", "blue"]
    assert most_frequent([*texts, "RED"], folded, 0) == "Red."
    assert most_frequent(texts, as_written, 0) == "blue"


def test_constants_come_from_the_training_rows(utterances: pl.DataFrame, settings: Evaluation) -> None:
    system = constant(TRAIN, utterances, settings, seed=0)
    rows = measure(system, utterances, settings, seed=0).frame
    assert rows.filter(task="answer")["hypothesis"].unique().to_list() == ["Red."]
    assert rows.filter(task="transcribe")["hypothesis"].unique().to_list() == ["ann has two cats"]
    assert system.decoding.count("chosen on the training rows") == 2
    # Without training rows of a task, from the evaluated ones, and the protocol says so.
    system = constant(TRAIN.filter(task="transcribe"), utterances, settings, seed=0)
    rows = measure(system, utterances, settings, seed=0).frame.filter(task="answer")
    answers = utterances.filter(task="answer")["target"]
    assert rows["exact"].sum() == answers.value_counts()["count"].max()
    assert "chosen on the evaluated rows themselves" in system.decoding


def test_text_only_is_the_llms_answer_to_the_prompt(
    tiny_variant: Callable[..., Any], utterances: pl.DataFrame, settings: Evaluation, generation: Generation
) -> None:
    model = SteerMoE.from_config(tiny_variant("linear"))
    system = text_only(model, generation, seed=0)
    assert system.decoding.startswith("greedy, at most 6 new tokens") and "no audio" in system.decoding
    rows = measure(system, utterances, settings, seed=0).frame
    for task, question in (("transcribe", ""), ("answer", "what is red?")):
        prompt = model.tokenizer(render(model.config.prompts, task, question))["input_ids"]
        [expected] = answer_texts(model.llm, model.tokenizer, [prompt], generation, seed=0)
        assert rows.filter(task=task)["hypothesis"].unique().to_list() == [expected]


def test_text_only_reads_the_chat_that_the_adapter_reads(
    tiny_variant: Callable[..., Any], tiny_chat_dir: Path, utterances: pl.DataFrame, generation: Generation
) -> None:
    variant = tiny_variant("linear", {"llm.path": str(tiny_chat_dir), "prompts.format": "chat"})
    model = SteerMoE.from_config(variant)
    text = "<|im_start|>user\nplease transcribe the audio:<|im_end|>\n<|im_start|>assistant\n"
    ids = model.tokenizer(text)["input_ids"]
    expected = answer_texts(model.llm, model.tokenizer, [ids], generation, seed=0)
    assert [text for _, text in text_only(model, generation, seed=0).respond([utterances[:1]])] == expected


def test_cascade_is_the_llms_answer_to_the_transcript_in_the_audios_place(
    tiny_variant: Callable[..., Any], tiny_chat_dir: Path, utterances: pl.DataFrame, generation: Generation
) -> None:
    asked = utterances.filter(task="answer")
    heard = dict(zip(asked["audio"], ["the cat runs", "a red dog", ""], strict=True))
    decoder = OwnDecoder(
        batchwise(lambda rows: [heard[audio] for audio in rows["audio"]]),
        "a head",
        "cpu",
        lambda tag: True,
        window=2.0,
    )
    formats = {
        "plain": "{} question is: what is red?",
        "chat": "<|im_start|>user\n{} question is: what is red?<|im_end|>\n<|im_start|>assistant\n",
    }
    for name, text in formats.items():
        changed = {"llm.path": str(tiny_chat_dir), "prompts.format": name}
        model = SteerMoE.from_config(tiny_variant("linear", changed))
        system = cascade(model, decoder, generation, seed=0)
        assert system.window == 2.0 and system.knows is decoder.knows
        assert system.decoding == "a head; its transcript to the LLM: " + describe(generation, 0)
        found = dict(system.respond([asked[:1], asked[1:]]))
        for row, transcript in enumerate(heard.values()):
            ids = model.tokenizer(text.format(transcript))["input_ids"]
            expected = answer_texts(model.llm, model.tokenizer, [ids], generation, seed=0)
            assert [found[row]] == expected


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40), st.integers(0, 9))
def test_every_row_is_given_to_another(transcripts: list[str], seed: int) -> None:
    donors = derangement(transcripts, seed)
    assert sorted(donors) == list(range(len(transcripts)))
    assert (donors != np.arange(len(transcripts))).all()
    if 2 * max(Counter(transcripts).values()) <= len(transcripts):
        assert all(transcripts[a] != transcripts[b] for a, b in enumerate(donors))


def test_shuffled_rows_hear_another_row_of_their_split(utterances: pl.DataFrame) -> None:
    shuffled = shuffled_audio(utterances, seed=1)
    kept = [name for name in utterances.columns if name not in ("audio", "seconds")]
    assert shuffled.select(kept).equals(utterances.select(kept))
    donors = utterances.select("source_id", "split", "transcript", "audio", "seconds")
    heard = shuffled.join(donors, left_on="heard", right_on="source_id", how="left", suffix="_donor")
    assert (heard["heard"] != heard["source_id"]).all()
    assert (heard["transcript"] != heard["transcript_donor"]).all()
    for column in ("split", "audio", "seconds"):
        assert (heard[column] == heard[f"{column}_donor"]).all()


def test_a_split_of_one_row_has_no_control(utterances: pl.DataFrame) -> None:
    alone = utterances[11:]  # one row of `clean`, all of `other`
    assert shuffled_audio(alone, seed=1)["split"].unique().to_list() == ["other"]
    assert shuffled_audio(alone[:1], seed=1).is_empty()


def test_silence_and_black_videos_are_as_long_as_what_they_replace(utterances: pl.DataFrame) -> None:
    shown = [np.full((1 + row % 3, 4, 6, 3), 200, np.uint8) for row in range(len(utterances))]
    frame = utterances.with_columns(pl.Series("video", [video.encode(one) for one in shown], pl.Binary))
    silent, blank = VIDEO["silent"](frame, 1), VIDEO["blank"](frame, 1)
    assert silent.drop("audio", "heard").equals(frame.drop("audio"))
    assert blank.drop("video", "heard").equals(frame.drop("video"))
    for row in range(len(frame)):
        heard, given = waveform.load(silent["audio"][row]), waveform.load(frame["audio"][row])
        assert len(heard) == len(given) and not heard.any() and given.any()
        seen = video.load(blank["video"][row])
        assert seen.shape == shown[row].shape and not seen.any()
