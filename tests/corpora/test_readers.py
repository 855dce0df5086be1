"""Every reader on the official layout of its corpus, unpacked and packed; what it refuses; its section and card."""

import dataclasses
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from steermoe import corpora
from steermoe.config import corpora as sections
from steermoe.config.corpora import LANGUAGE_TAG, Corpora, Fleurs, Mls
from steermoe.config.errors import located
from steermoe.corpora import aishell, clotho, librispeech, multilingual, openaudiobench, prompts
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.download import UnavailableError
from steermoe.data.filters import Limits, RejectedError
from steermoe.data.preprocess import preprocess
from steermoe.data.shards import read_rows
from steermoe.evaluation.metrics import metric
from steermoe.evaluation.normalizers import folded
from steermoe.evaluation.qa import count_answers
from tests.corpora import official
from tests.corpora.cases import (
    AISHELL,
    AISHELL2,
    AQA_SOUNDS,
    AQA_TABLE,
    CAPTION_TABLE,
    CAPTIONS,
    CASES,
    FLEURS,
    MMAU,
    MMAU_SOUND,
    REVISION,
    SOUND,
    Case,
    asked,
    speakers,
)
from tests.corpora.official import tarred, tone

KINDS = {name: field.annotation for name, field in Corpora.model_fields.items()}


def kind_of(name: str) -> str:
    return getattr(KINDS[name], "__name__", "")


