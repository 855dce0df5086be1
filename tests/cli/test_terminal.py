"""Standard streams that are closed, full or of another encoding, and names that are no plain text."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile

from steermoe.audio.io import RATE
from steermoe.cli import options
from steermoe.cli.terminal import plain_console, printable

ROOT = Path(__file__).parents[2]
Call = Callable[..., SimpleNamespace]
STRANGE = (
    b"latin\xe9.wav",
    b"new\nline\x1b[31m.wav",
    b"[red]a[:cat:.wav",
    b"{0}.wav",
    "\u202egnp.wav".encode(),
)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("--version >&-", 1, "standard output: "),
        ("--version >/dev/full", 1, "No space left"),
        ("nope 2>&-", 2, ""),
        ("nope 2>/dev/full", 2, ""),
        ("--version <&- 2>&-", 0, ""),
        ("--version <&- >&- 2>&-", 1, ""),
        ("--help >/dev/full", 1, "No space left"),
    ],
)
def test_closed_and_full_streams_are_an_exit_code(command: str, code: int, said: str) -> None:
    program = f"{sys.executable} -m steermoe.cli.main {command}"
    run = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr.count("\n")) == (code, bool(said))
    assert said in run.stderr and "Traceback" not in run.stderr


def test_a_reader_that_has_gone_is_no_problem() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "steermoe.cli.main", "--help"]
    run = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (run.returncode, run.stderr) == (1, b"")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_strange_names_end_nothing(
    call: Call, spoken: list[SimpleNamespace], tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [*map(os.fsdecode, STRANGE), "größe.wav"]
    for name in names:
        soundfile.write(tmp_path / "plain.wav", spoken[0].samples, RATE)
        (tmp_path / "plain.wav").rename(tmp_path / name)
    (tmp_path / "bad\x1b[2J.wav").write_text("no audio")
    outputs = {}
    for format in ("json", "text"):
        output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            run = call("transcribe", str(tmp_path), "--format", format)
        assert run.code == 3 and "\x1b" not in run.err and "bad\\u001b[2J.wav" in run.err
        outputs[format] = output.buffer.getvalue().decode(encoding)  # pyright: ignore[reportAttributeAccessIssue]
    found = [json.loads(line) for line in outputs["json"].splitlines()]
    assert sorted(row["file"] for row in found) == sorted(names)
    assert len(outputs["text"].splitlines()) == len(names)
    for output in outputs.values():
        assert not set(output) & set("\x1b\u202e") and "[red]a[:cat:.wav" in output
    out = tmp_path / "out"
    assert call("transcribe", str(tmp_path), "--out", str(out)).code == 3
    assert sorted(path.stem for path in out.iterdir()) == sorted(Path(name).stem for name in names)


def test_names_are_no_markup_on_a_terminal(
    call: Call, spoken: list[SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "[red]a[:cat:.wav", spoken[0].samples, RATE)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert "[red]a[:cat:.wav (1 of 1): " in call("transcribe", str(tmp_path)).err
    output = io.StringIO()
    plain_console(file=output).print("[red]a[/nope] :cat:")
    assert output.getvalue() == "[red]a[/nope] :cat:\n"


def test_printable_leaves_text_alone_and_json_valid() -> None:
    assert printable("größe 中文 नमस्ते 😀 a\u200db \\") == "größe 中文 नमस्ते 😀 a\u200db \\"
    assert printable("a\nb\x9b\x7f", kept="\n") == "a\nb\\u009b\\u007f"
    assert json.loads(printable(json.dumps("\x9b\u202e", ensure_ascii=False))) == "\x9b\u202e"


def test_two_files_of_one_name_are_told_apart(
    call: Call, spoken: list[SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ["a/x/talk.wav", "b/x/talk.wav", "c/talk.wav", "c/other.wav"]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / file, spoken[0].samples, RATE)
    with monkeypatch.context() as inside:
        inside.chdir(tmp_path)
        for given in (files, ["./a/../a/x", "b/x", "c"], ["*/*/talk.wav", "c"], [*files, files[0]]):
            found = {name: path for name, path in options.find_recordings(given)}
            assert sorted(found) == sorted(files)
            assert all(path.match(name) for name, path in found.items())
        assert [name for name, _ in options.find_recordings(["c", "-"])] == ["other.wav", "talk.wav", "stdin"]
    out = tmp_path / "out"
    assert call("transcribe", *(str(tmp_path / each) for each in "abc"), "--out", str(out)).code == 0
    written = [path.relative_to(out).with_suffix(".wav").as_posix() for path in out.rglob("*.txt")]
    assert sorted(written) == sorted(files)


def test_a_file_that_cannot_be_written_ends_nothing(
    call: Call, spoken: list[SimpleNamespace], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", spoken[0].samples, RATE)
    (tmp_path / "out/a.txt").mkdir(parents=True)
    run = call("transcribe", str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--out", str(tmp_path / "out"))
    assert run.code == 3 and "a.txt: " in run.err and (tmp_path / "out/b.txt").read_text().strip()
