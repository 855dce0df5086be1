"""The manifest of a fetched corpus, `index/<split>.jsonl`, with an utterance per line; and readers that write one.

The manifest is written once, when the corpus is fetched, which is when missing files are found. A part is some lines
of it, known by their offsets, so no process reads more of the manifest than its own lines.
"""

import hashlib
import heapq
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from steermoe.atomic_io import write_text, written_whole
from steermoe.config.corpora import Limited
from steermoe.corpora import download
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.download import Places, Source, locate
from steermoe.corpora.reader import Card
from steermoe.data.text import TextError, clean

PART_ROWS = 500  # utterances per part
LEFT_OUT = "left_out.json"


@dataclass(frozen=True)
class Entry:
    """An utterance, or a question or caption about a recording.

    Attributes:
        id: unique in its split.
        audio: path of the recording in the corpus.
        language: BCP 47 tag of the speech, or of question and answer where there is none.
        speaker: "unknown" where the corpus does not say, "none" where nobody speaks.
        transcript: of the speech; "" where there is none, or it is not known.
        task: transcribe, answer, or caption.
        question: for answer only.
        answer: to the question, or a caption; "" for transcribe.
        answers: all that people gave, `answer` among them; empty where it is the only one.
        choices: the options, `answer` among them; empty where there are none.
        fault: why the utterance cannot be used: preprocessing rejects and lists it; "" where it can.
    """

    id: str
    audio: str
    language: str
    speaker: str
    transcript: str = ""
    task: Literal["transcribe", "answer", "caption"] = "transcribe"
    question: str = ""
    answer: str = ""
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    fault: str = ""

    @property
    def target(self) -> str:
        """The text that the model must produce."""
        return self.transcript if self.task == "transcribe" else self.answer


@dataclass(frozen=True)
class Part:
    """The `number`-th part of a split: the lines of its manifest at these bytes."""

    split: str
    number: int
    offsets: tuple[int, ...]


def report_left_out(corpus: str, left_out: list[str], dest: Path) -> None:
    """List what is left out of a corpus in `left_out.json`, and say so on standard error."""
    if left_out:
        write_text(dest / LEFT_OUT, json.dumps(left_out, indent=1, ensure_ascii=False) + "\n")
        print(f"{corpus}: {first_of(left_out)} left out; all are listed in {LEFT_OUT}", file=sys.stderr)