def approve(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the checksums of small archives in the place of the official ones."""
    for path, data in files.items():
        name, digest = path.partition(".")[0], hashlib.md5(data).hexdigest()
        if name in librispeech.ARCHIVES:
            monkeypatch.setitem(librispeech.ARCHIVES, name, (*librispeech.ARCHIVES[name][:2], digest))
        elif name in multilingual.MLS_MD5:
            monkeypatch.setitem(multilingual.MLS_MD5, name, digest)
        elif name == "data_aishell":
            monkeypatch.setattr(
                aishell, "ARCHIVE", dataclasses.replace(aishell.ARCHIVE, checksum=f"md5:{digest}")
            )
        elif name.startswith("asterisk"):
            archive = (len(data), hashlib.sha256(data).hexdigest())
            monkeypatch.setitem(prompts.RECORDED, "en", prompts.RECORDED["en"]._replace(archive=archive))
        elif name.startswith("clotho_audio_evaluation"):
            of = (None, digest, hashlib.md5(files["clotho_captions_evaluation.csv"]).hexdigest())
            monkeypatch.setitem(clotho.FILES, "evaluation", of)


@pytest.mark.parametrize("name", CASES)
def test_official_layout(
    name: str, fill: Any, section: Any, fetched: Any, pitch: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows from unpacked files, which are used without a copy, and from archives, which stay."""
    case = CASES[name]
    fill(case.unpacked, "unpacked")
    rows = fetched(name, section(kind_of(name), mirror="unpacked", **case.changes))
    assert [(row["speaker"], row["target"], pitch(row)) for row in rows] == case.rows
    for row in rows:
        assert {key: row[key] for key in case.fields} == case.fields
    assert len({row["source_id"] for row in rows}) == len(rows)
    assert [row["split"] for row in rows] == sorted((row["split"] for row in rows), key=rows_of_split(case))
    assert not (root / "raw" / name / "data").exists()
    mirror = fill(case.packed, "packed")
    approve(case.packed, monkeypatch)
    assert fetched(name, section(kind_of(name), mirror="packed", **case.changes)) == rows
    assert {path.relative_to(mirror).as_posix() for path in mirror.rglob("*") if path.is_file()} == {
        *case.packed
    }
    assert not (root / "raw" / name / ".fetch").exists() and not list((root / ".runs").glob("*/*"))


def rows_of_split(case: Case) -> Callable[[str], int]:
    return [
        split for use in ("train", "dev", "test") for split in case.changes.get(use, ["test-mini", "test"])
    ].index


@pytest.mark.parametrize("name", ["librispeech", "minilibrispeech", "aishell1", "mls", "clotho", "prompts"])
def test_archives_have_the_published_checksums(
    name: str, fill: Any, section: Any, fetched: Any, root: Path
) -> None:
    fill(CASES[name].packed)
    with pytest.raises(ArchiveError, match=r"wrong checksum: (MD5|SHA256) hash .* does not match"):
        fetched(name, section(kind_of(name), **CASES[name].changes))
    assert not (root / "raw").exists()


@pytest.mark.parametrize(
    ("protocol", "targets"),
    [("clean", ["yes", "no", "bell", "church bell"]), ("unanimous", ["yes", "church bell"]), ("binary", ["yes"]),
     ("single-word", ["bell"])],
)  # fmt: skip
def test_protocols_choose_questions(
    protocol: str, targets: list[str], fill: Any, section: Any, fetched: Any
) -> None:
    fill(AQA_SOUNDS | AQA_TABLE)
    rows = fetched("clothoaqa", section("ClothoAqa", **asked("test", protocol)))
    assert [row["target"] for row in rows] == targets
    assert {tuple(row["answers"]) for row in rows} <= {
        tuple(map(str.strip, told)) for told in official.ASKED.values()
    }


def test_an_evaluation_of_raw_has_every_protocol(fill: Any, section: Any, fetched: Any) -> None:
    """Its figures are over the questions that the reader would choose."""
    fill(AQA_SOUNDS | AQA_TABLE)
    rows = fetched("clothoaqa", section("ClothoAqa", **asked("test", "raw")))
    frame = pl.DataFrame(
        [{key: row.get(key) for key in ("task", "target", "language", "answers", "choices")} for row in rows]
    )
    counted = count_answers(frame, [row["target"] for row in rows], folded)
    for protocol in ("clean", "unanimous", "binary", "single-word"):
        chosen = fetched("clothoaqa", section("ClothoAqa", **asked("test", protocol)))
        figure = metric(f"{protocol.replace('-', '_')}_accuracy")
        right, of = (part.sum() for part in figure.counts(counted))
        assert right == of == len(chosen)


def test_other_choices_of_the_section(fill: Any, section: Any, fetched: Any) -> None:
    fill(FLEURS | SOUND | CAPTION_TABLE | MMAU | MMAU_SOUND)
    rows = fetched("fleurs", section("Fleurs", **CASES["fleurs"].changes | {"text": "normalised"}))
    assert [row["target"] for row in rows] == ["er sagte ja straße 500", "zweite 600"]
    rows = fetched("clotho", section("Clotho", test=["evaluation"], captions={"evaluation": "first"}))
    assert [(row["target"], row["answers"]) for row in rows] == [(CAPTIONS[0], CAPTIONS)]
    (row,) = fetched("mmau", section("Mmau", answer="text"))
    assert (row["target"], row["choices"]) == ("Woman", ["Man", "Woman", "Child"])


def test_what_is_left_out_is_listed(
    fill: Any, section: Any, fetched: Any, left_out: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"answer": "Dog"}, {"id": "q3", "audio_path": ["data/a.wav"] * 2, "answer": "Dog"},
            {"id": "q4", "answer": None}, {"id": "q5", "answer": "Cat"}]  # fmt: skip
    fill({"data/a.wav": tone(500), "test.parquet": official.mmaupro(rows)})
    assert len(fetched("mmaupro", section("MmauPro", **CASES["mmaupro"].changes))) == 1
    assert [line.partition(":")[0] for line in left_out("mmaupro")] == ["q3", "q4", "q5"]
    assert "mmaupro: 3 (q3: 2 recordings, " in capsys.readouterr().err
    monkeypatch.setattr(aishell, "INCOMPLETE", 0.7)
    untold = AISHELL[official.AISHELL_TRANSCRIPT].partition(b"\n")[2]
    fill(speakers(AISHELL) | {official.AISHELL_TRANSCRIPT: untold})
    assert len(fetched("aishell1", section("Aishell1"))) == 2
    assert left_out("aishell1") == ["BAC009S0002W0121: no transcript"]
    train, listed = "iOS/data", AISHELL2["iOS/data/wav.scp"] + b"IC0803W0380\twav/C0001/IC0001W0001.wav\n"
    told = "IC0001W0001 厨房用品\nIC0803W0380\t\nIC0001W0009\t歌\n"
    fill(AISHELL2 | {f"{train}/wav.scp": listed, f"{train}/trans.txt": told.encode()})
    assert [row["target"] for row in fetched("aishell2", section("Aishell2"))] == ["厨房用品"]
    assert left_out("aishell2") == ["IC0803W0380: no transcript", "IC0001W0009: no recording"]


