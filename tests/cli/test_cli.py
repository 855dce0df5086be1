"""The command line as it is called: what it prints, its exit codes, and what it imports to do so."""

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from steermoe import __version__
from steermoe.cli import main as cli

ROOT = Path(__file__).parents[2]
HEAVY = set("torch transformers peft polars pandera mlflow matplotlib scipy numpy".split())
LARGE = ("--encoder", "whisper-large-v3", "--llm", "qwen2.5-7b-instruct")
Call = Callable[..., SimpleNamespace]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs `steermoe ...` in the project's root: exit code, output, errors."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> SimpleNamespace:
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def write_tones() -> Callable[[Path, dict[str, int]], Path]:
    """`write_tones(folder, {"clean": 4})` writes shards of short tones, so many rows a split."""
    import numpy as np

    from steermoe.audio.io import RATE, encode_flac
    from tests.data.conftest import write_shards

    def write(folder: Path, counts: dict[str, int]) -> Path:
        time = np.arange(RATE // 4) / RATE
        for split, count in counts.items():
            rows = [
                {
                    "source_id": f"{split}-{number}", "split": split, "speaker": f"s{number % 2}",
                    "task": "transcribe", "prompt": "", "transcript": "one", "target": "one",
                    "audio": encode_flac((0.2 * np.sin(time * 700 * (number + 1))).astype(np.float32), RATE),
                    "sample_rate": RATE, "seconds": 0.25,
                }
                for number in range(count)
            ]  # fmt: skip
            write_shards(rows, folder, split, 100)
        return folder

    return write


def test_help_loads_nothing_heavy() -> None:
    wanted = [["--help"], [], ["--version"], *([name, "--help"] for name in cli.COMMANDS)]
    code = (
        "import sys; from steermoe.cli.main import main; "
        f"assert all(main(words) == 0 for words in {wanted}); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.splitlines()[-1].split())
    assert "steermoe.cli.main" in loaded and loaded.isdisjoint(HEAVY)


def test_real_process() -> None:
    command = [sys.executable, "-m", "steermoe.cli.main"]
    run = subprocess.run([*command, "--version"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, f"steermoe {__version__}\n", "")
    run = subprocess.run([*command, "plam"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "Did you mean 'plan'" in run.stderr


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    """Of each command, all in one process."""
    model = ["--model", str(ROOT / "pretrained/adapters/mini/steermoe")]
    commands = [
        ["serve", *model],
        ["demo", *model],
        ["export", "onnx", *model, "--out", str(tmp_path / "out")],
    ]
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['prometheus_client', 'gradio', 'onnx'])); "
        f"from steermoe.cli.main import main; print([main(words) for words in {commands!r}])"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout == "[1, 1, 1]\n" and "Traceback" not in run.stderr
    for extra in ("serve", "demo,serve", "export"):
        assert f"pip install 'steermoe[{extra}]'" in run.stderr


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("--version <&- >&-", 0, ""),
        ("--help >/dev/full", 1, "No space left"),
        ("nope 2>&-", 2, ""),
        ("--help | true", 0, ""),
    ],
)
def test_closed_and_full_streams_are_no_traceback(command: str, code: int, said: str) -> None:
    program = f"{sys.executable} -m steermoe.cli.main {command}"
    run = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr.count("\n")) == (code, bool(said))
    assert said in run.stderr and "Traceback" not in run.stderr


def test_examples_are_commands() -> None:
    first, *lines, last = [line for line in cli.EXAMPLES.splitlines() if line]
    assert {words[0] for words in map(str.split, lines)} == {"steermoe"}
    assert {words[1] for words in map(str.split, lines)} <= set(cli.COMMANDS)
    assert (first, last) == ("Examples:", "`steermoe COMMAND --help` explains a command.")


