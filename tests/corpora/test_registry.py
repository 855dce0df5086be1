"""Every corpus: a section of the configuration, a card, and a clear word where nothing can be had."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from steermoe import config, corpora
from steermoe.config.corpora import Corpora
from steermoe.corpora import downloads, hub
from steermoe.corpora.downloads import UnavailableError

REMOTE = {
    name: field.annotation
    for name, field in Corpora.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, config.Archived)
}
EXTRA = {  # values that a section has beside those of every archived corpus
    "fleurs": {"revision": "0" * 40, "text": "raw"},
    "mls": {"encoding": "opus"},
    "clothoaqa": {"protocol": {"train": "clean"}},
    "clotho": {"captions": {"development": "first"}},
    "mmau": {"answer": "text"},
    "mmaupro": {"answer": "text", "revision": "0" * 40},
    "openaudiobench": {"revision": "0" * 40},
}


@pytest.mark.parametrize("name", corpora.CORPORA)
def test_reader_and_section_belong_together(name: str):
    section: Any = Corpora.model_fields[name].annotation
    reader = corpora.reader(name)
    assert reader.SPLITS == section.SPLITS
    assert all(split == split.lower() and " " not in split for split in reader.SPLITS)
    card = reader.CARD
    for field in dataclasses.fields(card):
        assert getattr(card, field.name) not in ("", 0.0) or field.name == "bytes", field.name
    text = card.text()
    for told in (card.name, card.licence.split()[0], card.restrictions.split(",")[0][:30], card.metric[:10]):
        assert told in " ".join(text.split())


@pytest.mark.parametrize("name", REMOTE)
def test_offline(
    name: str,
    section: Callable[..., Any],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    """Required: an error that says what cannot be had. Not required: skipped, visibly. The card comes first."""
    module: Any = corpora.reader(name)
    nowhere = "http://127.0.0.1:1"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "PAUSES", ())
    monkeypatch.setattr(hub, "ENDPOINT", nowhere)
    roomy = shutil.disk_usage(root.parent)._replace(free=10**14)  # some corpora are larger than a small disk
    monkeypatch.setattr(shutil, "disk_usage", lambda path: roomy)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's client waits between its tries
    for own in ("BASE", "AUDIO", "SOURCE"):
        value = getattr(module, own, None)
        if isinstance(value, str) and value.startswith("http"):
            monkeypatch.setattr(module, own, nowhere)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type) and getattr(value, "base", ""):
            monkeypatch.setattr(module, own, dataclasses.replace(value, base=nowhere))
    kind = REMOTE[name].__name__
    settings = section(kind, mirror=None, **EXTRA.get(name, {}))
    with pytest.raises(UnavailableError, match=r"is this machine online\?|cannot be downloaded by itself"):
        corpora.fetch(name, settings, root / "raw")
    assert module.CARD.licence[:20] in " ".join(capsys.readouterr().out.split())
    assert not (root / "raw").exists()
    corpora.fetch(name, settings.model_copy(update={"required": False}), root / "raw")
    assert [path.name for path in (root / "raw").iterdir()] == ["SKIPPED.json"]
    assert f"SKIPPED {name}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("LibriSpeech", {"test": ["test"]}, "illegal"),
        ("LibriSpeech", {"limit": {"dev-clean": 3}}, "illegal"),
        ("LibriSpeech", {"limit": {"train-clean-100": 0}}, "illegal"),
        ("LibriSpeech", {"limit": {"train-clean-100": 1.0}}, "illegal"),
        ("LibriSpeech", {"limit": {}}, "illegal"),
        ("Fleurs", {"revision": "main", "text": "raw"}, "pattern"),
        ("ClothoAqa", {"protocol": {"test": "clean"}}, "illegal"),
        ("ClothoAqa", {"protocol": {"train": "fair"}}, "raw"),
        ("Aishell2", {"mirror": None}, "string"),
    ],
)
def test_a_section_is_strict(section: Callable[..., Any], kind: str, changed: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        section(kind, **changed)
