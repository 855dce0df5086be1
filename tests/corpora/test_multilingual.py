"""FLEURS from a hub of our own and from mirrors, and Multilingual LibriSpeech in both encodings."""

import hashlib
import json
import re
from typing import Any

import pytest

from steermoe import config
from steermoe.config.errors import located
from steermoe.corpora import fleurs as fleurs_reader
from steermoe.corpora import hub, mls, sources
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.checksums import ChecksumError
from steermoe.corpora.downloads import UnavailableError
from tests.corpora import official

REVISION = "70bb2e84b976b7e960aa89f1c648e09c59f894dd"


@pytest.fixture
def fleurs() -> dict[str, bytes]:
    return official.fleurs("de_de", "test")


@pytest.fixture
def our_hub(server: Any, fleurs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hub's API and files: the table as a git blob, the archive in large file storage."""
    monkeypatch.setattr(hub, "ENDPOINT", server.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    table, archive = fleurs.values()
    blob = hashlib.sha1(b"blob %d\0" % len(table) + table).hexdigest()
    large = {"oid": hashlib.sha256(archive).hexdigest(), "size": len(archive), "pointerSize": 130}
    tree = [
        {"type": "directory", "oid": "1" * 40, "size": 0, "path": "data/de_de/audio"},
        {"type": "file", "oid": blob, "size": len(table), "path": "data/de_de/test.tsv"},
        {
            "type": "file",
            "oid": "2" * 40,
            "size": len(archive),
            "path": "data/de_de/audio/test.tar.gz",
            "lfs": large,
        },
    ]
    api = f"/api/datasets/google/fleurs/tree/{REVISION}/data%2Fde_de?recursive=true&expand=false"
    server.files[api] = json.dumps(tree).encode()
    server.headers[api] = {"Content-Type": "application/json"}
    for path, data in fleurs.items():
        server.files[f"/datasets/google/fleurs/resolve/{REVISION}/{path}"] = data
    return server


def settings(section: Any, **changed: Any) -> Any:
    values = {"test": ["de_de-test"], "revision": REVISION, "text": "raw", "mirror": None}
    return section("Fleurs", **values | changed)


def test_fleurs_from_the_hub(our_hub: Any, fetched: Any, section: Any, pitch: Any):
    rows = fetched("fleurs", settings(section))
    assert [(row["source_id"], row["transcript"], pitch(row)) for row in rows] == [
        ("fleurs-de_de-test-11", 'Er sagte: "Ja, Straße 500!"', 500),
        ("fleurs-de_de-test-12", "Zweite 600.", 600),
    ]
    assert {row["language"] for row in rows} == {"de"}
    own = fetched("fleurs", settings(section, text="normalised"))
    assert [row["transcript"] for row in own] == ["er sagte ja straße 500", "zweite 600"]


@pytest.mark.parametrize("changed", ["data/de_de/test.tsv", "data/de_de/audio/test.tar.gz"])
def test_the_hub_gives_another_file(our_hub: Any, fetched: Any, section: Any, changed: str):
    """The same size, one bit off: found by git's SHA-1 of the table, and by SHA-256 of the archive."""
    path = f"/datasets/google/fleurs/resolve/{REVISION}/{changed}"
    good = our_hub.files[path]
    our_hub.files[path] = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    with pytest.raises(ChecksumError, match=r"wrong checksum, found (git|sha256):"):
        fetched("fleurs", settings(section))


def test_no_such_revision_or_file(our_hub: Any, fetched: Any, section: Any):
    with pytest.raises(UnavailableError, match=r"cannot list folder 'data/de_de' at revision 0000.*404"):
        fetched("fleurs", settings(section, revision="0" * 40))
    with pytest.raises(UnavailableError, match=r"no file 'data/de_de/dev.tsv' at this revision"):
        fetched("fleurs", settings(section, test=["de_de-dev"]))


def test_fleurs_mirrors(fill: Any, fleurs: dict, tone: Any, fetched: Any, section: Any):
    fill(fleurs)
    archived = fetched("fleurs", settings(section, mirror="mirror"))
    assert len(archived) == 2
    listed = fleurs["data/de_de/test.tsv"]
    own = {"data/de_de/test.tsv": listed, "data/de_de/audio/test/11.wav": tone(500)}
    fill({f"own/{name}": data for name, data in own.items()})
    with pytest.raises(ArchiveError, match=r"own/data/de_de/test\.tsv, line 2: no recording .*test/12\.wav"):
        fetched("fleurs", settings(section, mirror="mirror/own"))
    fill({"own/data/de_de/audio/test/12.wav": tone(600)})
    assert fetched("fleurs", settings(section, mirror="mirror/own")) == archived
    fill({"own/data/de_de/test.tsv": "7\t11.wav\tEins\n"})
    with pytest.raises(ArchiveError, match=r"test\.tsv, line 1: found 3 columns, expected 7: id, file_name"):
        fetched("fleurs", settings(section, mirror="mirror/own"))
    fill({"own/data/de_de/test.tsv": listed.replace(b"11.wav", b"../audio/test/11.wav")})
    with pytest.raises(ArchiveError, match=r"line 1: no recording .*test/\.\./audio"):
        fetched("fleurs", settings(section, mirror="mirror/own"))


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("Fleurs", "de_dd-test", ["af_za-test, ", "de_de-test, ", "nearest: de_de-test"]),
        ("Fleurs", "de_de-tset", ["one of de_de-train, de_de-dev, de_de-test; nearest: de_de-test"]),
        ("Mls", "germn-dev", ["one of english-dev, german-dev, dutch-dev", "nearest: german-dev"]),
        ("Mls", "german", ["german-test"]),
    ],
)
def test_unknown_language(section: Any, kind: str, name: str, told: list[str]):
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as caught:
        section(kind, test=[name])
    lines = dict(located(caught.value, getattr(config, kind)))
    assert all(words in lines["test"] for words in told), lines["test"]