def test_without_arguments_it_helps(call: Call) -> None:
    run = call()
    assert run.code == 0
    assert run.out.strip() == call("--help").out.strip()
    assert all(name in run.out for name in cli.COMMANDS) and "steermoe plan --encoder" in run.out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_a_function_in_a_file_with_examples(name: str, call: Call) -> None:
    module = importlib.import_module(f"steermoe.cli.{name}")
    assert f"steermoe {name}" in (inspect.getdoc(module.main) or "").partition("Examples:")[2]
    run = call(name, "--help")
    assert run.code == 0
    assert f"steermoe {name}" in run.out
    assert "Examples" in run.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["parms"], "No such command 'parms'. Did you mean 'params'? (see `steermoe --help`)"),
        (["plan", "--hours", "1"], "Missing option '--epochs' (see `steermoe plan --help`)"),
        (
            ["export", "hub", "a/b", "--model", "m", "--folder", "f", "--private"],
            "--private: no effect with --folder",
        ),
        (["plan", "--hours", "1", "--epochs", "1", "--profile", "papr"], 'profile: found "papr"'),
        (["plan", "--hours", "1", "--epochs", "1", "--gpu", "tpu"], "Invalid value for '--gpu'"),
        (["params", "--variant", "nope"], 'variant: found "nope"; allowed: one of steermoe'),
        (["params", "--encoder", "nope"], "encoder: found 'nope'; legal: whisper-base"),
        (["plan", "--hours", "1", "--epochs", "1", "--mean-seconds", "99"], "mean-seconds: found 99"),
    ],
)
def test_wrong_use_is_a_line_and_two(arguments: list[str], said: str, call: Call) -> None:
    run = call(*arguments)
    assert run.code == 2
    assert run.err.startswith("steermoe: ")
    assert said in run.err
    assert run.err.count("\n") == 1
    assert "Traceback" not in run.err


def test_params_of_the_variants_in_force(call: Call) -> None:
    run = call("params", *LARGE)
    assert run.code == 0
    for part in ("5,246,752", "4,591,104", "636,968,960", "0.064 %"):
        assert part in run.out
    assert "16,387,584" in run.out


def test_params_as_json(call: Call) -> None:
    found = json.loads(
        call("params", "--variant", "steermoe-16", "--variant", "linear", *LARGE, "--json").out
    )
    assert list(found) == ["steermoe-16", "linear"]
    assert found["steermoe-16"]["trained"]["vectors"] == 655_360
    assert found["linear"]["trained"] == {"projection": 4_591_104}


def test_plan_of_the_published_run(call: Call) -> None:
    run = call("plan", "--hours", "1", "--epochs", "1", *LARGE, "--gpu", "h200")
    for part in ("16.34", "7.41", "not padded", "790.0 TFLOP/s"):
        assert part in run.out


def test_plan_refuses_what_cannot_fit(call: Call) -> None:
    run = call("plan", "--hours", "1", "--epochs", "1", *LARGE, "--gpu", "rtx4090", "--json")
    assert run.code == 1 and run.err.startswith("steermoe: the run does not fit: mode plain ")
    assert "24.0 GB" in json.loads(run.out)["refusal"]


def test_plan_of_another_profile(call: Call) -> None:
    found = json.loads(call("plan", "--hours", "464", "--epochs", "10", "--profile", "paper", "--json").out)
    assert found["encoder"] == "whisper-large-v3" and "padded to 30 s" in found["cases"]


def test_analyze_writes_a_report_over_the_wanted_splits(
    call: Call, tiny_variant: Callable[..., object], write_tones: Callable[..., Path], tmp_path: Path
) -> None:
    from steermoe.models.steermoe import SteerMoE

    model = SteerMoE.from_config(tiny_variant("steering"))  # pyright: ignore[reportArgumentType]
    model.save_pretrained(tmp_path / "adapter")
    shards, out = write_tones(tmp_path / "shards", {"train": 5, "clean": 4, "other": 3}), tmp_path / "out"
    run = call("analyze", str(tmp_path / "adapter"), str(shards), "--out", str(out), "--condition", "split")
    assert run.code == 0, run.err
    assert f"{out / 'report.md'}: 7 utterances of clean, other; also" in run.out.replace("\n", "")
    assert "split" in (out / "divergences.csv").read_text()
    wrong = call("analyze", str(tmp_path / "adapter"), str(shards), "--split", "odd")
    assert (
        wrong.code == 2 and "--split: found 'odd'; " in wrong.err and "has: clean, other, train" in wrong.err
    )
    wrong = call("analyze", str(tmp_path / "adapter"), str(shards), "--out", str(out), "--condition", "mood")
    assert wrong.code == 2 and "conditions: found 'mood'" in wrong.err