def test_answers_outside_of_the_choices_are_rejected(fill: Any, section: Any, root: Path) -> None:
    """In a test split only once they are named."""
    bad = [
        {"id": "robot", "answer": "Robot"},
        {"id": "none", "answer": None},
        {"id": "letter", "answer": "B"},
    ]
    fill({"mmau-test-mini.json": official.mmau({"id": "child", "answer": "Child"}, *bad)} | MMAU_SOUND)
    reader, settings = corpora.reader("mmau"), section("Mmau", answer="letter")
    corpora.fetch("mmau", settings, root / "raw")
    with pytest.raises(RejectedError, match=r"robot \(test-mini\): .*line 3: found answer 'Robot'"):
        preprocess(reader, settings, root / "raw", root / "shards", Limits(whole=["test-mini"]), 1)
    limits = Limits(whole=["test-mini"], unreadable=[f"mmau-test-mini-{row['id']}" for row in bad])
    preprocess(reader, settings, root / "raw", root / "shards", limits, 1)
    assert read_rows(root / "shards", ["test-mini"])["target"].to_list() == ["B", "C"]


def changed(name: str, **files: Any) -> tuple[str, dict[str, Any]]:
    """A corpus whose unpacked files differ; None is not there. Folders of names are found by their ends."""
    found: dict[str, Any] = dict(CASES[name].unpacked)
    for end, data in files.items():
        keys = [key for key in found if key.endswith(end)] or [end]
        found |= dict.fromkeys(keys, data)
    return name, found


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (changed("librispeech", **{"84-121123.trans.txt": None}), r"84-121123\.trans\.txt: no such file"),
        (changed("librispeech", **{"84-121123.trans.txt": b"84-121123-0000 ONE\n"}), "transcript of 84-121123-0001"),
        (changed("librispeech", **{"84-121123-0001.flac": None}), r"line 2: no recording 84-121123-0001\.flac"),
        (changed("librispeech", **{"84-121123.trans.txt": b"84-121123-0000\n"}), "line 1: .*expected `utterance THE"),
        (changed("aishell1", **{"v0.8.txt": b"BAC009S0724W0121\n"}), r"v0\.8\.txt, line 1: .*expected an utterance"),
        (changed("aishell1", **{"v0.8.txt": b"x y\n"}), "3 of 3 utterances are incomplete, such as BAC009S0724W0121"),
        (changed("aishell2", **{"test/trans.txt": None}), r"test/trans\.txt: no such file"),
        (changed("aishell2", **{"test/trans.txt": "IT0011W0001\t歌\n"}), "IT0012W0002: no transcript"),
        (changed("aishell2", **{"IT0011W0001.wav": None}), "IT0011W0001: no recording"),
        (changed("aishell2", **{"iOS/data/wav.scp": "a\t/etc/passwd\n"}), "expected `utterance<tab>path`"),
        (changed("aishell2", **{"iOS/data/wav.scp": "a\t../../b.wav\n"}), "expected `utterance<tab>path`"),
        (changed("fleurs", **{"12.wav": None}), r"test\.tsv, line 2: no recording .*test/12\.wav"),
        (changed("fleurs", **{"test.tsv": b"7\t11.wav\tEins\n"}), "line 1: found 3 columns, expected 7: id, file"),
        (changed("fleurs", **{"test.tsv": FLEURS["data/de_de/test.tsv"].replace(b"11.", b"../test/11.")}),
         r"line 1: no recording .*\.\./test"),
        (changed("mls", **{"0001.opus": None}), r"transcripts\.txt, line 2: no recording"),
        (changed("clothoaqa", **{"b.wav": None}), r"test\.csv, line 11: no recording .*b\.wav"),
        (changed("clothoaqa", **{".csv": official.clothoaqa({("a.wav", "Loud?"): ("yes", "no")})}), "expected 3"),
        (changed("clothoaqa", **{".csv": "file_name,Question\na.wav,Loud?\n"}), "no column 'QuestionText'; found"),
        (changed("clotho", **{".csv": official.clotho(["500"]).replace(b'"500, said 3."', b"")}), "expected 5, none"),
        (changed("mmau", **{".json": official.mmau(audio_id="none.wav")}), r"line 1: no recording .*none\.wav"),
        (changed("mmau", **{".json": official.mmau(choices="Man")}), "'choices': found 'Man' .*expected a list"),
        (changed("mmaupro", **{".parquet": official.mmaupro([{"audio_path": ["../data/a.wav"], "answer": "Dog"}])}),
         "line 1: no recording"),
        (changed("openaudiobench", **{"web_questions.csv": "audio_filename,question\nx.mp3,Who?\n"}),
         "no column 'answers'; found: audio_filename, question"),
        (("librispeech", {"notes.txt": b""}), r"expected 'LibriSpeech/dev-clean' \(unpacked\), .*; found: notes\.txt"),
        (("librispeech", {"dev-clean.tar.gz": b"damaged"}), "wrong checksum"),
        (("aishell2", {"x": b""}), "expected 'iOS/data'"),
        (("prompts", {"x": b""}), r"expected 'en' \(unpacked\), 'asterisk-core-sounds-en-g722-1\.6\.1\.tar\.gz' or"),
        (changed("prompts", **{"sounds-en.txt": None}), r"core-sounds-en\.txt\.gz: no such file, expected the transc"),
        (changed("prompts", **{"sounds-en.txt": b"greeting\n"}), "line 1: found 'greeting', expected `name: text`"),
        (changed("prompts", **{"sounds-en.txt": b"greeting: h\xe9\n"}), r"sounds-en\.txt: damaged, or not UTF-8"),
        (changed("prompts", **{".txt": b"beep: [beep]"}), "split 'en-train': no utterances in it"),
    ],
)  # fmt: skip
def test_what_is_refused(
    case: tuple[str, dict[str, Any]], message: str, fill: Any, section: Any, root: Path
) -> None:
    name, files = case
    fill(files)
    with pytest.raises(ArchiveError, match=message):
        corpora.fetch(name, section(kind_of(name), **CASES[name].changes), root / "raw")
    assert not (root / "raw").exists()


