"""OpenAudioBench (Baichuan-Audio, 2025): spoken questions, answered in text.

As the data set baichuan-inc/OpenAudioBench on the Hugging Face hub has it: `eval_datas/<subset>/<subset>.csv` with a
column audio_filename, and the recordings in `eval_datas/<subset>/audios/`. Columns of question and answer differ by
subset. Where several answers are right, a row has the first. Subset alpaca_eval has no reference answers, so nothing
could be scored without a judge: it is not read. Columns and layout are those of public recipes; the files themselves
could not be looked at.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from steermoe.config.corpora import OpenAudioBench
from steermoe.corpora import tables
from steermoe.corpora.download import Places, Source
from steermoe.corpora.manifest import Entry, ManifestReader
from steermoe.corpora.reader import card

QUESTION = "Answer the question that is asked in the audio."


class Columns(NamedTuple):
    """The columns of question and answer of a subset, and what separates several answers."""

    question: str
    answer: str
    separator: str | None


COLUMNS = {
    "llama_questions": Columns("Questions", "Answer", None),
    "reasoning_qa": Columns("Prompt", "参考答案", None),
    "trivia_qa": Columns("question", "answer_normalized_value", None),
    "web_questions": Columns("question", "answers", ";"),
}


def sources(settings: OpenAudioBench) -> list[Source]:
    """Return the folders of the subsets in use."""
    return [Source(f"eval_datas/{split}", f"eval_datas/{split}") for split in settings.used]


def entries(settings: OpenAudioBench, places: Places, split: str, left_out: list[str]) -> Iterator[Entry]:
    """Yield the questions of a subset, in the order of the table."""
    columns, folder = COLUMNS[split], f"eval_datas/{split}"
    table = places(f"{folder}/{split}.csv")
    for number, row in tables.read_table(table, ("audio_filename", columns.question, columns.answer)):
        audio = places.recording(f"{folder}/audios/{row['audio_filename']}", f"{table}, line {number}")
        answer = first(row[columns.answer], columns.separator)
        language = "zh" if split == "reasoning_qa" else "en"
        question = " ".join(row[columns.question].split())
        yield Entry(Path(audio).stem, audio, language, "unknown", question, "answer", QUESTION, answer)


def first(answers: str, separator: str | None) -> str:
    """Return the first of several answers: of a list as Python writes it, else up to the separator."""
    answers = answers.strip()
    if re.fullmatch(r"\[.*\]", answers, re.DOTALL):
        try:
            listed = ast.literal_eval(answers)
        except (ValueError, SyntaxError):
            listed = []
        if listed and isinstance(listed[0], str):
            return listed[0].strip()
    return answers.split(separator)[0].strip() if separator else answers


OPEN_AUDIO_BENCH = ManifestReader(
    "openaudiobench",
    OpenAudioBench.SPLITS,
    card("openaudiobench"),
    sources,
    entries,
    "baichuan-inc/OpenAudioBench",
)
