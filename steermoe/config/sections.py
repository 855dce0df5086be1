"""The sections of params.yaml and of the profiles: their values, and which are legal."""

import ast
import functools
import string
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from steermoe.config.problems import illegal

Method = Literal["steering", "linear", "lora"]
Dtype = Literal["float32", "bfloat16"]
Count = Annotated[int, Field(ge=1)]
Rows = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295")]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1, description="text that is not empty")]


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

    num_experts: Count
    router: Annotated[str, row_of("models/routers.py", "ROUTERS")]
    layers: Literal["all"] | list[int] = Field(description="all, or a list of different numbers >= 0")
    scale_init: Annotated[float, Field(ge=0)]
    vector_std: Annotated[float, Field(ge=0)]

    @field_validator("layers", mode="plain")
    @classmethod
    def _all_or_numbers(cls, layers: Any) -> Any:
        numbers = layers if isinstance(layers, list) else []
        whole = all(type(number) is int and number >= 0 for number in numbers)
        if layers != "all" and not (numbers and whole and len(set(numbers)) == len(numbers)):
            raise illegal(str(cls.model_fields["layers"].description))
        return layers

    @field_validator("vector_std")
    @classmethod
    def _can_learn(cls, std: float, info: ValidationInfo) -> float:
        if std == info.data.get("scale_init") == 0:
            raise illegal("a number > 0 where scale_init is 0, else no gradient reaches either")
        return std


class Lora(Section):
    """What method `lora` adds to the encoder."""

    rank: Count
    alpha: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: SomeNames


class Bridge(Section):
    """From the encoder's output to the LLM's embeddings."""

    downsample: Annotated[str, row_of("models/downsample.py", "DOWNSAMPLERS")]
    kernel: Count
    projection: Annotated[str, row_of("models/projection.py", "PROJECTIONS")]


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
    dtype: Dtype


class Llm(Section):
    """The frozen LLM: a folder or hub id of its weights."""

    path: Text
    dtype: Dtype


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
    precision: Dtype
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


class LearningRates(Section):
    """A learning rate for each part that a method trains."""

    steering: SteeringRates
    linear: LinearRates
    lora: LoraRates


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
