"""`steermoe plan`."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from steermoe.cli.options import EncoderName, Json, LlmName, Params

Mode = Literal["plain", "zero2", "zero2-offload", "zero3", "zero3-offload"]
GpuName = Literal["h100", "h200", "a100", "a100-40gb", "rtx4090"]
TOKENS = {"prompt": 10, "target": 40}  # a clip
ASSUMPTIONS = """- peak {rate}, of which training reaches 30 to 60 %
- {prompt} prompt and {target} target tokens per clip; logits of these alone
- backward pass: 1 x forward for frozen linear maps, 2.5 x for attention; elementwise work left out
- steering from layer k on: backward pass through the encoder's layers above k only; linear: not at all
- AdamW in float32: 16 bytes per trained parameter; attention fused, no recomputation
- batch of {max_batch_seconds:g} audio seconds per device
- training alone: no evaluation, and no teacher of training.distillation"""


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
    gpu: Annotated[GpuName, typer.Option(help="device")] = "h200",
    gpus: Annotated[int, typer.Option(help="number of devices", min=1)] = 1,
    mode: Annotated[Mode, typer.Option(help="plain, or a DeepSpeed ZeRO mode")] = "plain",
    max_batch_seconds: Annotated[
        float | None, typer.Option(help="audio seconds per batch and device; default: the profile's", min=0.1)
    ] = None,
    params: Params = Path("params.yaml"),
    as_json: Json = False,
) -> int:
    """Estimate the operations, hours and memory of a training run before it runs.

    Models given as options count as bfloat16. The exit code is 1 if the run does not fit into the device's memory.

    Examples:

        steermoe plan --hours 464 --epochs 10 --profile paper
        steermoe plan --hours 100.6 --epochs 10 --encoder whisper-large-v3 --llm qwen2.5-7b-instruct
    """
    from steermoe import config
    from steermoe.analysis import parameters

    settings = config.preview(params, profile) if profile else config.load(params)
    chosen = settings.variant(variant or settings.compare[0])
    for part, given in (("encoder", encoder), ("llm", llm)):
        if given is not None:
            section = getattr(chosen, part).model_copy(update={"path": given, "dtype": "bfloat16"})
            chosen = chosen.model_copy(update={part: section})
    peak, source, available = parameters.GPUS[gpu]
    shapes = (
        parameters.encoder_shape(chosen.encoder.path, chosen.encoder.dtype, chosen.encoder.layers),
        parameters.llm_shape(chosen.llm.path, chosen.llm.dtype, chosen.llm.layers),
    )
    run = {"hours": hours, "epochs": epochs, "mean_seconds": mean_seconds, "peak": peak, "gpus": gpus,
           "max_batch_seconds": max_batch_seconds or chosen.training.max_batch_seconds, **TOKENS}  # fmt: skip
    found = parameters.plan(chosen, *shapes, **run)
    needed = found["memory"][mode][0]
    refused = None
    if needed > available:
        refused = f"mode {mode} needs {needed / 1e9:.1f} GB per device, which has {available / 1e9:.1f} GB"
    names = {"variant": chosen.name, "encoder": shapes[0].name, "llm": shapes[1].name}
    if as_json:
        print(json.dumps(found | names | {"run": run, "refusal": refused}, indent=1))
    else:
        _show("{variant}: {encoder} + {llm}".format(**names), found, available)
        print(ASSUMPTIONS.format(rate=f"{peak / 1e12:.1f} TFLOP/s in bfloat16 ({source})", **run))
    if refused:
        typer.echo(f"steermoe: the run does not fit: {refused}", err=True)
    return 1 if refused else 0


def _show(title: str, found: dict[str, Any], available: float) -> None:
    """Print one table of operations and one of memory, a column per case and a row per mode."""
    from rich.table import Table

    from steermoe.cli.terminal import plain_console

    table = Table(title=title, title_justify="left")
    for column in ("case", "TFLOP/clip", "total FLOP", "hours at peak", "expected hours", "audio h/device h"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for name, case in found["cases"].items():
        expected = " to ".join(f"{hours:.2f}" for hours in case["hours"])
        table.add_row(
            name, f"{case['tflop_per_clip']:.2f}", f"{case['operations']:.2e}", f"{case['hours_at_peak']:.2f}",
            expected, f"{case['audio_hours_per_device_hour']:,.0f}",
        )  # fmt: skip
    memory = Table(title=f"memory in GB; a device has {available / 1e9:.1f}", title_justify="left")
    for column in ("mode", "device", "host", "fits"):
        memory.add_column(column, justify="left" if column == "mode" else "right")
    for name, (device, host) in found["memory"].items():
        fits = "yes" if device <= available else "no"
        memory.add_row(name, f"{device / 1e9:.1f}", f"{host / 1e9:.1f}", fits)
    plain_console().print(table, memory)
