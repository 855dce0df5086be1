"""Splits of a corpus that has none: shares of it by hash, the same for the same recordings and seed."""

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath

from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.manifest import Entry

SHARES = {"dev": 0.1, "test": 0.2}  # of recordings; the rest is `train`
MIN_GROUPS = 10  # speakers or folders, from which on none of them is in two splits


def assign_splits(entries: Sequence[Entry], splits: Sequence[str], seed: int) -> dict[str, list[Entry]]:
    """Give each entry a split: `dev` and `test` their SHARES, at least one recording; `train`, or the last, the rest.

    No recording is in two splits. Nor is a speaker (or a folder, where no speakers are named), if there are enough.

    Raises:
        ArchiveError: there are fewer recordings than splits.
    """
    groups = {
        entry: entry.speaker if entry.speaker != "unknown" else PurePosixPath(entry.audio).parent.as_posix()
        for entry in entries
    }
    if len(set(groups.values())) < MIN_GROUPS:
        groups = {entry: entry.audio for entry in entries}
    ranked = sorted(set(groups.values()), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    if len(ranked) < len(splits):
        raise ArchiveError(
            f"{len(ranked)} recordings, at least one is needed for each of {', '.join(splits)}"
        )
    rest, total = "train" if "train" in splits else splits[-1], len(ranked)
    split_of: dict[str, str] = {}
    for split in (name for name in splits if name != rest):
        count = max(1, round(SHARES[split] * total))
        split_of |= dict.fromkeys(ranked[:count], split)
        ranked = ranked[count:]
    found: dict[str, list[Entry]] = {split: [] for split in splits}
    for entry in entries:
        found[split_of.get(groups[entry], rest)].append(entry)
    return found
