"""The options of `steermoe plan`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Hours = Annotated[
    float | None,
    typer.Option(help="hours of audio that are trained on; default: as the profile says", min=0.001),
]
Epochs = Annotated[float | None, typer.Option(help="passes over them; goes with --hours", min=0.001)]
MeanSeconds = Annotated[
    float | None,
    typer.Option(help="mean length of a clip, with --hours; default: 12.69, LibriSpeech's", min=0.1),
]
ProfileName = Annotated[
    str | None, typer.Option(help="estimate the arms of a profile; default: the one in force")
]
ArmName = Annotated[str | None, typer.Option(help="arm; default: those in force, with --hours the first")]
GpuName = Annotated[
    Literal["h100", "h200", "a100", "a100-40gb", "rtx4090", "cpu"],
    typer.Option(help="device; cpu: the one at hand, measured"),
]
Gpus = Annotated[int, typer.Option(help="how many of them", min=1)]
Memory = Annotated[float | None, typer.Option(help="GB that a device has; default: the device's", min=0.1)]
Mode = Annotated[
    Literal["plain", "zero2", "zero2-offload", "zero3", "zero3-offload"],
    typer.Option(help="plain, or a mode of DeepSpeed"),
]
BatchSeconds = Annotated[
    float | None, typer.Option(help="audio seconds a batch and device; default: the arm's", min=0.1)
]
PromptTokens = Annotated[int, typer.Option(help="of a clip, with --hours", min=0)]
TargetTokens = Annotated[int, typer.Option(help="of a clip, with --hours", min=1)]
Disk = Annotated[Path, typer.Option(help="a place on the disk whose free space counts")]
