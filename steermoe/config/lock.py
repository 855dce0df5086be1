"""The lock file of a profile: the commit of the hub that a frozen model is of, and the hashes of its files.

`configs/<profile>.lock.json` is written when a model of the hub is first fetched, and compared from then on. It
belongs into version control. A `revision` in the profile takes precedence.
"""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from steermoe.config.errors import ConfigError
from steermoe.config.model import Encoder, Llm, VideoEncoder
from steermoe.config.section import Commit, Section

Base = TypeVar("Base", Encoder, Llm, VideoEncoder)


class Locked(Section):
    """A model of the hub: its commit, and the SHA-256 of its files by name."""

    revision: Commit
    files: dict[str, str]


Lock = dict[str, Locked]


def lock_file(params: Path, profile: str) -> Path:
    """The lock of a profile."""
    return params.parent / "configs" / f"{profile}.lock.json"


def read_lock(file: Path) -> Lock:
    """The models of a lock by hub id; none where there is no lock yet.

    Raises:
        ConfigError: the file is no lock.
    """
    try:
        return TypeAdapter(Lock).validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            [f"{file}: {place}: {first['msg']}; delete the file, and the models are locked anew"]
        ) from error


def lock_text(lock: Lock) -> str:
    """The text of a lock, the same for the same models."""
    tree = {name: lock[name].model_dump() for name in sorted(lock)}
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


def pinned(section: Base, lock: Lock) -> Base:
    """The section with the locked commit, where it names none itself."""
    locked = lock.get(section.path)
    if section.revision is not None or locked is None:
        return section
    return section.model_copy(update={"revision": locked.revision})
