"""Corpora of questions: Clotho-AQA with people who disagree, Clotho, MMAU, MMAU-Pro, OpenAudioBench."""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from steermoe.corpora import clothoaqa, openaudiobench
from steermoe.corpora.archives import ArchiveError

ASKED = {  # file, question: answers
    ("a.wav", "Is it loud?"): ("yes", "Yes", "yes"),
    ("a.wav", "Is it near?"): ("no", "yes", "No "),
    ("a.wav", "What rings?"): ("bell", "Phone", "Bell"),
    ("b.wav", "What rings?"): ("church bell", "church bell", "church bell"),
    ("b.wav", "Where is it?"): ("street", "park", "indoors"),
}
PROTOCOLS = {  # targets in order
    "raw": [answer.strip() for answers in ASKED.values() for answer in answers],
    "clean": ["yes", "no", "bell", "church bell"],
    "unanimous": ["yes", "church bell"],
    "binary": ["yes"],
    "single-word": ["bell"],
}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def aqa(asked: dict = ASKED) -> str:
    rows = [(*question, answer, "yes") for question, answers in asked.items() for answer in answers]
    return table(["file_name", "QuestionText", "answer", "confidence"], rows)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("folder", ["audio_files/", ""])
def test_clothoaqa(fill: Any, tone: Any, fetched: Any, section: Any, pitch: Any, protocol: str, folder: str):
    sounds = {f"{folder}a.wav": tone(500, rate=44_100), f"{folder}b.wav": tone(600, rate=44_100)}
    fill({"audio_files.zip": zipped(sounds), "clotho_aqa_test.csv": aqa()})
    rows = fetched("clothoaqa", section("ClothoAqa", test=["test"], protocol={"test": protocol}))
    assert [row["target"] for row in rows] == PROTOCOLS[protocol]
    for row in rows:
        assert row["task"] == "answer"
        assert ("a.wav" if pitch(row) == 500 else "b.wav", row["prompt"]) in ASKED


def test_every_protocol_from_raw_rows(fill: Any, tone: Any, fetched: Any, section: Any):
    """The ids of raw rows tell the question, so one evaluation can report all protocols."""
    fill({"audio_files/a.wav": tone(500), "audio_files/b.wav": tone(600), "clotho_aqa_test.csv": aqa()})
    questions: dict[str, list[str]] = {}
    for row in fetched("clothoaqa", section("ClothoAqa", test=["test"], protocol={"test": "raw"})):
        questions.setdefault(row["source_id"].rpartition("-")[0], []).append(row["target"])
    assert len(questions) == len(ASKED)
    for protocol, targets in PROTOCOLS.items():
        chosen = [
            answer for answers in questions.values() for answer in clothoaqa.of_protocol(answers, protocol)
        ]
        assert chosen == targets
    fill({"clotho_aqa_test.csv": aqa({("a.wav", "Is it loud?"): ("yes", "yes", "no", "no", "no", "yes")})})
    twice = fetched("clothoaqa", section("ClothoAqa", test=["test"], protocol={"test": "clean"}))
    assert [row["target"] for row in twice] == ["yes", "no"]
    with pytest.raises(ValueError, match="unknown protocol 'fair'; one of: raw, clean"):
        clothoaqa.of_protocol(["a", "b", "c"], "fair")


def test_clothoaqa_incomplete(fill: Any, tone: Any, fetched: Any, section: Any):
    settings = section("ClothoAqa", test=["test"], protocol={"test": "clean"})
    fill({"audio_files/a.wav": tone(500), "clotho_aqa_test.csv": aqa()})
    with pytest.raises(ArchiveError, match=r"clotho_aqa_test\.csv, line 11: no sound .*b\.wav"):
        fetched("clothoaqa", settings)
    fill({"clotho_aqa_test.csv": aqa({("a.wav", "Is it loud?"): ("yes", "no")})})
    with pytest.raises(ArchiveError, match=r"found answers \['yes', 'no'\], expected 3, none empty"):
        fetched("clothoaqa", settings)
    fill({"clotho_aqa_test.csv": "file_name,Question\na.wav,Loud?\n"})
    with pytest.raises(ArchiveError, match="no column 'QuestionText'; found: file_name, Question"):
        fetched("clothoaqa", settings)


def test_clotho(fill: Any, tone: Any, fetched: Any, section: Any, pitch: Any):
    columns = ["file_name", *(f"caption_{i}" for i in range(1, 6))]
    captions = [[f"{name}.wav", *(f"{name}, said {i}." for i in range(1, 6))] for name in ("500", "600 x")]
    fill({"evaluation/500.wav": tone(500), "evaluation/600 x.wav": tone(600)})
    import hashlib

    from steermoe.corpora import clotho

    text = table(columns, captions)
    fill({"own/clotho_captions_evaluation.csv": text, "clotho_captions_evaluation.csv": text})
    # Used as it lies, so the published checksum of the table is not asked for.
    values: dict = {"test": ["evaluation"]}
    rows = fetched("clotho", section("Clotho", captions={"evaluation": "each"}, **values))
    assert [row["target"] for row in rows] == [caption for row in captions for caption in row[1:]]
    assert {row["prompt"] for row in rows} == {clotho.QUESTION}
    assert all(row["target"].startswith(str(pitch(row))) for row in rows)
    first = fetched("clotho", section("Clotho", captions={"evaluation": "first"}, **values))
    assert [row["target"] for row in first] == ["500, said 1.", "600 x, said 1."]
    assert hashlib.md5(text.encode()).hexdigest() != clotho.FILES["evaluation"][2]
    fill({"clotho_captions_evaluation.csv": table(columns, [["500.wav", "one", "two", "", "4", "5"]])})
    with pytest.raises(ArchiveError, match=r"'500-c3' \(evaluation/500\.wav\) has no answer"):
        fetched("clotho", section("Clotho", captions={"evaluation": "each"}, **values))


