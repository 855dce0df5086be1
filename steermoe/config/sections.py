"""The sections of params.yaml and of the profiles: their values, and which are legal."""

import ast
import functools
import re
import string
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

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
Parts = Annotated[int, Field(ge=2)]
EXPERTS = "a whole number >= 2 (fewer choices: router static), or a list with one for each steered place"
LAYERS = "all, none, every-K (K >= 2), first-K, last-K, or a list of different layer numbers >= 0"


def _list(experts: int | list[int]) -> list[int]:
    return [experts] if isinstance(experts, int) else experts


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


class Steering(Section):
    """What method `steering` adds to the encoder."""

    num_experts: int | list[int] = Field(description=EXPERTS)
    router: Annotated[str, row_of("models/routers.py", "ROUTERS")]
    groups: Parts | None
    stages: Parts | None
    layers: str | list[int] = Field(description=LAYERS)
    post_encoder: bool
    site: Literal["output", "attention"]
    scale: Literal["learned", "fixed", "none"]
    scale_init: Annotated[float, Field(ge=0)] | None
    vector_std: Annotated[float, Field(ge=0)]
    temperature: Positive
    top_k: Count | None
    gate_dropout: Annotated[float, Field(ge=0, lt=1)]
    load_balance: Annotated[float, Field(ge=0)]
    z_loss: Annotated[float, Field(ge=0)]

    @field_validator("num_experts", mode="plain")
    @classmethod
    def _choices(cls, experts: Any) -> Any:
        counts = experts if isinstance(experts, list) else [experts]
        if not counts or not all(type(count) is int and count >= 2 for count in counts):
            raise illegal(EXPERTS)
        return experts

    @field_validator("groups", "stages")
    @classmethod
    def _of_the_router(cls, parts: int | None, info: ValidationInfo) -> int | None:
        router, experts = info.data.get("router"), _list(info.data.get("num_experts", []))
        owner = {"groups": "hierarchical", "stages": "progressive"}[str(info.field_name)]
        if router is not None and (parts is not None) != (router == owner):
            raise illegal(
                "null, as only router " + owner + " has it" if parts else f"a number >= 2 for {owner}"
            )
        if parts and any(count % parts or count == parts for count in experts):
            raise illegal(f"a number that divides steering.num_experts ({experts}) and is smaller")
        return parts

    @field_validator("layers", mode="plain")
    @classmethod
    def _which_layers(cls, layers: Any) -> Any:
        if isinstance(layers, list):
            whole = all(type(number) is int and number >= 0 for number in layers)
            legal = layers and whole and len(set(layers)) == len(layers)
        else:
            legal = re.fullmatch(r"all|none|every-([2-9]|[1-9]\d+)|(first|last)-[1-9]\d*", str(layers))
        if not legal:
            raise illegal(LAYERS)
        return layers

    @field_validator("post_encoder")
    @classmethod
    def _somewhere(cls, post: bool, info: ValidationInfo) -> bool:
        if not post and info.data.get("layers") == "none":
            raise illegal("true where steering.layers is none")
        return post

    @field_validator("site")
    @classmethod
    def _inside_layers(cls, site: str, info: ValidationInfo) -> str:
        if site != "output" and info.data.get("layers") == "none":
            raise illegal("output where steering.layers is none")
        return site

    @field_validator("scale_init")
    @classmethod
    def _of_the_scale(cls, start: float | None, info: ValidationInfo) -> float | None:
        kind = info.data.get("scale")
        if kind == "none" and start is not None:
            raise illegal("null where steering.scale is none")
        if (kind == "learned" and start is None) or (kind == "fixed" and not start):
            raise illegal(f"a number {'>=' if kind == 'learned' else '>'} 0 where steering.scale is {kind}")
        return start

    @field_validator("vector_std")
    @classmethod
    def _can_learn(cls, std: float, info: ValidationInfo) -> float:
        if std == info.data.get("scale_init") == 0:
            raise illegal("a number > 0 where scale_init is 0, else no gradient reaches either")
        return std

    @field_validator("top_k")
    @classmethod
    def _leaves_out(cls, count: int | None, info: ValidationInfo) -> int | None:
        fewest = min(_list(info.data.get("num_experts", [])), default=0)
        if count and fewest and count >= fewest:
            raise illegal(f"null, or a number below steering.num_experts ({fewest})")
        return count

    @field_validator("gate_dropout")
    @classmethod
    def _more_than_one(cls, dropout: float, info: ValidationInfo) -> float:
        if dropout and info.data.get("top_k") == 1:
            raise illegal("0 where steering.top_k is 1: the only gate is never left out")
        return dropout

    @field_validator("z_loss")
    @classmethod
    def _has_logits(cls, weight: float, info: ValidationInfo) -> float:
        if weight and info.data.get("router") in ("hierarchical", "progressive"):
            raise illegal(f"0 with router {info.data['router']}, whose logits are normalised already")
        return weight


