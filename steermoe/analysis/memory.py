"""What every way to share a training takes of a GPU's memory and of the host's, by part.

It counts what `steermoe.training.deepspeed` holds: AdamW in float32, frozen weights in their own precision, which
only ZeRO-3 cuts into pieces, and which have neither gradients nor optimizer state (Rajbhandari et al. 2020).
Activations depend on the batch and are the caller's; what the driver and kernels need comes on top.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

GIB = 2**30
PRECISE = 4  # bytes of a number in float32: trained weights, gradients, each of AdamW's two moments
MOMENTS = 2
BUCKET = 10**7  # numbers that ZeRO sends at once (`deepspeed.BUCKET_NUMBERS`)
LIVE = 10**9  # numbers that ZeRO-3 keeps whole at a time (DeepSpeed's `stage3_max_live_parameters`)


@dataclass(frozen=True)
class Memory:
    """Bytes by part, of one GPU and of the host for that GPU's process.

    Attributes:
        device: frozen weights, trained weights, gradients, optimizer, activations, and buffers (of communication;
            with ZeRO-3 the weights that are whole for the moment).
        host: the same parts, as far as they are there while training.
        loading: of the host while a process starts: every one reads all frozen weights.
    """

    device: dict[str, float]
    host: dict[str, float] = field(default_factory=dict)
    loading: float = 0.0

    @property
    def total(self) -> float:
        """Bytes of one GPU."""
        return sum(self.device.values())


def memory(
    frozen: Mapping[str, float], numbers: float, trained: float, processes: int, activations: float = 0.0
) -> dict[str, Memory]:
    """What each mode takes: {mode: Memory}, modes as rows of MODES.

    Args:
        frozen: bytes of the frozen weights by model.
        numbers: how many numbers these are.
        trained: how many parameters are trained.
        processes: GPUs that share the work.
        activations: bytes that a GPU's share of the batch keeps for its backward pass.

    Raises:
        ValueError: there is no process.
    """
    if processes < 1:
        raise ValueError(f"processes: found {processes}; legal: a whole number from 1")
    whole = sum(frozen.values())
    return {
        mode: _mode(strategy, offload, whole, numbers, trained, processes, activations)
        for mode, (strategy, offload) in MODES.items()
    }


def _mode(
    strategy: str,
    offload: bool,
    frozen: float,
    numbers: float,
    trained: float,
    processes: int,
    activations: float,
) -> Memory:
    share = processes if strategy in ("zero2", "zero3") else 1
    weights, pieces = trained * PRECISE, trained * PRECISE / share
    device = {
        "frozen weights": frozen / (processes if strategy == "zero3" else 1),
        "trained weights": weights,
        "gradients": pieces,
        "optimizer": MOMENTS * pieces,
        "activations": activations,
        "buffers": weights if strategy == "ddp" else 0.0,  # DDP's buckets hold every gradient once more
    }
    if strategy in ("zero2", "zero3"):
        device["buffers"] = min(trained, BUCKET) * PRECISE
        device["optimizer"] += pieces  # a second copy of the weights, which the optimizer works on
    if strategy == "zero3":
        device["trained weights"] = pieces
        live = min(numbers, LIVE) * frozen / numbers if numbers else 0.0
        device["buffers"] += live if processes > 1 or offload else 0.0
    host: dict[str, float] = {}
    moved = ["gradients", "optimizer"] if offload else []
    if offload and strategy == "zero3":
        moved += ["frozen weights", "trained weights"]
    for part in moved:
        host[part], device[part] = device[part], 0.0
    return Memory(device, host, loading=frozen + weights)


def table(found: Mapping[str, Memory]) -> list[dict[str, float | str]]:
    """A row a mode: GiB of a GPU by part and in all, and GiB of the host for each process."""
    return [
        {
            "mode": mode,
            **{part: size / GIB for part, size in memory.device.items()},
            "GPU": memory.total / GIB,
            "host": sum(memory.host.values()) / GIB,
            "host while loading": memory.loading / GIB,
        }
        for mode, memory in found.items()
    ]


# mode -> training.distributed.strategy, and whether offload is cpu
MODES: dict[str, tuple[str, bool]] = {
    "one process": ("none", False),
    "ddp": ("ddp", False),
    "zero2": ("zero2", False),
    "zero2, offload": ("zero2", True),
    "zero3": ("zero3", False),
    "zero3, offload": ("zero3", True),
}
