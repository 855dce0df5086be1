"""Utterances as what the model takes: features of the audio, and token ids of prompt and target."""

from typing import TypedDict

import polars as pl
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from steermoe.audio import waveform
from steermoe.audio.features import Features
from steermoe.config import Prompts
from steermoe.data.prompts import Prompt, encode_prompt, end_token

COLUMNS = ("source_id", "task", "prompt", "target", "audio")


class Item(TypedDict):
    """One utterance. M feature channels, T feature frames."""

    features: torch.Tensor  # (M, T) float32, unpadded
    prefix_ids: list[int]  # before the audio
    prompt_ids: list[int]  # behind it
    target_ids: list[int]  # the end token included
    index: int  # row of the frame


class UtteranceDataset(Dataset[Item]):
    """The rows of a frame, in its order.

    Args:
        frame: rows of `Utterance`, at least COLUMNS.
        features: from waveform to features.
        tokenizer: the LLM's; it must know its end-of-text token.
        prompts: format and templates of what is asked.
        cache_dtype: features are kept at this precision; float16 halves the memory and rounds what is
            returned, the first time too.
        cache_bytes: features are kept until they fill so much memory (in every process that loads data);
            those of the other rows are computed each time.

    Raises:
        ValueError: a column is missing, or the tokenizer has no end-of-text token, or lacks the chat template
            that the format needs.
    """

    def __init__(
        self,
        frame: pl.DataFrame,
        features: Features,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        cache_dtype: torch.dtype = torch.float32,
        cache_bytes: int = 2**30,
    ) -> None:
        if missing := [name for name in COLUMNS if name not in frame.columns]:
            raise ValueError(f"rows without column {missing[0]!r}; a dataset needs: {', '.join(COLUMNS)}")
        self._audio, self._ids, self._targets = frame["audio"], frame["source_id"], frame["target"]
        self._questions = frame.select("task", "prompt").rows()
        self._features, self._tokenizer, self._prompts = features, tokenizer, prompts
        self._end = end_token(prompts, tokenizer)
        self._cache: dict[int, torch.Tensor] = {}
        self._cache_dtype, self._free_bytes = cache_dtype, cache_bytes
        self._encoded: dict[tuple[str, str], Prompt] = {}

    def __len__(self) -> int:
        return len(self._audio)

    def __getitem__(self, index: int) -> Item:
        """Raises ValueError naming the utterance whose audio cannot be used."""
        prompt = self._prompt_of(index)
        target = self._tokenizer.encode(self._targets[index], add_special_tokens=False)
        return {
            "features": self._features_of(index),
            "prefix_ids": prompt.prefix,
            "prompt_ids": prompt.suffix,
            "target_ids": [*target, self._end],
            "index": index,
        }

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

    def _prompt_of(self, index: int) -> Prompt:
        asked = self._questions[index]
        if asked not in self._encoded:
            self._encoded[asked] = encode_prompt(self._prompts, self._tokenizer, *asked)
        return self._encoded[asked]
