"""The sections of params.yaml and of the profiles: their values, and which are legal."""

import ast
import functools
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from steermoe.config.depth import Depth
from steermoe.config.problems import illegal

Method = Literal[
    "steering",
    "linear",
    "lora",
    "steering+lora",
    "steering+llm_lora",
    "linear+llm_lora",
    "lora+llm_lora",
    "steering+lora+llm_lora",
]
Dtype = Literal["float32", "bfloat16"]
Count = Annotated[int, Field(ge=1)]
Rows = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295")]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1, description="text that is not empty")]


def of_the_hub(path: str) -> bool:
    """Whether a path can be a hub id, `name` or `owner/name`, as far as its letters tell."""
    return not path.startswith((".", "/", "~")) and path.count("/") < 2


def _pins(revision: str | None, info: ValidationInfo) -> str | None:
    path = info.data.get("path", "")
    if revision is not None and not of_the_hub(path):
        raise illegal(f"null, as {path!r} is a folder")
    return revision


Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Revision = Annotated[
    Commit | None,
    Field(description="null, or a commit of the hub, 40 hexadecimal digits"),
    AfterValidator(_pins),
]


def _different(names: list[str]) -> list[str]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise illegal("every name once", found=twice)
    return names


Names = Annotated[list[Text], Field(description="a list of names"), AfterValidator(_different)]
SomeNames = Annotated[
    list[Text], Field(min_length=1, description="a list of at least one name"), AfterValidator(_different)
]


def row_of(file: str, table: str) -> Any:
    """Makes a validator: a name must be a key of the registry `table`, a dict literal in steermoe/`file`.

    The keys are read off the source: importing the registry would import torch.
    """
    path = Path(__file__).parents[1] / file

    def check(name: str) -> str:
        legal = registered(path, table)
        if name not in legal:
            raise illegal(legal)
        return name

    return AfterValidator(check)


