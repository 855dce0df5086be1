"""`steermoe plan`."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from steermoe.cli.options import EncoderName, Json, LlmName, Params

if TYPE_CHECKING:
    from steermoe.analysis.plan import Corpus, Plan, Setup

Mode = Literal["plain", "zero2", "zero2-offload", "zero3", "zero3-offload"]
GpuName = Literal["h100", "h200", "a100", "a100-40gb", "rtx4090", "cpu"]


def main(
    hours: Annotated[float, typer.Option(help="hours of training audio", min=0.001)],
    epochs: Annotated[float, typer.Option(help="passes over the training audio", min=0.001)],
    mean_seconds: Annotated[
        float, typer.Option(help="mean clip duration in seconds; 12.69 is LibriSpeech's", min=0.1)
    ] = 12.69,
    profile: Annotated[str | None, typer.Option(help="profile to read; default: the selected one")] = None,
    variant: Annotated[
        str | None, typer.Option(help="variant to estimate; default: the first selected")
    ] = None,
    encoder: EncoderName = None,
    llm: LlmName = None,
    gpu: Annotated[GpuName, typer.Option(help="device; cpu: this machine, measured")] = "h200",
    gpus: Annotated[int, typer.Option(help="number of devices", min=1)] = 1,
    memory: Annotated[
        float | None, typer.Option(help="memory per device in GB; default: the device's", min=0.1)
    ] = None,
    mode: Annotated[Mode, typer.Option(help="plain, or a DeepSpeed ZeRO mode")] = "plain",
    max_batch_seconds: Annotated[
        float | None,
        typer.Option(help="audio seconds per batch and device; default: the profile's", min=0.1),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="prompt tokens per clip", min=0)] = 10,
    target_tokens: Annotated[int, typer.Option(help="target tokens per clip", min=1)] = 40,
    params: Params = Path("params.yaml"),
    as_json: Json = False,
) -> int:
    """Estimate the operations, hours and memory of a training run before it runs.

    Models given as options instead of in params.yaml count as bfloat16. The exit code is 1 if the run does not fit
    into the device's memory.

    Examples:

        steermoe plan --hours 464 --epochs 10 --profile paper

        steermoe plan --hours 100.6 --epochs 10 --encoder whisper-large-v3 --llm qwen2.5-7b-instruct

        steermoe plan --hours 2 --epochs 8 --mean-seconds 3 --gpu cpu
    """
    from steermoe import config
    from steermoe.analysis import audit, plan, presets

    settings = config.preview(params, profile) if profile else config.load(params)
    chosen = settings.variant(variant or settings.compare[0])
    device = plan.this_cpu() if gpu == "cpu" else plan.GPUS[gpu]
    setup = plan.Setup(
        gpu=device if memory is None else replace(device, memory=memory * plan.GB),
        gpus=gpus,
        max_batch_seconds=max_batch_seconds or chosen.training.max_batch_seconds,
        encoder_dtype="bfloat16" if encoder else chosen.encoder.dtype,
        llm_dtype="bfloat16" if llm else chosen.llm.dtype,
        padded=chosen.encoder.window == "full",
    )
    shapes = (
        presets.encoder_shape(encoder or chosen.encoder.path, setup.encoder_dtype, chosen.encoder.layers),
        presets.llm_shape(llm or chosen.llm.path, setup.llm_dtype, chosen.llm.layers),
    )
    corpus = plan.Corpus(hours, epochs, mean_seconds, prompt_tokens, target_tokens)
    found = plan.plan(*shapes, audit.Sections.of(chosen), corpus, setup)
    refused, stated = plan.refusal(found, setup, mode), plan.assumptions(corpus, setup)
    names = [shape.name for shape in shapes]
    if as_json:
        title = {"variant": chosen.name, "encoder": names[0], "llm": names[1], "setup": asdict(setup)}
        figures = {**title, "corpus": asdict(corpus), **asdict(found), "assumptions": stated}
        print(json.dumps({**figures, "refusal": refused}, indent=1))
    else:
        _show(f"{chosen.name}: {' + '.join(names)}", found, corpus, setup, stated)
    if refused:
        typer.echo(f"steermoe: the run does not fit: {refused}", err=True)
    return 1 if refused else 0


def _show(title: str, found: "Plan", corpus: "Corpus", setup: "Setup", assumptions: list[str]) -> None:
    """Print one table of operations and one of memory, a column per case and a row per mode."""
    from rich.table import Table

    from steermoe.analysis.plan import GB
    from steermoe.cli.terminal import plain_console

    console = plain_console()
    table = Table(title=title, title_justify="left")
    for column in ("case", "TFLOP/clip", "total FLOP", "hours at peak", "expected hours", "audio h/device h"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for case in found.cases:
        longest, shortest = case.hours
        figures = (f"{case.work.total / 1e12:.2f}", f"{case.operations:.2e}", f"{case.floor_hours:.2f}",
                   f"{shortest:.2f} to {longest:.2f}", f"{case.audio_hours_an_hour:,.0f}")  # fmt: skip
        table.add_row(case.name, *figures)
    console.print(table)
    memory = Table(title=f"memory in GB; a device has {setup.gpu.memory / GB:.1f}", title_justify="left")
    for column in ("mode", "device", "host", "fits"):
        memory.add_column(column, justify="left" if column == "mode" else "right")
    for name, (on_device, host) in found.memory.items():
        fits = "yes" if on_device <= setup.gpu.memory else "no"
        memory.add_row(name, f"{on_device / GB:.1f}", f"{host / GB:.1f}", fits)
    console.print(memory)
    for line in assumptions:
        console.print(f"- {line}")
