"""A mistake in the configuration is reported with its place, what was found, and what is allowed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from steermoe import config
from steermoe.config import corpora, model, run, section

ROOT = Path(__file__).parents[2]
Edit = Callable[[dict[str, Any]], None]
Problems = Callable[[], list[str]]
LESSON: dict[str, Any] = {"teacher": "folder", "logits": 1.0, "temperature": 2.0, "hidden": 0.0}
MISTAKES = [  # place, value (... removes it), key that is named, words of what is allowed
    ("steering", 3, "steering", "a section with num_experts"),
    ("steering.num_experts", ..., "steering.num_experts", "missing"),
    ("steering.num_experts", "8", "steering.num_experts", "a whole number >= 2"),
    ("steering.num_experts", 8.0, "steering.num_experts", "a whole number >= 2"),
    ("steering.num_experts", True, "steering.num_experts", "a whole number >= 2"),
    ("steering.num_experts", 0, "steering.num_experts", "a whole number >= 2"),
    ("steering.num_experts", [4, 1], "steering.num_experts", "a whole number >= 2"),
    ("steering.router", "shard", "steering.router", "did you mean shared?"),
    ("steering.router", "mixd", "steering.router", "did you mean mixed?"),
    ("steering.groups", 2, "steering.groups", "only hierarchical"),
    ("steering.stages", 2, "steering.stages", "only progressive"),
    ("steering.top_k", 1, "steering.top_k", "a whole number >= 2 or null"),
    ("steering.top_k", 8, "steering.top_k", "null, or a number below steering.num_experts (8)"),
    ("steering.layers", "none", "steering.post_encoder", "true where steering.layers is none"),
    ("steering.scale", "none", "steering.scale_init", "null where steering.scale is none"),
    ("steering.scale_init", None, "steering.scale_init", "a number >= 0 where steering.scale is learned"),
    (
        "projector.width",
        8,
        "projector.width",
        "null with projection linear; only mlp, feature_space, adapter_attention have it",
    ),
    ("projector.downsample", "none", "projector.downsample_factor", "1 where projector.downsample is none"),
    ("steering.layers", [1, 1], "steering.layers", "all, none, every-K (K >= 2)"),
    ("steering.layers", [True], "steering.layers", "all, none, every-K (K >= 2)"),
    ("steering.layers", "al", "steering.layers", "all, none, every-K (K >= 2)"),
    ("steering.scale_init", float("nan"), "steering.scale_init", "a number >= 0 or null"),
    ("steering.vector_std", True, "steering.vector_std", "a number >= 0"),
    ("lora.rnk", 3, "lora.rnk", "unknown key; allowed: one of rank, alpha, dropout, targets"),
    ("lora.targets", ["a", "b", "a"], "lora.targets", "every name once"),
    ("lora.targets", [], "lora.targets", "a list of at least one name"),
    ("lora.dropout", 1, "lora.dropout", "a number >= 0 and < 1"),
    ("projector.downsample_factor", 0, "projector.downsample_factor", "a whole number >= 1"),
    ("projector.downsample", "mx", "projector.downsample", "did you mean max?"),
    ("prompts.answer", "hm", "prompts.answer", "text with {question} in it, once"),
    ("prompts.answer", "{ques", "prompts.answer", "text with {question} in it, once"),
    ("prompts.transcribe", "a {b}", "prompts.transcribe", "without { and }"),
    ("prompts.format", "chatt", "prompts.format", "did you mean chat?"),
    ("prompts.system", "Be brief.", "prompts.system", "null, as prompts.format is plain"),
    ("generation.num_beams", 4, "generation.num_beams", "null, as generation.strategy is greedy"),
    ("generation.num_beams", 1, "generation.num_beams", "a whole number >= 2 or null"),
    ("generation.strategy", "beam", "generation.num_beams", "a number, as generation.strategy is beam"),
    ("generation.strategy", "sample", "generation.temperature", "a number, as generation.strategy is sample"),
    ("generation.top_p", 0.9, "generation.top_p", "null, as generation.strategy is greedy"),
    ("generation.top_p", 1.1, "generation.top_p", "a number > 0 and <= 1 or null"),
    (
        "generation.min_new_tokens",
        1000,
        "generation.min_new_tokens",
        "at most generation.max_new_tokens, which is 48",
    ),
    ("generation.max_repeats", 0, "generation.max_repeats", "a whole number >= 1 or null"),
    ("generation.no_repeat_ngram_size", ..., "generation.no_repeat_ngram_size", "missing"),
    ("evaluation.normalizer", "fold", "evaluation.normalizer", "did you mean folded?"),
    ("evaluation.normalizers", {"digit": "none"}, "evaluation.normalizers", "did you mean digits?"),
    (
        "evaluation.normalizers",
        {"digits": "folded"},
        "evaluation.normalizers",
        "a normaliser that differs from evaluation.normalizer",
    ),
    (
        "mini:preprocessing.unreadable",
        {"digit": ["a"]},
        "preprocessing.unreadable",
        "one of synthetic, digits",
    ),
    ("mini:preprocessing.max_rejected", 1, "preprocessing.max_rejected", "a number >= 0 and < 1"),
    ("mini:preprocessing.max_tokens", 0, "preprocessing.max_tokens", "a whole number >= 1 or null"),
    ("evaluation.confidence", 95, "evaluation.confidence", "a number > 0 and < 1"),
    ("seed", -1, "seed", "a whole number from 0 to 4294967295"),
    ("compare", ["linear", "linear"], "compare", "every name once"),
    ("reference", "lora-2", "reference", "did you mean lora?"),
    ("profile", "mnii", "profile", "did you mean mini?"),
    ("profile", 7, "profile", "text"),
    ("variants.x", {"method": "linear"}, "variants.x.overrides", "missing"),
    (
        "mini:training.learning_rates.steering.vectors",
        ...,
        "training.learning_rates.steering.vectors",
        "missing",
    ),
    (
        "mini:training.learning_rates.linear.lora",
        0.001,
        "training.learning_rates.linear.lora",
        "unknown key; allowed: projection",
    ),
    ("mini:training.learning_rates.lora.lora", 0, "training.learning_rates.lora.lora", "a number > 0"),
    ("mini:training.learning_rates.lora", ..., "training.learning_rates.lora", "missing"),
    (
        "mini:training.warmup_steps",
        100000,
        "training.warmup_steps",
        "below training.max_steps, which is {steps}",
    ),
    (
        "mini:training.eval_steps",
        100000,
        "training.eval_steps",
        "at most training.max_steps, which is {steps}",
    ),
    (
        "mini:training.epochs",
        3,
        "training.epochs",
        "null where training.max_steps is a number (set one of them)",
    ),
    (
        "mini:training.max_steps",
        None,
        "training.epochs",
        "a whole number >= 1 where training.max_steps is null",
    ),
    ("mini:training.precision", 16, "training.precision", "one of float32, bfloat16, float16"),
    ("mini:training.schedule", "cosin", "training.schedule", "did you mean cosine?"),
    ("mini:corpora.synthetic.test", ["clean", "othr"], "corpora.synthetic.test", "did you mean other?"),
    ("mini:corpora.synthetic.dev", ["train"], "corpora.synthetic.dev", "a split that is not in `train` too"),
    (
        "mini:corpora.digits.strings",
        {"train": 1, "test": 0, "unseen": 1},
        "corpora.digits.strings",
        "rows for `test`, which is in train, dev or test",
    ),
    (
        "mini:corpora.digits.strings",
        {"train": 1},
        "corpora.digits.strings",
        "a number of rows for each of train, test, unseen",
    ),
    ("mini:corpora.digits.mirror", "", "corpora.digits.mirror", "text that is not empty or null"),
    ("mini:corpora.digits.required", "no", "corpora.digits.required", "true or false"),
    ("mini:encoder.name", "wisper", "encoder.name", "did you mean whisper?"),
    ("mini:encoder.window", "fill", "encoder.window", "did you mean full?"),
    ("mini:encoder.layers", 0, "encoder.layers", "all, or a whole number >= 1"),
    ("mini:encoder.layers", True, "encoder.layers", "all, or a whole number >= 1"),
    ("mini:llm.layers", "al", "llm.layers", "all, or a whole number >= 1"),
    ("mini:llm.layers", ..., "llm.layers", "missing"),
    (
        "mini:training.distillation",
        3,
        "training.distillation",
        "a section with teacher, logits, temperature, hidden or null",
    ),
    (
        "mini:training.distillation",
        LESSON | {"teacher": ""},
        "training.distillation.teacher",
        "text that is not empty",
    ),
    (
        "mini:training.distillation",
        {"teacher": "a", "logits": 1.0, "temperature": 2.0},
        "training.distillation.hidden",
        "missing",
    ),
    (
        "mini:training.distillation",
        LESSON | {"labels": 1.0},
        "training.distillation.labels",
        "unknown key; allowed: one of teacher, logits, temperature, hidden",
    ),
    (
        "mini:training.distillation",
        LESSON | {"temperature": 0},
        "training.distillation.temperature",
        "a number > 0 or null",
    ),
    (
        "mini:training.distillation",
        LESSON | {"temperature": None},
        "training.distillation.temperature",
        "a number > 0 where logits is above 0",
    ),
    (
        "mini:training.distillation",
        LESSON | {"logits": 0, "hidden": 1},
        "training.distillation.temperature",
        "null where logits is 0",
    ),
    (
        "mini:training.distillation",
        LESSON | {"logits": 0, "temperature": None},
        "training.distillation.hidden",
        "a number > 0 where logits is 0, else nothing is learned from the teacher",
    ),
]


@pytest.mark.parametrize(("place", "value", "key", "allowed"), MISTAKES)
def test_a_mistake_is_named_with_what_is_allowed(
    edit: Edit, problems: Problems, place: str, value: Any, key: str, allowed: str
) -> None:
    edit({place: value})
    profile, _, _ = place.rpartition(":")
    (line,) = problems()
    assert line.startswith(f"{f'configs/{profile}.yaml' if profile else 'params.yaml'}: {key}: ")
    assert allowed.replace("{steps}", "450") in line


@pytest.mark.parametrize(
    ("changes", "old", "new"),
    [
        ({"mini:training.clip": 1.0}, "training.clip", "max_grad_norm"),
        ({"bridge": {"kernel": 4}}, "bridge", "projector"),
        ({"steering.load_balance": 0.0}, "steering.load_balance", "router_aux_loss_coef"),
        (
            {"variants.linear.overrides": {"bridge.kernel": 2}},
            "variants.linear.overrides.bridge.kernel",
            "projector.downsample_factor",
        ),
    ],
)
def test_keys_of_version_0_1_are_told_their_new_names(
    edit: Edit, problems: Problems, changes: dict[str, Any], old: str, new: str
) -> None:
    edit(changes)
    (line,) = problems()
    assert f": {old}: renamed; the key is now {new}" in line


def test_rows_of_a_split_that_nothing_uses(edit: Edit, problems: Problems) -> None:
    edit({"mini:corpora.digits.test": ["test"]})
    assert len(found := problems()) == 1
    assert "allowed: 0 for `unseen`, which is not in train, dev or test" in found[0]


def test_no_corpus_to_choose_a_checkpoint_by(edit: Edit, problems: Problems) -> None:
    edit({"mini:corpora.synthetic.dev": [], "mini:corpora.synthetic.utterances.dev": 0})
    edit({"mini:corpora.synthetic.questions.dev": 0})
    assert len(found := problems()) == 1
    assert "at least one corpus with a split in `dev`" in found[0]


def test_no_gradient_at_the_start(edit: Edit, problems: Problems) -> None:
    edit({"steering.scale_init": 0, "steering.vector_std": 0.0})
    assert [line for line in problems() if line.startswith("params.yaml: steering.vector_std: found 0.0")]


def test_whole_numbers_serve_as_numbers(edit: Edit, params: Path) -> None:
    edit({"mini:training.max_grad_norm": 1, "evaluation.max_batch_seconds": 60})
    loaded = config.load(params)
    assert isinstance(loaded.training.max_grad_norm, float)
    assert isinstance(loaded.evaluation.max_batch_seconds, float)


def test_names_of_registries_are_those_of_the_modules() -> None:
    from steermoe.corpora import CORPORA
    from steermoe.evaluation.normalizers import NORMALIZERS
    from steermoe.models.downsample import DOWNSAMPLERS
    from steermoe.models.encoders import ENCODERS, VIDEO_ENCODERS
    from steermoe.models.llm import QUANTIZATIONS
    from steermoe.models.projectors import PROJECTIONS
    from steermoe.models.routers import ROUTERS
    from steermoe.weights import NAMED

    assert list(corpora.Corpora.model_fields) == list(CORPORA)
    assert list(run.NORMALIZERS) == list(NORMALIZERS)
    assert list(model.DOWNSAMPLERS) == list(DOWNSAMPLERS)
    assert list(section.BASE_MODELS) == list(NAMED)
    assert (list(model.ENCODERS), list(model.VIDEO_ENCODERS)) == (list(ENCODERS), list(VIDEO_ENCODERS))
    assert list(model.PROJECTIONS) == list(PROJECTIONS)
    assert list(model.QUANTIZATIONS) == list(QUANTIZATIONS)
    assert list(model.ROUTERS) == list(ROUTERS)


def test_methods_have_learning_rates() -> None:
    ingredients = {name for method in get_args(run.Method) for name in method.split("+")}
    assert set(run.LearningRates.model_fields) == ingredients


def test_sections_are_frozen_and_nothing_has_a_default() -> None:
    """A default in code would be a value that DVC does not see; only a corpus may be left out."""

    def kinds(kind: type[BaseModel]) -> list[type[BaseModel]]:
        return [kind, *(inner for child in kind.__subclasses__() for inner in kinds(child))]

    found = [kind for kind in kinds(section.Section) if kind.__module__.startswith("steermoe.config")]
    assert all(kind.model_config.get("frozen") for kind in found)
    optional = [
        f"{kind.__name__}.{name}"
        for kind in found
        for name, field in kind.model_fields.items()
        if not field.is_required()
    ]
    assert optional == [f"Corpora.{name}" for name in corpora.Corpora.model_fields]


def test_a_corpus_may_have_its_own_normaliser(edit: Edit, params: Path) -> None:
    edit({"evaluation.normalizers": {"digits": "none"}})
    section = config.load(params).evaluation
    assert (section.of("digits").normalizer, section.of("synthetic").normalizer) == ("none", "folded")
    assert section.of("digits").model_dump(exclude={"normalizer", "normalizers"}) == section.model_dump(
        exclude={"normalizer", "normalizers"}
    )
