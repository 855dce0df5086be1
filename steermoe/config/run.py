"""The sections of a run: preparing data, training, decoding, scoring."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from steermoe.config.section import (
    AtLeast2,
    Count,
    NotNegative,
    OpenShare,
    PartOfOne,
    Positive,
    Rows,
    Section,
    Share,
    SomeNames,
    Text,
    checked,
    name_in,
    whole,
)

NORMALIZERS = ("none", "folded", "whisper-english", "whisper-basic", "chinese")
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
Normalizer = Annotated[str, name_in(NORMALIZERS)]


class Generation(Section):
    """How answers are decoded.

    Attributes:
        ctc_weight: of CTC in the score of a transcript's tokens, with an adapter that has a CTC head
            (`steermoe.models.joint_decoding`); 0: the LLM decides alone.
    """

    max_new_tokens: Count
    min_new_tokens: Rows
    strategy: Literal["greedy", "beam", "sample"]
    num_beams: AtLeast2 | None
    temperature: Positive | None
    top_p: PartOfOne | None
    no_repeat_ngram_size: Count | None
    max_repeats: Count | None
    ctc_weight: Share

    def _rules(self) -> Iterator[tuple[str, str]]:
        if self.strategy != "greedy" and self.ctc_weight:
            yield "ctc_weight", f"0, as generation.strategy is {self.strategy}"
        if self.min_new_tokens > self.max_new_tokens:
            yield "min_new_tokens", f"at most generation.max_new_tokens, which is {self.max_new_tokens}"
        for key, strategy in (("num_beams", "beam"), ("temperature", "sample"), ("top_p", "sample")):
            value = getattr(self, key)
            if self.strategy != strategy and value is not None:
                yield key, f"null, as generation.strategy is {self.strategy}"
            if self.strategy == strategy and value is None and key != "top_p":
                yield key, f"a number, as generation.strategy is {self.strategy}"


class Evaluation(Section):
    """How predictions are scored, and in which batches they are made."""

    normalizer: Normalizer
    max_batch_seconds: Positive
    bootstrap_unit: Literal["auto", "row", "speaker", "text"]
    bootstrap_samples: Annotated[int, checked("a whole number >= 100", lambda count: whole(count, 100))]
    confidence: OpenShare
    normalizers: dict[str, Normalizer]

    def _rules(self) -> Iterator[tuple[str, str, Any]]:
        for corpus, name in self.normalizers.items():
            if name == self.normalizer:
                yield "normalizers", "a normaliser that differs from evaluation.normalizer", {corpus: name}

    def of(self, corpus: str) -> Self:
        """Return the section for one corpus: with its own normaliser, if it has one."""
        own = self.normalizers.get(corpus, self.normalizer)
        return self.model_copy(update={"normalizer": own, "normalizers": {}})


class Preprocessing(Section):
    """What is left out of shards. Test splits stay whole except for what `unreadable` names."""

    max_seconds: Positive | None
    max_tokens: Count | None
    max_rejected: Share
    unreadable: dict[str, SomeNames]


class Selection(Section):
    """Splits to train on and to choose by, of those that the corpora name; null: all of them.

    All splits are downloaded and preprocessed; a variant may train on others of them.
    """

    train: dict[str, SomeNames] | None
    dev: dict[str, SomeNames] | None


class Distillation(Section):
    """What is learned from a teacher: weights of the losses in docs/distillation.md.

    Attributes:
        teacher: folder or hub id of a trained adapter.
        logits: weight of the divergence from the teacher's distribution; 0: not used.
        temperature: softens both distributions; null without `logits`.
        hidden: weight of the distance to the direction of the teacher's last hidden states; 0: not used.
    """

    teacher: Text
    logits: NotNegative
    temperature: Positive | None
    hidden: NotNegative

    def _rules(self) -> Iterator[tuple[str, str]]:
        if (self.temperature is None) == (self.logits > 0):
            yield (
                "temperature",
                "a number > 0 where logits is above 0" if self.logits else "null where logits is 0",
            )
        if self.hidden == self.logits == 0:
            yield "hidden", "a number > 0 where logits is 0, else nothing is learned from the teacher"


class Ctc(Section):
    """CTC through the LLM's embedding table (`steermoe.models.ctc`).

    Attributes:
        steps: the first steps of the training, in which it is the only loss, and the LLM is not run.
        coef: its weight beside the LLM's loss in the steps after them.
        soft_tokens: what the LLM reads; false: the projector's output; true: at each position the token embeddings,
            weighted by the posteriors of the CTC head, without positions that are blank.
        spelling: score tokens by their letters too, so that rare and unseen words can be said.
        num_sampled: of how many tokens, beside those of its targets, a training batch computes the scores; null: all.
    """

    steps: Rows
    coef: Positive
    soft_tokens: bool
    spelling: bool
    num_sampled: Count | None


class TrainingSchedule(Section):
    """How a variant is trained, whatever its method.

    Either `max_steps` or `epochs` is null; `init_from` is the folder or hub id of a trained adapter, or null.

    Attributes:
        criterion: what on the development splits chooses the checkpoint and ends a training early.
        wer_rows: of how many of their rows the WER is measured; null where `criterion` is loss.
    """

    max_steps: Count | None
    epochs: Count | None
    max_batch_seconds: Positive
    max_seconds: Positive
    warmup_steps: Rows
    schedule: Literal["cosine", "linear", "constant_with_warmup"]  # those of transformers with a warm-up
    weight_decay: NotNegative
    max_grad_norm: Positive
    steering_max_grad_norm: Positive
    precision: Literal["float32", "bfloat16", "float16"]
    gradient_checkpointing: bool
    eval_steps: Count
    criterion: Literal["loss", "wer"]
    wer_rows: Count | None
    patience: Count
    init_from: Text | None
    ctc: Ctc | None
    distillation: Distillation | None

    def _rules(self) -> Iterator[tuple[str, str]]:
        if self.max_steps is None and self.epochs is None:
            yield "epochs", "a whole number >= 1 where training.max_steps is null"
        elif self.max_steps is not None and self.epochs is not None:
            yield "epochs", "null where training.max_steps is a number (set one of them)"
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            yield "warmup_steps", f"below training.max_steps, which is {self.max_steps}"
        if self.max_steps is not None and self.eval_steps > self.max_steps:
            yield "eval_steps", f"at most training.max_steps, which is {self.max_steps}"
        if self.max_steps is not None and self.ctc is not None and self.ctc.steps >= self.max_steps:
            yield "ctc", f"steps below training.max_steps, which is {self.max_steps}"
        if (self.wer_rows is None) != (self.criterion == "loss"):
            allowed = "null" if self.criterion == "loss" else "a whole number >= 1"
            yield "wer_rows", f"{allowed} where training.criterion is {self.criterion}"


class Training(TrainingSchedule):
    """How one variant is trained.

    Attributes:
        learning_rates: of the parts that its method trains.
        wer_normalizers: normaliser of each corpus with development rows, where `criterion` is wer.
        wer_ctc_weight: of CTC in the answers whose WER counts, as `generation.ctc_weight`; 0 without a CTC head.
    """

    learning_rates: dict[str, Positive]
    wer_normalizers: dict[str, Normalizer]
    wer_ctc_weight: Share


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

    A combined method takes each part's rate from the first of its ingredients that has it: the projection of
    `steering+lora` is trained at the rate of `steering`.
    """

    steering: SteeringRates
    linear: LinearRates
    lora: LoraRates
    llm_lora: LlmLoraRates


