"""The whole road on a copy of the repository, small: `dvc repro`, a no-op, an experiment, a killed training.

One test after another works on the same copy: what the first leaves is what the next starts from.
"""

import functools
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import soundfile
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
COPIED = (
    "configs",
    "pipeline",
    "pretrained",
    "steermoe",
    "params.yaml",
    "dvc.yaml",
    ".dvcignore",
    ".gitignore",
)
SMALL = {
    "utterances": {"train": 48, "dev": 8, "clean": 8, "other": 8},
    "questions": {"train": 0, "dev": 0, "clean": 6, "other": 6},
}
TRAINING = {"max_steps": 6, "warmup_steps": 2, "eval_steps": 3, "max_batch_seconds": 20}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, begin_repository: Callable[[Callable[..., Any]], None]
) -> Path:
    """A small profile in a git and DVC repository of its own."""
    root = tmp_path_factory.mktemp("project")
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "made")
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=ignored)
        else:
            shutil.copy(source, root)
    yaml = YAML()
    profile = yaml.load(root / "configs" / "mini.yaml")
    profile["corpora"]["synthetic"].update(SMALL)
    profile["training"].update(TRAINING)
    yaml.dump(profile, root / "configs" / "mini.yaml")
    begin_repository(functools.partial(run, root))
    return root


