"""`steermoe transcribe`: files, folders, patterns, a pipe; formats; strange names; bad files among good ones."""

import io
import json
import os
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
from steermoe.cli import options
from steermoe.cli.terminal import plain_console, printable
from steermoe.weights import UnavailableError

ROOT = Path(__file__).parents[2]
Call = Callable[..., SimpleNamespace]


@pytest.fixture
def folder(tmp_path: Path, spoken: list[SimpleNamespace], talk: np.ndarray) -> Path:
    """talk.flac, short.wav and inner/other.ogg."""
    root = tmp_path / "recordings"
    (root / "inner").mkdir(parents=True)
    soundfile.write(root / "talk.flac", talk, RATE)
    soundfile.write(root / "short.wav", spoken[0].samples, RATE)
    soundfile.write(root / "inner/other.ogg", np.stack([spoken[1].samples] * 2, axis=1), RATE)
    (root / "notes.txt").write_text("no audio")
    return root


def test_one_file_in_every_format(call: Call, folder: Path, mini: Any):
    talk = str(folder / "talk.flac")
    plain = Recognizer(mini).transcript(talk)
    for format in FORMATS:
        run = call("transcribe", talk, "--format", format)
        assert (run.code, run.out, run.err) == (0, render(plain, format), "")
    run = call("transcribe", talk, "--format", "verbose_json", "--words")
    assert run.out == render(Recognizer(mini, words=True).transcript(talk), "verbose_json")
    limits = ("--max-line-width", "12", "--max-line-count", "1")
    found = call("transcribe", talk, "--format", "srt", *limits).out
    texts = [block.split("\n")[2:] for block in found.strip().split("\n\n")]
    assert all(len(text) == 1 and (len(text[0]) <= 12 or " " not in text[0]) for text in texts)
    assert " ".join(text[0] for text in texts) == plain.text and len(texts) > 6


def test_folders_patterns_and_a_folder_for_results(call: Call, folder: Path, tmp_path: Path):
    run = call("transcribe", str(folder))
    names = sorted(line.split(": ")[0] for line in run.out.splitlines())
    assert run.code == 0 and names == ["inner/other.ogg", "short.wav", "talk.flac"]
    assert "skipped 1 files without audio: notes.txt" in run.err
    out = tmp_path / "out"
    run = call("transcribe", str(folder), "--out", str(out), "--format", "srt")
    assert run.out == f"{out}: 3 transcripts\n"
    written = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert written == ["inner/other.srt", "short.srt", "talk.srt"]
    assert all((out / name).read_text().startswith("1\n00:00:0") for name in written)
    run = call("transcribe", str(folder / "*.wav"), str(folder / "**" / "*.ogg"), "--format", "json")
    found = [json.loads(line) for line in run.out.splitlines()]
    assert {row["file"] for row in found} == {"short.wav", "other.ogg"} and all(row["text"] for row in found)


def test_a_bad_file_is_named_and_the_rest_goes_on(call: Call, folder: Path, tmp_path: Path):
    (folder / "a_text.wav").write_text("frank made chairs")
    (folder / "b_empty.flac").write_bytes(b"")
    soundfile.write(folder / "c_silent.wav", np.zeros(RATE), RATE)
    run = call("transcribe", str(folder), str(folder / "gone.mp3"))
    assert run.code == 3
    assert len(run.out.splitlines()) == 4 and "c_silent.wav: \n" in run.out
    assert run.err.splitlines()[-1] == "steermoe: 3 of 7 recordings could not be transcribed"
    parts = ("a_text.wav: not readable as audio", "b_empty.flac: empty, 0 bytes", "gone.mp3: No such file")
    assert all(part in run.err for part in parts)
    (tmp_path / "out/short.txt").mkdir(parents=True)  # cannot be written
    both = str(folder / "short.wav"), str(folder / "talk.flac")
    run = call("transcribe", *both, "--out", str(tmp_path / "out"))
    assert run.code == 3 and "short.txt: " in run.err and (tmp_path / "out/talk.txt").read_text().strip()


