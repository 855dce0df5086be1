"""The user's own recordings: a folder of audio with a table of transcripts, or a .txt next to every recording.

A table (csv, tsv, json, jsonl or parquet, in the folder) has a column `audio` or `path` (of the recording, from the
folder) and `text`; optionally `id`, `split` (train, dev, test), `speaker`, `language`, `task` (transcribe, answer,
caption), `question` and `transcript`. With a question, `text` is the answer, with task caption the caption, and
`transcript` is what is said. Without a language, it is `corpora.folder.language`. Cells hold text or nothing (empty,
null, NaN). The column `audio` of a parquet table may hold the recordings themselves, as the library `datasets` writes
them ({"bytes", "path"}).

Without a table, the text of each recording is in `<name>.txt` next to it, and its split is the folder `train`, `dev`
or `test`. Where no recording has a split, all are shared out over those in use (see `splits`); where only some have,
that is an error. Recordings are recognised by their suffix, other files by their content; links to folders are
followed, hidden files ignored. What is left out is reported and listed in left_out.json.
"""

import os
import re
import unicodedata
from collections.abc import Iterator
from mimetypes import MimeTypes
from pathlib import Path, PurePosixPath
from typing import Any

from steermoe.atomic_io import project_root, write_bytes
from steermoe.audio.io import SUFFIXES
from steermoe.config.corpora import LANGUAGE_TAG, Folder
from steermoe.corpora import download, tables
from steermoe.corpora.archives import ArchiveError, hidden
from steermoe.corpora.download import EMBEDDED
from steermoe.corpora.manifest import Entry, first_of, parts, report_left_out, rows, write_manifest
from steermoe.corpora.reader import card
from steermoe.corpora.splits import assign_splits
from steermoe.data.text import TextError, clean, read_text

__all__ = ["CARD", "SPLITS", "fetch", "list_entries", "parts", "rows"]

SPLITS = Folder.SPLITS
COLUMNS = ("audio", "path", "text", "id", "split", "speaker", "language", "task", "question", "transcript")
CARD = card("folder")
_TYPES = MimeTypes()
Listed = Iterator[tuple[str, Entry]]  # split ("" where nothing says it) and utterance


def fetch(settings: Folder, dest: Path) -> None:
    """Note where the folder is, and write the manifest of the splits in use.

    Raises:
        ArchiveError: the folder or the table does not exist or is not as expected, a recording or a transcript is
            missing, or nothing is left of a split.
    """
    folder = project_root() / settings.path
    found, left_out = list_entries(settings, dest / "data" / EMBEDDED)
    for split, entries in found.items():
        write_manifest(dest, split, entries)
    report_left_out("folder", left_out, dest)
    audio = {entry.audio for entries in found.values() for entry in entries}
    texts = {PurePosixPath(path).with_suffix(end).as_posix() for path in audio for end in (".txt", ".TXT")}
    files = audio | (texts if settings.table is None else {settings.table})
    download.use_folder("folder", folder.resolve(), dest, sorted(files))


def list_entries(settings: Folder, embedded: Path) -> tuple[dict[str, list[Entry]], list[str]]:
    """Return the utterances of each split in use, and what of the folder is left out.

    Recordings that a table itself holds are written to the folder `embedded`.

    Raises:
        ArchiveError: as `fetch`.
    """
    folder, left_out = project_root() / settings.path, list[str]()
    if not folder.is_dir():
        raise ArchiveError(f"corpora.folder.path: {settings.path!r} ({folder}) is not a folder")
    if settings.table is None:
        listed = list(_pairs(folder, settings, left_out))
    else:
        listed = list(_table(folder, folder / settings.table, settings, embedded, left_out))
    unassigned = [entry for split, entry in listed if not split]
    if unassigned and len(unassigned) < len(listed):
        raise ArchiveError(
            f"{folder / unassigned[0].audio}: no split, as of {len(unassigned)} of {len(listed)} recordings; legal: a "
            f"split ({', '.join(SPLITS)}, by folder or column) for all of them, or for none, which shares them out"
        )
    if unassigned:
        return assign_splits(unassigned, settings.used, settings.seed), sorted(left_out)
    left_out += [
        f"{entry.audio}: of split {split}, which is not in use (corpora.folder.{split})"
        for split, entry in listed
        if split not in settings.used
    ]
    found = {split: [entry for of, entry in listed if of == split] for split in settings.used}
    if empty := [split for split, entries in found.items() if not entries]:
        raise ArchiveError(
            f"split {empty[0]!r}: no utterances in it; {folder} has {len(listed)} in other splits"
            f"{f' and left out are {first_of(left_out)}' if left_out else ''}; add some, or remove the splits (no "
            f"folders {', '.join(SPLITS)}, no column `split`): then all recordings are shared out"
        )
    return found, sorted(left_out)


def _table(folder: Path, path: Path, settings: Folder, embedded: Path, left_out: list[str]) -> Listed:
    listed = set[str]()
    for number, row in tables.read_table(path, ["text"], known=COLUMNS):
        place = f"{path}, line {number}"
        audio = _recording(row, folder, embedded / f"{number:07d}", place)
        listed.add(audio)
        yield _split(tables.optional(row, "split", place), place), _entry(row, audio, number, settings, place)
    paths = (path for path in _files(folder) if path.suffix.lower() in SUFFIXES)
    names = (path.relative_to(folder).as_posix() for path in paths)
    left_out += [f"{name}: in no row of {settings.table}" for name in names if name not in listed]


