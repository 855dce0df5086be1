"""Corpora of questions: Clotho-AQA with people who disagree, Clotho, MMAU, MMAU-Pro, OpenAudioBench."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from steermoe import corpora
from steermoe.corpora import clothoaqa, openaudiobench
from steermoe.corpora.archives import ArchiveError
from steermoe.data.filters import Limits, RejectedError
from steermoe.data.preprocess import preprocess
from steermoe.data.shards import read_rows
from steermoe.evaluation.metrics import metric
from steermoe.evaluation.normalizers import folded
from steermoe.evaluation.qa import count_answers
from tests.corpora import official
from tests.corpora.official import ASKED, zipped

PROTOCOLS = {  # targets in order
    "raw": ["yes", "no", "bell", "church bell", "street"],
    "clean": ["yes", "no", "bell", "church bell"],
    "unanimous": ["yes", "church bell"],
    "binary": ["yes"],
    "single-word": ["bell"],
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("folder", ["audio_files/", ""])
def test_clothoaqa(fill: Any, tone: Any, fetched: Any, section: Any, pitch: Any, protocol: str, folder: str):
    """A row a question, with all three answers; which questions, the protocol says."""
    sounds = {f"{folder}a.wav": tone(500, rate=44_100), f"{folder}b.wav": tone(600, rate=44_100)}
    fill({"audio_files.zip": zipped(sounds), "clotho_aqa_test.csv": official.clothoaqa()})
    rows = fetched("clothoaqa", section("ClothoAqa", test=["test"], protocol={"test": protocol}))
    assert [row["target"] for row in rows] == PROTOCOLS[protocol]
    for row in rows:
        assert (row["task"], row["language"]) == ("answer", "en")
        question = ("a.wav" if pitch(row) == 500 else "b.wav", row["prompt"])
        assert row["answers"] == [answer.strip() for answer in ASKED[question]]


@pytest.fixture
def lay_out(fill: Any, tone: Any) -> Any:
    """Puts questions into the mirror, beside sounds a.wav and b.wav."""
    sounds = {"audio_files/a.wav": tone(500), "audio_files/b.wav": tone(600)}
    return lambda asked=ASKED: fill({**sounds, "clotho_aqa_test.csv": official.clothoaqa(asked)})


def test_protocols_are_the_same_everywhere(lay_out: Any, fetched: Any, section: Any, root: Path):
    """An evaluation of `raw` has the figures of all protocols, over the questions that the reader would choose."""
    lay_out()
    rows = {
        protocol: fetched("clothoaqa", section("ClothoAqa", test=["test"], protocol={"test": protocol}))
        for protocol in PROTOCOLS
    }
    columns = ("task", "language", "prompt", "target", "answers", "choices")
    frame = pl.DataFrame([{name: row[name] for name in columns} for row in rows["raw"]])
    counted = count_answers(frame, [row["target"] for row in rows["raw"]], folded)
    for protocol, chosen in rows.items():
        figure = metric(f"{protocol.replace('-', '_')}_accuracy")
        right, of = (part.sum() for part in figure.counts(counted))
        answers = [answer for row in chosen for answer in row["answers"]]
        assert of == (len(answers) if protocol == "raw" else len(chosen))
        assert counted.filter(figure.concerns).height == len(chosen)
        # The targets are the most frequent answers: nothing is right more often.
        assert right / of == pytest.approx(11 / 15 if protocol == "raw" else 1)


def test_a_question_asked_twice_is_two(lay_out: Any, fetched: Any, section: Any):
    lay_out({("a.wav", "Is it loud?"): ("yes", "yes", "no", "no", "no", "yes")})
    twice = fetched("clothoaqa", section("ClothoAqa", test=["test"], protocol={"test": "clean"}))
    assert [(row["target"], row["answers"]) for row in twice] == [
        ("yes", ["yes", "yes", "no"]),
        ("no", ["no", "no", "yes"]),
    ]
    with pytest.raises(ValueError, match="unknown protocol 'fair'; one of: raw, clean"):
        clothoaqa.chosen(["a", "b", "c"], "fair")


def test_clothoaqa_incomplete(fill: Any, tone: Any, fetched: Any, section: Any):
    settings = section("ClothoAqa", test=["test"], protocol={"test": "clean"})
    fill({"audio_files/a.wav": tone(500), "clotho_aqa_test.csv": official.clothoaqa()})
    with pytest.raises(ArchiveError, match=r"clotho_aqa_test\.csv, line 11: no recording .*b\.wav"):
        fetched("clothoaqa", settings)
    fill({"clotho_aqa_test.csv": official.clothoaqa({("a.wav", "Is it loud?"): ("yes", "no")})})
    with pytest.raises(ArchiveError, match=r"found answers \['yes', 'no'\], expected 3, none empty"):
        fetched("clothoaqa", settings)
    fill({"clotho_aqa_test.csv": "file_name,Question\na.wav,Loud?\n"})
    with pytest.raises(ArchiveError, match="no column 'QuestionText'; found: file_name, Question"):
        fetched("clothoaqa", settings)


def test_clotho(fill: Any, tone: Any, fetched: Any, section: Any, pitch: Any):
    """Every row has all five captions; the published checksum of a table that is used as it lies is not asked for."""
    fill({"evaluation/500.wav": tone(500), "evaluation/600 x.wav": tone(600)})
    fill({"clotho_captions_evaluation.csv": official.clotho(["500", "600 x"])})
    rows = {
        which: fetched("clotho", section("Clotho", test=["evaluation"], captions={"evaluation": which}))
        for which in ("each", "first")
    }
    captions = {name: [f"{name}, said {i}." for i in range(1, 6)] for name in ("500", "600 x")}
    assert [row["target"] for row in rows["each"]] == [text for told in captions.values() for text in told]
    assert [row["target"] for row in rows["first"]] == ["500, said 1.", "600 x, said 1."]
    for row in rows["each"] + rows["first"]:
        assert (row["task"], row["prompt"], row["transcript"], row["language"]) == ("caption", "", "", "en")
        assert row["answers"] == captions["500" if pitch(row) == 500 else "600 x"]
    gap = official.clotho(["500"]).replace(b'"500, said 3."', b"")
    fill({"clotho_captions_evaluation.csv": gap})
    with pytest.raises(
        ArchiveError, match=r"line 2: found captions \('500, said 1.', .*, expected 5, none empty"
    ):
        fetched("clotho", section("Clotho", test=["evaluation"], captions={"evaluation": "first"}))


@pytest.mark.parametrize(("kind", "target"), [("letter", "B"), ("text", "Woman")])
def test_mmau(fill: Any, tone: Any, fetched: Any, section: Any, pack_archive: Any, kind: str, target: str):
    mirror = fill({"mmau-test-mini.json": official.mmau()})
    archive = mirror / "test-mini-audios.tar.gz"
    pack_archive(archive, {"test-mini-audios/3fe64f3d.wav": tone(500)})
    (row,) = fetched("mmau", section("Mmau", answer=kind))
    assert row["prompt"] == "Who speaks?\n(A) Man\n(B) Woman\n(C) Child"
    assert (row["target"], row["source_id"]) == (target, "mmau-test-mini-3fe64f3d")
    assert row["choices"] == (["A", "B", "C"] if kind == "letter" else ["Man", "Woman", "Child"])
    fill({"mmau-test-mini.json": official.mmau(audio_id="./test-mini-audios/none.wav")})
    with pytest.raises(ArchiveError, match=r"line 1: no recording .*none\.wav"):
        fetched("mmau", section("Mmau", answer=kind))


@pytest.mark.parametrize("kind", ["letter", "text"])
def test_mmau_answers_outside_of_the_choices(fill: Any, tone: Any, section: Any, root: Path, kind: str):
    """They are rejected and listed as recordings that cannot be read are: in a test split, once they are named."""
    reader, settings = corpora.reader("mmau"), section("Mmau", answer=kind)
    bad = [
        {"id": "robot", "answer": "Robot"},
        {"id": "none", "answer": None},
        {"id": "letter", "answer": "B"},
    ]
    fill({"mmau-test-mini.json": official.mmau({"id": "child", "answer": "Child"}, *bad)})
    fill({"test-mini-audios/3fe64f3d.wav": tone(500)})
    corpora.fetch("mmau", settings, root / "raw")
    named = [f"mmau-test-mini-{row['id']}" for row in bad]
    with pytest.raises(
        RejectedError,
        match=r"3 utterances of test splits (.|\n)*robot \(test-mini\): .*line 3: found answer 'Robot'",
    ):
        preprocess(reader, settings, root / "raw", root / "shards", Limits(whole=["test-mini"]), 1)
    limits = Limits(whole=["test-mini"], unreadable=named)
    summary = preprocess(reader, settings, root / "raw", root / "shards", limits, 1)
    assert summary["splits"]["test-mini"] | {"seconds": 0} == {
        "shards": 1, "rows": 2, "seconds": 0, "dropped": 0, "rejected": 3,
    }  # fmt: skip
    rows = read_rows(root / "shards", ["test-mini"])
    assert rows["target"].to_list() == (["B", "C"] if kind == "letter" else ["Woman", "Child"])
    listed = [json.loads(line) for line in (root / "shards" / "left_out.jsonl").read_text().splitlines()]
    offered = "expected one of ['Man', 'Woman', 'Child']"
    assert [(item["source_id"], item["kind"], item["reason"]) for item in listed] == [
        (name, "rejected", f"mmau-test-mini.json, line {number}: found answer {row['answer']!r}, {offered}")
        for number, (name, row) in enumerate(zip(named, bad, strict=True), start=3)
    ]
    with pytest.raises(RejectedError, match=r"3 of 5 utterances cannot be used, allowed is a share of 0\.5"):
        preprocess(reader, settings, root / "raw", root / "again", Limits(max_rejected=0.5), 1)


def test_mmaupro(fill: Any, tone: Any, fetched: Any, section: Any, root: Path):
    rows = [
        {"answer": "Dog"},
        {"id": "q2", "choices": [], "answer": "It barks."},
        {"id": "q3", "audio_path": ["data/a.wav", "data/b.wav"], "answer": "Dog"},
        {"id": "q4", "answer": None},
        {"id": "q5", "answer": "Cat"},
    ]
    fill({"data.zip": zipped({"data/a.wav": tone(500)}), "test.parquet": official.mmaupro(rows)})
    settings = section("MmauPro", answer="letter", revision="0" * 40)
    found = fetched("mmaupro", settings)
    assert [(row["prompt"], row["target"], row["choices"]) for row in found] == [
        ("Who?\n(A) Man\n(B) Dog", "B", ["A", "B"]),
        ("Who?", "It barks.", []),
    ]
    assert json.loads((root / "raw/mmaupro/left_out.json").read_text()) == {
        "no answer": 1,
        "several recordings": 1,
        "the answer is none of the choices": 1,
    }
    for path in ("data/none.wav", "../data/a.wav", str(root / "mirror/test.parquet")):
        fill({"test.parquet": official.mmaupro([{"audio_path": [path], "answer": "Dog"}])})
        with pytest.raises(ArchiveError, match=rf"line 1: no recording .*{path}"):
            fetched("mmaupro", settings)


def test_openaudiobench(fill: Any, tone: Any, fetched: Any, section: Any, pitch: Any):
    answers = {
        "llama_questions": ("Paris", "Paris"),
        "reasoning_qa": ("他住在北京", "他住在北京"),
        "trivia_qa": ("sunset boulevard", "sunset boulevard"),
        "web_questions": ("Jaxon Bieber; Jazmyn", "Jaxon Bieber"),
    }
    for number, (subset, (answer, _)) in enumerate(answers.items()):
        fill(official.openaudiobench(subset, answer, tone(500 + 100 * number, format="MP3")))
    settings = section("OpenAudioBench", test=list(answers), revision="0" * 40)
    rows = fetched("openaudiobench", settings)
    assert [(row["target"], pitch(row)) for row in rows] == [
        (target, 500 + 100 * number) for number, (_, target) in enumerate(answers.values())
    ]
    assert {(row["transcript"], row["prompt"]) for row in rows} == {
        ("Who, or what?", openaudiobench.QUESTION)
    }
    assert [row["language"] for row in rows] == ["en", "zh", "en", "en"]
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
