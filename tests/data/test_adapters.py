"""A teacher is told from others by its files."""

import hashlib
from pathlib import Path

import pytest

from steermoe.data.adapters import CONFIG, WEIGHTS, teacher_files


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    for name in (WEIGHTS, CONFIG, "README.md"):
        (tmp_path / name).write_bytes(name.encode())
    expected = {name: hashlib.sha256(name.encode()).hexdigest() for name in (WEIGHTS, CONFIG)}
    assert teacher_files(str(tmp_path)) == expected


def test_what_is_no_adapter_is_told(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(
        ValueError, match=r"distillation\.teacher: found '.*', which lacks adapter\.safetensors; "
    ):
        teacher_files(str(tmp_path))
    with pytest.raises(ValueError, match=r"distillation\.teacher: found .*nowhere/a/b: neither a folder nor"):
        teacher_files(f"{tmp_path}/nowhere/a/b")
