"""The user's own recordings: a folder of audio with a table of transcripts, or a .txt beside every recording.

A table (csv, tsv, json, jsonl or parquet, in the folder) has a column `audio` or `path` (of the recording, from the
folder), and `text`; and, as wanted, `id`, `split` (train, dev, test), `speaker`, `language`, `task` (transcribe,
answer, caption) and `question`. Of a row with a question, `text` is the answer, of a caption the caption, and
`transcript`, if there is such a column, what is said. A row that says no language is in `corpora.folder.language`.
Cells hold text or nothing (empty, null, NaN); a number or a list is refused. A column that looks like one of these
is refused, others are listed. The column `audio` of a parquet table may hold the recordings themselves, as the
library `datasets` writes them ({"bytes", "path"}).

Without a table, each recording's text stands in `<name>.txt` beside it, and its split is the folder `train`,
`dev` or `test` that it is in. Where no recording says its split, all are shared out over those in use (see
`splits`); where only some do, that is an error. Recordings are known by their suffix, other files by their content;
links to folders are followed, hidden files passed over.

What is left out (transcripts without a recording, recordings in no row, splits not in use) is reported on standard
error and listed in `left_out.json`. Texts are UTF-8, and cleaned as `steermoe.data.text` says.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from steermoe.atomic_io import project_root, write_bytes, write_text
from steermoe.config import LANGUAGE_TAG, Folder
from steermoe.corpora import columns, index, recordings, sources, tables
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.card import Card
from steermoe.corpora.index import Entry
from steermoe.corpora.places import EMBEDDED
from steermoe.corpora.splits import share_out
from steermoe.data.text import TextError

SPLITS = Folder.SPLITS
COLUMNS = ("audio", "path", "text", "id", "split", "speaker", "language", "task", "question", "transcript")
SHOWN = 5  # names in a message
CARD = Card(
    name="a folder of yours",
    hours=None,
    bytes=0,
    licence="yours to know",
    source="corpora.folder.path",
    restrictions="nothing is copied or sent anywhere; shards made of it contain the recordings",
    citation="none",
    language="yours to know",
    task="transcribe, answer or caption, as its table says",
    metric="WER or CER; accuracy for questions; ROUGE-L for captions",
    normalizer="yours to choose",
)
parts, rows = index.parts, index.rows


def fetch(settings: Folder, dest: Path) -> None:
    """Note where the folder is, and list the splits in use; what is left out is reported, and in left_out.json.

    Raises:
        ArchiveError: the folder or the table is not there or not as expected, a recording or a transcript is
            missing, or nothing is left of a split.
    """
    folder = project_root() / settings.path
    found, left_out = listed(settings, dest / "data" / EMBEDDED)
    for split, entries in found.items():
        index.write_index(dest, split, entries)
    if left_out:
        write_text(dest / "left_out.json", json.dumps(left_out, indent=1, ensure_ascii=False) + "\n")
        print(f"folder: {_left_out(left_out)} (all in left_out.json)", file=sys.stderr)
    sources.use_folder("folder", folder.resolve(), dest, _files(settings, found))


def listed(settings: Folder, embedded: Path) -> tuple[dict[str, list[Entry]], list[str]]:
    """List the rows of each split in use, and what of the folder is left out.

    Args:
        settings: of the corpus.
        embedded: folder that recordings are written to that a table itself holds.

    Raises:
        ArchiveError: as `fetch`.
    """
    folder = project_root() / settings.path
    if not folder.is_dir():
        raise ArchiveError(f"corpora.folder.path: {settings.path!r} ({folder}) is no folder")
    left_out: list[str] = []
    if settings.table is None:
        pairs = list(_pairs(folder, settings, left_out))
    else:
        pairs = list(_table(folder, settings, embedded, left_out))
    silent = [entry for split, entry in pairs if not split]
    if silent and len(silent) < len(pairs):
        raise ArchiveError(
            f"{folder / silent[0].audio}: nothing says its split, as of {len(silent)} of {len(pairs)} recordings; "
            f"legal: a split ({', '.join(SPLITS)}, by folder or column) of all of them, or of none, which shares "
            "them out"
        )
    if silent:
        return share_out(silent, settings.used, settings.seed), sorted(left_out)
    left_out += [
        f"{entry.audio}: of split {split}, which is not in use (corpora.folder.{split})"
        for split, entry in pairs
        if split not in settings.used
    ]
    found = {split: [entry for of, entry in pairs if of == split] for split in settings.used}
    if empty := [split for split, entries in found.items() if not entries]:
        others = f"; {_left_out(left_out)}" if left_out else ""
        raise ArchiveError(
            f"split {empty[0]!r}: no utterances in it; {folder} has {len(pairs)} in other splits{others}; "
            f"put some there, or leave the splits away (no folders {', '.join(SPLITS)}, no column `split`): then all "
            "recordings are shared out"
        )
    return found, sorted(left_out)


def _left_out(names: Sequence[str]) -> str:
    return f"{len(names)} left out: {_some(names)}"


def _files(settings: Folder, found: dict[str, list[Entry]]) -> list[str]:
    """The files that a listing is of: recordings, and the table or what is beside them."""
    audio = {entry.audio for entries in found.values() for entry in entries}
    if settings.table is not None:
        return [settings.table, *sorted(audio)]
    texts = {PurePosixPath(path).with_suffix(end).as_posix() for path in audio for end in (".txt", ".TXT")}
    return sorted(audio | texts)


def _table(
    folder: Path, settings: Folder, embedded: Path, left_out: list[str]
) -> Iterator[tuple[str, Entry]]:
    assert settings.table is not None
    path, listed = folder / settings.table, set[str]()
    for number, row in tables.read_table(path, ["text"], known=COLUMNS):
        place = f"{path}, line {number}"
        audio = _recording(row, folder, embedded / f"{number:07d}", place)
        listed.add(audio)
        yield _row(row, audio, number, settings, place)
    if unlisted := [name for name in _recordings(folder) if name not in listed]:
        left_out += [f"{name}: in no row of {settings.table}" for name in unlisted]


def _recordings(folder: Path) -> Iterator[str]:
    for path in recordings.files(folder):
        if path.suffix.lower() in recordings.SUFFIXES:
            yield path.relative_to(folder).as_posix()


def _row(row: dict[str, Any], audio: str, number: int, settings: Folder, place: str) -> tuple[str, Entry]:
    text, question = columns.text(row, "text", place), columns.optional(row, "question", place)
    if not text or text in columns.WRITTEN:
        raise ArchiveError(
            f"{place}: no text of {audio}{f': found {text!r}, a missing value' if text else ''}"
        )
    task = columns.optional(row, "task", place) or ("answer" if question else "transcribe")
    if task not in ("transcribe", "answer", "caption") or (task == "answer") != bool(question):
        raise ArchiveError(
            f"{place}: found task {task!r} {'with' if question else 'without'} a question; legal: "
            "transcribe and caption without, answer with one"
        )
    spoken = task == "transcribe"
    return (
        _split(columns.optional(row, "split", place), place),
        Entry(
            id=columns.optional(row, "id", place) or f"{number:07d}-{PurePosixPath(audio).stem}",
            audio=audio,
            language=_language(columns.optional(row, "language", place), settings, place),
            speaker=columns.optional(row, "speaker", place) or "unknown",
            transcript=text if spoken else columns.optional(row, "transcript", place),
            task=task,
            question=question,
            answer="" if spoken else text,
        ),
    )


def _recording(row: dict[str, Any], folder: Path, embedded: Path, place: str) -> str:
    """The path of a row's recording in the corpus; a recording that the table holds is written to `embedded`."""
    for column in ("audio", "path"):
        value = row.get(column)
        if isinstance(value, dict) and value.keys() == {
            "bytes",
            "path",
        }:  # as the library `datasets` writes it
            if value["bytes"] is not None:
                target = embedded.with_suffix(PurePosixPath(value["path"] or "").suffix)
                write_bytes(target, value["bytes"])
                return f"{EMBEDDED}/{target.name}"
            row = row | {column: value["path"]}
    audio = columns.path(row, "audio", place) or columns.path(row, "path", place)
    if not audio:
        raise ArchiveError(f"{place}: no column `audio` or `path`, or nothing in it")
    if PurePosixPath(audio).is_absolute() or ".." in PurePosixPath(audio).parts:
        raise ArchiveError(f"{place}: found {audio!r:.200}, expected a path from the folder, inside of it")
    # Some systems compose the letters of file names, others do not.
    forms = (audio, unicodedata.normalize("NFC", audio), unicodedata.normalize("NFD", audio))
    there = next((form for form in forms if (folder / form).is_file()), None)
    if there is None:
        raise ArchiveError(f"{place}: no recording {folder / audio}")
    return there


