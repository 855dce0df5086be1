"""OpenAudioBench (Baichuan-Audio, 2025): spoken questions, answered in text.

Laid out as the data set baichuan-inc/OpenAudioBench on the Hugging Face hub: `eval_datas/<subset>/<subset>.csv`
with a column audio_filename, and the recordings in `eval_datas/<subset>/audios/`. Columns of question and answer
differ by subset. Where several answers are right, a row has the first. Subset alpaca_eval has no reference
answers, so nothing could be scored without a judge: it is not read. Columns and layout are those which public
recipes read; the files themselves could not be looked at.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from steermoe.config import OpenAudioBench
from steermoe.corpora import hub, index, sources, tables
from steermoe.corpora.card import Card
from steermoe.corpora.downloads import UnavailableError, is_url
from steermoe.corpora.index import Entry
from steermoe.corpora.places import locate
from steermoe.corpora.sources import Source

SPLITS = OpenAudioBench.SPLITS
REPOSITORY = "baichuan-inc/OpenAudioBench"
QUESTION = "Answer the question that is asked in the audio."
CARD = Card(
    name="OpenAudioBench",
    hours=None,
    bytes=None,
    licence="not stated for the whole; the questions are from LLaMA Questions, TriviaQA and WebQuestions",
    source=f"https://huggingface.co/datasets/{REPOSITORY}",
    restrictions="a test set: nothing may be trained on it; ask before you pass it on",
    citation="Li et al.: Baichuan-Audio: a unified framework for end-to-end speech interaction. 2025",
    language="en; zh in reasoning_qa",
    task="answer",
    metric="accuracy by an LLM's judgement; exact match is a lower bound",
    normalizer="case and punctuation away",
)
parts, rows = index.parts, index.rows


class Columns(NamedTuple):
    """Where a subset has its question and its answer, and what stands between several answers."""

    question: str
    answer: str
    separator: str | None


COLUMNS = {
    "llama_questions": Columns("Questions", "Answer", None),
    "reasoning_qa": Columns("Prompt", "参考答案", None),
    "trivia_qa": Columns("question", "answer_normalized_value", None),
    "web_questions": Columns("question", "answers", ";"),
}


def fetch(settings: OpenAudioBench, dest: Path) -> None:
    """Put the subsets in use into `dest`.

    Raises:
        UnavailableError: as `sources.fetch`; the mirror is a URL, which lists no recordings.
        ArchiveError, SpaceError: as `sources.fetch`; ArchiveError also where a recording is missing.
    """
    if settings.mirror is not None and is_url(settings.mirror):
        raise UnavailableError("corpora.openaudiobench.mirror: found a URL, legal: a folder, or null")
    files = [Source("", _folder(split), _folder(split)) for split in settings.used]
    if settings.mirror is None:
        base = hub.base(REPOSITORY, settings.revision)
        files = [
            Source(base, path, path, bytes=size, checksum=checksum)
            for split in settings.used
            for path, (size, checksum) in hub.listing(REPOSITORY, settings.revision, _folder(split)).items()
        ]
    sources.fetch("openaudiobench", files, settings, dest)
    for split in settings.used:
        index.write_index(dest, split, entries(dest, split))


def entries(fetched: Path, split: str) -> Iterator[Entry]:
    """The questions of a subset, in the order of the table.

    Raises:
        ArchiveError: a recording or an answer is missing.
    """
    place, columns = locate(fetched), COLUMNS[split]
    table = place(f"{_folder(split)}/{split}.csv")
    needed = ("audio_filename", columns.question, columns.answer)
    for number, row in tables.read_table(table, needed):
        audio = f"{_folder(split)}/audios/{row['audio_filename']}"
        place.recording(audio, f"{table}, line {number}")
        answer = first(row[columns.answer], columns.separator)
        said = " ".join(row[columns.question].split())
        language = "zh" if split == "reasoning_qa" else "en"
        yield Entry(Path(audio).stem, audio, language, "unknown", said, "answer", QUESTION, answer)


def first(answers: str, separator: str | None) -> str:
    """The first of several answers: of a list as Python writes it, else up to the separator."""
    answers = answers.strip()
    if re.fullmatch(r"\[.*\]", answers, re.DOTALL):
        try:
            listed = ast.literal_eval(answers)
        except (ValueError, SyntaxError):
            listed = []
        if listed and isinstance(listed[0], str):
            return listed[0].strip()
    return answers.split(separator)[0].strip() if separator else answers


def _folder(split: str) -> str:
    return f"eval_datas/{split}"
