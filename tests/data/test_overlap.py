"""Recordings and speakers that training and test splits share are told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from steermoe.data.overlap import overlap
from steermoe.data.shards import write_shards


def test_what_is_shared(tmp_path: Path, make_row: Callable[..., dict[str, Any]]):
    write_shards((make_row(i, speaker=f"s{i}") for i in range(6)), tmp_path, "train", 4)
    others = [make_row(i, "test", speaker="unknown") for i in range(8, 10)]
    write_shards(others, tmp_path, "test", 4)
    assert overlap(tmp_path, ["train"], ["test"]) == overlap(tmp_path, ["train"], []) == ""
    again = [make_row(i, "more", speaker=f"s{i}") for i in (2, 3)]
    again.append(make_row(3, "more", source_id="asked", speaker="s9"))  # of the same recording
    write_shards(again, tmp_path, "more", 4)
    found = overlap(tmp_path, ["train"], ["test", "more"])
    assert "2 recordings (tones-more-0002, tones-more-0003)" in found and "2 speakers (s2, s3)" in found
    assert overlap(tmp_path, ["test"], ["more"]) == ""