def environment(root: Path) -> dict[str, str]:
    """The caller's, with this interpreter first and the copy's own code, and no repository to inherit."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
    # A proxy that nothing listens on: whether or not there is a network, `digits` cannot be had and is skipped.
    offline = {name: "http://127.0.0.1:9" for name in ("https_proxy", "HTTPS_PROXY")}
    return (
        inherited | offline | {"PATH": path, "PYTHONPATH": str(root), "DO_NOT_TRACK": "1", "COLUMNS": "200"}
    )


def run(root: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=root, env=environment(root), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-6000:]}"
    return done.stdout


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@contextmanager
def speech(project: Path) -> Iterator[None]:
    """The recording that the README speaks of."""
    row = pl.read_parquet(project / "data/mini/shards/synthetic/clean-00000.parquet").row(0, named=True)
    samples, rate = soundfile.read(io.BytesIO(row["audio"]))
    soundfile.write(project / "speech.wav", samples, rate)
    yield
    (project / "speech.wav").unlink()


def executed(output: str) -> set[str]:
    """The stages that ran, but the one that always does."""
    return set(re.findall(r"Running stage '((?!stamp@)[^']+)'", output))


def test_repro_compares_the_variants_in_force(project: Path) -> None:
    output = run(project, "dvc", "repro")
    stages = executed(output)
    assert {"train@mini-steermoe", "train@mini-linear", "train@mini-lora", "ablate@mini"} <= stages
    comparison = project / "reports" / "mini" / "comparison"
    report = (comparison / "report.md").read_text()
    for row in ("steermoe", "linear", "lora", "encoder's own decoder", "shuffled", "LLM without audio"):
        assert row in report
    assert "**CHANGED**" not in report and "not available" in report
    for picture in ("learning_curves", "error_rates", "expert_use", "layer_scales"):
        assert (comparison / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((project / "reports" / "mini" / "metrics.json").read_text())
    # The shipped encoder hears: a few percent on the whole split, a guess has about 100.
    assert metrics["baseline/encoder"]["synthetic"]["clean"]["wer"] <= 0.5
    predictions = pl.read_parquet(project / "reports/mini/evaluations/linear/synthetic/predictions.parquet")
    assert len(predictions) == 2 * (8 + 8 + 6 + 6)  # whole splits, with own and with shuffled audio


def test_repro_again_runs_nothing(project: Path) -> None:
    assert executed(run(project, "dvc", "repro")) == set()


def test_show_prints_the_table(project: Path) -> None:
    assert "steermoe" in run(project, "python", "-m", "pipeline", "show")


def test_runs_are_in_mlflow_with_their_experiment(project: Path) -> None:
    code = (
        "from steermoe.training.mlflow_store import open_store; from pathlib import Path\n"
        "client = open_store(Path('.'))\n"
        "found = client.get_experiment_by_name('steermoe/mini')\n"
        "for r in client.search_runs([found.experiment_id]):\n"
        "    print(r.info.run_name, r.info.status, sorted(r.data.metrics)[:3], len(r.data.params))"
    )
    output = run(project, "python", "-c", code)
    for variant in ("steermoe", "linear", "lora"):
        assert re.search(rf"^{variant} FINISHED", output, re.MULTILINE), output


def test_commands_of_the_readme(project: Path) -> None:
    """Every command in a block of the README: `make` targets exist, everything else runs."""
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^    ((?:make|dvc|cat|python|steermoe) .*)$", readme, re.MULTILINE)
    commands = [line.split("#")[0].strip() for line in blocks]
    assert len(commands) >= 7
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands:
        if command.startswith("make "):
            assert command.split()[1] in targets, command
        elif not command.startswith("dvc exp run"):  # that has a test of its own
            with speech(project):
                assert run(project, *shlex.split(command)), command


def test_python_of_the_readme(project: Path) -> None:
    code = next(block for block in blocks("README.md", "python") if "from_pretrained" in block)
    with speech(project):
        assert run(project, "python", "-c", code).strip()


def test_experiment_reruns_what_depends_on_the_number(project: Path) -> None:
    output = run(project, "dvc", "exp", "run", "-S", "steering.num_experts=16")
    stages = {stage for stage in executed(output) if not stage.startswith("configure@")}
    assert stages == {
        "train@mini-steermoe",
        "eval@mini-steermoe-synthetic",
        "eval@mini-steermoe-digits",
        "ablate@mini",
    }
    config = json.loads((project / "models/mini/steermoe/config.json").read_text())
    assert "16" in json.dumps(config)
    assert "steering.num_experts" in run(project, "dvc", "exp", "show", "--csv")


def test_killed_training_resumes_to_the_same_weights(project: Path) -> None:
    adapter = project / "models" / "mini" / "linear" / "adapter.safetensors"
    undisturbed = adapter.read_bytes()
    command = ["dvc", "repro", "--single-item", "--force", "train@mini-linear"]
    process = subprocess.Popen(
        command, cwd=project, env=environment(project), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(project.glob(".runs/*/**/checkpoint-*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not adapter.exists()  # nothing half-written is taken for whole
    run(project, *command)
    assert adapter.read_bytes() == undisturbed


def test_a_router_is_added_as_the_docs_say(project: Path) -> None:
    """Its three blocks put where its words say; then `dvc repro` trains and compares the new variant."""
    source, row = (block for block in blocks("docs/extend.md", "python") if "osine" in block)
    (variant,) = (block for block in blocks("docs/extend.md", "yaml") if "cosine" in block)
    routers, params = project / "steermoe/models/routers.py", project / "params.yaml"
    text = routers.read_text()
    text = text.replace("def make_router(", f"{source}\n\ndef make_router(")
    routers.write_text(text.rstrip().removesuffix("}") + row + "}\n")
    params.write_text(params.read_text() + variant)
    selected = "config.select(Path('params.yaml'), ['steermoe-cosine', 'linear'])"
    run(project, "python", "-c", f"from steermoe import config; from pathlib import Path; {selected}")
    stages = executed(run(project, "dvc", "repro"))
    assert "train@mini-steermoe-cosine" in stages
    trained = json.loads((project / "reports/mini/timing/steermoe-cosine.json").read_text())
    experts = YAML(typ="safe").load(params)["steering"]["num_experts"]
    assert trained["trainable_parameters"]["router"] == 4 * experts * 256  # L * N * D, as its docstring says
    report = (project / "reports/mini/comparison/report.md").read_text()
    assert "steermoe-cosine: " in report and "## Steering" in report