def test_standard_input(call: Call, monkeypatch: pytest.MonkeyPatch, folder: Path):
    data = (folder / "short.wav").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert call("transcribe", "-").out == call("transcribe", str(folder / "short.wav")).out
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"hm")))
    run = call("transcribe", "-")
    assert run.code == 3 and run.err.startswith("steermoe: -: audio stream: not readable as audio")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/talk.flac", "--format", "doc"], "--format: found 'doc'; there are: text, json"),
        (["{0}/talk.flac", "--max-line-width", "9"], "--max-line-width: no effect with --format text"),
        (["{0}/talk.flac", "--max-line-count", "9"], "--max-line-count: no effect without"),
        (["{0}/talk.flac", "--words"], "--words: no effect with --format text"),
        (["{0}/talk.flac", "{0}/short.wav", "--format", "srt"], "2 recordings need files of their own"),
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


def test_real_process_in_another_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Base models are found from the adapter, whatever the current folder."""
    program = [sys.executable, "-c", "import sys; from steermoe.cli.main import main; sys.exit(main())"]
    model = ROOT / "pretrained/adapters/mini/steermoe"
    run = subprocess.run(
        [*program, "transcribe", str(folder / "short.wav"), str(folder / "notes.txt"), "--model", str(model)],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert run.returncode == 3 and run.stdout.startswith("short.wav: ")
    assert run.stderr.splitlines()[-1] == "steermoe: 1 of 2 recordings could not be transcribed"
    with pytest.raises(ValueError, match="--device: found 'cuda:99', which cannot be used"):
        options.open_model(str(model), "cuda:99")
    monkeypatch.chdir(tmp_path)
    assert options.model_path("mini") == str(ROOT / "pretrained/adapters/mini/steermoe")
    with pytest.raises(ValueError, match="neither a folder nor a repository"):
        options.open_model("no/such", None)


def test_missing_base_models_are_not_downloaded_without_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"whisper-base, smollm2-135m-instruct .*--yes.*--model mini"):
        options.open_model(None, None)
    assert "to download, of openai/whisper-base; licence: MIT" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_strange_names_end_nothing(
    call: Call, folder: Path, tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = (
        b"latin\xe9",
        b"new\nline\x1b[31m",
        b"[red]a[:cat:",
        b"{0}",
        "\u202egnp".encode(),
        "größe".encode(),
    )
    names = [os.fsdecode(name + b".wav") for name in strange]
    recordings = tmp_path / "strange"
    recordings.mkdir()
    for name in names:
        (recordings / name).write_bytes((folder / "short.wav").read_bytes())
    (recordings / "bad\x1b[2J.wav").write_text("no audio")
    outputs = {}
    for format in ("json", "text"):
        output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            run = call("transcribe", str(recordings), "--format", format)
        assert run.code == 3 and "\x1b" not in run.err and "bad\\u001b[2J.wav" in run.err
        outputs[format] = output.buffer.getvalue().decode(encoding)  # pyright: ignore[reportAttributeAccessIssue]
    found = [json.loads(line) for line in outputs["json"].splitlines()]
    assert sorted(row["file"] for row in found) == sorted(names)
    assert len(outputs["text"].splitlines()) == len(names)
    for text in outputs.values():
        assert not set(text) & set("\x1b\u202e") and "[red]a[:cat:.wav" in text
    assert call("transcribe", str(recordings), "--out", str(tmp_path / "out")).code == 3
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == sorted(
        Path(name).stem for name in names
    )


def test_progress_on_a_terminal(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes nothing in the output, and names are no markup in it."""
    path = (folder / "short.wav").rename(folder / "[red]a[:cat:.wav")
    plain = call("transcribe", str(path), "--format", "json")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run = call("transcribe", str(path), "--format", "json")
    assert run.out == plain.out and plain.out.strip() not in run.err
    assert "[red]a[:cat:.wav (1 of 1): " in run.err and "minutes read" in run.err
    output = io.StringIO()
    plain_console(file=output).print("[red]a[/nope] :cat:")
    assert output.getvalue() == "[red]a[/nope] :cat:\n"


def test_printable_leaves_text_alone_and_json_valid() -> None:
    assert printable("größe 中文 नमस्ते 😀 a\u200db \\") == "größe 中文 नमस्ते 😀 a\u200db \\"
    assert printable("a\nb\x9b\x7f", kept="\n") == "a\nb\\u009b\\u007f"
    assert json.loads(printable(json.dumps("\x9b\u202e", ensure_ascii=False))) == "\x9b\u202e"


def test_two_files_of_one_name_are_told_apart(
    call: Call, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ["a/x/talk.wav", "b/x/talk.wav", "c/talk.wav", "c/other.wav"]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes((folder / "short.wav").read_bytes())
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
