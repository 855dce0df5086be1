"""`steermoe plan`."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from steermoe.serving import plan_options as options
from steermoe.serving.options import EncoderName, Json, LlmName, Params

if TYPE_CHECKING:
    from rich.table import Table

    from steermoe.analysis.plan import Corpus, Gpu, Plan, Setup


def main(
    hours: options.Hours = None,
    epochs: options.Epochs = None,
    mean_seconds: options.MeanSeconds = None,
    profile: options.ProfileName = None,
    arm: options.ArmName = None,
    encoder: EncoderName = None,
    llm: LlmName = None,
    gpu: options.GpuName = "h200",
    gpus: options.Gpus = 1,
    memory: options.Memory = None,
    mode: options.Mode = "plain",
    batch_seconds: options.BatchSeconds = None,
    prompt_tokens: options.PromptTokens = 10,
    target_tokens: options.TargetTokens = 40,
    disk: options.Disk = Path(),
    params: Params = Path("params.yaml"),
    as_json: Json = False,
) -> int:
    """Estimate operations, hours, memory and disk of a training run before it runs.

    Of every arm in force, as its profile configures it; or, with --hours and --epochs, of one arm on anything.
    Models that are named here instead of in params.yaml count as bfloat16. Exits with 1 where a run cannot
    fit, and says which number exceeds which.

    Examples:

        steermoe plan --profile paper

        steermoe plan --profile paper --arm conformer-7b --gpu rtx4090

        steermoe plan --hours 100.6 --epochs 10 --encoder whisper-large-v3 --llm qwen2.5-7b-instruct

        steermoe plan --hours 2 --epochs 8 --mean-seconds 3 --gpu cpu
    """
    if not disk.exists():
        raise ValueError(f"--disk: found {str(disk)!r}; legal: a place that is there")
    needing_hours = {"--encoder": encoder, "--llm": llm, "--mean-seconds": mean_seconds}
    _check(hours, epochs, profile, [name for name, value in needing_hours.items() if value is not None])
    device, free = _device(gpu, memory), shutil.disk_usage(disk).free
    if hours is None or epochs is None:
        return _profile(params, profile, arm, device, gpus, mode, batch_seconds, free, as_json)
    return _run(
        params, arm, encoder, llm, device, gpus, mode, batch_seconds, free, as_json,
        (hours, epochs, mean_seconds or 12.69, prompt_tokens, target_tokens),
    )  # fmt: skip


def _check(hours: float | None, epochs: float | None, profile: str | None, needing_hours: list[str]) -> None:
    """No option is given without those that it goes with, or beside one that it has no effect with."""
    if (hours is None) != (epochs is None):
        lacking = "--hours" if hours is None else "--epochs"
        raise ValueError(
            f"Missing option '{lacking}' (see `steermoe plan --help`): --hours and --epochs go together"
        )
    if hours is None and needing_hours:
        raise ValueError(
            f"{needing_hours[0]}: without effect but with --hours; leave it out, or give --hours and --epochs"
        )
    if hours is not None and profile is not None:
        raise ValueError("--profile: without effect with --hours; leave one of them out")


def _device(gpu: options.GpuName, memory: float | None) -> "Gpu":
    from steermoe.analysis import plan

    device = plan.this_cpu() if gpu == "cpu" else plan.GPUS[gpu]
    return device if memory is None else replace(device, memory=memory * plan.GB)


def _profile(
    params: Path, profile: str | None, arm: str | None, device: "Gpu", gpus: int, mode: options.Mode,
    batch_seconds: float | None, free: float, as_json: bool,
) -> int:  # fmt: skip
    """The arms of a profile."""
    from steermoe import config
    from steermoe.analysis import profile_plan
    from steermoe.serving import plan_tables

    name = profile or config.load(params).profile
    settings = config.preview(params, name, None if arm is None else [arm])
    found = profile_plan.plan_profile(settings, device, gpus, mode, batch_seconds, free)
    stated = profile_plan.assumptions(settings, device, found.unknown)
    if as_json:
        setup = {"profile": name, "gpu": asdict(device), "gpus": gpus, "mode": mode}
        print(json.dumps({**setup, **asdict(found), "assumptions": stated}, indent=1))
    else:
        plan_tables.show(name, found, device, gpus, mode, stated)
    return _refused(found.refusals)


def _refused(lines: list[str]) -> int:
    for line in lines:
        typer.echo(f"steermoe: this cannot run: {line}", err=True)
    return 1 if lines else 0


def _run(
    params: Path, arm: str | None, encoder: str | None, llm: str | None, device: "Gpu", gpus: int, mode: options.Mode,
    batch_seconds: float | None, free: float, as_json: bool, heard_hours: tuple[float, float, float, int, int],
) -> int:  # fmt: skip
    """One arm on a corpus that is described by the options."""
    from steermoe import config
    from steermoe.analysis import audit, plan, presets, teacher

    settings = config.load(params)
    chosen = settings.arm(arm or settings.compare[0])
    setup = plan.Setup(
        gpu=device,
        gpus=gpus,
        batch_seconds=batch_seconds or chosen.training.batch_seconds,
        encoder_dtype="bfloat16" if encoder else chosen.encoder.dtype,
        llm_dtype="bfloat16" if llm else chosen.llm.dtype,
    )
    heard = presets.encoder_shape(encoder or chosen.encoder.path, setup.encoder_dtype, chosen.encoder.layers)
    read = presets.llm_shape(llm or chosen.llm.path, setup.llm_dtype, chosen.llm.layers)
    corpus = plan.Corpus(*heard_hours)
    taught = teacher.TeacherShape.of(chosen)
    found = plan.plan(heard, read, audit.Sections.of(chosen), corpus, setup, taught)
    refused = plan.refusals(found, setup, mode, free)
    stated = plan.assumptions(corpus, setup) + [plan.TAUGHT] * (taught is not None)
    if as_json:
        title = {"arm": chosen.name, "encoder": heard.name, "llm": read.name, "setup": asdict(setup)}
        figures = {**title, "corpus": asdict(corpus), **asdict(found)}
        print(json.dumps({**figures, "assumptions": stated, "refusals": refused}, indent=1))
    else:
        _show(f"{chosen.name}: {heard.name} + {read.name}", found, corpus, setup, mode, stated)
    return _refused(refused)


def _show(
    title: str, found: "Plan", corpus: "Corpus", setup: "Setup", mode: str, assumptions: list[str]
) -> None:
    from steermoe.analysis.plan import GB
    from steermoe.serving.terminal import plain_console

    console = plain_console()
    console.print(_operations(title, found, corpus))
    console.print(_memory(found, setup, mode))
    parts = ", ".join(f"{name} {size / GB:.2f}" for name, size in found.parts.items())
    console.print(f"mode plain, GB: {parts}")
    console.print(_disk(found))
    console.print("Assumed:", style="bold")
    for line in assumptions:
        console.print(f"- {line}")


def _operations(title: str, found: "Plan", corpus: "Corpus") -> "Table":
    from rich.table import Table

    from steermoe.analysis.plan import EFFICIENCY

    low, high = (f"{100 * share:.0f} %" for share in EFFICIENCY)
    rows = (
        "encoder frames + LLM positions",
        "encoder, TFLOP a clip, forward + backward",
        "LLM, TFLOP a clip, forward + backward",
        "teacher, TFLOP a clip, forward",
        "all, TFLOP a clip",
        f"FLOP of {corpus.epochs:g} epochs of {corpus.clips:,.0f} clips",
        "hours at the whole peak (floor)",
        f"hours at {high} to {low} of it",
        "audio hours a device hour (floor)",
    )
    columns = [
        (
            f"{case.clip.frames} + {case.clip.positions}",
            f"{case.work.encoder_forward / 1e12:.2f} + {case.work.encoder_backward / 1e12:.2f}",
            f"{case.work.llm_forward / 1e12:.2f} + {case.work.llm_backward / 1e12:.2f}",
            f"{case.work.teacher / 1e12:.2f}",
            f"{case.work.total / 1e12:.2f}",
            f"{case.operations:.2e}",
            f"{case.floor_hours:.2f}",
            f"{case.hours[1]:.2f} to {case.hours[0]:.2f}",
            f"{case.audio_hours_an_hour:,.0f}",
        )
        for case in found.cases
    ]
    table = Table(title=f"{title}: operations", title_justify="left")
    table.add_column("")
    for case in found.cases:
        table.add_column(case.name, justify="right")
    taught = any(case.work.teacher for case in found.cases)
    for cells in zip(rows, *columns, strict=True):
        if taught or not cells[0].startswith("teacher"):
            table.add_row(*cells)
    return table


def _memory(found: "Plan", setup: "Setup", mode: str) -> "Table":
    from rich.table import Table

    from steermoe.analysis.plan import GB

    table = Table(title=f"memory in GB; a device has {setup.gpu.memory / GB:.1f}", title_justify="left")
    for column in ("mode", "a device", "host", "fits"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for name, (device, host) in found.memory.items():
        chosen = f"{name} (chosen)" if name == mode else name
        fits = "yes" if device <= setup.gpu.memory else "no"
        table.add_row(chosen, f"{device / GB:.1f}", f"{host / GB:.1f}", fits)
    return table


def _disk(found: "Plan") -> "Table":
    from rich.table import Table

    from steermoe.analysis.plan import GB

    table = Table(title="disk in GB", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, size in {**found.disk, "all": sum(found.disk.values())}.items():
        table.add_row(name, f"{size / GB:.2f}")
    return table
