"""Files in a user's folders, and which of them are recordings."""

import os
from collections.abc import Iterator
from mimetypes import MimeTypes
from pathlib import Path

from steermoe.audio.io import SUFFIXES
from steermoe.data.text import TextError, clean, read_text

SYSTEM = (
    "thumbs.db",
    "desktop.ini",
    "__macosx",
)  # besides hidden files, among them macOS' `.DS_Store` and `._name`
_TYPES = MimeTypes()


def hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or made by an operating system."""
    return name.startswith(".") or name.lower() in SYSTEM


def files(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """The files in a folder and those below it that are not hidden, in order; links to folders are followed.

    Args:
        above: device and number of the folders above: a link back to one of them is not followed.
    """
    status = folder.stat()
    inside = (*above, (status.st_dev, status.st_ino))
    for path in sorted(Path(entry) for entry in os.scandir(folder) if not hidden(entry.name)):
        if not path.is_dir():
            yield path
        elif (path.stat().st_dev, path.stat().st_ino) not in inside:
            yield from files(path, inside)


def is_recording(path: Path) -> bool:
    """Whether a file is a recording by its suffix, or by what libsndfile and FFmpeg find in it."""
    if path.suffix.lower() in SUFFIXES:
        return True
    from steermoe.audio.io import (
        is_audio,  # here, for most folders have recordings of known suffixes alone
    )

    picture_or_text = (_TYPES.guess_type(path.name)[0] or "").startswith(("image/", "text/"))
    return path.is_file() and not picture_or_text and is_audio(path)


def transcript(path: Path) -> str:
    """The cleaned text of a file.

    Raises:
        TextError: it is no text in UTF-8; names the file.
    """
    text = read_text(path)
    try:
        return clean(text)
    except TextError as error:
        raise TextError(f"{path}: {error}") from error