class Distributed(Section):
    """How processes share the work of a step. It is not part of a variant, for it does not change what is trained.

    Attributes:
        processes: number of processes on one machine, or `auto`: one for each visible GPU, at least one.
        strategy: none (one process), ddp (each process has all), zero2 and zero3 (DeepSpeed).
        offload: of what ZeRO shards, into the memory of the host.
    """

    processes: Annotated[
        int | Literal["auto"],
        checked("a whole number >= 1, or auto", lambda value: value == "auto" or whole(value, 1)),
    ]
    strategy: Literal["none", "ddp", "zero2", "zero3"]
    offload: Literal["none", "cpu"]

    def _rules(self) -> Iterator[tuple[str, str]]:
        if self.strategy == "none" and self.processes != 1:
            yield "strategy", "one of ddp, zero2, zero3, as training.distributed.processes is not 1"
        if self.strategy == "ddp" and self.processes == 1:
            yield "strategy", "one of none, zero2, zero3, as training.distributed.processes is 1"
        if self.offload != "none" and self.strategy in ("none", "ddp"):
            yield "offload", "none, as training.distributed.strategy is neither zero2 nor zero3"


class ProfileTraining(TrainingSchedule):
    """How the variants of a profile are trained: `learning_rates` of every method."""

    learning_rates: LearningRates
    distributed: Distributed

    def _rules(self) -> Iterator[tuple[str, str]]:
        yield from super()._rules()
        if self.criterion == "wer" and self.distributed.strategy == "zero3":
            yield "criterion", "loss, as training.distributed.strategy is zero3, which cannot decode"