def _pairs(folder: Path, settings: Folder, left_out: list[str]) -> Iterator[tuple[str, Entry]]:
    everything = list(recordings.files(folder))
    transcripts = {path.with_suffix(""): path for path in everything if path.suffix.lower() == ".txt"}
    alone = set(transcripts.values())
    untold, others = list[Path](), dict[Path, str]()
    for path in (path for path in everything if path.suffix.lower() != ".txt"):
        if not recordings.is_recording(path):
            others[path.with_suffix("")] = path.name
            continue
        beside = transcripts.get(path.with_suffix(""))
        if beside is None:
            untold.append(path)
            continue
        alone.discard(beside)
        yield _pair(path, beside, folder, settings)
    if untold:
        raise ArchiveError(
            f"{untold[0]}: no transcript; expected {untold[0].with_suffix('.txt')}, or a table "
            f"(corpora.folder.table); without one are {len(untold)}: {_some([path.name for path in untold])}"
        )
    for path in sorted(alone):
        beside = others.get(path.with_suffix(""))
        found = f", but {beside}, which has no audio" if beside else ""
        left_out.append(f"{path.relative_to(folder)}: no recording beside it{found}")


def _pair(path: Path, beside: Path, folder: Path, settings: Folder) -> tuple[str, Entry]:
    if not path.is_file():
        raise ArchiveError(f"{path}: not a file, or a link to nothing")
    try:
        text = recordings.transcript(beside)
    except TextError as error:
        raise ArchiveError(str(error)) from error
    if not text:
        raise ArchiveError(f"{beside}: empty, expected what is said in {path.name}")
    audio = path.relative_to(folder)
    named = audio.parts[0].lower() if len(audio.parts) > 1 and audio.parts[0].lower() in SPLITS else ""
    split, language = _split(named, str(path)), _language("", settings, str(path))
    return split, Entry(audio.with_suffix("").as_posix(), audio.as_posix(), language, "unknown", text)


def _some(names: Sequence[str]) -> str:
    """The first of them."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _language(named: str, settings: Folder, place: str) -> str:
    found = named or settings.language
    if not re.fullmatch(LANGUAGE_TAG, found):
        raise ArchiveError(f"{place}: found language {found!r}, legal: a BCP 47 tag such as en, de or zh-CN")
    return found


def _split(named: str, place: str) -> str:
    if named and named not in SPLITS:
        raise ArchiveError(f"{place}: found split {named!r}, legal: {', '.join(SPLITS)}")
    return named
