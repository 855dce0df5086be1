"""A copy of the repository, small, from `dvc repro` to an experiment, a killed training, and a flow.

The tests work on the same copy: what one leaves is what the next starts from.
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import soundfile
from ruamel.yaml import YAML

from tests.pipeline.conftest import ROOT, copy_repository, environment, executed, run

pytestmark = pytest.mark.slow
SMALL = {
    "utterances": {"train": 48, "dev": 8, "clean": 8, "other": 8},
    "questions": {"train": 0, "dev": 0, "clean": 6, "other": 6},
}
TRAINING = {"max_steps": 6, "warmup_steps": 2, "eval_steps": 3, "max_batch_seconds": 20}
ALWAYS = {"stamp@mini"}


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, begin_repository: Callable[[Callable[..., Any]], None]
) -> Path:
    """A small profile of one corpus and two variants, in a git and DVC repository of its own."""
    root = tmp_path_factory.mktemp("project")
    copy_repository(root)
    shutil.copytree(ROOT / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    yaml = YAML()
    profile, params = (yaml.load(root / name) for name in ("configs/mini.yaml", "params.yaml"))
    profile["corpora"]["synthetic"].update(SMALL)
    profile["training"].update(TRAINING)
    params.update(corpora=["synthetic"], compare=["steermoe", "linear"])
    yaml.dump(profile, root / "configs/mini.yaml")
    yaml.dump(params, root / "params.yaml")
    begin_repository(functools.partial(run, root))
    return root


@pytest.fixture(scope="module")
def speech(project: Path) -> None:
    """The recording that the README speaks of."""
    row = pl.read_parquet(project / "data/mini/shards/synthetic/clean-00000.parquet").row(0, named=True)
    samples, rate = soundfile.read(io.BytesIO(row["audio"]))
    soundfile.write(project / "speech.wav", samples, rate)


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_repro_compares_the_selected_variants(project: Path) -> None:
    ran = executed(run(project, "dvc", "repro"))
    assert {"train@mini-steermoe", "train@mini-linear", "ablate@mini"} <= ran
    comparison = project / "reports/mini/comparison"
    report = (comparison / "report.md").read_text()
    for row in ("steermoe", "linear", "encoder's own decoder", "shuffled", "LLM without audio"):
        assert row in report
    assert "**CHANGED**" not in report
    for picture in ("learning_curves", "error_rates", "expert_use", "layer_scales"):
        assert (comparison / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((project / "reports/mini/metrics.json").read_text())
    # The shipped encoder works: a few percent on the whole split, a guess has about 100.
    assert metrics["baseline/encoder"]["synthetic"]["clean"]["wer"] <= 0.5
    predictions = pl.read_parquet(project / "reports/mini/evaluations/linear/synthetic/predictions.parquet")
    assert len(predictions) == 2 * (8 + 8 + 6 + 6)  # whole splits, with own and with shuffled audio
    assert executed(run(project, "dvc", "repro")) == ALWAYS


def test_the_table_of_trained_adapters_needs_no_training(project: Path) -> None:
    """It measures what the pipeline measured, and has finished it when it is repeated."""
    reports = project / "reports/mini"
    for name in ("steermoe", "linear"):
        folder = project / "adapters" / name
        shutil.copytree(project / "models/mini" / name, folder)
        shutil.copy(reports / f"history/{name}.csv", folder / "history.csv")
        shutil.copy(reports / f"timing/{name}.json", folder / "timing.json")
    command = ("python", "-m", "pipeline", "table", "adapters", "--profile", "mini")
    assert "eval reports/table/evaluations/linear/synthetic: " in run(project, *command)
    found, expected = (
        json.loads((folder / "metrics.json").read_text()) for folder in (project / "reports/table", reports)
    )
    for system in ("steermoe", "linear", "baseline/encoder"):
        assert found[system] == expected[system]
    again = run(project, *command)
    assert "eval reports" not in again and "report and pictures: reports/table/comparison" in again


def test_runs_are_in_mlflow(project: Path) -> None:
    code = (
        "from steermoe.training.mlflow_store import open_store; from pathlib import Path\n"
        "client = open_store(Path('.'))\n"
        "found = client.get_experiment_by_name('steermoe/mini')\n"
        "for r in client.search_runs([found.experiment_id]): print(r.info.run_name, r.info.status)"
    )
    assert {"steermoe FINISHED", "linear FINISHED"} <= set(run(project, "python", "-c", code).splitlines())


def test_commands_and_python_of_the_readme(project: Path, speech: None) -> None:
    """`make` targets exist, everything else runs."""
    readme = (ROOT / "README.md").read_text()
    lines = re.findall(r"^    ((?:make|dvc|cat|python|steermoe) .*)$", readme, re.MULTILINE)
    commands = [line.split("#")[0].strip() for line in lines]
    assert len(commands) >= 7
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in [*commands, "python -m pipeline show"]:
        if command.startswith("make "):
            assert command.split()[1] in targets, command
        elif not command.startswith("dvc exp run"):  # that has a test of its own
            command += " --model mini" * command.startswith("steermoe ")  # there is no network here
            assert run(project, *shlex.split(command)), command
    code = next(block for block in blocks("README.md", "python") if "from_pretrained" in block)
    assert run(project, "python", "-c", code).strip()


def test_experiment_reruns_what_depends_on_the_number(project: Path) -> None:
    ran = executed(run(project, "dvc", "exp", "run", "-S", "steering.num_experts=16"))
    changed = {"configure@mini", "train@mini-steermoe", "eval@mini-steermoe-synthetic", "ablate@mini"}
    assert ran == ALWAYS | changed
    config = json.loads((project / "models/mini/steermoe/config.json").read_text())
    assert "16" in json.dumps(config)
    assert "steering.num_experts" in run(project, "dvc", "exp", "show", "--csv")


def test_a_flow_finds_in_the_cache_what_is_trained(project: Path) -> None:
    """The real stages in a clone of the project, by a temporary server of Prefect's."""
    code = (
        "from flows.deployments import ablations; ablations(profile='mini', variants=['linear', 'steermoe'])"
    )
    home = {
        "PREFECT_HOME": str(project / ".runs/prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "400",
    }
    done = subprocess.run(
        ["python", "-c", code], cwd=project, env=environment(project) | home, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-6000:]
    # Only these depend on which variants are selected, and in which order.
    ran = executed(done.stdout + done.stderr)
    assert ran <= ALWAYS | {"base@mini", "configure@mini", "ablate@mini"}
    listed = run(project, "dvc", "exp", "list", "--name-only").split()
    assert {"linear", "steermoe"} <= {name.rpartition("-")[2] for name in listed}


def test_killed_training_resumes_to_the_same_weights(project: Path) -> None:
    adapter = project / "models/mini/linear/adapter.safetensors"
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


def test_a_router_is_added_as_the_docs_say(project: Path, speech: None) -> None:
    """Its blocks are put where its words say."""
    source, row, name = (block for block in blocks("docs/extend.md", "python") if "osine" in block)
    (variant,) = (block for block in blocks("docs/extend.md", "yaml") if "cosine" in block)
    routers, params = project / "steermoe/models/routers.py", project / "params.yaml"
    schema = project / "steermoe/config/model.py"
    schema.write_text(schema.read_text().replace('    "mixed": (),\n', '    "mixed": (),\n' + name))
    text = routers.read_text().replace("def make_router(", f"{source}\n\ndef make_router(")
    routers.write_text(text.rstrip().removesuffix("}") + row + "}\n")
    params.write_text(params.read_text() + variant)
    code = (
        "from steermoe import SteerMoE, config; from pathlib import Path\n"
        "settings = config.load(Path('params.yaml'))\n"
        "model = SteerMoE.from_config(settings.variant('steermoe-cosine'))\n"
        "model.transcribe('speech.wav')\n"
        "found = [p.numel() for name, p in model.named_parameters() if name.endswith('directions')]\n"
        "assert sum(found) == 4 * settings.steering.num_experts * 256, found"  # L * N * D, as its docstring says
    )
    run(project, "python", "-c", code)
