"""Estimate a training run before it runs: operations, hours and memory.

Estimates, not measurements: every figure rests on the shapes of the real modules and on `assumptions`.
`steermoe.analysis.work` has the formulas.
"""

import math
from dataclasses import dataclass

from steermoe.analysis.audit import Sections, trained_parameters
from steermoe.analysis.presets import EncoderShape, LlmShape
from steermoe.analysis.work import Clip, Work, activations, clip, work

GB = 1e9
GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}
EFFICIENCY = (0.3, 0.6)  # share of the matrix peak that training reaches
STATE = {"weights": 4, "gradients": 4, "optimizer": 8}  # bytes of a trained parameter, AdamW in float32
RESERVED = 1.5 * GIB  # context of the driver, kernels, fragmentation


@dataclass(frozen=True)
class Gpu:
    """An accelerator.

    Attributes:
        peak: matrix multiplications in bfloat16, operations a second.
        source: where that is from.
        memory: bytes.
    """

    peak: float
    source: str
    memory: float


@dataclass(frozen=True)
class Corpus:
    """What is trained on, and how often.

    Attributes:
        hours: of audio.
        epochs: passes over it.
        mean_seconds: length of a clip.
        prompt_tokens, target_tokens: of a clip.
    """

    hours: float
    epochs: float
    mean_seconds: float
    prompt_tokens: int
    target_tokens: int

    @property
    def clips(self) -> float:
        """Clips of an epoch."""
        return self.hours * 3600 / self.mean_seconds


@dataclass(frozen=True)
class Setup:
    """What it is trained on: the device, how many of them, audio seconds a batch and device, bytes a number.

    `padded`: every clip is as long as the encoder's longest input.
    """

    gpu: Gpu
    gpus: int
    max_batch_seconds: float
    encoder_dtype: str
    llm_dtype: str
    padded: bool = False


@dataclass(frozen=True)
class Case:
    """The operations of the whole run under one way to feed it.

    Attributes:
        name: of the way.
        clip: lengths of one clip.
        work: operations of one training step on one clip.
        operations: of the run.
        floor_hours: at the whole peak.
        hours: at EFFICIENCY, longest first.
        audio_hours_an_hour: at the whole peak.
    """

    name: str
    clip: Clip
    work: Work
    operations: float
    floor_hours: float
    hours: tuple[float, float]
    audio_hours_an_hour: float


@dataclass(frozen=True)
class Plan:
    """All estimates of a run.

    Attributes:
        trained: parameters by part.
        cases: padded to the encoder's longest input (where it has one), not padded, and with the encoder's
            output kept where nothing in it is trained.
        memory: mode of distribution -> (bytes a device, bytes of the host).
        parts: what the memory of mode `plain` is made of.
    """

    trained: dict[str, int]
    cases: list[Case]
    memory: dict[str, tuple[float, float]]
    parts: dict[str, float]


def plan(
    encoder: EncoderShape,
    llm: LlmShape,
    sections: Sections,
    corpus: Corpus,
    setup: Setup,
) -> Plan:
    """Estimate a run. `encoder` gets LoRA or the hooks of steering by this.

    Raises:
        ValueError: a setting does not fit the encoder, or clips are longer than it takes.
    """
    if encoder.max_seconds is not None and corpus.mean_seconds > encoder.max_seconds:
        raise ValueError(
            f"mean-seconds: found {corpus.mean_seconds:g}, {encoder.name} takes at most "
            f"{encoder.max_seconds:g} s; legal: at most that"
        )
    weights = {"encoder": encoder.parameters_in_all, "llm": llm.parameters_in_all}
    kept = _activations(encoder, llm, sections, corpus, setup)
    trained = trained_parameters(sections, encoder, llm)
    parts = {
        "encoder's weights": weights["encoder"] * BYTES[setup.encoder_dtype],
        "LLM's weights": weights["llm"] * BYTES[setup.llm_dtype],
        **{f"trained {name}": sum(trained.values()) * size for name, size in STATE.items()},
        "activations": kept,
        "context of the device": RESERVED,
    }
    return Plan(
        trained=trained,
        cases=_cases(encoder, llm, sections, corpus, setup, trained),
        memory=_memory(parts, llm, setup),
        parts=parts,
    )


def _cases(
    encoder: EncoderShape,
    llm: LlmShape,
    sections: Sections,
    corpus: Corpus,
    setup: Setup,
    trained: dict[str, int],
) -> list[Case]:
    def case(name: str, seconds: float, once: bool = False) -> Case:
        heard = clip(seconds, encoder, sections, corpus.prompt_tokens, corpus.target_tokens)
        step = work(heard, encoder, llm, sections, trained)
        per_clip = step.total * corpus.epochs
        if once:
            per_clip -= step.encoder_forward * (corpus.epochs - 1)
        operations = per_clip * corpus.clips
        floor = operations / setup.gpu.peak / 3600 / setup.gpus
        low, high = EFFICIENCY
        rate = corpus.hours * corpus.epochs / (floor * setup.gpus)
        return Case(name, heard, step, operations, floor, (floor / low, floor / high), rate)

    cases = []
    if encoder.max_seconds is not None:
        cases.append(case(f"padded to {encoder.max_seconds:g} s", encoder.max_seconds))
    cases.append(case("not padded", corpus.mean_seconds))
    if sections.steering is None and sections.lora is None:
        cases.append(case("not padded, encoder's output kept", corpus.mean_seconds, once=True))
    return cases


