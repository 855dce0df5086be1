"""Rows to model inputs and batches: each value against a straight computation of it."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from steermoe.audio import io as waveform
from steermoe.audio.features import LogMel
from steermoe.config import Prompts
from steermoe.data import video
from steermoe.data.batching import bucketed_batches
from steermoe.data.dataset import IGNORED, Batch, UtteranceDataset, collate
from tests.data.conftest import frame_of

PROMPTS = Prompts(
    format="plain",
    system=None,
    transcribe="write down: ",
    answer="answer this: {question}",
    caption="hear: ",
    summarize="sum up: ",
    emotion="feel: ",
)
COUNT = 12


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Qwen's, with ids from 0 for what stands in the rows."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    inner.train_from_iterator(["tone write down answer this which"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>")


@pytest.fixture
def frame(make_row: Callable[..., dict]) -> pl.DataFrame:
    rows = [make_row(i) for i in range(COUNT)]
    rows[3] |= {"task": "answer", "prompt": "which tone?", "target": "the third"}
    return frame_of(rows)


@pytest.fixture
def dataset(frame: pl.DataFrame, tokenizer: PreTrainedTokenizerFast) -> UtteranceDataset:
    return UtteranceDataset(frame, LogMel(80), tokenizer, PROMPTS)


def test_items(dataset: UtteranceDataset, frame: pl.DataFrame, tokenizer: PreTrainedTokenizerFast):
    assert len(dataset) == COUNT
    for index, row in enumerate(frame.iter_rows(named=True)):
        item = dataset[index]
        assert item["index"] == index
        assert torch.equal(item["features"], LogMel(80)(waveform.load(row["audio"])))
        question = "answer this: which tone?" if index == 3 else "write down: "
        assert tokenizer.decode(item["prompt_ids"]) == question
        assert item["prefix_ids"] == []
        assert item["target_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(item["target_ids"][:-1]) == row["target"]
        assert tokenizer.eos_token_id not in item["target_ids"][:-1]


def test_items_of_a_chat(frame: pl.DataFrame, tiny_chat_dir: Path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_chat_dir)
    chat = PROMPTS.model_copy(update={"format": "chat", "system": "one two three"})
    items = [UtteranceDataset(frame, LogMel(80), tokenizer, chat)[index] for index in (0, 3)]
    batch = collate(items)
    opening = "<|im_start|>system\none two three<|im_end|>\n<|im_start|>user\n"
    assert [tokenizer.decode(ids) for ids in batch["prefix_ids"]] == [opening] * 2
    assert batch["prefix_lengths"].tolist() == [batch["prefix_ids"].shape[1]] * 2
    asked = "answer this: which tone?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(items[1]["prompt_ids"]) == asked
    assert tokenizer.decode(items[1]["target_ids"]) == "the third<|im_end|>"


def test_features_are_computed_once(frame: pl.DataFrame, tokenizer: PreTrainedTokenizerFast):
    class Counting(LogMel):
        calls = 0

        def __call__(self, waveform: np.ndarray | torch.Tensor) -> torch.Tensor:
            Counting.calls += 1
            return super().__call__(waveform)

    plain = UtteranceDataset(frame, LogMel(80), tokenizer, PROMPTS)
    kept = UtteranceDataset(frame, Counting(80), tokenizer, PROMPTS)
    for _ in range(3):
        for index in range(COUNT):
            assert torch.equal(kept[index]["features"], plain[index]["features"])
    assert Counting.calls == COUNT
    room = sum(plain[index]["features"].nbytes for index in range(5))
    bounded = UtteranceDataset(frame, Counting(80), tokenizer, PROMPTS, cache_bytes=room)
    for _ in range(2):
        for index in range(COUNT):
            assert torch.equal(bounded[index]["features"], plain[index]["features"])
    assert Counting.calls == COUNT + 5 + 2 * (COUNT - 5)


def test_refused(frame: pl.DataFrame, tokenizer: PreTrainedTokenizerFast, make_row: Callable[..., dict]):
    with pytest.raises(ValueError, match="rows without column 'audio'; a dataset needs: source_id, task"):
        UtteranceDataset(frame.drop("audio"), LogMel(80), tokenizer, PROMPTS)
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="no end-of-text token"):
        UtteranceDataset(frame, LogMel(80), endless, PROMPTS)
    damaged = frame_of([make_row(0), make_row(1, audio=make_row(1)["audio"][:50])])
    with pytest.raises(ValueError, match=r"utterance 'tones-train-0001' \(row 1\): audio of 50 bytes"):
        UtteranceDataset(damaged, LogMel(80), tokenizer, PROMPTS)[1]


def test_collate(dataset: UtteranceDataset):
    items = [dataset[index] for index in (3, 0, 7)]
    batch = collate(items)
    assert batch["indices"].tolist() == [3, 0, 7]
    width = max(item["features"].shape[1] for item in items)
    assert batch["features"].shape == (3, 80, width)
    assert batch["features"].dtype == torch.float32
    for row, item in enumerate(items):
        length = int(batch["feature_lengths"][row])
        assert torch.equal(batch["features"][row, :, :length], item["features"])
        assert not batch["features"][row, :, length:].any()
        for name, filling in (("prefix", 0), ("prompt", 0), ("target", IGNORED)):
            ids, length = batch[f"{name}_ids"][row].tolist(), int(batch[f"{name}_lengths"][row])
            assert ids[:length] == item[f"{name}_ids"]
            assert ids[length:] == [filling] * (len(ids) - length)
    for name in ("prefix", "prompt", "target"):
        assert batch[f"{name}_ids"].shape[1] == batch[f"{name}_lengths"].max()
    integers = [tensor.dtype for name, tensor in batch.items() if name != "features"]
    assert integers == [torch.int64] * 8


def test_a_batch_is_a_frozen_mapping_that_moves_between_devices(dataset: UtteranceDataset):
    batch = collate([dataset[0], dataset[1]])
    assert batch.rows == 2 and "video_features" not in batch and len(batch) == 9
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in moved.values()} == {"meta"} and isinstance(moved, Batch)
    assert dict(**batch).keys() == batch.keys() and batch["prompt_ids"] is batch.prompt_ids
    with pytest.raises(AttributeError):
        batch.features = moved.features  # pyright: ignore
    with pytest.raises(KeyError):
        batch["video_features"]


def test_through_a_data_loader(dataset: UtteranceDataset, frame: pl.DataFrame):
    sampler = bucketed_batches(frame["seconds"].to_list(), 1.0, seed=3, epoch=0)
    seen = []
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
    for batch, expected in zip(loader, sampler, strict=True):
        assert batch["indices"].tolist() == expected
        assert batch["features"].shape[0] * batch["features"].shape[2] <= 100
        seen += expected
    assert sorted(seen) == list(range(COUNT))


def test_goes_to_loading_processes(dataset: UtteranceDataset):
    there = pickle.loads(pickle.dumps(dataset))  # what spawning a worker does
    for index in range(COUNT):
        assert torch.equal(there[index]["features"], dataset[index]["features"])
        assert there[index]["target_ids"] == dataset[index]["target_ids"]


def pictures(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (1 + number % 4, 6, 6, 3), dtype=np.uint8)


class Flat:
    """Features of videos: the values of a frame."""

    channels = 108

    def __call__(self, frames: np.ndarray | torch.Tensor, /) -> torch.Tensor:
        return torch.as_tensor(frames).flatten(1).T.float()


def test_videos_are_items_and_batches_where_they_are_wanted(
    make_row: Callable[..., dict], tokenizer: PreTrainedTokenizerFast
):
    frame = frame_of([make_row(i, video=video.encode(pictures(i))) for i in range(4)])
    plain = UtteranceDataset(frame, LogMel(80), tokenizer, PROMPTS)
    assert "video" not in plain[0] and not any("video" in name for name in collate([plain[0], plain[1]]))
    for room in (0, 2**20):  # decoded each time, or kept
        seen = UtteranceDataset(
            frame, LogMel(80), tokenizer, PROMPTS, cache_bytes=room, video_features=Flat()
        )
        for _ in range(2):
            batch = collate([seen[row] for row in range(4)])
        assert batch["video_lengths"].tolist() == [1, 2, 3, 4]
        assert batch["video_features"].shape == (4, 108, 4)
        for row, length in enumerate((1, 2, 3, 4)):
            found = batch["video_features"][row]
            assert torch.equal(found[:, :length], Flat()(pictures(row))) and not found[:, length:].any()


def test_a_row_without_a_good_video_is_named(
    make_row: Callable[..., dict], tokenizer: PreTrainedTokenizerFast
):
    with pytest.raises(ValueError, match=r"rows without column 'video'; a dataset needs: .*, video"):
        UtteranceDataset(frame_of([make_row(0)]), LogMel(80), tokenizer, PROMPTS, video_features=Flat())
    frame = frame_of([make_row(i, video=b"broken picture") for i in range(2)])
    dataset = UtteranceDataset(frame, LogMel(80), tokenizer, PROMPTS, video_features=Flat())
    with pytest.raises(
        ValueError, match=r"utterance 'tones-train-0001' \(row 1\): video: not an animated PNG"
    ):
        dataset[1]
    mixed = pl.concat([frame, frame_of([make_row(2)])], how="diagonal")
    with pytest.raises(
        ValueError, match=r"'tones-train-0002' \(row 2\): no video; a model with a video tower"
    ):
        UtteranceDataset(mixed, LogMel(80), tokenizer, PROMPTS, video_features=Flat())[2]
