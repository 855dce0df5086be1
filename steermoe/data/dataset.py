"""Utterances as what the model takes: features of the audio, and token ids of prompt and target."""

from typing import NotRequired, TypedDict

import numpy as np
import polars as pl
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from steermoe.audio import waveform
from steermoe.audio.features import Features
from steermoe.config import Prompts
from steermoe.data import video
from steermoe.data.prompts import Prompt, encode_prompt, end_token
from steermoe.data.tokens import target_ids
from steermoe.data.video import COLUMN as VIDEO

COLUMNS = ("source_id", "task", "prompt", "target", "audio")


class Item(TypedDict):
    """One utterance. M feature channels, T feature frames."""

    features: torch.Tensor  # (M, T) float32, unpadded
    prefix_ids: list[int]  # before the audio
    prompt_ids: list[int]  # behind it
    target_ids: list[int]  # the end token included
    index: int  # row of the frame
    video: NotRequired[
        torch.Tensor
    ]  # features (M, T) float32 of the video, where the model has a branch for it


class UtteranceDataset(Dataset[Item]):
    """The rows of a frame, in its order.

    Args:
        frame: rows of `Utterance`, at least COLUMNS.
        features: from waveform to features.
        tokenizer: the LLM's; it must know its end-of-text token.
        prompts: format and templates of what is asked.
        cache_dtype: features are kept at this precision; float16 halves the memory and rounds what is
            returned, the first time too.
        cache_bytes: features, and frames of videos, are kept until they fill so much memory (in every process
            that loads data); those of the other rows are computed each time.
        video_features: from a video's frames to features; None: videos are not looked at.

    Raises:
        ValueError: a column is missing (`video` is needed with `video_features`), or the tokenizer has no
            end-of-text token, or lacks the chat template that the format needs.
    """

    def __init__(
        self,
        frame: pl.DataFrame,
        features: Features,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        cache_dtype: torch.dtype = torch.float32,
        cache_bytes: int = 2**30,
        video_features: Features | None = None,
    ) -> None:
        needed = COLUMNS if video_features is None else (*COLUMNS, VIDEO)
        if missing := [name for name in needed if name not in frame.columns]:
            raise ValueError(f"rows without column {missing[0]!r}; a dataset needs: {', '.join(needed)}")
        self._audio, self._ids, self._targets = frame["audio"], frame["source_id"], frame["target"]
        self._questions = frame.select("task", "prompt").rows()
        self._features, self._tokenizer, self._prompts = features, tokenizer, prompts
        self._end = end_token(prompts, tokenizer)
        self._cache: dict[int, torch.Tensor] = {}
        self._cache_dtype, self._free_bytes = cache_dtype, cache_bytes
        self._encoded: dict[tuple[str, str], Prompt] = {}
        self._videos = None if video_features is None else frame[VIDEO]
        self._video_features, self._frames = video_features, dict[int, np.ndarray]()

    def __len__(self) -> int:
        return len(self._audio)

    def __getitem__(self, index: int) -> Item:
        """Raises ValueError naming the utterance whose audio or target cannot be used."""
        prompt = self._prompt_of(index)
        target = self._target_of(index)
        item: Item = {
            "features": self._features_of(index),
            "prefix_ids": prompt.prefix,
            "prompt_ids": prompt.suffix,
            "target_ids": [*target, self._end],
            "index": index,
        }
        if self._video_features is not None:
            item["video"] = self._video_features(self._frames_of(index))
        return item

    def _target_of(self, index: int) -> list[int]:
        try:
            return target_ids(self._tokenizer, self._targets[index])
        except ValueError as error:
            raise ValueError(f"utterance {self._ids[index]!r} (row {index}): {error}") from error

    def _features_of(self, index: int) -> torch.Tensor:
        if index not in self._cache:
            try:
                computed = self._features(waveform.load(self._audio[index])).to(self._cache_dtype)
            except ValueError as error:
                raise ValueError(f"utterance {self._ids[index]!r} (row {index}): {error}") from error
            if computed.nbytes > self._free_bytes:
                return computed.float()
            self._free_bytes -= computed.nbytes
            self._cache[index] = computed
        return self._cache[index].float()

    def _frames_of(self, index: int) -> np.ndarray:
        if index in self._frames:
            return self._frames[index]
        assert self._videos is not None
        where = f"utterance {self._ids[index]!r} (row {index})"
        if self._videos[index] is None:
            raise ValueError(f"{where}: no video; a model with a video branch needs one in every row")
        try:
            frames = video.load(self._videos[index])
        except video.VideoError as error:
            raise ValueError(f"{where}: {error}") from error
        if frames.nbytes <= self._free_bytes:
            self._free_bytes -= frames.nbytes
            self._frames[index] = frames
        return frames

    def _prompt_of(self, index: int) -> Prompt:
        asked = self._questions[index]
        if asked not in self._encoded:
            self._encoded[asked] = encode_prompt(self._prompts, self._tokenizer, *asked)
        return self._encoded[asked]