def mmau(**changed: Any) -> list[dict]:
    first = {
        "id": "3fe64f3d",
        "audio_id": "./test-mini-audios/3fe64f3d.wav",
        "question": "Who speaks?",
        "choices": ["Man", "Woman", "Child"],
        "answer": "Woman",
        "task": "sound",
    }
    return [first | changed]


@pytest.mark.parametrize(("kind", "target"), [("letter", "B"), ("text", "Woman")])
def test_mmau(fill: Any, tone: Any, fetched: Any, section: Any, pack_archive: Any, kind: str, target: str):
    mirror = fill({"mmau-test-mini.json": json.dumps(mmau())})
    archive = mirror / "test-mini-audios.tar.gz"
    pack_archive(archive, {"test-mini-audios/3fe64f3d.wav": tone(500)})
    (row,) = fetched("mmau", section("Mmau", answer=kind))
    assert row["prompt"] == "Who speaks?\n(A) Man\n(B) Woman\n(C) Child"
    assert (row["target"], row["source_id"]) == (target, "mmau-test-mini-3fe64f3d")
    fill({"mmau-test-mini.json": json.dumps(mmau(answer="Robot"))})
    with pytest.raises(ArchiveError, match=r"line 1: found answer 'Robot', expected one of \['Man'"):
        fetched("mmau", section("Mmau", answer=kind))
    fill({"mmau-test-mini.json": json.dumps(mmau(audio_id="./test-mini-audios/none.wav"))})
    with pytest.raises(ArchiveError, match=r"line 1: no sound .*none\.wav"):
        fetched("mmau", section("Mmau", answer=kind))


def test_mmaupro(fill: Callable[..., Path], tone: Any, fetched: Any, section: Any, root: Path):
    one = {"id": "q1", "audio_path": ["data/a.wav"], "question": "Who?", "choices": ["Man", "Dog"]}
    rows = [
        one | {"answer": "Dog"},
        one | {"id": "q2", "choices": [], "answer": "It barks."},
        one | {"id": "q3", "audio_path": ["data/a.wav", "data/b.wav"], "answer": "Dog"},
        one | {"id": "q4", "answer": None},
        one | {"id": "q5", "answer": "Cat"},
    ]
    mirror = fill({"data.zip": zipped({"data/a.wav": tone(500)})})
    pl.DataFrame(rows).write_parquet(mirror / "test.parquet")
    settings = section("MmauPro", answer="letter", revision="0" * 40)
    found = fetched("mmaupro", settings)
    assert [(row["prompt"], row["target"]) for row in found] == [
        ("Who?\n(A) Man\n(B) Dog", "B"),
        ("Who?", "It barks."),
    ]
    assert json.loads((root / "raw/mmaupro/left_out.json").read_text()) == {
        "no answer": 1,
        "several recordings": 1,
        "the answer is none of the choices": 1,
    }
    pl.DataFrame([one | {"audio_path": ["data/none.wav"], "answer": "Dog"}]).write_parquet(
        mirror / "test.parquet"
    )
    with pytest.raises(ArchiveError, match=r"line 1: no sound .*none\.wav"):
        fetched("mmaupro", settings)


def test_openaudiobench(fill: Any, tone: Any, fetched: Any, section: Any, pitch: Any):
    answers = {
        "llama_questions": ("Paris", "Paris"),
        "reasoning_qa": ("他住在北京", "他住在北京"),
        "trivia_qa": ("sunset boulevard", "sunset boulevard"),
        "web_questions": ("Jaxon Bieber; Jazmyn", "Jaxon Bieber"),
    }
    for number, (subset, (answer, _)) in enumerate(answers.items()):
        columns = openaudiobench.COLUMNS[subset]
        fill(
            {
                f"eval_datas/{subset}/{subset}.csv": table(
                    ["audio_filename", columns.question, columns.answer], [["x.mp3", "Who, or what?", answer]]
                ),
                f"eval_datas/{subset}/audios/x.mp3": tone(500 + 100 * number, format="MP3"),
            }
        )
    settings = section("OpenAudioBench", test=list(answers), revision="0" * 40)
    rows = fetched("openaudiobench", settings)
    assert [(row["target"], pitch(row)) for row in rows] == [
        (target, 500 + 100 * number) for number, (_, target) in enumerate(answers.values())
    ]
    assert {(row["transcript"], row["prompt"]) for row in rows} == {
        ("Who, or what?", openaudiobench.QUESTION)
    }
    fill({"eval_datas/trivia_qa/trivia_qa.csv": "audio_filename,question\nx.mp3,Who?\n"})
    with pytest.raises(ArchiveError, match="no column 'answer_normalized_value'; found: audio_filename"):
        fetched("openaudiobench", settings)


@pytest.mark.parametrize(
    ("answers", "separator", "first"),
    [
        ("one", None, "one"),
        ("one; two", ";", "one"),
        ("one; two", None, "one; two"),
        ("['one', 'two']", ";", "one"),
        ("[one]", None, "[one]"),
        ("['one'", None, "['one'"),
    ],
)
def test_first_answer(answers: str, separator: str | None, first: str):
    assert openaudiobench.first(answers, separator) == first
