"""What commands are given, opened: the model, and the recordings."""

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from steermoe.models.speech_llm import LoadLlm
    from steermoe.models.steermoe import SteerMoE

DEFAULT_MODEL = "pretrained/adapters/steermoe"
STANDARD_INPUT = "-"
SHOWN = 5  # files passed over that are named


def model_name(source: str | None) -> str:
    """The last name of a model's folder or repository, of `.` that of the current folder."""
    return Path(source or DEFAULT_MODEL).absolute().name


def open_model(source: str | None, device: str | None, load: "LoadLlm | None" = None) -> "SteerMoE":
    """A trained model on a device; `load` as `SteerMoE.from_pretrained` takes it.

    Raises:
        ValueError: there is none, it cannot be loaded, or there is no such device.
    """
    if source is None and not Path(DEFAULT_MODEL).is_dir():
        raise ValueError(f"--model: none given, and no {DEFAULT_MODEL} here; give a folder, or a hub id")
    import torch

    from steermoe.models.steermoe import SteerMoE

    model = SteerMoE.from_pretrained(source or DEFAULT_MODEL, load=load)
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        found = str(error).splitlines()[0]
        raise ValueError(f"--device: found {name!r}, which cannot be used: {found}") from error


def find_recordings(arguments: Sequence[str]) -> list[tuple[str, Path]]:
    """(name, path) of each recording: files as they are given, the audio in folders, what a pattern matches.

    The name of a file in a folder begins at the folder; of another it is its last part. Where two files would
    have one name, as many folders above them are part of their names as tell them apart. A file that is not there
    is kept: opening it says so.

    Raises:
        ValueError: a folder has no audio, a pattern matches nothing, or standard input comes twice.
    """
    found: list[tuple[str, Path]] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found += [(str(p.relative_to(path)), p) for p in _inside(path, argument)]
        elif glob.has_magic(argument) and not path.exists():
            there = glob.glob(argument, recursive=True)  # noqa: PTH207  absolute ones, too
            matches = sorted(path for path in map(Path, there) if path.is_file())
            if not matches:
                raise ValueError(f"{argument}: there is no such file, and as a pattern it matches none")
            found += [(match.name, match) for match in matches]
        else:
            found.append(("stdin" if argument == STANDARD_INPUT else path.name, path))
    if list(arguments).count(STANDARD_INPUT) > 1:
        raise ValueError("-: standard input can be read once only")
    return _told_apart(found)


def _told_apart(found: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """The same with longer names where two files share one; a file that is given twice keeps its name."""
    names = [name for name, _ in found]
    parts = [Path(os.path.abspath(path)).parts[1:] for _, path in found]  # noqa: PTH100  a link stays itself
    while True:
        files: dict[str, set[tuple[str, ...]]] = {}
        for name, whole in zip(names, parts, strict=True):
            files.setdefault(name, set()).add(whole)
        longer = [
            str(Path(*whole[-len(Path(name).parts) - 1 :])) if len(files[name]) > 1 else name
            for name, whole in zip(names, parts, strict=True)
        ]
        if longer == names:
            return [(name, path) for name, (_, path) in zip(names, found, strict=True)]
        names = longer


def _inside(folder: Path, argument: str) -> list[Path]:
    """The audio in a folder and the folders in it, hidden ones aside; other files are named on standard error."""
    from steermoe.audio.blocks import is_audio

    names = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    files = sorted(folder / name for name in names if not any(part.startswith(".") for part in name.parts))
    audio = [path for path in files if is_audio(path)]
    others = [str(path.relative_to(folder)) for path in files if path not in set(audio)]
    if not audio:
        raise ValueError(f"{argument}: a folder without audio; {len(files)} other files are there")
    if others:
        shown = ", ".join(others[:SHOWN]) + ", ..." * (len(others) > SHOWN)
        print(
            f"steermoe: {argument}: passed over {len(others)} files without audio: {shown}", file=sys.stderr
        )
    return audio


@contextmanager
def opened_recording(path: Path) -> "Iterator[Path | BinaryIO]":
    """A path as it is; standard input for `-`.

    Raises:
        ValueError: standard input is closed.
    """
    if str(path) != STANDARD_INPUT:
        yield path
    elif sys.stdin is None:  # the shell's <&-
        raise ValueError("-: standard input is closed")
    else:
        yield sys.stdin.buffer
