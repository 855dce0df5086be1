"""Imports run one way, heavy libraries stay where they belong, and what must start at once loads none."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A package imports from those in rows above its own, and from its own row as long as there is no circle.
ROWS = (
    ("atomic_io", "config", "distributed", "audio", "hub", "weights"),
    ("corpora", "data", "models"),
    ("training", "evaluation", "analysis", "asr"),
    ("model_card", "server", "demo", "export"),
    ("cli", "pipeline"),
)
RANKS = {name: rank for rank, row in enumerate(ROWS) for name in row}
HOMES = {  # library -> the only files that may import it
    "mlflow": [
        "steermoe/training/mlflow_logger.py",
        "steermoe/training/mlflow_pyfunc.py",  # which MLflow runs on its own
        "steermoe/training/mlflow_store.py",
    ],
    "peft": ["steermoe/models/lora.py"],
    "deepspeed": ["steermoe/training/engine.py"],
    "dvc": ["flows/checkouts.py"],
    "prefect": [f"flows/{name}.py" for name in ("__main__", "deployments", "tasks")],
    "fastapi": [f"steermoe/server/{name}.py" for name in ("app", "middleware", "schema")],
    "starlette": ["steermoe/server/app.py", "steermoe/demo/app.py"],
    "uvicorn": ["steermoe/server/app.py"],
    "gradio": ["steermoe/demo/app.py"],
    "prometheus_client": ["steermoe/server/metrics.py"],
    "jsonschema": ["steermoe/models/tools.py"],
}
HEAVY = ("torch", "transformers", "peft", "matplotlib", "mlflow", "polars", "pandera", "scipy")
FILES = sorted(path for top in ("steermoe", "pipeline", "flows") for path in (ROOT / top).rglob("*.py"))


def module_of(path: Path) -> str:
    """`steermoe.audio.waveform` of steermoe/audio/waveform.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, for types only included; `from a import b` counts as both `a` and `a.b`."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    """The package or top-level module that a module belongs to; None if it is not ours, or `steermoe` itself."""
    top, *rest = module.split(".")
    if top == "pipeline":
        return top
    return rest[0] if top == "steermoe" and rest and rest[0] in RANKS else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_file_imports_from_above_only(path: Path) -> None:
    module = module_of(path)
    if module in ("steermoe", "flows"):  # the first imports on demand, the second switches usage data off
        return
    if module.split(".")[0] == "flows":  # knows DVC's targets, not the code behind them
        assert {name.split(".")[0] for name in imports(path)}.isdisjoint({"steermoe", "pipeline"})
        return
    assert "flows" not in {name.split(".")[0] for name in imports(path)}
    own = room(module)
    assert own is not None, f"{module} is in no package of {ROWS}: say where it stands"
    wrong = [name for name in imports(path) if RANKS.get(room(name) or "", -1) > RANKS[own]]
    assert not wrong


def without_cycles(graph: dict[str, set[str]]) -> None:
    """Fail if nodes import each other in a cycle."""
    left = dict(graph)
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import each other in a cycle, or import one: {left}"


def test_packages_have_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in RANKS}
    for path in FILES:
        own = room(module_of(path))
        if own is not None:
            graph[own] |= {found for name in imports(path) if (found := room(name))} - {own}
    without_cycles(graph)


def test_modules_have_no_import_cycle() -> None:
    modules = {module_of(path): path for path in FILES}
    # The package itself imports on demand; a module of it may import the package.
    without_cycles(
        {
            name: (
                {found for found in imports(path) if found in modules}
                - {name, "steermoe", name.rpartition(".")[0]}
            )
            for name, path in modules.items()
            if name != "steermoe"
        }
    )


@pytest.mark.parametrize("library", HOMES)
def test_library_is_imported_at_home_only(library: str) -> None:
    users = [
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if any(name.split(".")[0] == library for name in imports(path))
    ]
    assert [user for user in users if user not in HOMES[library]] == []


def loaded(code: str) -> set[str]:
    """The modules that a new process has loaded after it ran some code."""
    run = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"]
    return set(subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["steermoe", "steermoe.config", "pipeline.__main__"])
def test_light_module_loads_nothing_heavy(module: str) -> None:
    assert loaded(f"import {module}").isdisjoint(HEAVY)


def test_transcribing_needs_no_package_of_the_extras() -> None:
    """`pip install steermoe` installs neither the pipeline's packages nor the server's."""
    code = "import steermoe.cli.transcribe, steermoe.asr.recognizer, steermoe.models.steermoe"
    extras = {
        "dvc",
        "mlflow",
        "prefect",
        "pandera",
        "polars",
        "fastapi",
        "matplotlib",
        "jiwer",
        "pooch",
        "gradio",
    }
    assert loaded(code).isdisjoint(extras)


def test_data_stages_load_no_torch() -> None:
    """`download` and `preprocess` are a process a corpus: torch would cost each some seconds and 200 MB."""
    corpora = [module_of(path) for path in FILES if path.parent.name == "corpora"]
    modules = loaded(f"import {', '.join(['pipeline.sources', 'pipeline.preprocess', *corpora])}")
    assert modules >= set(corpora)
    assert modules.isdisjoint({"torch", "transformers", "peft", "mlflow"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_size_of_modules_and_functions(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name not in ("__init__.py", "__main__.py"):
        assert 40 <= text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
