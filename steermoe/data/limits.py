"""Which utterances are left out of shards, and the list of those that were."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

LEFT_OUT = "left_out.jsonl"  # beside the shards
SHOWN = 10  # utterances in a message


class RejectedError(ValueError):
    """More of a corpus cannot be used than is allowed."""


@dataclass(frozen=True)
class LeftOut:
    """An utterance that is in no shard: `dropped`, as it is too long, or `rejected`, as its audio or its
    answer cannot be used.
    """

    source_id: str
    split: str
    kind: Literal["dropped", "rejected"]
    reason: str


@dataclass(frozen=True)
class Limits:
    """What is left out of the shards of a corpus.

    Attributes:
        max_seconds: longest utterance; None for any length.
        max_tokens: longest target, in tokens of the LLM; None for any length.
        tokenizer: tokenizer.json of the LLM; needed where `max_tokens` is given.
        whole: splits from which nothing is dropped, and nothing rejected but what `unreadable` names: a
            figure on a test split is a figure on all of it.
        max_rejected: share of the other utterances that may be rejected before the corpus is taken as broken.
        unreadable: source_ids that are known to be bad in the splits of `whole`.
    """

    max_seconds: float | None = None
    max_tokens: int | None = None
    tokenizer: Path | None = None
    whole: Collection[str] = ()
    max_rejected: float = 0.0
    unreadable: Collection[str] = field(default=())

    @property
    def key(self) -> dict[str, Any]:
        """What decides which rows are in the shards, as JSON."""
        digest = None
        if self.max_tokens is not None:
            assert self.tokenizer is not None, "max_tokens without a tokenizer"
            digest = sha256(self.tokenizer.read_bytes()).hexdigest()
        return {
            "max_seconds": self.max_seconds,
            "max_tokens": self.max_tokens,
            "tokenizer": digest,
            "whole": sorted(self.whole),
        }

    @cached_property
    def _tokens(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(self.tokenizer))
        tokenizer.encode_special_tokens = True  # control tokens in a target are plain text, as in training
        return tokenizer

    def exceeded(self, row: Mapping[str, Any]) -> str | None:
        """Why a row is dropped; None where it is not."""
        if row["split"] in self.whole:
            return None
        if self.max_seconds is not None and row["seconds"] > self.max_seconds:
            return f"{row['seconds']:.2f} s, allowed are {self.max_seconds:g}"
        if self.max_tokens is not None:
            tokens = len(self._tokens.encode(row["target"], add_special_tokens=False).ids)
            if tokens > self.max_tokens:
                return f"target of {tokens} tokens, allowed are {self.max_tokens}"
        return None

    def check_rejected(self, left_out: Sequence[LeftOut], kept: Mapping[str, int]) -> None:
        """See that no more was rejected than is allowed, and that something is left of every split.

        Args:
            left_out: of all splits.
            kept: the number of rows in each split's shards.

        Raises:
            RejectedError: with the first of those rejected, or left out of a split of which nothing is left.
        """
        rejected = [item for item in left_out if item.kind == "rejected"]
        unexpected = [i for i in rejected if i.split in self.whole and i.source_id not in self.unreadable]
        if unexpected:
            raise RejectedError(
                f"{len(unexpected)} utterances of test splits cannot be used, and a test split must be whole; "
                "mend the source, or name them in preprocessing.unreadable" + _listed(unexpected)
            )
        known = {item.source_id for item in rejected if item.split in self.whole}
        if extra := sorted(set(self.unreadable) - known):
            raise RejectedError(
                f"preprocessing.unreadable names {extra[0]!r}, which is no unreadable utterance of a test "
                "split; take it out of the list"
            )
        others = [item for item in rejected if item.split not in self.whole]
        seen = sum(count for split, count in kept.items() if split not in self.whole)
        seen += sum(item.split not in self.whole for item in left_out)
        if len(others) > self.max_rejected * seen:
            raise RejectedError(
                f"{len(others)} of {seen} utterances cannot be used, allowed is a share of "
                f"{self.max_rejected:g} (preprocessing.max_rejected); mend the source" + _listed(others)
            )
        for split in (split for split, count in kept.items() if not count):
            if gone := [item for item in left_out if item.split == split]:
                raise RejectedError(
                    f"nothing is left of split {split!r}: all of its {len(gone)} utterances were left out; raise "
                    "preprocessing.max_seconds (and training.max_seconds) or preprocessing.max_tokens, or cut the "
                    "recordings into shorter ones" + _listed(gone)
                )


def _listed(items: Sequence[LeftOut]) -> str:
    lines = [f"\n  {item.source_id:.100} ({item.split}): {item.reason:.300}" for item in items[:SHOWN]]
    return "".join(lines) + (f"\n  and {len(items) - SHOWN} more" if len(items) > SHOWN else "")


def to_lines(items: Iterable[LeftOut]) -> str:
    """A line of JSON each."""
    return "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)


def counts(items: Iterable[LeftOut]) -> Counter[tuple[str, str]]:
    """How many were left out, by split and kind."""
    return Counter((item.split, item.kind) for item in items)


def target_tokens(tokenizer: Any, targets: Sequence[str]) -> list[int]:
    """Length of each target in tokens of the LLM, its end token included: what writing it takes."""
    if not targets:
        return []
    found = tokenizer(list(targets), add_special_tokens=False, verbose=False)["input_ids"]
    return [len(ids) + 1 for ids in found]


def tokenizer_file(llm: str) -> Path:
    """tokenizer.json of an LLM: in its folder, or of that hub id.

    Raises:
        ValueError: there is none, so tokens cannot be counted.
    """
    path = Path(llm) / "tokenizer.json"
    if not Path(llm).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        with suppress(EntryNotFoundError):
            path = Path(hf_hub_download(llm, "tokenizer.json"))
    if not path.is_file():
        raise ValueError(
            f"{llm}: no tokenizer.json, by which tokens are counted; save the tokenizer in that format, or set "
            "preprocessing.max_tokens to null"
        )
    return path