@pytest.mark.parametrize("kind", ["Fleurs", "Mls"])
def test_the_language_of_every_split_is_a_tag(kind: str):
    """A country is no part of it: `es_419` is Spanish, `cmn_hans_cn` Mandarin."""
    legal = getattr(config, kind).LANGUAGES
    found = {
        language: fleurs_reader.language_of(f"{language}-test") if kind == "Fleurs" else mls.TAGS[language]
        for language in legal
    }
    assert all(re.fullmatch(config.LANGUAGE_TAG, tag) for tag in found.values())
    if kind == "Fleurs":
        assert (found["de_de"], found["es_419"], found["cmn_hans_cn"]) == ("de", "es", "cmn")
    else:
        assert set(mls.TAGS) == set(legal)


def test_the_largest_archive_is_not_refused_for_its_members():
    assert sources.MAX_FILES > 10_808_037  # recordings of mls_english/train alone


@pytest.mark.parametrize("encoding", ["flac", "opus"])
def test_mls(
    tone: Any,
    fetched: Any,
    section: Any,
    pitch: Any,
    pack_archive: Any,
    root: Any,
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
):
    base = "mls_german_opus" if encoding == "opus" else "mls_german"
    files = official.mls("german", encoding)
    (root / "mirror").mkdir()
    archive = pack_archive(root / "mirror" / f"{base}.tar.gz", files)
    values = {"dev": ["german-dev"], "test": ["german-test"], "encoding": encoding}
    with pytest.raises(ChecksumError, match=f"expected md5:{mls.MD5[base]}"):
        fetched("mls", section("Mls", **values))
    monkeypatch.setitem(mls.MD5, base, hashlib.md5(archive.read_bytes()).hexdigest())
    rows = fetched("mls", section("Mls", **values))
    assert [(row["split"], row["transcript"], row["speaker"]) for row in rows] == [
        (split, f"tonhöhe {hertz}", "10536")
        for split in ("german-dev", "german-test")
        for hertz in (500, 600)
    ]
    assert [pitch(row) for row in rows] == [500, 600, 500, 600]
    assert {row["language"] for row in rows} == {"de"}
