"""The word error rate on the development splits, which chooses the checkpoint where `training.criterion` is wer."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from steermoe.config import Generation, VariantConfig
from steermoe.data.filters import target_tokens
from steermoe.evaluation.metrics import SPACED, count_errors
from steermoe.evaluation.normalizers import normalizer
from steermoe.models.generation import GREEDY


class DevWer:
    """The rows of the development splits whose greedy answers are scored: transcriptions with words.

    Answers to questions and captions are left out, for they have no WER, as have languages without spaces.

    Args:
        variant: of `training`, `wer_rows`, `wer_normalizers` and `wer_ctc_weight` are read.
        dev: the rows of its development splits, with a column `corpus`.
        tokenizer: the LLM's.

    Attributes:
        rows: numbers of the rows, the same for every variant and seed.
        generation: greedy; an answer is at most as long as the longest target of these rows.

    Raises:
        ValueError: there are no such rows, or none of their words counts.
    """

    def __init__(self, variant: VariantConfig, dev: pl.DataFrame, tokenizer: Any) -> None:
        spoken = dev.with_row_index("row").filter((pl.col("task") == "transcribe") & SPACED)
        if spoken.is_empty():
            raise ValueError(
                f"{variant.name}: training.criterion: found wer, but no row of {variant.dev_splits} is a "
                "transcription in a language with spaces between words; use loss"
            )
        count = min(variant.training.wer_rows or len(spoken), len(spoken))
        chosen = spoken[sorted(random.Random(0).sample(range(len(spoken)), count))]
        self.rows: list[int] = chosen["row"].to_list()
        longest = max(target_tokens(tokenizer, chosen["target"].to_list()))
        limits = {"max_new_tokens": longest, "ctc_weight": variant.training.wer_ctc_weight}
        self.generation: Generation = GREEDY.model_copy(update=limits)
        self._tokenizer, self._normalizers = tokenizer, variant.training.wer_normalizers
        columns = chosen.select("corpus", "language", "target").rows()
        self._said = dict(zip(self.rows, columns, strict=True))
        if not self.count(dict.fromkeys(self.rows, ()))[1]:
            raise ValueError(
                f"{variant.name}: training.criterion: found wer, but the normalisers {self._normalizers} leave no "
                f"word of {count} rows of {variant.dev_splits}; correct evaluation.normalizer, or use loss"
            )

    def count(self, answers: Mapping[int, Sequence[int]]) -> tuple[int, int]:
        """Return the number of errors and of words in answers (token ids) to some of the rows, by their numbers."""
        errors, words = 0, 0
        for row, ids in answers.items():
            corpus, language, target = self._said[row]
            text = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
            counts = count_errors([target], [text], normalizer(self._normalizers[corpus]), [language])
            errors, words = errors + sum(counts["errors"]), words + sum(counts["words"])
        return errors, words
