"""Utterances as the model takes them, and batches of them: features, and token ids of prompt and target."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NotRequired, Self, TypedDict

import numpy as np
import torch
from torch.nn.functional import pad
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from steermoe.audio import io as waveform
from steermoe.audio.features import Features
from steermoe.config import Prompts
from steermoe.data import video
from steermoe.data.prompts import Prompt, encode_prompt, end_token
from steermoe.data.tokens import target_ids
from steermoe.data.video import COLUMN as VIDEO

if TYPE_CHECKING:
    import polars as pl  # only training and evaluation have it

COLUMNS = ("source_id", "task", "prompt", "target", "audio")
IGNORED = -100  # target id of padding, which torch's cross-entropy ignores


class Item(TypedDict):
    """One utterance. M feature channels, T feature frames."""

    features: torch.Tensor  # (M, T) float32, unpadded
    prefix_ids: list[int]  # before the audio
    prompt_ids: list[int]  # after it
    target_ids: list[int]  # the end token included
    index: int  # row of the frame
    video: NotRequired[torch.Tensor]  # features (M, T) float32, where the model has a video tower


def make_item(features: torch.Tensor, prompt: Prompt, target: Sequence[int] = (), index: int = 0) -> Item:
    """Make an item of features (M, T), the prompt around the audio, and the target, if there is one."""
    return {
        "features": features,
        "prefix_ids": prompt.prefix,
        "prompt_ids": prompt.suffix,
        "target_ids": list(target),
        "index": index,
    }


@dataclass(frozen=True, eq=False)
class Batch(Mapping[str, torch.Tensor]):
    """Items, each field right-padded to the longest row; lengths and ids are int64.

    B rows, M feature channels, T feature frames, P0 tokens before the audio, P after it, Y target tokens. A mapping of
    the fields that are not None, so that `model(**batch)` works.
    """

    features: torch.Tensor  # (B, M, T) float32, 0 after feature_lengths
    feature_lengths: torch.Tensor  # (B,)
    prefix_ids: torch.Tensor  # (B, P0), 0 after prefix_lengths
    prefix_lengths: torch.Tensor  # (B,)
    prompt_ids: torch.Tensor  # (B, P), 0 after prompt_lengths
    prompt_lengths: torch.Tensor  # (B,)
    target_ids: torch.Tensor | None = None  # (B, Y), IGNORED after target_lengths
    target_lengths: torch.Tensor | None = None  # (B,), the end token included
    video_features: torch.Tensor | None = None  # (B, M, T) with M and T of the video
    video_lengths: torch.Tensor | None = None  # (B,)
    indices: torch.Tensor | None = None  # (B,), rows of the frame

    @property
    def rows(self) -> int:
        """B."""
        return len(self.features)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch on a device."""
        return type(self)(
            **{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.items()}
        )

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in set(self):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self) if getattr(self, field.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def collate(items: Sequence[Item]) -> Batch:
    """Pad items on the right and stack them, the same way for training and for evaluation."""
    features, feature_lengths = _stacked([item["features"] for item in items])
    prefix_ids, prefix_lengths = _padded([item["prefix_ids"] for item in items], 0)
    prompt_ids, prompt_lengths = _padded([item["prompt_ids"] for item in items], 0)
    target_ids, target_lengths = _padded([item["target_ids"] for item in items], IGNORED)
    videos = [item["video"] for item in items if "video" in item]
    video_features, video_lengths = _stacked(videos) if videos else (None, None)
    indices = torch.tensor([item["index"] for item in items])
    return Batch(
        features, feature_lengths, prefix_ids, prefix_lengths, prompt_ids, prompt_lengths,
        target_ids, target_lengths, video_features, video_lengths, indices,
    )  # fmt: skip


def _stacked(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack features (M, T), each of its own T, to (B, M, T); return them and each T."""
    lengths = [row.shape[1] for row in rows]
    padded = [pad(row, (0, max(lengths) - n)) for row, n in zip(rows, lengths, strict=True)]
    return torch.stack(padded), torch.tensor(lengths)


def _padded(rows: Sequence[list[int]], filling: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = [len(row) for row in rows]
    table = torch.full((len(rows), max(lengths)), filling)
    for row, ids in enumerate(rows):
        table[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    return table, torch.tensor(lengths)


class UtteranceDataset(Dataset[Item]):
    """The rows of a frame, in its order.

    Args:
        frame: rows of `Utterance`, at least COLUMNS.
        features: from waveform to features.
        tokenizer: the LLM's; it must have an end-of-text token.
        prompts: format and templates of the prompts.
        cache_bytes: features, and frames of videos, are cached up to this many bytes (in every process that loads
            data); those of other rows are computed each time.
        video_features: from a video's frames to features; None: videos are not read.

    Raises:
        ValueError: a column is missing (`video` is needed with `video_features`), or the tokenizer has no
            end-of-text token, or lacks the chat template that the format needs.
    """

    def __init__(
        self,
        frame: "pl.DataFrame",
        features: Features,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
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
        self._free_bytes = cache_bytes
        self._cache: dict[int, torch.Tensor] = {}
        self._encoded: dict[tuple[str, str], Prompt] = {}
        self._videos = None if video_features is None else frame[VIDEO]
        self._video_features, self._frames = video_features, dict[int, np.ndarray]()

    def __len__(self) -> int:
        return len(self._audio)

    def __getitem__(self, index: int) -> Item:
        """Raise ValueError naming the utterance whose audio, video or target cannot be used."""
        try:
            asked = self._questions[index]
            if asked not in self._encoded:
                self._encoded[asked] = encode_prompt(self._prompts, self._tokenizer, *asked)
            target = target_ids(self._tokenizer, self._targets[index])
            features = self._features_of(index)
            item = make_item(features, self._encoded[asked], [*target, self._end], index)
            if self._video_features is not None:
                item["video"] = self._video_features(self._frames_of(index))
        except ValueError as error:
            raise ValueError(f"utterance {self._ids[index]!r} (row {index}): {error}") from error
        return item

    def _features_of(self, index: int) -> torch.Tensor:
        return self._cached(self._cache, index, lambda: self._features(waveform.load(self._audio[index])))

    def _frames_of(self, index: int) -> np.ndarray:
        videos = self._videos
        if videos is None or videos[index] is None:
            raise ValueError("no video; a model with a video tower needs one in every row")
        return self._cached(self._frames, index, lambda: video.load(videos[index]))

    def _cached(self, cache: dict[int, Any], index: int, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returns, from the cache if it is there; add it as far as there is room."""
        if index in cache:
            return cache[index]
        computed = compute()
        if computed.nbytes <= self._free_bytes:
            self._free_bytes -= computed.nbytes
            cache[index] = computed
        return computed