@functools.cache
def registered(path: Path, table: str) -> tuple[str, ...]:
    """The keys of the dict literal `table` in a source file."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        match statement:
            case ast.Assign(targets=[ast.Name(name)], value=ast.Dict(keys=keys)) if name == table:
                return tuple(ast.literal_eval(key) for key in keys if key)
            case ast.AnnAssign(target=ast.Name(name), value=ast.Dict(keys=keys)) if name == table:
                return tuple(ast.literal_eval(key) for key in keys if key)
    raise LookupError(f"{path} has no dict literal {table}")


class Section(BaseModel):
    """A section: frozen, strict, without defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Evaluation(Section):
    """How predictions are scored, and in which batches they are made."""

    normalizer: Annotated[str, row_of("evaluation/normalizers.py", "NORMALIZERS")]
    max_batch_seconds: Positive
    bootstrap_samples: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    normalizers: dict[str, Annotated[str, row_of("evaluation/normalizers.py", "NORMALIZERS")]]

    @field_validator("normalizers")
    @classmethod
    def _of_other_corpora(cls, names: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        corpora = (info.context or {}).get("corpora")
        for corpus, name in names.items():
            if isinstance(corpora, list) and corpus not in corpora:
                raise illegal(corpora, found=corpus)
            if name == info.data.get("normalizer"):
                raise illegal("a normaliser that differs from evaluation.normalizer", found={corpus: name})
        return names

    def of(self, corpus: str) -> Self:
        """The section as it holds for a corpus: with its own normaliser, where it has one."""
        own = self.normalizers.get(corpus, self.normalizer)
        return self.model_copy(update={"normalizer": own, "normalizers": {}})


class Preprocessing(Section):
    """What is left out of shards. Test splits are whole, but for what `unreadable` names."""

    max_seconds: Positive | None
    max_tokens: Count | None
    max_rejected: Annotated[float, Field(ge=0, lt=1)]
    unreadable: dict[str, SomeNames]


class Encoder(Section):
    """The frozen speech encoder: a row of ENCODERS, and a folder or hub id of its weights."""

    name: Annotated[str, row_of("models/encoders/__init__.py", "ENCODERS")]
    path: Text
    revision: Revision
    dtype: Dtype
    window: Literal["unpadded", "full"]
    layers: Depth


class Llm(Section):
    """The frozen LLM: a folder or hub id of its weights, and their form in memory."""

    path: Text
    revision: Revision
    dtype: Dtype
    quantization: Annotated[str, row_of("models/llm.py", "QUANTIZATIONS")]
    layers: Depth


class Selection(Section):
    """Of the splits that the corpora name under `train` and `dev`, those that serve: null for all of them.

    All are downloaded and preprocessed; a variant's own selection trains it on others of them.
    """

    train: dict[str, SomeNames] | None
    dev: dict[str, SomeNames] | None


class Distillation(Section):
    """What is learned from a teacher, beside the labels: weights of the losses that docs/distillation.md writes out.

    Attributes:
        teacher: folder or hub id of a trained adapter.
        logits: weight of the divergence from the teacher's distribution; 0: not learned from.
        temperature: that both distributions are softened by; null without logits.
        hidden: weight of the distance to the direction of the teacher's last hidden states; 0: not learned from.
    """

    teacher: Text
    logits: Annotated[float, Field(ge=0)]
    temperature: Positive | None
    hidden: Annotated[float, Field(ge=0)]

    @field_validator("temperature")
    @classmethod
    def _of_the_logits(cls, temperature: float | None, info: ValidationInfo) -> float | None:
        weight = info.data.get("logits")
        if weight is not None and (temperature is None) == (weight > 0):
            raise illegal("a number > 0 where logits is above 0" if weight else "null where logits is 0")
        return temperature

    @field_validator("hidden")
    @classmethod
    def _learns_something(cls, weight: float, info: ValidationInfo) -> float:
        if weight == info.data.get("logits") == 0:
            raise illegal("a number > 0 where logits is 0, else nothing is learned from the teacher")
        return weight


class TrainingSchedule(Section):
    """How long and how a variant is trained, whatever its method.

    One of `max_steps` and `epochs` is null; `init_from` is the folder or hub id of a trained adapter, or null.
    """

    max_steps: Count | None
    epochs: Count | None
    max_batch_seconds: Positive
    max_seconds: Positive
    warmup_steps: Annotated[int, Field(ge=0)]
    schedule: Literal["cosine", "linear", "constant_with_warmup"]  # those of transformers that warm up
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Positive
    steering_max_grad_norm: Positive
    precision: Literal["float32", "bfloat16", "float16"]
    gradient_checkpointing: bool
    eval_steps: Count
    patience: Count
    init_from: Text | None
    distillation: Distillation | None

    @field_validator("epochs")
    @classmethod
    def _instead_of_steps(cls, epochs: int | None, info: ValidationInfo) -> int | None:
        if "max_steps" in info.data and (info.data["max_steps"] is None) == (epochs is None):
            legal = "a whole number >= 1 where training.max_steps is null"
            raise illegal(
                legal if epochs is None else "null where training.max_steps is a number (set one of them)"
            )
        return epochs

    @field_validator("warmup_steps", "eval_steps")
    @classmethod
    def _within_steps(cls, value: int, info: ValidationInfo) -> int:
        steps, warms = info.data.get("max_steps"), info.field_name == "warmup_steps"
        if steps is not None and value > steps - warms:
            raise illegal(f"{'below' if warms else 'at most'} training.max_steps, which is {steps}")
        return value


class Training(TrainingSchedule):
    """How one variant is trained: `learning_rates` of the parts that its method trains."""

    learning_rates: dict[str, Positive]


class SteeringRates(Section):
    """Learning rates of method `steering`."""

    projection: Positive
    vectors: Positive
    router: Positive


class LinearRates(Section):
    """Learning rates of method `linear`."""

    projection: Positive


class LoraRates(Section):
    """Learning rates of method `lora`."""

    projection: Positive
    lora: Positive


class LlmLoraRates(Section):
    """Learning rates of what `+llm_lora` adds to a method."""

    llm_lora: Positive


class LearningRates(Section):
    """A learning rate for each part that a method trains.

    A method of several takes each part's rate from the first of them that has it: the projection of
    `steering+lora` is trained at steering's rate.
    """

    steering: SteeringRates
    linear: LinearRates
    lora: LoraRates
    llm_lora: LlmLoraRates


class Distributed(Section):
    """How many processes share the work of a step, and how; no part of a variant, for it is not what is trained.

    Attributes:
        processes: of one machine, or `auto`: one for each visible GPU, and one where there is none.
        strategy: none (one process), ddp (every process has all), zero2 and zero3 (DeepSpeed).
        offload: of what ZeRO holds, into the memory of the host.
    """

    processes: Count | Literal["auto"]
    strategy: Literal["none", "ddp", "zero2", "zero3"]
    offload: Literal["none", "cpu"]

    @field_validator("strategy")
    @classmethod
    def _for_so_many(cls, strategy: str, info: ValidationInfo) -> str:
        processes = info.data.get("processes", strategy)
        if strategy == "none" and processes != 1:
            raise illegal("one of ddp, zero2, zero3, as training.distributed.processes is not 1")
        if strategy == "ddp" and processes == 1:
            raise illegal("one of none, zero2, zero3, as training.distributed.processes is 1")
        return strategy

    @field_validator("offload")
    @classmethod
    def _of_what_is_sharded(cls, offload: str, info: ValidationInfo) -> str:
        if offload != "none" and info.data.get("strategy") in ("none", "ddp"):
            raise illegal("none, as training.distributed.strategy is neither zero2 nor zero3")
        return offload


class ProfileTraining(TrainingSchedule):
    """How the variants of a profile are trained: `learning_rates` of every method."""

    learning_rates: LearningRates
    distributed: Distributed
