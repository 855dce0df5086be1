from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.audio import io as waveform
from steermoe.data import video
from steermoe.evaluation.controls import AUDIO, VIDEO, derangement, shuffled_audio


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40), st.integers(0, 9))
def test_every_row_is_given_to_another(transcripts: list[str], seed: int) -> None:
    donors = derangement(transcripts, seed)
    assert sorted(donors) == list(range(len(transcripts)))
    assert (donors != np.arange(len(transcripts))).all()
    if 2 * max(Counter(transcripts).values()) <= len(transcripts):
        assert all(transcripts[a] != transcripts[b] for a, b in enumerate(donors))


def test_the_seed_decides() -> None:
    texts = [str(number) for number in range(50)]
    assert (derangement(texts, 1) == derangement(texts, 1)).all()
    assert (derangement(texts, 1) != derangement(texts, 2)).any()


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


@pytest.mark.parametrize("kind", AUDIO)
def test_all_kinds_of_audio_have_the_same_columns(kind: str, utterances: pl.DataFrame) -> None:
    assert AUDIO[kind](utterances, 0).columns == [*utterances.columns, "heard"]


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
