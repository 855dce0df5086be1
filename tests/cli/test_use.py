"""Every command and every line of Python of docs/use.md runs, and does what the text says."""

import io
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from steermoe.audio.io import RATE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/use.md").read_text()


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


COMMANDS = [line for block in code("bash") for line in block.splitlines()]


@pytest.fixture
def place(
    tmp_path: Path, spoken: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch, call: Callable
) -> Path:
    """A folder with the recordings that the page speaks of."""
    samples = spoken[0].samples
    for name in ("talk.wav", "calls/one.flac", "calls/two.ogg", "more/three.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, samples, RATE)
    (tmp_path / "more/three.wav").rename(tmp_path / "more/three.m4a")  # its content tells what it is
    (tmp_path / "talk.pcm").write_bytes((samples * 32768).astype("<i2").tobytes())
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", [line for line in COMMANDS if "|" not in line])
def test_commands(command: str, place: Path, call: Callable, monkeypatch: pytest.MonkeyPatch):
    words, _, file = command.partition(" < ")
    if file:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO((place / file).read_bytes())))
    program, *arguments = shlex.split(words)
    run = call(*arguments)
    assert program == "steermoe" and run.code == 0 and run.out.strip(), run
    if not {"--context", "summarize"} & set(arguments):  # which the mini models were not trained with
        assert "subtitles: 3" in run.out or "frank" in run.out


def test_python(place: Path, capsys: pytest.CaptureFixture[str]):
    blocks = code("python")
    assert len(blocks) == 2 and len(COMMANDS) >= 12
    exec("".join(blocks), {})
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("frank made") and "final 0 frank made" in out
    assert np.char.count(out, "No such file") == 1
