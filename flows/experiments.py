"""The flows: which DVC targets run, with which settings, how many at a time. Each ends as DVC experiments."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

from flows import checkout, commands, lifetime, results, slots
from flows.variants import Profile, selected

# Stages of dvc.yaml, by what a flow wants of them.
DATA, VARIANT, BASELINES, COMPARISON = ["preprocess"], ["eval"], ["baseline"], ["ablate"]
PIPELINE = ["dvc.yaml"]  # all of its stages; `pretrained/` has a pipeline of its own
SCORING = ("generation.", "evaluation.")  # settings that change no training
RETRY_SECONDS = 5


def _is_worth_repeating(task: Any, run: Any, state: Any) -> bool:
    """A crash, a preemption (exit code 75), a lost disk: training goes on from its checkpoint."""
    try:
        state.result()
    except (commands.TimeLimitError, commands.EndedError, ValueError):
        return False
    except Exception:
        return True
    return False


@task(
    task_run_name="{title}",
    persist_result=False,
    cache_policy=NO_CACHE,
    retry_condition_fn=_is_worth_repeating,
)
def run_targets(
    title: str,
    snapshot: checkout.Snapshot,
    name: str,
    settings: list[str],
    targets: list[str],
    slots_each: int = 1,
    hours: float | None = None,
    profile: str | None = None,
) -> None:
    """`dvc repro` of some targets in a checkout, saved as experiment `name`.

    Args:
        title: shown in Prefect.
        snapshot: the project.
        name: of the experiment.
        settings: as for `dvc exp run --set-param`.
        targets: stages; none: the whole pipeline.
        slots_each: how many slots it takes.
        hours: time limit of an attempt.
        profile: publish this profile's comparison.
    """
    limit = None if hours is None else hours * 3600
    context = TaskRunContext.get()
    assert context is not None, "not in a task"
    is_repeated = context.task_run.run_count <= context.task.retries
    environment = checkout.environment(snapshot, name, is_repeated)
    with checkout.opened(snapshot, name, settings) as folder:
        command = ["dvc", "--wait-for-lock", "repro", *targets]
        commands.run(command, folder, snapshot.root, environment, slots_each, limit)
        if targets not in (DATA, BASELINES):  # what variants share is in DVC's cache, and no experiment
            checkout.save(folder, name, targets or PIPELINE)
        if profile is not None:
            results.publish(folder, profile, name)


@flow(name="ablations", task_runner=ThreadPoolTaskRunner(max_workers=slots.number()))  # type: ignore[arg-type]
def ablations(
    variants: list[str] | None = None,
    profile: str | None = None,
    settings: list[str] | None = None,
    slots_each: int = 1,
    retries: int = 2,
    hours: float | None = None,
) -> None:
    """Train, evaluate and compare variants, as many at a time as there are slots.

    Args:
        variants: rows of `variants` in params.yaml and in the profile; null: those selected. `["*"]`: all.
        profile: null: the one selected.
        settings: the same for all variants, as for `dvc exp run -S`.
        slots_each: slots of a variant: with GPUs, how many it trains on.
        retries: how often a variant that failed is repeated; it goes on from its last checkpoint.
        hours: time limit of a variant's attempt; null: any.
    """
    with begun() as snapshot:
        compare(snapshot, variants, profile, settings or [], slots_each, retries, hours)


@flow(name="evaluate", task_runner=ThreadPoolTaskRunner(max_workers=slots.number()))  # type: ignore[arg-type]
def evaluate(
    settings: list[str],
    variants: list[str] | None = None,
    profile: str | None = None,
    retries: int = 2,
    hours: float | None = None,
) -> None:
    """Decode and score trained variants in another way; a variant that was not trained yet is.

    Args:
        settings: of `generation` and `evaluation` only, for example `generation.strategy=beam`.
        variants: as in `ablations`, like the rest.
        profile: null: the one selected.
        retries: how often a variant that failed is repeated.
        hours: time limit of a variant's attempt; null: any.
    """
    wrong = [setting for setting in settings if not setting.startswith(SCORING)]
    if wrong:
        raise ValueError(f"{wrong}: evaluate takes settings of {SCORING} only; flow `experiment` takes any")
    with begun() as snapshot:
        compare(snapshot, variants, profile, settings, 1, retries, hours)


@flow(name="experiment")
def experiment(
    settings: list[str],
    profile: str | None = None,
    slots_each: int = 1,
    retries: int = 2,
    hours: float | None = None,
) -> None:
    """The whole pipeline with some settings, as `dvc exp run -S`, named as the run.

    Args:
        settings: `steering.num_experts=16` and the like.
        profile: null: the one selected.
        slots_each: with GPUs, how many it trains on.
        retries: how often it is repeated when it failed; it goes on from its last checkpoint.
        hours: time limit of an attempt; null: any.
    """
    with begun() as snapshot:
        chosen = Profile(snapshot, profile)
        step = run_targets.with_options(retries=retries, retry_delay_seconds=RETRY_SECONDS)
        step(
            "pipeline",
            snapshot,
            snapshot.name,
            [*chosen.settings(), *settings],
            [],
            slots_each,
            hours,
            chosen.name,
        )


@flow(name="reproduce")
def reproduce(
    profile: str | None = None, slots_each: int = 1, retries: int = 2, hours: float | None = None
) -> None:
    """The whole pipeline of a profile, one stage after another.

    Args:
        profile: null: the one selected.
        slots_each: with GPUs, how many a variant trains on.
        retries: how often it is repeated when it failed; it goes on from its last checkpoint.
        hours: time limit of an attempt; null: any.
    """
    with begun() as snapshot:
        chosen = Profile(snapshot, profile)
        step = run_targets.with_options(retries=retries, retry_delay_seconds=RETRY_SECONDS)
        step("pipeline", snapshot, snapshot.name, chosen.settings(), [], slots_each, hours, chosen.name)


def compare(
    snapshot: checkout.Snapshot,
    variants: list[str] | None,
    profile: str | None,
    settings: list[str],
    slots_each: int,
    retries: int,
    hours: float | None,
) -> None:
    """Variants in parallel, then the comparison: experiments `<name>-<variant>` and `<name>`.

    Data first, else every variant would make it. The comparison finds what the variants did in DVC's cache.

    Raises:
        ValueError: a variant that there is not.
        RuntimeError: variants that failed, after the others have ended.
    """
    of = Profile(snapshot, profile)
    chosen = of.chosen(variants)
    common = [*of.settings(chosen), *settings]
    step = run_targets.with_options(retries=retries, retry_delay_seconds=RETRY_SECONDS)

    def begin(part: str, values: list[str], targets: list[str], wanted: int) -> PrefectFuture[None]:
        name = f"{snapshot.name}-{part}"
        title = part.removeprefix("-")
        return step.submit(title, snapshot, name, [*common, *values], targets, wanted, hours)

    # What variants share: no variant's name begins with a dash.
    data, baselines = "-data", "-baselines"
    begin(data, [], DATA, 1).result()
    futures = {
        variant: begin(variant, selected([variant], variant), VARIANT, slots_each) for variant in chosen
    }
    futures[baselines] = begin(baselines, [], BASELINES, 1)
    wait(list(futures.values()))
    failed = [
        f"{part.removeprefix('-')}: {future.state.message}"
        for part, future in futures.items()
        if not future.state.is_completed()
    ]
    if failed:
        raise RuntimeError(
            f"no comparison, for these failed: {failed}; a run repeated keeps what is finished"
        )
    everything = [*common, *selected(chosen, of.reference(chosen))]
    step("comparison", snapshot, snapshot.name, everything, COMPARISON, 1, hours, of.name)


@contextmanager
def begun() -> Iterator[checkout.Snapshot]:
    """The present run, with the project as it is when it begins; files that it lacks are told."""
    with lifetime.alive(Path.cwd()) as (identity, name):
        snapshot = checkout.Snapshot(Path.cwd(), identity, name)
        if missed := snapshot.untracked():
            get_run_logger().warning(
                f"not in git, so not in this run: {missed[:20]} (`git add` takes them along)"
            )
        try:
            yield snapshot
        except Exception:
            snapshot.forget()
            raise
        snapshot.forget()
