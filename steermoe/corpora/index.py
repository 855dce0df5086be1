"""The utterances of a fetched corpus, listed: `index/<split>.jsonl`, a line each.

A reader lists them once, when it fetches, and so finds then what is missing. A part is a number of lines, known
by where they begin, so no process reads more of the list than its own lines. `parts` and `rows` are those of every
reader that lists its utterances here.
"""

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from steermoe.atomic_io import written_whole
from steermoe.config import Limited
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.places import locate
from steermoe.data.text import TextError, clean

PART_ROWS = 500  # utterances a part


@dataclass(frozen=True)
class Entry:
    """An utterance, or what is asked or told of a recording.

    Attributes:
        id: what no other utterance of the corpus has.
        audio: path of the recording in the corpus.
        language: BCP 47 tag of what is said, or of question and answer where it is no speech.
        speaker: "unknown" where the corpus does not say, "none" where nobody speaks.
        transcript: what is said; "" where it is no speech, or is not known.
        task: transcribe, answer, or caption.
        question: what is asked; for answer only.
        answer: to the question, or a caption; "" for transcribe.
        answers: all that people gave, `answer` among them; empty where it is the only one.
        choices: the options, `answer` among them; empty where there are none.
        fault: why it cannot be used, by which preprocessing rejects and lists it; "" where it can.
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
        """What is to be written."""
        return self.transcript if self.task == "transcribe" else self.answer


@dataclass(frozen=True)
class Part:
    """The `number`-th stretch of a split: the lines of its list at these bytes."""

    split: str
    number: int
    offsets: tuple[int, ...]


def write_index(fetched: Path, split: str, entries: Iterable[Entry]) -> int:
    """List the utterances of a split, with their texts cleaned (`steermoe.data.text`).

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
                raise ArchiveError(f"split {split!r}: {entry.id!r} ({entry.audio}) is there twice")
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
    """The entry with clean texts, or a fault where one is no text; a question keeps its lines, which list choices."""
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
    """The parts of every split in use, in order; where `limit` says so, of some of its utterances.

    Raises:
        ArchiveError: a split is not there, or has fewer utterances than its limit.
    """
    found = []
    for split in settings.used:
        count = (settings.limit or {}).get(split)
        offsets = _all(source, split) if count is None else _some(source, split, count, settings.seed)
        for number, start in enumerate(range(0, len(offsets), PART_ROWS)):
            found.append(Part(split, number, tuple(offsets[start : start + PART_ROWS])))
    return found


def rows(settings: Limited, source: Path, part: Part) -> Iterator[dict]:
    """The utterances of a part, with the columns of `steermoe.data.schema.Utterance`, one at a time.

    `audio` is the path of the recording, which is not opened here: preprocessing decodes it, and leaves out and
    lists what it cannot decode. Of an utterance that cannot be used there is its `fault` besides.
    """
    place = locate(source)
    with _index_file(source, part.split).open("rb") as file:
        for offset in part.offsets:
            file.seek(offset)
            entry = Entry(**json.loads(file.readline()))
            yield {
                "source_id": f"{place.corpus}-{part.split}-{entry.id}",
                "split": part.split,
                "speaker": entry.speaker,
                "language": entry.language,
                "task": entry.task,
                "prompt": entry.question,
                "transcript": entry.transcript,
                "target": entry.target,
                "answers": list(entry.answers),
                "choices": list(entry.choices),
                "audio": place(entry.audio),
                **({"fault": entry.fault} if entry.fault else {}),
            }


def _index_file(fetched: Path, split: str) -> Path:
    path = fetched / "index" / f"{split}.jsonl"
    if not path.exists():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.jsonl"))) or "none"
        raise ArchiveError(
            f"{fetched}: split {split!r} was not fetched; there: {there}. Run the download stage anew"
        )
    return path


def _lines(fetched: Path, split: str) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with _index_file(fetched, split).open("rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


def _all(fetched: Path, split: str) -> list[int]:
    return [offset for offset, _ in _lines(fetched, split)]


def _some(fetched: Path, split: str, count: int, seed: int) -> list[int]:
    """`count` lines, in order: those whose ids hash lowest, whatever else is in the split."""

    def rank(line: bytes) -> bytes:
        return hashlib.blake2b(f"{seed} {json.loads(line)['id']}".encode(), digest_size=16).digest()

    chosen = heapq.nsmallest(count, ((rank(line), offset) for offset, line in _lines(fetched, split)))
    if len(chosen) < count:
        raise ArchiveError(f"limit of {split!r}: {count}, but the split has {len(chosen)} utterances only")
    return sorted(offset for _, offset in chosen)
