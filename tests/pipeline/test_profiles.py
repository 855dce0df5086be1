"""Profiles under DVC: which stages each has; the rehearsal of the paper from the first stage to the last."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from steermoe import config

ROOT = Path(__file__).parents[2]
COPIED = ("configs", "pipeline", "pretrained", "steermoe")
FILES = ("params.yaml", "dvc.yaml", ".dvcignore", ".gitignore")
VARIANTS = ["steermoe", "conformer-7b-aishell2"]
CORPORA = ["librispeech", "aishell2", "clothoaqa"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with DVC, without git."""
    root = tmp_path_factory.mktemp("project")
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "made"))
    for name in FILES:
        shutil.copy(ROOT / name, root)
    run(root, "dvc", "init", "-q", "--no-scm")
    run(root, "dvc", "config", "core.analytics", "false")
    return root


def run(root: Path, *command: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}", "PYTHONPATH": str(root),
        "DO_NOT_TRACK": "1", "COLUMNS": "200", "HF_HUB_OFFLINE": "1", "https_proxy": "http://127.0.0.1:9",
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=root, env=inherited | own, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-6000:]}"
    return done.stdout


def executed(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


def stages(profile: str, variants: list[str], corpora: list[str]) -> set[str]:
    """All stages of a profile."""
    names = {f"{stage}@{profile}" for stage in ("rehearse", "stamp", "base", "configure", "ablate")}
    names |= {f"{stage}@{profile}-{c}" for stage in ("download", "preprocess", "baseline") for c in corpora}
    return (
        names
        | {f"train@{profile}-{a}" for a in variants}
        | {f"eval@{profile}-{a}-{c}" for a in variants for c in corpora}
    )


def metrics_of(project: Path, system: str) -> dict:
    """What the comparison measured of a system, by corpus."""
    return json.loads((project / "reports/paper-dry/metrics.json").read_text())[system]


@pytest.mark.parametrize(
    ("profile", "variants", "corpora"),
    [("mini", None, None), ("paper", None, None), ("paper", ["steermoe", "conformer-7b-aishell2"], None)],
)
def test_a_profile_has_its_stages_and_no_others(
    project: Path, profile: str, variants: list[str] | None, corpora: list[str] | None
) -> None:
    shutil.copy(ROOT / "params.yaml", project)
    config.switch_profile(
        project / "params.yaml", profile, variants, corpora, "steermoe" if variants else None
    )
    loaded = config.load(project / "params.yaml")
    output = run(
        project, "dvc", "stage", "list", "--name-only"
    )  # `repro --dry` fails at folders that are not there
    assert set(output.split()) == stages(profile, loaded.compare, list(loaded.corpora))


def test_shards_that_no_variant_reads_rerun_no_training(tmp_path: Path) -> None:
    """What `train` depends on are hashes of the splits that its variant selects."""
    definition = (ROOT / "dvc.yaml").read_text()
    train = definition[definition.index("  train:") : definition.index("  eval:")]
    deps = train[train.index("deps:") : train.index("outs:")]
    assert "inputs/${item.variant}.json" in deps and "}/shards" not in deps
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    params = tmp_path / "params.yaml"
    config.switch_profile(params, "paper", ["steermoe", "linear"], ["librispeech", "fleurs"])
    for split in ("train-clean-100", "train-clean-360", "dev-clean", "dev-other", "test-clean"):
        (tmp_path / "shards" / "librispeech").mkdir(parents=True, exist_ok=True)
        (tmp_path / "shards" / "librispeech" / f"{split}-00000.parquet").write_text(split)
    for variant in ("steermoe", "linear"):
        for part in ("encoder", "llm"):
            (tmp_path / "base" / "variants" / variant).mkdir(parents=True, exist_ok=True)
            (tmp_path / "base" / "variants" / variant / f"{part}.json").write_text(json.dumps({"path": part}))

    def inputs() -> str:
        options = ("--out", "variants", "--inputs", "inputs", "--base", "base", "--shards", "shards")
        command = [sys.executable, "-m", "pipeline", "configure", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        return (tmp_path / "inputs" / "steermoe.json").read_text()

    before = inputs()
    (tmp_path / "shards" / "librispeech" / "test-clean-00000.parquet").write_text("others")
    assert inputs() == before
    (tmp_path / "shards" / "librispeech" / "dev-other-00000.parquet").write_text("others")
    assert inputs() != before


@pytest.mark.slow
def test_the_rehearsal_of_the_paper_runs_from_end_to_end(project: Path) -> None:
    shutil.copy(ROOT / "params.yaml", project)
    arguments = ("--compare", ",".join(VARIANTS), "--corpora", ",".join(CORPORA), "--reference", "steermoe")
    run(project, "python", "-m", "pipeline", "profile", "paper-dry", *arguments)
    assert executed(run(project, "dvc", "repro")) == stages("paper-dry", VARIANTS, CORPORA)
    assert metrics_of(project, "baseline/encoder").keys() == {"librispeech", "aishell2"}
    assert executed(run(project, "dvc", "repro")) == {"stamp@paper-dry"}
    for system in (*VARIANTS, "baseline/text-only"):
        found = metrics_of(project, system)
        assert found.keys() == set(CORPORA)
        assert "wer" in found["librispeech"]["test-clean"]
        assert found["aishell2"]["ios-test"].keys() >= {"cer"}
        assert "accuracy" in found["clothoaqa"]["test"]
    report = (project / "reports/paper-dry/comparison/report.md").read_text()
    for text in ("aishell2 ios-test CER", "librispeech test-clean WER", "clothoaqa test accuracy"):
        assert text in report
    assert "**CHANGED**" not in report
    trained = json.loads((project / "models/paper-dry/conformer-7b-aishell2/config.json").read_text())
    variant = trained.get("variant", trained)
    assert variant["train_splits"] == {"aishell2": ["train"]} and variant["encoder"]["name"] == "firered"
