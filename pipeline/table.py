"""The comparison of trained adapters without training: test splits alone are fetched, spoken and scored."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from pipeline.options import Params
from steermoe.atomic_io import write_text

Adapters = Annotated[Path, typer.Argument(help="folder with a folder for each adapter, named as its variant")]
ProfileName = Annotated[str, typer.Option("--profile", help="profile whose test splits are used")]
Work = Annotated[
    Path, typer.Option(help="folder for data, evaluations and comparison; what is finished is used again")
]
Workers = Annotated[int | None, typer.Option(min=1, help="processes at a time; default: one a core")]
SPOKEN = {"utterances", "questions", "strings", "videos"}  # of a corpus: rows that are made, by split
Command = tuple[str | Path, ...]


def main(
    adapters: Adapters = Path("pretrained/adapters/small"),
    profile: ProfileName = "small",
    work: Work = Path("reports/table"),
    workers: Workers = None,
    params: Params = Path("params.yaml"),
) -> None:
    """Score every adapter in ADAPTERS, and the baselines, on the test splits of a profile, and compare them.

    The folder of an adapter also has history.csv and timing.json, of its training. Delete WORK to begin anew.
    """
    from steermoe.config import load
    from steermoe.hub import CONFIG

    names = sorted(path.parent.name for path in adapters.glob(f"*/{CONFIG}"))
    if not names:
        raise ValueError(f"{adapters}: found no adapter; legal: a folder with a folder for each adapter")
    own = _write_params(params, profile, names, work)
    corpora = list(load(own).corpora)
    for name in names:
        variant = json.loads((adapters / name / CONFIG).read_text())["variant"]
        write_text(work / "variants" / f"{name}.json", json.dumps(variant, indent=1) + "\n")
        for kind, file in (("history", "history.csv"), ("timing", "timing.json")):
            write_text(work / kind / f"{name}{Path(file).suffix}", (adapters / name / file).read_text())
    raw, shards, out = work / "raw", work / "shards", work / "evaluations"
    for wave in (
        [("download", c, "--out", raw / c) for c in corpora],
        [("preprocess", c, "--source", raw / c, "--out", shards / c) for c in corpora],
        [("baseline", c, "--shards", shards / c, "--out", out / "baseline" / c) for c in corpora]
        + [
            ("eval", c, "--model", adapters / name, "--shards", shards / c, "--out", out / name / c)
            for c in corpora
            for name in names
        ],
    ):
        _run_all(wave, own, workers)
    comparison = work / "comparison"
    kinds = ("variants", "evaluations", "history", "timing", "shards")
    given = [each for kind in kinds for each in (f"--{kind}", work / kind)]
    metrics = ("--metrics", work / "metrics.json")
    _run(("ablate", "--models", adapters, *given, *metrics, "--out", comparison), own, shown=True)
    print(f"report and pictures: {comparison / 'report.md'}")


def _write_params(params: Path, profile: str, names: Sequence[str], work: Path) -> Path:
    """Write a configuration that compares the adapters, and return its file.

    In it, nothing is spoken for training, unless the profile has no other corpus.
    """
    from steermoe.config.load import profile_file, read

    values = read(params)
    values["profile"] = profile
    sizes = read(profile_file(params, values))
    values |= {"compare": list(names), "corpora": list(sizes["corpora"])}
    if values["reference"] not in names:
        values["reference"] = names[0]
    sections = sizes["corpora"].values()
    if not all(SPOKEN & section.keys() for section in sections):  # a configuration needs a training split
        for section in sections:
            for key in SPOKEN & section.keys():
                section |= {"train": [], "dev": []}
                section[key] = {split: n * (split in section["test"]) for split, n in section[key].items()}
    sizes["selection"] = {"train": None, "dev": None}
    for file, content in ((work / "params.yaml", values), (work / "configs" / f"{profile}.yaml", sizes)):
        write_text(file, json.dumps(content, indent=1) + "\n")  # JSON is YAML
    return work / "params.yaml"


def _run_all(commands: Iterable[Command], params: Path, workers: int | None) -> None:
    """Run stages side by side; what was finished with the same settings is left out."""

    def run(command: Command) -> None:
        began, out = time.monotonic(), Path(command[-1])
        done = params.parent / "done" / "-".join(out.relative_to(params.parent).parts)
        key = _key(command, params)
        if not done.exists() or done.read_text() != key:
            done.unlink(missing_ok=True)
            _run(command, params)
            write_text(done, key)
            print(f"{command[0]} {out}: {time.monotonic() - began:.0f} s", flush=True)

    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        try:
            list(pool.map(run, commands))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _run(command: Command, params: Path, shown: bool = False) -> None:
    """Run a stage with one thread, because others run beside it; `shown`: its output is.

    Raises:
        RuntimeError: it failed.
    """
    words = [str(word) for word in (*command, "--params", params)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "pipeline", *words]
    ran = subprocess.run(program, env=environment, capture_output=not shown, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(words[:2])} failed: {(ran.stderr or '').strip()}")


def _key(command: Command, params: Path) -> str:
    """Return a hash of what decides the result of a stage, but for the code: settings, and the adapter."""
    from steermoe.hub import CONFIG

    words = [str(word) for word in command]
    values = json.loads(params.read_text())
    shared = {name: value for name, value in values.items() if name not in ("compare", "reference")}
    profile = (params.parent / "configs" / f"{values['profile']}.yaml").read_text()
    adapter = Path(words[words.index("--model") + 1], CONFIG).read_text() if "--model" in words else ""
    return hashlib.sha256(json.dumps([words, shared, profile, adapter]).encode()).hexdigest()