def _activations(
    encoder: EncoderShape, llm: LlmShape, sections: Sections, corpus: Corpus, setup: Setup
) -> float:
    longest = encoder.max_seconds if setup.padded else None
    seconds = corpus.mean_seconds if longest is None else longest
    heard = clip(seconds, encoder, sections, corpus.prompt_tokens, corpus.target_tokens)
    clips = max(1, math.floor(setup.max_batch_seconds / seconds))  # a padded row costs the whole window
    return clips * activations(heard, encoder, llm, sections, BYTES[setup.llm_dtype])


def _memory(parts: dict[str, float], llm: LlmShape, setup: Setup) -> dict[str, tuple[float, float]]:
    """Bytes of a device and of the host in each mode (DeepSpeed's ZeRO, Rajbhandari et al. 2020)."""
    n = setup.gpus
    frozen = parts["encoder's weights"] + parts["LLM's weights"]
    weights, gradients, optimizer = (parts[f"trained {name}"] for name in STATE)
    rest = parts["activations"] + parts["context of the device"]
    layer = llm.matmul_weights / len(llm.layers) * BYTES[setup.llm_dtype]
    table = llm.head_weights * BYTES[setup.llm_dtype]
    gathered = 2 * max(layer, table)  # what is in use, and what is fetched ahead
    host = frozen + weights
    return {
        "plain": (frozen + weights + gradients + optimizer + rest, 0.0),
        "zero2": (frozen + weights + (gradients + optimizer) / n + rest, 0.0),
        "zero2-offload": (frozen + weights + gradients / n + rest, optimizer + gradients),
        "zero3": ((frozen + weights + gradients + optimizer) / n + gathered * (n > 1) + rest, 0.0),
        "zero3-offload": (gathered + gradients / n + rest, host + gradients + optimizer),
    }


def refusal(found: Plan, setup: Setup, mode: str) -> str | None:
    """Return why the run does not fit into the device's memory; None if it does."""
    need = found.memory[mode][0]
    if need <= setup.gpu.memory:
        return None
    fitting = [name for name, (device, _) in found.memory.items() if device <= setup.gpu.memory]
    instead = f"these modes fit: {', '.join(fitting)}" if fitting else "no mode fits"
    return (
        f"memory: mode {mode} needs {need / GB:.1f} GB per device, which has {setup.gpu.memory / GB:.1f} GB; "
        f"{instead}; a smaller batch needs less"
    )


def assumptions(corpus: Corpus, setup: Setup) -> list[str]:
    """What the figures rest on."""
    low, high = (f"{100 * share:.0f}" for share in EFFICIENCY)
    return [
        f"peak {setup.gpu.peak / 1e12:.1f} TFLOP/s in bfloat16 ({setup.gpu.source}), of which training reaches "
        f"{low} to {high} %; the floor is at 100 %",
        f"{corpus.prompt_tokens} prompt and {corpus.target_tokens} target tokens a clip; logits of these alone",
        "frozen maps have no weight gradient: backward = 1 x forward, attention 2.5 x; elementwise work left out",
        "steering from layer k on: backward through the encoder's layers above k only; linear: not at all",
        f"AdamW in float32: {sum(STATE.values())} bytes a trained parameter; attention fused, no recomputation",
        f"batch of {setup.max_batch_seconds:g} audio seconds a device; activations in {setup.llm_dtype}",
        "training alone: no evaluation, and no teacher of training.distillation",
    ]


GPUS: dict[str, Gpu] = {
    "h100": Gpu(989e12, "datasheet, H100 SXM dense", 80 * GB),
    "h200": Gpu(790e12, "measured on one H200; datasheet 989", 141 * GB),
    "a100": Gpu(312e12, "datasheet, A100 80 GB", 80 * GB),
    "a100-40gb": Gpu(312e12, "datasheet, A100 40 GB", 40 * GB),
    "rtx4090": Gpu(165.2e12, "datasheet, float32 accumulation", 24 * GB),
}


def this_cpu() -> Gpu:
    """The processor at hand: its peak is measured, by multiplying matrices for about half a second."""
    import os
    import time

    import torch

    size, rounds = 1024, 0
    left = torch.randn(size, size)
    torch.mm(left, left)  # the first one starts threads
    start = time.perf_counter()
    while time.perf_counter() - start < 0.5:
        torch.mm(left, left)
        rounds += 1
    peak = 2 * size**3 * rounds / (time.perf_counter() - start)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Gpu(peak, f"measured now, float32, {torch.get_num_threads()} threads", float(memory))