def test_a_hostile_archive_in_the_archive(
    fill: Any, section: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = AISHELL | {"data_aishell/wav/S0999.tar.gz": tarred({"../../../../escaped.wav": b"x"})}
    files = {"data_aishell.tgz": tarred(hostile)}
    fill(files)
    approve(files, monkeypatch)
    with pytest.raises(ArchiveError, match=r"S0999\.tar\.gz: member .*escaped\.wav.* outside"):
        corpora.fetch("aishell1", section("Aishell1"), root / "raw")
    assert not list(root.rglob("escaped*")) and not (root / "raw").exists()


@pytest.mark.parametrize(
    ("answers", "separator", "first"),
    [("one; two", ";", "one"), ("one; two", None, "one; two"), ("['one', 'two']", ";", "one"),
     ("[one]", None, "[one]"), ("['one'", None, "['one'")],
)  # fmt: skip
def test_first_answer(answers: str, separator: str | None, first: str) -> None:
    assert openaudiobench.first(answers, separator) == first


@pytest.mark.parametrize("name", corpora.CORPORA)
def test_reader_and_section_belong_together(name: str) -> None:
    section: Any = KINDS[name]
    reader = corpora.reader(name)
    assert reader.SPLITS == section.SPLITS
    assert reader.CARD.name in " ".join(reader.CARD.text().split())


def test_unknown_corpus() -> None:
    with pytest.raises(ValueError, match="unknown corpus 'fsdd'; one of: synthetic, digits, librispeech"):
        corpora.reader("fsdd")


@pytest.mark.parametrize("name", ["librispeech", "fleurs", "mmau"])  # from a URL, from the hub, by hand
def test_offline(name: str, section: Any, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Required: an error that says what is missing. Not required: skipped, visibly. The card comes first."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    mirror = "http://127.0.0.1:1" if name == "librispeech" else None
    settings = section(kind_of(name), **CASES[name].changes | {"mirror": mirror})
    with pytest.raises(UnavailableError, match=r"is this machine online\?|set corpora.mmau.mirror"):
        corpora.fetch(name, settings, root / "raw")
    assert corpora.reader(name).CARD.licence[:20] in " ".join(capsys.readouterr().out.split())
    assert not (root / "raw").exists()
    corpora.fetch(name, settings.model_copy(update={"required": False}), root / "raw")
    assert [path.name for path in (root / "raw").iterdir()] == ["SKIPPED.json"]
    assert f"SKIPPED {name}: " in capsys.readouterr().err
    with pytest.raises(ArchiveError, match="no such folder"):  # a wrong path is never skipped
        corpora.fetch(
            name, settings.model_copy(update={"required": False, "mirror": "nowhere"}), root / "again"
        )


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("LibriSpeech", {"test": ["test"]}, "one of train-clean-100, "),
        ("LibriSpeech", {"limit": {"dev-clean": 3}}, "allowed: train-clean-100"),
        ("LibriSpeech", {"limit": {"train-clean-100": 0}}, "a whole number >= 1"),
        ("LibriSpeech", {"limit": {"train-clean-100": 1.0}}, "a whole number >= 1"),
        ("LibriSpeech", {"limit": {}}, "null, or a whole number"),
        ("Fleurs", {"revision": "main", "text": "raw"}, "40 hexadecimal digits"),
        ("Fleurs", {"test": ["de_dd-test"], "revision": REVISION, "text": "raw"}, "did you mean de_de-test"),
        ("Mls", {"test": ["germn-dev"], "encoding": "opus"}, "one of english-dev, .*did you mean german-dev"),
        ("ClothoAqa", {"protocol": {"test": "clean"}}, "a value for each split in use: train"),
        ("ClothoAqa", {"protocol": {"train": "fair"}}, "raw, clean"),
        ("Aishell2", {"mirror": None}, "text that is not empty"),
        ("Folder", {"path": "x", "table": None, "language": "german (Austria)"}, "a BCP 47 tag; und where unknown"),
    ],
)  # fmt: skip
def test_a_section_is_strict(section: Any, kind: str, changed: dict, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        section(kind, **changed)
    lines = [line for _, line in located(caught.value, getattr(sections, kind))]
    assert any(re.search(message, line) for line in lines), lines


def test_languages_are_tags() -> None:
    """A country is no part of them: `es_419` is Spanish, `cmn_hans_cn` Mandarin."""
    tags = [multilingual.language_of(f"{language}-test") for language in Fleurs.LANGUAGES]
    assert all(re.fullmatch(LANGUAGE_TAG, tag) for tag in (*tags, *multilingual.MLS_TAGS.values()))
    assert {"de", "es", "cmn"} <= set(tags) and set(multilingual.MLS_TAGS) == set(Mls.LANGUAGES)
