"""What the arms of a profile will take: hours, memory and disk from what the profile itself says.

Estimates on the assumptions of `steermoe.analysis.plan`; of training alone, evaluation comes on top.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from steermoe.analysis import audit, hours, plan, presets
from steermoe.analysis.teacher import TeacherShape
from steermoe.config import ArmConfig, Config

PROMPT_TOKENS = 10


@dataclass(frozen=True)
class ArmPlan:
    """The estimates of an arm.

    Attributes:
        name: of the arm.
        models: encoder and LLM.
        corpus: what it is trained on, and how often.
        case: the way in which it is fed.
        device_hours: of all devices together, longest first, at the shares `plan.EFFICIENCY` of the peak.
        memory: bytes a device, in the mode asked for.
        checkpoints: bytes on disk.
        refusals: why it cannot run; none if it can.
    """

    name: str
    models: tuple[str, str]
    corpus: plan.Corpus
    case: str
    device_hours: tuple[float, float]
    memory: float
    checkpoints: float
    refusals: list[str]


@dataclass(frozen=True)
class ProfilePlan:
    """The estimates of a profile: its arms, what lies on disk in bytes, and what is of unknown size."""

    arms: list[ArmPlan]
    disk: dict[str, float]
    unknown: list[str]
    refusals: list[str]

    @property
    def device_hours(self) -> tuple[float, float]:
        """Of all arms together, longest first."""
        return sum(arm.device_hours[0] for arm in self.arms), sum(arm.device_hours[1] for arm in self.arms)


def plan_profile(
    settings: Config, gpu: plan.Gpu, gpus: int, mode: str, batch_seconds: float | None, free_disk: float
) -> ProfilePlan:
    """Estimate every arm in force.

    Args:
        settings: the profile as it would be in force.
        gpu: the device; its memory is what an arm must fit.
        gpus: how many; a batch is for each of them.
        mode: row of `plan.Plan.memory`.
        batch_seconds: of audio a batch and device; None: each arm's own.
        free_disk: bytes.

    Raises:
        ValueError: a model is not known, or of a corpus no hours are published.
    """
    arms, weights = [], {}
    for name in settings.compare:
        planned, sizes = _arm(settings.arm(name), gpu, gpus, mode, batch_seconds)
        arms.append(planned)
        weights |= sizes
    disk, unknown = _corpora(settings)
    disk["frozen weights"] = sum(weights.values())
    disk["checkpoints"] = sum(arm.checkpoints for arm in arms)
    refusals = [f"{arm.name}: {line}" for arm in arms for line in arm.refusals]
    if sum(disk.values()) > free_disk:
        refusals.append(
            f"disk: {sum(disk.values()) / plan.GB:.1f} GB exceed the {free_disk / plan.GB:.1f} GB that are free; put "
            "fewer corpora in force, or name another place with --disk"
        )
    return ProfilePlan(arms, disk, unknown, refusals)


def _arm(
    arm: ArmConfig, gpu: plan.Gpu, gpus: int, mode: str, batch_seconds: float | None
) -> tuple[ArmPlan, dict[str, float]]:
    encoder = presets.encoder_shape(arm.encoder.path, arm.encoder.dtype, arm.encoder.layers)
    llm = presets.llm_shape(arm.llm.path, arm.llm.dtype, arm.llm.layers)
    seconds = batch_seconds or arm.training.batch_seconds
    setup = plan.Setup(gpu, gpus, seconds, arm.encoder.dtype, arm.llm.dtype, arm.encoder.window == "full")
    audio = hours.heard(arm.train_splits)
    clips = audio.clips or 1
    mean = audio.hours * 3600 / clips
    cost = (encoder.max_seconds or mean) if setup.padded else mean  # of a clip, as batches count it
    epochs = arm.training.epochs or (arm.training.steps or 0) * (seconds / cost) * gpus / clips
    corpus = plan.Corpus(audio.hours, epochs, mean, PROMPT_TOKENS, audio.target_tokens)
    teacher = TeacherShape.of(arm)
    found = plan.plan(encoder, llm, audit.Sections.of(arm), corpus, setup, teacher)
    case = found.cases[0] if setup.padded else next(c for c in found.cases if c.name == "not padded")
    device = found.memory[mode][0]
    refused = plan.refusals(found, setup, mode, float("inf"))
    checkpoints = sum(size for name, size in found.disk.items() if name.startswith("checkpoints"))
    longest, shortest = (each * gpus for each in case.hours)
    shapes = [encoder, llm] if teacher is None else [encoder, llm, teacher.encoder, teacher.llm]
    models = {shape.name: shape.parameters_in_all for shape in shapes}
    weights = {name: 2.0 * count for name, count in models.items()}
    names = (encoder.name, llm.name)
    planned = ArmPlan(arm.name, names, corpus, case.name, (longest, shortest), device, checkpoints, refused)
    return planned, weights


def _corpora(settings: Config) -> tuple[dict[str, float], list[str]]:
    """Bytes of the corpora in force on disk, and those whose size is not published."""
    disk, unknown = {"archives": 0.0, "unpacked": 0.0, "shards": 0.0}, []
    for name, section in settings.corpora.items():
        size = hours.download(name, section)
        if size is None:
            unknown.append(name)
            continue
        for place in disk:
            disk[place] += size
    disk["DVC's cache (a copy of what is unpacked and of the shards)"] = disk["unpacked"] + disk["shards"]
    return disk, unknown


def assumptions(settings: Config, setup_gpu: plan.Gpu, unknown: Sequence[str]) -> list[str]:
    """What the figures rest on."""
    low, high = (f"{100 * share:.0f}" for share in plan.EFFICIENCY)
    lines = [
        f"peak {setup_gpu.peak / 1e12:.1f} TFLOP/s in bfloat16 ({setup_gpu.source}), of which training reaches "
        f"{low} to {high} %",
        "an arm is trained for all its steps of full batches; hours and clips of the corpora as published",
        f"{PROMPT_TOKENS} prompt tokens a clip; no evaluation: decoding the test splits comes on top",
        "disk: archives, what they are unpacked to, shards and DVC's cache as large as the archives each",
    ]
    if any(arm.encoder.window == "full" for arm in (settings.arm(name) for name in settings.compare)):
        lines.append("window full: every clip costs as much as the encoder's whole window")
    if any(settings.arm(name).training.distillation for name in settings.compare):
        lines.append(plan.TAUGHT)
    if unknown:
        lines.append(f"not counted, as no size is published: {', '.join(unknown)}")
    return lines