class Lora(Section):
    """Low-rank adapters: `lora` in the encoder, `llm_lora` in the LLM."""

    rank: Count
    alpha: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: SomeNames


class Bridge(Section):
    """From the encoder's output to the LLM's embeddings."""

    downsample: Annotated[str, row_of("models/downsample.py", "DOWNSAMPLERS")]
    kernel: Count
    after: Rows | None
    projection: Annotated[str, row_of("models/projection.py", "PROJECTIONS")]
    width: Count | None
    heads: Count | None
    experts: Parts | None

    @field_validator("kernel")
    @classmethod
    def _has_windows(cls, kernel: int, info: ValidationInfo) -> int:
        if kernel != 1 and info.data.get("downsample") == "none":
            raise illegal("1 where bridge.downsample is none")
        return kernel

    @field_validator("after")
    @classmethod
    def _shortens(cls, layer: int | None, info: ValidationInfo) -> int | None:
        if layer is not None and info.data.get("downsample") == "none":
            raise illegal("null where bridge.downsample is none")
        return layer

    @field_validator("width", "heads", "experts")
    @classmethod
    def _of_the_projection(cls, value: int | None, info: ValidationInfo) -> int | None:
        projection, name = info.data.get("projection"), str(info.field_name)
        users = [row for row, options in PROJECTION_OPTIONS.items() if name in options]
        if projection is not None and (value is not None) != (projection in users):
            needed = (
                f"null with projection {projection}" if value else f"a number with projection {projection}"
            )
            raise illegal(f"{needed}; only {', '.join(users)} have it")
        return value


# The options that rows of PROJECTIONS take; rows that are not here take none.
PROJECTION_OPTIONS = {
    "mlp": ("width",),
    "feature_space": ("width", "heads"),
    "modality_steering": ("experts",),
    "adapter_attention": ("width", "heads"),
}


class Prompts(Section):
    """The text between audio and answer, per task."""

    transcribe: Text
    answer: Text

    @field_validator("transcribe", "answer")
    @classmethod
    def _placeholders(cls, template: str, info: ValidationInfo) -> str:
        asks = info.field_name == "answer"
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError:
            parsed = [("", "", "", "")]
        if [tuple(parts) for _, *parts in parsed if parts[0] is not None] != [("question", "", None)] * asks:
            raise illegal("text with {question} in it, once" if asks else "text without { and }")
        return template


class Evaluation(Section):
    """How predictions are made and scored."""

    normalizer: Annotated[str, row_of("evaluation/normalizers.py", "NORMALIZERS")]
    max_new_tokens: Count
    batch_seconds: Positive
    bootstrap_samples: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0, lt=1)]


class Encoder(Section):
    """The frozen speech encoder: a row of ENCODERS, and a folder or hub id of its weights."""

    name: Annotated[str, row_of("models/encoders/__init__.py", "ENCODERS")]
    path: Text
    dtype: Dtype