def first_of(names: Sequence[str], count: int = 5) -> str:
    """Return how many names there are, and the first of them."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{len(names)} ({', '.join(names[:count])}{more})"


def write_manifest(fetched: Path, split: str, entries: Iterable[Entry]) -> int:
    """Write the utterances of a split, with cleaned texts (`steermoe.data.text`).

    Returns:
        how many there are.

    Raises:
        ArchiveError: there are none; two have the same id; one lacks what it must have.
    """
    seen: set[str] = set()
    path = fetched / "index" / f"{split}.jsonl"
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for entry in map(_cleaned, entries):
            if entry.id in seen:
                raise ArchiveError(f"split {split!r}: {entry.id!r} ({entry.audio}) occurs twice")
            if not entry.target and not entry.fault:
                missing = {"transcribe": "transcript"}.get(entry.task, entry.task)
                raise ArchiveError(f"split {split!r}: {entry.id!r} ({entry.audio}) has no {missing}")
            seen.add(entry.id)
            listed = {name: value for name, value in asdict(entry).items() if name != "fault" or value}
            file.write(json.dumps(listed, ensure_ascii=False) + "\n")
        if not seen:
            raise ArchiveError(f"split {split!r}: no utterances in it")
    return len(seen)


def _cleaned(entry: Entry) -> Entry:
    """Return the entry with clean texts, or with a fault; a question keeps its lines, which list choices."""
    try:
        return replace(
            entry,
            transcript=clean(entry.transcript),
            question="\n".join(map(clean, entry.question.split("\n"))).strip(),
            answer=clean(entry.answer),
            answers=tuple(map(clean, entry.answers)),
            choices=tuple(map(clean, entry.choices)),
        )
    except TextError as error:
        empty = replace(entry, transcript="", question="", answer="", answers=(), choices=())
        return replace(empty, fault=entry.fault or str(error))


def parts(settings: Limited, source: Path) -> list[Part]:
    """Return the parts of every split in use, in order; with `limit`, of some of its utterances.

    Raises:
        ArchiveError: a split was not fetched, or has fewer utterances than its limit.
    """
    found = []
    for split in settings.used:
        lines = _lines(source, split)
        count = (settings.limit or {}).get(split)
        offsets = (
            [start for start, _ in lines] if count is None else _some(lines, split, count, settings.seed)
        )
        for number, start in enumerate(range(0, len(offsets), PART_ROWS)):
            found.append(Part(split, number, tuple(offsets[start : start + PART_ROWS])))
    return found


def rows(settings: Limited, source: Path, part: Part) -> Iterator[dict[str, Any]]:
    """Yield the utterances of a part, with the columns of `steermoe.data.schema.Utterance`.

    `audio` is the path of the recording: preprocessing decodes it, and rejects what it cannot decode. An utterance
    that cannot be used also has its `fault`.
    """
    places = locate(source)
    with _file(source, part.split).open("rb") as file:
        for offset in part.offsets:
            file.seek(offset)
            entry = Entry(**json.loads(file.readline()))
            yield {
                "source_id": f"{places.corpus}-{part.split}-{entry.id}",
                "split": part.split,
                "speaker": entry.speaker,
                "language": entry.language,
                "task": entry.task,
                "prompt": entry.question,
                "transcript": entry.transcript,
                "target": entry.target,
                "answers": list(entry.answers),
                "choices": list(entry.choices),
                "audio": places(entry.audio),
                **({"fault": entry.fault} if entry.fault else {}),
            }


def _file(fetched: Path, split: str) -> Path:
    path = fetched / "index" / f"{split}.jsonl"
    if not path.exists():
        found = ", ".join(sorted(p.stem for p in path.parent.glob("*.jsonl"))) or "none"
        raise ArchiveError(
            f"{fetched}: split {split!r} was not fetched; fetched: {found}. Run the download stage"
        )
    return path


def _lines(fetched: Path, split: str) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with _file(fetched, split).open("rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


def _some(lines: Iterable[tuple[int, bytes]], split: str, count: int, seed: int) -> list[int]:
    """Return the offsets of `count` lines, in order: those whose ids hash lowest, whatever else is in the split."""

    def rank(line: bytes) -> bytes:
        return hashlib.blake2b(f"{seed} {json.loads(line)['id']}".encode(), digest_size=16).digest()

    chosen = heapq.nsmallest(count, ((rank(line), offset) for offset, line in lines))
    if len(chosen) < count:
        raise ArchiveError(f"limit of {split!r}: {count}, but the split has {len(chosen)} utterances only")
    return sorted(offset for _, offset in chosen)


@dataclass(frozen=True)
class ManifestReader:
    """A corpus that is read by its manifest.

    Attributes:
        name: of the corpus.
        SPLITS: names of its splits.
        CARD: its data card.
        sources: the files of the splits in use.
        entries: the utterances of a split, in order; what is left out of it is added to the list. Raises
            ArchiveError where a file is missing or not as expected.
        hub: data set on the Hugging Face hub that has the sources, if any.
    """

    name: str
    SPLITS: tuple[str, ...]
    CARD: Card
    sources: Callable[[Any], Sequence[Source]]
    entries: Callable[[Any, Places, str, list[str]], Iterator[Entry]]
    hub: str = ""
    __name__ = __name__  # of the module in which preprocessing finds `rows`
    parts = staticmethod(parts)
    rows = staticmethod(rows)

    def fetch(self, settings: Any, dest: Path) -> None:
        """Put the files of the splits in use into `dest` and write the manifest.

        Raises:
            UnavailableError, ArchiveError, SpaceError: as `download.fetch`; ArchiveError also as `entries`.
        """
        hub = (self.hub, settings.revision) if self.hub else None
        download.fetch(self.name, self.sources(settings), settings, dest, hub)
        places, left_out = locate(dest), list[str]()
        for split in settings.used:
            write_manifest(dest, split, self.entries(settings, places, split, left_out))
        report_left_out(self.name, left_out, dest)
