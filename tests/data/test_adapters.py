"""The adapters that a training reads are told from others by their files."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from steermoe.config import Training
from steermoe.data.adapters import CONFIG, WEIGHTS, adapters_of


@pytest.fixture(params=["teacher", "init_from"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def reading(kind: str, source: str, tiny_variant: Any) -> Training:
    lesson = {"teacher": source, "logits": 1.0, "temperature": 2.0, "hidden": 0.0}
    changes = {"training.init_from": source} if kind == "init_from" else {"training.distillation": lesson}
    return tiny_variant("linear", changes).training


def test_hashes_are_those_of_the_files(kind: str, tiny_variant: Any, tmp_path: Path) -> None:
    for name in (WEIGHTS, CONFIG, "README.md"):
        (tmp_path / name).write_bytes(name.encode())
    expected = {name: hashlib.sha256(name.encode()).hexdigest() for name in (WEIGHTS, CONFIG)}
    assert adapters_of(reading(kind, str(tmp_path), tiny_variant)) == {kind: expected}
    assert adapters_of(tiny_variant("linear").training) == {}


def test_what_is_no_adapter_is_told(kind: str, tiny_variant: Any, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(ValueError, match=rf"{kind}: found '.*', which lacks adapter\.safetensors; "):
        adapters_of(reading(kind, str(tmp_path), tiny_variant))
    with pytest.raises(ValueError, match=rf"{kind}: found .*nowhere/a/b: neither a folder nor"):
        adapters_of(reading(kind, f"{tmp_path}/nowhere/a/b", tiny_variant))
