"""The user's own recordings: a folder of audio with a table of transcripts, or a .txt beside every recording.

A table (csv, tsv, jsonl or parquet, in the folder) has a column `audio` or `path` (of the recording, from the
folder), and `text`; and, as wanted, `id`, `split` (train, dev, test), `speaker`, `language`, `task` (transcribe,
answer, caption) and `question`. Of a row with a question, `text` is the answer, of a caption the caption, and
`transcript`, if there is such a column, what is said. A row that says no language is in `corpora.folder.language`.
Without a table, each recording's text stands in `<name>.txt` beside it, and its split is the folder `train`,
`dev` or `test` that it is in. Where nothing says the split, exactly one must be in use.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from steermoe.audio.base import SUFFIXES
from steermoe.config import LANGUAGE_TAG, Folder
from steermoe.corpora import index, sources, tables
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.card import Card
from steermoe.corpora.index import Entry
from steermoe.data.staging import project_root

SPLITS = Folder.SPLITS
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
    """Note where the folder is, and list the splits in use.

    Raises:
        ArchiveError: the folder or the table is not there or not as expected, a recording or a transcript is
            missing.
    """
    folder = project_root() / settings.path
    if not folder.is_dir():
        raise ArchiveError(f"corpora.folder.path: {settings.path!r} ({folder}) is no folder")
    found: dict[str, list[Entry]] = {split: [] for split in settings.used}
    pairs = _pairs(folder, settings) if settings.table is None else _table(folder, settings)
    for split, entry in pairs:
        if split in found:
            found[split].append(entry)
    for split, entries in found.items():
        index.write_index(dest, split, entries)
    sources.use_folder("folder", folder.resolve(), dest)


def _table(folder: Path, settings: Folder) -> Iterator[tuple[str, Entry]]:
    assert settings.table is not None
    path = folder / settings.table
    for number, row in tables.read_table(path, ["text"]):
        place = f"{path}, line {number}"
        audio = _text(row, "audio") or _text(row, "path")
        if not audio:
            raise ArchiveError(f"{place}: no column `audio` or `path`, or nothing in it")
        if PurePosixPath(audio).is_absolute() or ".." in PurePosixPath(audio).parts:
            raise ArchiveError(f"{place}: found {audio!r}, expected a path from the folder, inside of it")
        if not (folder / audio).is_file():
            raise ArchiveError(f"{place}: no recording {folder / audio}")
        text, question = _text(row, "text"), _text(row, "question")
        if not text:
            raise ArchiveError(f"{place}: no text of {folder / audio}")
        task = _text(row, "task") or ("answer" if question else "transcribe")
        if task not in ("transcribe", "answer", "caption") or (task == "answer") != bool(question):
            raise ArchiveError(
                f"{place}: found task {task!r} {'with' if question else 'without'} a question; legal: "
                "transcribe and caption without, answer with one"
            )
        spoken = task == "transcribe"
        yield (
            _split(_text(row, "split"), settings, place),
            Entry(
                id=_text(row, "id") or f"{number:07d}-{PurePosixPath(audio).stem}",
                audio=audio,
                language=_language(_text(row, "language"), settings, place),
                speaker=_text(row, "speaker") or "unknown",
                transcript=text if spoken else _text(row, "transcript"),
                task=task,
                question=question,
                answer="" if spoken else text,
            ),
        )


def _pairs(folder: Path, settings: Folder) -> Iterator[tuple[str, Entry]]:
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        audio = path.relative_to(folder)
        beside = path.with_suffix(".txt")
        if not beside.is_file():
            raise ArchiveError(f"{path}: no transcript; expected {beside}, or a table (corpora.folder.table)")
        text = " ".join(beside.read_text(encoding="utf-8").split())
        if not text:
            raise ArchiveError(f"{beside}: empty, expected what is said in {path.name}")
        named = audio.parts[0] if len(audio.parts) > 1 and audio.parts[0] in SPLITS else ""
        split = _split(named, settings, str(path))
        language = _language("", settings, str(path))
        yield split, Entry(audio.with_suffix("").as_posix(), audio.as_posix(), language, "unknown", text)


def _language(named: str, settings: Folder, place: str) -> str:
    found = named or settings.language
    if not re.fullmatch(LANGUAGE_TAG, found):
        raise ArchiveError(f"{place}: found language {found!r}, legal: a BCP 47 tag such as en, de or zh-CN")
    return found


def _split(named: str, settings: Folder, place: str) -> str:
    if named and named not in SPLITS:
        raise ArchiveError(f"{place}: found split {named!r}, legal: {', '.join(SPLITS)}")
    if named:
        return named
    if len(settings.used) != 1:
        raise ArchiveError(
            f"{place}: nothing says its split, and {len(settings.used)} are in use "
            f"({', '.join(settings.used)}); add a column `split`, or use one split only"
        )
    return settings.used[0]


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    return "" if value is None else " ".join(str(value).split())
