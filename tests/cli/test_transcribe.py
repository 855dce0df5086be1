"""`steermoe transcribe`: files, folders, patterns, a pipe; formats; bad files among good ones."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from steermoe.asr.recognizer import Recognizer
from steermoe.asr.transcript import FORMATS, render
from steermoe.audio.io import RATE
from steermoe.cli import options as opening

ROOT = Path(__file__).parents[2]
Call = Callable[..., SimpleNamespace]


@pytest.fixture
def folder(tmp_path: Path, spoken: list[SimpleNamespace], talk: np.ndarray) -> Path:
    """talk.flac, short.wav and inner/other.ogg."""
    root = tmp_path / "recordings"
    (root / "inner").mkdir(parents=True)
    soundfile.write(root / "talk.flac", talk, RATE)
    soundfile.write(root / "short.wav", spoken[0].samples, RATE)
    stereo = np.stack([spoken[1].samples] * 2, axis=1)
    soundfile.write(root / "inner/other.ogg", stereo, RATE)
    (root / "notes.txt").write_text("no audio")
    return root


def test_one_file_in_every_format(call: Call, folder: Path, mini: Any):
    found = Recognizer(mini, words=True).transcript(folder / "talk.flac")
    plain = Recognizer(mini).transcript(folder / "talk.flac")
    for format in FORMATS:
        run = call("transcribe", str(folder / "talk.flac"), "--format", format)
        assert (run.code, run.out, run.err) == (0, render(plain, format), "")
    run = call("transcribe", str(folder / "talk.flac"), "--format", "verbose_json", "--words")
    assert run.out == render(found, "verbose_json") and json.loads(run.out)["segments"][0]["words"]


def test_subtitles_of_a_length(call: Call, folder: Path):
    options = ("--format", "srt", "--max-line-width", "12", "--max-line-count", "1")
    found = call("transcribe", str(folder / "talk.flac"), *options).out
    plain = call("transcribe", str(folder / "talk.flac")).out
    texts = [block.split("\n")[2:] for block in found.strip().split("\n\n")]
    assert all(len(text) == 1 and (len(text[0]) <= 12 or " " not in text[0]) for text in texts)
    assert " ".join(text[0] for text in texts) == plain.strip() and len(texts) > 6


def test_progress_on_a_terminal_takes_nothing_from_a_pipe(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = call("transcribe", str(folder / "talk.flac"), "--format", "json")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run = call("transcribe", str(folder / "talk.flac"), "--format", "json")
    assert run.out == plain.out and plain.out.strip() not in run.err and "minutes read" in run.err


def test_folders_patterns_and_a_folder_for_results(
    call: Call, folder: Path, tmp_path: Path, spoken: list[SimpleNamespace]
):
    run = call("transcribe", str(folder))
    names = sorted(line.split(": ")[0] for line in run.out.splitlines())
    assert run.code == 0 and names == ["inner/other.ogg", "short.wav", "talk.flac"]
    assert "skipped 1 files without audio: notes.txt" in run.err
    out = tmp_path / "out"
    run = call("transcribe", str(folder), "--out", str(out), "--format", "srt")
    assert run.out == f"{out}: 3 transcripts\n"
    written = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert written == ["inner/other.srt", "short.srt", "talk.srt"]
    assert (out / "talk.srt").read_text().startswith("1\n00:00:0") and " --> " in (
        out / "short.srt"
    ).read_text()
    run = call("transcribe", str(folder / "*.wav"), str(folder / "**" / "*.ogg"), "--format", "json")
    found = [json.loads(line) for line in run.out.splitlines()]
    assert {row["file"] for row in found} == {"short.wav", "other.ogg"} and all(row["text"] for row in found)


def test_a_bad_file_is_named_and_the_rest_goes_on(call: Call, folder: Path):
    (folder / "a_text.wav").write_text("frank made chairs")
    (folder / "b_empty.flac").write_bytes(b"")
    soundfile.write(folder / "c_silent.wav", np.zeros(RATE), RATE)
    run = call("transcribe", str(folder), str(folder / "gone.mp3"))
    assert run.code == 3
    assert len(run.out.splitlines()) == 4 and "c_silent.wav: \n" in run.out
    problems = run.err.splitlines()
    assert problems[-1] == "steermoe: 3 of 7 recordings could not be transcribed"
    for part in (
        "a_text.wav: not readable as audio",
        "b_empty.flac: empty, 0 bytes",
        "gone.mp3: No such file",
    ):
        assert any(part in line for line in problems), problems


def test_standard_input(
    call: Call, monkeypatch: pytest.MonkeyPatch, spoken: list[SimpleNamespace], folder: Path
):
    data = (folder / "short.wav").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert call("transcribe", "-").out == call("transcribe", str(folder / "short.wav")).out
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"hm")))
    run = call("transcribe", "-")
    assert run.code == 3 and run.err.startswith("steermoe: -: audio stream: not readable as audio")
    monkeypatch.setattr(sys, "stdin", None)
    closed = call("transcribe", "-")
    assert (closed.code, closed.err) == (2, "steermoe: -: standard input is closed\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/talk.flac", "--format", "doc"], "--format: found 'doc'; there are: text, json"),
        (["{0}/talk.flac", "--max-line-width", "9"], "--max-line-width: no effect with --format text"),
        (["{0}/talk.flac", "--max-line-count", "9"], "--max-line-count: no effect without"),
        (["{0}/talk.flac", "--words"], "--words: no effect with --format text"),
        (["{0}/talk.flac", "{0}/short.wav", "--format", "srt"], "2 recordings need files of their own: give --out"),
        (["{0}/talk.flac", "{0}/talk.flac", "--out", "{0}/x"], "--out: several recordings would become"),
        (["{0}/talk.flac", "--out", "{0}/notes.txt"], "notes.txt is a file; name a folder"),
        (["{0}/no*.wav"], "there is no such file, and as a pattern it matches none"),
        (["{0}/inn*"], "as a pattern it matches none"),
        (["{0}/nothing"], "a folder without audio"),
        (["-", "-"], "-: standard input can be read once only"),
        ([], "Missing argument"),
    ],
)  # fmt: skip
def test_wrong_use(call: Call, folder: Path, arguments: list[str], message: str):
    (folder / "nothing").mkdir()
    run = call("transcribe", *(argument.replace("{0}", str(folder)) for argument in arguments))
    assert run.code == 2 and message in run.err and run.err.startswith("steermoe: ")


def test_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--model: none given, and no pretrained/adapters/steermoe here"):
        opening.open_model(None, None)


def test_real_process_in_another_folder(folder: Path, tmp_path: Path):
    """Base models are found from the adapter, whatever the current folder."""
    program = [sys.executable, "-c", "import sys; from steermoe.cli.main import main; sys.exit(main())"]
    model = ROOT / "pretrained/adapters/steermoe"
    run = subprocess.run(
        [*program, "transcribe", str(folder / "short.wav"), str(folder / "notes.txt"), "--model", str(model)],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert run.returncode == 3 and run.stdout.startswith("short.wav: ")
    assert run.stderr.splitlines()[-1] == "steermoe: 1 of 2 recordings could not be transcribed"
    cpu = opening.open_model(str(model), "cpu")
    with pytest.raises(ValueError, match="--device: found 'cuda:99', which cannot be used"):
        opening.open_model(str(model), "cuda:99")
    assert cpu.device.type == "cpu"
