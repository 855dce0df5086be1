"""Models and adapters are found in folders or in the hub's cache, and identified and locked by their files."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steermoe import config
from steermoe import hub as base_models
from steermoe.config import Training
from steermoe.data.licences import licence_note
from steermoe.hub import CONFIG, WEIGHTS, adapters_of

FIRST, SECOND = "1" * 40, "2" * 40


def section(path: str, revision: str | None = None) -> config.Llm:
    return config.Llm(path=path, revision=revision, dtype="float32", quantization="none", layers="all")


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, dict[str, str]], Path]:
    """`cached(commit, files)` puts a commit of owner/tiny into the hub's cache, which is all that can be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(commit: str, files: dict[str, str]) -> Path:
        repository = tmp_path / "hub" / "models--owner--tiny"
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        for name, text in files.items():
            (snapshot / name).write_text(text)
        return snapshot

    return put


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("changes nothing")
    given = section(str(tmp_path))
    assert base_models.located(given, "llm") is given
    found = base_models.identity(given, "llm")
    assert found["path"] == str(tmp_path) and found["revision"] is None
    assert found["files"] == {
        "config.json": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    }
    assert base_models.locked([found], {}, tmp_path / "lock") == {}


def test_what_cannot_be_located_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "tiny").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"llm\.revision: found '1{40}', but 'owner/tiny' is a folder here; legal"
    ):
        base_models.located(section("owner/tiny", FIRST), "llm")
    with pytest.raises(ValueError, match=r"encoder\.path: found './nope', which does not exist"):
        base_models.located(section("./nope"), "encoder")


def test_a_model_of_the_hub_is_found_at_its_commit(cached: Callable[[str, dict[str, str]], Path]) -> None:
    old = cached(FIRST, {"config.json": "{}", "tokenizer.json": "1"})
    new = cached(SECOND, {"config.json": "{}", "tokenizer.json": "2"})
    assert base_models.located(section("owner/tiny"), "llm").path == str(new)
    assert base_models.located(section("owner/tiny", FIRST), "llm").path == str(old)
    found = [base_models.identity(section("owner/tiny", revision), "llm") for revision in (None, FIRST)]
    assert [model["revision"] for model in found] == [SECOND, FIRST]
    assert found[0]["files"]["config.json"] == found[1]["files"]["config.json"]
    assert found[0]["files"]["tokenizer.json"] != found[1]["files"]["tokenizer.json"]
    with pytest.raises(ValueError, match=r"nor a model on the hub"):
        base_models.located(section("owner/other"), "llm")


def test_the_lock_is_kept_and_compared(cached: Callable[[str, dict[str, str]], Path], tmp_path: Path) -> None:
    snapshot = cached(FIRST, {"config.json": "{}", "model.safetensors": "weights"})
    file = tmp_path / "paper.lock.json"
    lock = base_models.locked([base_models.identity(section("owner/tiny"), "llm")], {}, file)
    assert lock["owner/tiny"].revision == FIRST
    again = base_models.locked([base_models.identity(section("owner/tiny", FIRST), "llm")], lock, file)
    assert again == lock
    (snapshot / "model.safetensors").write_text("other weights")
    changed = base_models.identity(section("owner/tiny"), "llm")
    with pytest.raises(base_models.LockError, match=r"model\.safetensors differ from .*paper\.lock\.json"):
        base_models.locked([changed], lock, file)
    cached(SECOND, {"config.json": "{ }"})
    moved = base_models.locked([base_models.identity(section("owner/tiny"), "llm")], lock, file)
    assert moved["owner/tiny"].revision == SECOND  # another commit is a decision, and is locked anew


def test_cards_say_what_forbids_commercial_use() -> None:
    assert "NON-COMMERCIAL" in licence_note("Qwen/Qwen2.5-3B-Instruct")
    assert "NON-COMMERCIAL" not in licence_note("Qwen/Qwen2.5-7B-Instruct")
    assert "not known here" in licence_note("owner/tiny")


@pytest.fixture(params=["teacher", "init_from"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def reading(kind: str, source: str, tiny_variant: Any) -> Training:
    lesson = {"teacher": source, "logits": 1.0, "temperature": 2.0, "hidden": 0.0}
    changes = {"training.init_from": source} if kind == "init_from" else {"training.distillation": lesson}
    return tiny_variant("linear", changes).training


def test_adapters_are_identified_by_their_files(kind: str, tiny_variant: Any, tmp_path: Path) -> None:
    for name in (WEIGHTS, CONFIG, "README.md"):
        (tmp_path / name).write_bytes(name.encode())
    expected = {name: hashlib.sha256(name.encode()).hexdigest() for name in (WEIGHTS, CONFIG)}
    assert adapters_of(reading(kind, str(tmp_path), tiny_variant)) == {kind: expected}
    assert adapters_of(tiny_variant("linear").training) == {}


def test_what_is_no_adapter_is_refused(kind: str, tiny_variant: Any, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(ValueError, match=rf"{kind}: found '.*', which lacks adapter\.safetensors; "):
        adapters_of(reading(kind, str(tmp_path), tiny_variant))
    with pytest.raises(ValueError, match=rf"{kind}: found .*nowhere/a/b: neither a folder nor"):
        adapters_of(reading(kind, f"{tmp_path}/nowhere/a/b", tiny_variant))
