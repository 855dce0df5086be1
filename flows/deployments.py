"""The flows that prefect.yaml deploys: which DVC targets run, with which settings, how many at the same time.

Shared parameters (null: as selected in params.yaml): `profile`; `variants`, rows of `variants`, `["*"]` for all;
`settings`, as for `dvc exp run -S`; `slots_each`, the slots of a variant, with GPUs how many it trains on; `retries`,
how often a failed task is repeated, where training resumes; `hours`, the time limit of an attempt.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.context import FlowRunContext
from prefect.futures import wait
from prefect.logging import get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

from flows import checkouts, slots
from flows.tasks import Run, end_all, is_ending, run_targets

# Stages of dvc.yaml
DATA, VARIANT, BASELINES, COMPARISON = ["preprocess"], ["eval"], ["baseline"], ["ablate"]
PIPELINE = ["dvc.yaml"]  # all of its stages; `pretrained/` has a pipeline of its own
SCORING = ("generation.", "evaluation.")  # settings that change no training
POOL: Any = ThreadPoolTaskRunner(max_workers=slots.count())


@flow(name="reproduce")
def reproduce(
    profile: str | None = None, slots_each: int = 1, retries: int = 2, hours: float | None = None
) -> None:
    """Run the whole pipeline of a profile, one stage after another."""
    _run_pipeline([], profile, slots_each, retries, hours)


@flow(name="experiment")
def experiment(
    settings: list[str],
    profile: str | None = None,
    slots_each: int = 1,
    retries: int = 2,
    hours: float | None = None,
) -> None:
    """Run the whole pipeline with some settings, as `dvc exp run -S`; the experiment has the name of the run."""
    _run_pipeline(settings, profile, slots_each, retries, hours)


@flow(name="ablations", task_runner=POOL)
def ablations(
    variants: list[str] | None = None,
    profile: str | None = None,
    settings: list[str] | None = None,
    slots_each: int = 1,
    retries: int = 2,
    hours: float | None = None,
) -> None:
    """Train, evaluate and compare variants, as many at the same time as there are slots."""
    _compare(variants, profile, settings or [], slots_each, retries, hours)


@flow(name="evaluate", task_runner=POOL)
def evaluate(
    settings: list[str],
    variants: list[str] | None = None,
    profile: str | None = None,
    retries: int = 2,
    hours: float | None = None,
) -> None:
    """Decode and score trained variants in another way; a variant that was not trained yet is trained first."""
    wrong = [setting for setting in settings if not setting.startswith(SCORING)]
    if wrong:
        raise ValueError(f"settings: found {wrong}; legal: those of {SCORING}; flow `experiment` takes any")
    _compare(variants, profile, settings, 1, retries, hours)


def _run_pipeline(
    settings: list[str], profile: str | None, slots_each: int, retries: int, hours: float | None
) -> None:
    with _begin(profile, None, hours) as (run, _, _):
        step = run_targets.with_options(retries=retries)
        step("pipeline", run, run.name, settings, PIPELINE, slots_each)


def _compare(
    variants: list[str] | None,
    profile: str | None,
    settings: list[str],
    slots_each: int,
    retries: int,
    hours: float | None,
) -> None:
    """Run variants in parallel, then the comparison: experiments `<run>-<variant>` and `<run>`.

    Data first, else every variant would make them. The comparison takes what the variants made from DVC's cache.
    """
    with _begin(profile, variants, hours) as (run, chosen, reference):
        step = run_targets.with_options(retries=retries)

        def selecting(names: list[str], reference: str) -> list[str]:
            return [*settings, f"compare=[{','.join(names)}]", f"reference={reference}"]

        everything = selecting(chosen, reference)
        # No variant's name begins with a dash.
        step("data", run, f"{run.name}--data", everything, DATA, 1, False)
        futures = [
            step.submit(name, run, f"{run.name}-{name}", selecting([name], name), VARIANT, slots_each)
            for name in chosen
        ]
        futures.append(
            step.submit("baselines", run, f"{run.name}--baselines", everything, BASELINES, 1, False)
        )
        wait(futures)
        failed = [
            f"{name}: {future.state.message}"
            for name, future in zip([*chosen, "baselines"], futures, strict=True)
            if not future.state.is_completed()
        ]
        if failed:
            raise RuntimeError(f"no comparison, for these failed: {failed}; a new run keeps what is finished")
        step("comparison", run, run.name, everything, COMPARISON)


@contextmanager
def _begin(
    profile: str | None, variants: list[str] | None, hours: float | None
) -> Iterator[tuple[Run, list[str], str]]:
    """Clone the project for the present run; yield the run, the variants and the reference; then end its commands."""
    context, root = FlowRunContext.get(), Path.cwd()
    assert context is not None and context.flow_run is not None, "not in a flow"
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", context.flow_run.name).strip("-") or str(context.flow_run.id)
    is_ending.clear()
    with checkouts.clone(root, f"{name}--clone") as clone:
        if missed := checkouts.output(root, "git", "ls-files", "--others", "--exclude-standard").splitlines():
            get_run_logger().warning(
                f"not in git, so not in this run: {missed[:20]}; `git add` includes them"
            )
        profile, chosen, reference = checkouts.select(clone, profile, variants)
        try:
            yield Run(name, root, clone, profile, hours), chosen, reference
        finally:
            end_all()
