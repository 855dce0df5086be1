"""A corpus reader for tests that gives recordings as they are: files of any kind in folders named as the splits."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

SPLITS = ("train", "test")


class Settings(BaseModel):
    part_rows: int = 10


@dataclass(frozen=True)
class Part:
    split: str
    number: int
    files: tuple[str, ...]


def fetch(settings: Settings, dest: Path) -> None:
    raise NotImplementedError("tests fill the folder themselves")


def parts(settings: Settings, source: Path) -> list[Part]:
    found = []
    for split in SPLITS:
        names = sorted(path.name for path in (source / split).iterdir())
        for number, start in enumerate(range(0, len(names), settings.part_rows)):
            found.append(Part(split, number, tuple(names[start : start + settings.part_rows])))
    return found


def rows(settings: Settings, source: Path, part: Part) -> Iterator[dict]:
    for name in part.files:
        text = Path(name).stem.replace("_", " ")
        yield {
            "source_id": f"{part.split}/{name}",
            "split": part.split,
            "speaker": "tone",
            "language": "en",
            "task": "transcribe",
            "prompt": "",
            "transcript": text,
            "target": text,
            "audio": source / part.split / name,
        }
