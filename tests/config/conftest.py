"""Copies of the shipped configuration to make mistakes in."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from steermoe import config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """The params.yaml of a copy of the shipped configuration."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    return tmp_path / "params.yaml"


@pytest.fixture
def edit(params: Path) -> Callable[[dict[str, Any]], None]:
    """Sets values, `{dotted path: value}`: in a profile where `NAME:` stands before. `...` removes a key."""
    yaml = YAML()

    def change(changes: dict[str, Any]) -> None:
        for place, value in changes.items():
            profile, _, path = place.rpartition(":")
            file = params.parent / "configs" / f"{profile}.yaml" if profile else params
            tree = yaml.load(file)
            *steps, last = path.split(".")
            section = tree
            for step in steps:
                section = section[step]
            if value is ...:
                del section[last]
            else:
                section[last] = value
            yaml.dump(tree, file)

    return change


@pytest.fixture
def problems(params: Path) -> Callable[[], list[str]]:
    """Gives the lines of the error that loading raises, with files named from the project's root."""

    def lines() -> list[str]:
        with pytest.raises(config.ConfigError) as caught:
            config.load(params)
        return [line.replace(f"{params.parent}/", "") for line in caught.value.lines]

    return lines