class Llm(Section):
    """The frozen LLM: a folder or hub id of its weights, and their form in memory."""

    path: Text
    dtype: Dtype
    quantization: Annotated[str, row_of("models/quantization.py", "QUANTIZATIONS")]


class TrainingSchedule(Section):
    """How long and how an arm is trained, whatever its method."""

    steps: Count
    batch_seconds: Positive
    max_seconds: Positive
    warmup_steps: Annotated[int, Field(ge=0)]
    schedule: Literal["cosine", "linear", "constant_with_warmup"]  # those of transformers that warm up
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Positive
    steering_clip: Positive
    precision: Literal["float32", "bfloat16", "float16"]
    gradient_checkpointing: bool
    eval_every: Count
    patience: Count

    @field_validator("warmup_steps", "eval_every")
    @classmethod
    def _within_steps(cls, value: int, info: ValidationInfo) -> int:
        steps, warms = info.data.get("steps", value + 1), info.field_name == "warmup_steps"
        if value > steps - warms:
            raise illegal(f"{'below' if warms else 'at most'} training.steps, which is {steps}")
        return value


class Training(TrainingSchedule):
    """How one arm is trained: `learning_rates` of the parts that its method trains."""

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


class ProfileTraining(TrainingSchedule):
    """How the arms of a profile are trained: `learning_rates` of every method."""

    learning_rates: LearningRates


class Corpus(Section):
    """What every corpus says: which of its SPLITS serve for what."""

    SPLITS: ClassVar[tuple[str, ...]]
    train: Names
    dev: Names
    test: Names
    seed: Seed

    @field_validator("train", "dev", "test")
    @classmethod
    def _own_and_apart(cls, names: list[str], info: ValidationInfo) -> list[str]:
        for name in names:
            if name not in cls.SPLITS:
                raise illegal(cls.SPLITS, found=name)
            for use, taken in info.data.items():
                if name in taken:
                    raise illegal(f"a split that is not in `{use}` too", found=name)
        return names

    @classmethod
    def _rows_per_split(
        cls, rows: dict[str, int], info: ValidationInfo, others: dict[str, int] | None
    ) -> dict[str, int]:
        """`rows` of every split: none where it is not in use; some, with those of `others`, where it is."""
        if set(rows) != set(cls.SPLITS):
            raise illegal(f"a number of rows for each of {', '.join(cls.SPLITS)}")
        used = [name for use in ("train", "dev", "test") for name in info.data.get(use, cls.SPLITS)]
        for name, count in rows.items():
            if name not in used and count:
                raise illegal(f"0 for `{name}`, which is not in train, dev or test", found={name: count})
            if name in used and others is not None and not count + others.get(name, 0):
                raise illegal(f"rows for `{name}`, which is in train, dev or test", found={name: count})
        return rows


class Synthetic(Corpus):
    """Corpus `synthetic`: espeak-ng speech."""

    SPLITS: ClassVar = ("train", "dev", "clean", "other")
    utterances: dict[str, Rows]
    questions: dict[str, Rows]
    noisy_share: Annotated[float, Field(ge=0, le=1)]

    @field_validator("utterances", "questions")
    @classmethod
    def _rows(cls, rows: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        return cls._rows_per_split(rows, info, info.data.get("utterances"))


class Digits(Corpus):
    """Corpus `digits`: the Free Spoken Digit Dataset, joined into strings of digits."""

    SPLITS: ClassVar = ("train", "test", "unseen")
    strings: dict[str, Rows]
    max_digits: Count
    mirror: Text | None
    required: bool

    @field_validator("strings")
    @classmethod
    def _rows(cls, rows: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        return cls._rows_per_split(rows, info, {})


LEFT_OUT: Any = None  # not a legal value, and not checked: a profile may lack a corpus


class Corpora(Section):
    """The settings of each corpus that a profile uses."""

    synthetic: Synthetic = LEFT_OUT
    digits: Digits = LEFT_OUT

    def named(self) -> dict[str, Synthetic | Digits]:
        """Those that are not left out."""
        return {
            name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set
        }