def _entry(row: dict[str, Any], audio: str, number: int, settings: Folder, place: str) -> Entry:
    text, question = tables.text(row, "text", place), tables.optional(row, "question", place)
    if not text or text in tables.MISSING:
        found = f": found {text!r}, a missing value" if text else ""
        raise ArchiveError(f"{place}: no text of {audio}{found}")
    task = tables.optional(row, "task", place) or ("answer" if question else "transcribe")
    if task not in ("transcribe", "answer", "caption") or (task == "answer") != bool(question):
        raise ArchiveError(
            f"{place}: found task {task!r} {'with' if question else 'without'} a question; legal: "
            "transcribe and caption without, answer with one"
        )
    language = tables.optional(row, "language", place) or settings.language
    if not re.fullmatch(LANGUAGE_TAG, language):
        raise ArchiveError(
            f"{place}: found language {language!r}, legal: a BCP 47 tag such as en, de or zh-CN"
        )
    return Entry(
        id=tables.optional(row, "id", place) or f"{number:07d}-{PurePosixPath(audio).stem}",
        audio=audio,
        language=language,
        speaker=tables.optional(row, "speaker", place) or "unknown",
        transcript=text if task == "transcribe" else tables.optional(row, "transcript", place),
        task=task,
        question=question,
        answer="" if task == "transcribe" else text,
    )


def _recording(row: dict[str, Any], folder: Path, embedded: Path, place: str) -> str:
    """Return the path of a row's recording in the corpus; one that the table holds is written to `embedded`."""
    for column in ("audio", "path"):
        value = row.get(column)
        if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
            if value["bytes"] is not None:
                target = embedded.with_suffix(PurePosixPath(value["path"] or "").suffix)
                write_bytes(target, value["bytes"])
                return f"{EMBEDDED}/{target.name}"
            row = row | {column: value["path"]}
    audio = tables.path_of(row, "audio", place) or tables.path_of(row, "path", place)
    if not audio:
        raise ArchiveError(f"{place}: no column `audio` or `path`, or it is empty")
    if PurePosixPath(audio).is_absolute() or ".." in PurePosixPath(audio).parts:
        raise ArchiveError(f"{place}: found {audio!r:.200}, expected a path from the folder, inside of it")
    # Some systems compose the letters of file names, others do not.
    forms = (audio, unicodedata.normalize("NFC", audio), unicodedata.normalize("NFD", audio))
    found = next((form for form in forms if (folder / form).is_file()), None)
    if found is None:
        raise ArchiveError(f"{place}: no recording {folder / audio}")
    return found


def _pairs(folder: Path, settings: Folder, left_out: list[str]) -> Listed:
    files = list(_files(folder))
    transcripts = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
    unused, without, others = dict(transcripts), list[Path](), dict[Path, str]()
    for path in (path for path in files if path.suffix.lower() != ".txt"):
        name = path.with_suffix("")
        if not _is_recording(path):
            others[name] = path.name
        elif name not in transcripts:
            without.append(path)
        else:
            unused.pop(name, None)
            yield _pair(path, transcripts[name], folder, settings)
    if without:
        raise ArchiveError(
            f"{without[0]}: no transcript; expected {without[0].with_suffix('.txt')}, or a table "
            f"(corpora.folder.table); without one are {first_of([path.name for path in without])}"
        )
    for name, path in sorted(unused.items()):
        found = f", but {others[name]}, which has no audio" if name in others else ""
        left_out.append(f"{path.relative_to(folder)}: no recording next to it{found}")


def _pair(path: Path, transcript: Path, folder: Path, settings: Folder) -> tuple[str, Entry]:
    if not path.is_file():
        raise ArchiveError(f"{path}: not a file, or a link to nothing")
    try:
        content = read_text(transcript)
    except TextError as error:
        raise ArchiveError(str(error)) from error
    try:
        text = clean(content)
    except TextError as error:
        raise ArchiveError(f"{transcript}: {error}") from error
    if not text:
        raise ArchiveError(f"{transcript}: empty, expected what is said in {path.name}")
    audio = path.relative_to(folder)
    named = audio.parts[0].lower() if len(audio.parts) > 1 else ""
    name = audio.with_suffix("").as_posix()
    entry = Entry(name, audio.as_posix(), settings.language, "unknown", text)
    return (named if named in SPLITS else ""), entry


def _split(named: str, place: str) -> str:
    if named and named not in SPLITS:
        raise ArchiveError(f"{place}: found split {named!r}, legal: {', '.join(SPLITS)}")
    return named


def _files(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Yield the files of a folder and those below it that are not hidden, in order, through links to folders.

    `above` has device and inode of the folders above: a link back to one of them is not followed.
    """
    status = folder.stat()
    inside = (*above, (status.st_dev, status.st_ino))
    for path in sorted(Path(entry) for entry in os.scandir(folder) if not hidden(entry.name)):
        if not path.is_dir():
            yield path
        elif (path.stat().st_dev, path.stat().st_ino) not in inside:
            yield from _files(path, inside)


def _is_recording(path: Path) -> bool:
    """Return whether a file is a recording, by its suffix, or by what libsndfile and FFmpeg find in it."""
    if path.suffix.lower() in SUFFIXES:
        return True
    from steermoe.audio.io import is_audio  # here, because most folders have known suffixes only

    picture_or_text = (_TYPES.guess_type(path.name)[0] or "").startswith(("image/", "text/"))
    return path.is_file() and not picture_or_text and is_audio(path)
