"""The task of every flow: `dvc repro` of some targets in a temporary clone, in GPU slots, with live logs."""

import base64
import os
import re
import subprocess
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prefect import artifacts, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from flows import checkouts, slots

PICTURE = re.compile(r"^!\[[^]]*\]\([^)]*\)\s*$", re.MULTILINE)
PROGRESS = re.compile(r"\bstep (\d+)/(\d+)\b")  # as training prints it
PROGRESS_SECONDS = 2.0  # between two updates of the progress bar
GRACE_SECONDS = 25.0  # for a last checkpoint; Prefect kills a cancelled flow after 30 s

is_ending = threading.Event()  # the run is cancelled, or failed
_running: set[subprocess.Popen[str]] = set()


class StoppedError(RuntimeError):
    """A command was ended by a cancel or a time limit: it is not repeated."""


@dataclass(frozen=True)
class Run:
    """A run of a flow: its name, the project, the clone that tasks copy, the profile, the limit of an attempt."""

    name: str
    root: Path
    clone: Path
    profile: str
    hours: float | None


def _is_worth_repeating(task: Any, run: Any, state: Any) -> bool:
    """Return whether a failed task is repeated: training resumes after a crash or a preemption (exit code 75)."""
    try:
        state.result()
    except Exception as error:
        return not isinstance(error, StoppedError | ValueError)
    return False


@task(
    task_run_name="{title}", persist_result=False, cache_policy=NO_CACHE, retry_delay_seconds=5,
    retry_condition_fn=_is_worth_repeating,
)  # fmt: skip
def run_targets(
    title: str,
    run: Run,
    name: str,
    settings: list[str],
    targets: list[str],
    slots_each: int = 1,
    saved: bool = True,
) -> None:
    """Run `dvc repro` of targets with settings; save the result as experiment `name`, if `saved`."""
    with (
        checkouts.copy(run.clone, name, settings) as folder,
        slots.acquire(run.root / ".runs", slots_each, is_ending) as held,
    ):
        share = slots.environment(held)
        get_run_logger().info(f"slots {held} of {slots.count()} {share}")
        environment = {
            "DVC_ROOT": str(run.root),  # checkpoints and MLflow's store are the project's, not the clone's
            "STEERMOE_EXECUTION": run.name,  # all experiments of a run are one execution in MLflow
            "DVC_EXP_NAME": name,
            "DVC_EXP_BASELINE_REV": checkouts.output(folder, "git", "rev-parse", "HEAD"),
            "PYTHONUNBUFFERED": "1",
        }
        run_command(["dvc", "--wait-for-lock", "repro", *targets], folder, environment | share, run.hours)
        if saved:
            checkouts.save_experiment(folder, name, targets)
        comparison = folder / "reports" / run.profile / "comparison"  # output of stage `ablate`
        if comparison.is_dir():
            publish(comparison, name)


def run_command(command: list[str], folder: Path, environment: dict[str, str], hours: float | None) -> None:
    """Run a command with its output in the log of the present task.

    Raises:
        StoppedError: it was ended by a cancel, or because it took more than `hours`.
        RuntimeError: it failed; with the last lines of its output.
    """
    if is_ending.is_set():
        raise StoppedError("the run ends")
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | environment, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    _running.add(process)
    is_late, tail = threading.Event(), deque[str](maxlen=15)
    timer = threading.Timer(3600 * (hours or 0), lambda: (is_late.set(), end(process)))
    if hours is not None:
        timer.start()
    try:
        assert process.stdout is not None
        _log(process.stdout, tail)
        code = process.wait()
    finally:
        timer.cancel()
        end(process)
        _running.discard(process)
    if is_late.is_set():
        raise StoppedError(
            f"{command} took longer than {hours:g} h and was ended; a new run goes on from there"
        )
    if is_ending.is_set():
        raise StoppedError(f"{command} was ended with the run")
    if code != 0:
        raise RuntimeError(f"{command} ended with {code}:\n" + "\n".join(tail))


def _log(lines: Any, tail: deque[str]) -> None:
    """Put lines into the log of the task and `tail`; show those with `step 20/450` as a progress bar, too."""
    bar: Any = None
    due = 0.0
    for line in filter(str.strip, lines):
        tail.append(line.rstrip())
        get_run_logger().info(tail[-1])
        found = PROGRESS.search(line)
        if found and (time.monotonic() >= due or found[1] == found[2]):
            due = time.monotonic() + PROGRESS_SECONDS
            percent = 100.0 * int(found[1]) / max(1, int(found[2]))
            with suppress(Exception):  # a server that does not answer ends no training
                if bar is None:
                    bar = artifacts.create_progress_artifact(percent, description="steps of training")
                else:
                    artifacts.update_progress_artifact(bar, percent)


def end(*commands: "subprocess.Popen[str]") -> None:
    """End commands with everything that they started: SIGTERM, and SIGKILL for what is left after the grace."""
    family: list[psutil.Process] = []
    for command in (command for command in commands if command.returncode is None):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(command.pid)
            family += [*process.children(recursive=True), process]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(family, timeout=GRACE_SECONDS)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def end_all() -> None:
    """End all commands of this process, and let none begin."""
    is_ending.set()
    end(*_running)


def publish(comparison: Path, experiment: str) -> None:
    """Show report and pictures of a comparison as artifacts; pictures as data URLs, because the clone is deleted."""
    report = PICTURE.sub("", (comparison / "report.md").read_text(encoding="utf-8"))
    how, of = f"In the workspace: `dvc exp apply {experiment}`\n\n", f"of {experiment}"
    artifacts.create_markdown_artifact(how + report, key="comparison", description=f"comparison {of}")
    for picture in sorted(comparison.glob("*.png")):
        url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
        key = re.sub(r"[^a-z0-9]+", "-", picture.stem.lower())
        artifacts.create_image_artifact(url, key=key, description=f"{picture.stem} {of}")
