"""A copy of the repository in which stages run under DVC."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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


def copy_repository(root: Path) -> None:
    """Copy what `dvc repro` needs."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "made"))
        else:
            shutil.copy(ROOT / name, root)


def environment(root: Path) -> dict[str, str]:
    """Return the caller's environment, with this interpreter and the copy's own code first, without a network."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
    offline = {name: "http://127.0.0.1:9" for name in ("https_proxy", "HTTPS_PROXY")}  # nothing listens there
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
    own = {
        "PATH": path,
        "PYTHONPATH": str(root),
        "DO_NOT_TRACK": "1",
        "COLUMNS": "200",
        "HF_HUB_OFFLINE": "1",
    }
    return inherited | offline | own


def run(root: Path, *command: str) -> str:
    """Run a command in a copy and return what it prints."""
    done = subprocess.run(
        command, cwd=root, env=environment(root), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-6000:]}"
    return done.stdout


def executed(output: str) -> set[str]:
    """Return the stages that ran."""
    return set(re.findall(r"Running stage '([^']+)'", output))


def stages(profile: str, variants: list[str], corpora: list[str]) -> set[str]:
    """Return all stages of a profile."""
    names = {f"{stage}@{profile}" for stage in ("stamp", "base", "configure", "ablate")}
    names |= {f"{stage}@{profile}-{c}" for stage in ("download", "preprocess", "baseline") for c in corpora}
    names |= {f"train@{profile}-{variant}" for variant in variants}
    return names | {f"eval@{profile}-{variant}-{c}" for variant in variants for c in corpora}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with DVC, without git."""
    root = tmp_path_factory.mktemp("project")
    copy_repository(root)
    run(root, "dvc", "init", "-q", "--no-scm")
    run(root, "dvc", "config", "core.analytics", "false")
    return root
