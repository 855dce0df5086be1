"""`steermoe plan`."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from steermoe.cli.options import EncoderName, Json, LlmName, Params

Mode = Literal["plain", "zero2", "zero2-offload", "zero3", "zero3-offload"]
GpuName = Literal["h100", "h200", "a100", "a100-40gb", "rtx4090"]
ASSUMPTIONS = """- peak {rate}, of which training reaches 30 to 60 %
- {prompt} prompt and {target} target tokens per clip; logits of these alone
- backward pass: 1 x forward for frozen linear maps, 2.5 x for attention; elementwise work left out
- steering from layer k on: backward pass through the encoder's layers above k only; linear: not at all
- AdamW in float32: 16 bytes per trained parameter; attention fused, no recomputation
- batch of {max_batch_seconds:g} audio seconds per device
- training alone: no evaluation, and no teacher of training.distillation"""


Hours = Annotated[float, typer.Option(help="hours of training audio", min=0.001)]
Epochs = Annotated[float, typer.Option(help="passes over the training audio", min=0.001)]
Mean = Annotated[float, typer.Option(help="mean clip duration in seconds; 12.69 is LibriSpeech's", min=0.1)]
Profile = Annotated[str | None, typer.Option(help="profile to read; default: the selected one")]
Variant = Annotated[str | None, typer.Option(help="variant to estimate; default: the first selected")]
Gpus = Annotated[int, typer.Option(help="number of devices", min=1)]
Memory = Annotated[float | None, typer.Option(help="memory per device in GB; default: the device's", min=0.1)]
ModeOption = Annotated[Mode, typer.Option(help="plain, or a DeepSpeed ZeRO mode")]
Batch = Annotated[
    float | None, typer.Option(help="audio seconds per batch and device; default: the profile's", min=0.1)
]
PromptTokens = Annotated[int, typer.Option(help="prompt tokens per clip", min=0)]
TargetTokens = Annotated[int, typer.Option(help="target tokens per clip", min=1)]


def main(
    hours: Hours,
    epochs: Epochs,
    mean_seconds: Mean = 12.69,
    profile: Profile = None,
    variant: Variant = None,
    encoder: EncoderName = None,
    llm: LlmName = None,
    gpu: Annotated[GpuName, typer.Option(help="device")] = "h200",
    gpus: Gpus = 1,
    memory: Memory = None,
    mode: ModeOption = "plain",
    max_batch_seconds: Batch = None,
    prompt_tokens: PromptTokens = 10,
    target_tokens: TargetTokens = 40,
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
    peak, source, bytes_of_gpu = parameters.GPUS[gpu]
    available = bytes_of_gpu if memory is None else memory * parameters.GB
    shapes = (
        parameters.encoder_shape(chosen.encoder.path, chosen.encoder.dtype, chosen.encoder.layers),
        parameters.llm_shape(chosen.llm.path, chosen.llm.dtype, chosen.llm.layers),
    )
    run = {
        "hours": hours, "epochs": epochs, "mean_seconds": mean_seconds, "prompt": prompt_tokens,
        "target": target_tokens, "peak": peak, "gpus": gpus,
        "max_batch_seconds": max_batch_seconds or chosen.training.max_batch_seconds,
    }  # fmt: skip
    found = parameters.plan(chosen, *shapes, **run)
    refused = _refusal(found["memory"], mode, available)
    encoder, llm = (shape.name for shape in shapes)
    if as_json:
        found |= {"variant": chosen.name, "encoder": encoder, "llm": llm, "run": run, "refusal": refused}
        print(json.dumps(found, indent=1))
    else:
        _show(f"{chosen.name}: {encoder} + {llm}", found, available)
        print(ASSUMPTIONS.format(rate=f"{peak / 1e12:.1f} TFLOP/s in bfloat16 ({source})", **run))
    if refused:
        typer.echo(f"steermoe: the run does not fit: {refused}", err=True)
    return 1 if refused else 0


def _refusal(memory: dict[str, tuple[float, float]], mode: str, available: float) -> str | None:
    """Return why the run does not fit into a device's memory; None if it does."""
    need = memory[mode][0]
    if need <= available:
        return None
    fitting = [name for name, (device, _) in memory.items() if device <= available]
    instead = (
        f"these modes fit: {', '.join(fitting)}" if fitting else "no mode fits; a smaller batch needs less"
    )
    return f"mode {mode} needs {need / 1e9:.1f} GB per device, which has {available / 1e9:.1f} GB; {instead}"


def _show(title: str, found: dict[str, Any], available: float) -> None:
    """Print one table of operations and one of memory, a column per case and a row per mode."""
    from rich.table import Table

    from steermoe.cli.terminal import plain_console

    console = plain_console()
    table = Table(title=title, title_justify="left")
    for column in ("case", "TFLOP/clip", "total FLOP", "hours at peak", "expected hours", "audio h/device h"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for name, case in found["cases"].items():
        expected = " to ".join(f"{hours:.2f}" for hours in case["hours"])
        table.add_row(
            name, f"{case['tflop_per_clip']:.2f}", f"{case['operations']:.2e}", f"{case['hours_at_peak']:.2f}",
            expected, f"{case['audio_hours_per_device_hour']:,.0f}",
        )  # fmt: skip
    console.print(table)
    table = Table(title=f"memory in GB; a device has {available / 1e9:.1f}", title_justify="left")
    for column in ("mode", "device", "host", "fits"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for name, (device, host) in found["memory"].items():
        fits = "yes" if device <= available else "no"
        table.add_row(name, f"{device / 1e9:.1f}", f"{host / 1e9:.1f}", fits)
    console.print(table)
