"""Decide which utterances are left out of the shards, list them, and mark corpora that were skipped as a whole."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from steermoe.atomic_io import write_text

LEFT_OUT = "left_out.jsonl"  # in the folder of the shards
SKIPPED = "SKIPPED.json"
MAX_SHOWN = 10  # utterances in a message


class RejectedError(ValueError):
    """More of a corpus is unusable than allowed."""


@dataclass(frozen=True)
class LeftOut:
    """A line of left_out.jsonl: an utterance that was `dropped` as too long, or `rejected` as unusable."""

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
        tokenizer: tokenizer.json of the LLM; needed for `max_tokens`.
        whole: splits from which nothing is dropped and only what `unreadable` names is rejected: test splits,
            whose figures must be about all of their rows.
        max_rejected: allowed share of rejected utterances in the other splits.
        unreadable: source_ids of the splits of `whole` that are known to be unusable.
    """

    max_seconds: float | None = None
    max_tokens: int | None = None
    tokenizer: Path | None = None
    whole: Collection[str] = ()
    max_rejected: float = 0.0
    unreadable: Collection[str] = ()

    @property
    def key(self) -> dict[str, Any]:
        """Return what decides which rows are in the shards, as JSON."""
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
    def _tokens(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.tokenizer))
        tokenizer.encode_special_tokens = True  # control tokens in a target are plain text, as in training
        return tokenizer

    def exceeded(self, row: Mapping[str, Any]) -> str | None:
        """Return why a row is dropped; None where it is not."""
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
        """Check that no more is rejected than allowed, and that no split is left empty.

        Raises:
            RejectedError: lists the first of the utterances concerned.
        """
        rejected = [item for item in left_out if item.kind == "rejected"]
        of_tests = [item for item in rejected if item.split in self.whole]
        if unexpected := [item for item in of_tests if item.source_id not in self.unreadable]:
            raise RejectedError(
                f"{len(unexpected)} utterances of test splits cannot be used, and a test split must be whole; "
                "repair the source, or name them in preprocessing.unreadable" + _listed(unexpected)
            )
        if extra := sorted(set(self.unreadable) - {item.source_id for item in of_tests}):
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
                f"{self.max_rejected:g} (preprocessing.max_rejected); repair the source" + _listed(others)
            )
        for split in (split for split, count in kept.items() if not count):
            if gone := [item for item in left_out if item.split == split]:
                raise RejectedError(
                    f"nothing is left of split {split!r}: all of its {len(gone)} utterances were left out; raise "
                    "preprocessing.max_seconds (and training.max_seconds) or preprocessing.max_tokens, or cut the "
                    "recordings into shorter ones" + _listed(gone)
                )


def _listed(items: Sequence[LeftOut]) -> str:
    lines = [f"\n  {item.source_id:.100} ({item.split}): {item.reason:.300}" for item in items[:MAX_SHOWN]]
    return "".join(lines) + (f"\n  and {len(items) - MAX_SHOWN} more" if len(items) > MAX_SHOWN else "")


def target_tokens(tokenizer: Any, targets: Sequence[str]) -> list[int]:
    """Return the length of each target in tokens of the LLM, the end token included."""
    if not targets:
        return []
    found = tokenizer(list(targets), add_special_tokens=False, verbose=False)["input_ids"]
    return [len(ids) + 1 for ids in found]


def tokenizer_file(llm: str) -> Path:
    """Return tokenizer.json of an LLM, by its folder or its id on the hub.

    Raises:
        ValueError: there is none, so that tokens cannot be counted.
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


def write_skipped(folder: Path, reason: str) -> None:
    """Mark a corpus that is not required and could not be fetched: its folder holds nothing but this file."""
    write_text(folder / SKIPPED, json.dumps({"skipped": reason}, indent=1) + "\n")


def skipped_reason(folder: Path) -> str | None:
    """Return why the corpus in `folder` (raw or as shards) was skipped; None where it was not."""
    path = folder / SKIPPED
    return json.loads(path.read_text(encoding="utf-8"))["skipped"] if path.exists() else None
