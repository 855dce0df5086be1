"""dvc.yaml declares what the stages really read: the code they import, and the parameters that they use."""

import ast
from functools import cache
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from pipeline.__main__ import PLACES, STAGES
from steermoe.corpora import CORPORA
from steermoe.models.encoders import ENCODERS, VIDEO_ENCODERS

ROOT = Path(__file__).parents[2]
DVC = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
# Imported by name at run time, so no import statement tells.
LAZY = {
    "steermoe/corpora/__init__.py": [
        f"{row.partition(':')[0].replace('.', '/')}.py" for row in CORPORA.values()
    ],
    "steermoe/models/encoders/__init__.py": [
        f"{kind.partition(':')[0].replace('.', '/')}.py" for kind in (ENCODERS | VIDEO_ENCODERS).values()
    ],
}

# Of these folders, what a stage reads is told by hashes in a file that it depends on (`configure` writes them).
HASHED = {"train": {"data/${item.profile}/shards"}}


def source_of(module: str) -> Path | None:
    path = ROOT / Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


@cache
def imported_by(path: Path) -> frozenset[Path]:
    """The project's files that `path` imports, anywhere in it, packages of what it imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            if parts[0] in ("steermoe", "pipeline"):
                found |= {source_of(".".join(parts[:n])) for n in range(1, len(parts) + 1)}
    for lazy in LAZY.get(path.relative_to(ROOT).as_posix(), []):
        found.add(ROOT / lazy)
    return frozenset(p for p in found if p is not None)


# Nothing of these decides what a stage writes: the package's lazy front door, words of --help, the log of runs.
OUTSIDE = {
    ROOT / "steermoe" / "__init__.py",
    ROOT / "steermoe" / "training" / "__init__.py",
    ROOT / "steermoe" / "training" / "mlflow_logger.py",
    ROOT / "pipeline" / "__init__.py",
    ROOT / "pipeline" / "options.py",
}


def closure(start: Path) -> set[Path]:
    seen, queue = set(), [start]
    while queue:
        path = queue.pop()
        if path not in seen | OUTSIDE:
            seen.add(path)
            queue.extend(imported_by(path))
    return seen


@pytest.mark.parametrize("stage", DVC)
def test_stage_depends_on_the_code_that_it_imports(stage: str) -> None:
    if DVC[stage].get("always_changed"):  # it runs whatever changes
        return
    deps = [dep for dep in DVC[stage]["deps"] if "${" not in dep]
    assert all((ROOT / dep).exists() for dep in deps)
    needed = closure(ROOT / "pipeline" / f"{PLACES.get(stage, stage).partition(':')[0]}.py")
    undeclared = {
        path.relative_to(ROOT).as_posix()
        for path in needed
        if not any(path == ROOT / dep or (ROOT / dep) in path.parents for dep in deps)
    }
    assert not undeclared, f"add to deps of {stage!r} in dvc.yaml: {sorted(undeclared)}"


@pytest.mark.parametrize("stage", DVC)
def test_stage_is_a_command_of_the_pipeline_and_its_paths_are_declared(stage: str) -> None:
    definition = DVC[stage]
    words = definition["cmd"].split()
    assert words[:4] == ["python", "-m", "pipeline", stage] and stage in STAGES
    paths = {word for word in words if "/" in word}
    declared = set(definition.get("deps", [])) | HASHED.get(stage, set())
    for kind in ("outs", "plots", "metrics"):
        declared |= {next(iter(o)) if isinstance(o, dict) else o for o in definition.get(kind, [])}
    assert paths <= declared, f"in the command but neither dependency nor output: {paths - declared}"


def test_what_other_pipelines_make_is_not_cached() -> None:
    """`dvc exp apply` checks out every output there is, and fails where a cached one was never made."""
    others = [
        out
        for stage in Repo(str(ROOT)).index.stages
        if Path(stage.path) != ROOT / "dvc.yaml"
        for out in stage.outs
    ]
    assert {Path(out.stage.path) for out in others} == {ROOT / "pretrained" / "dvc.yaml"}
    assert not any(out.use_cache for out in others)
