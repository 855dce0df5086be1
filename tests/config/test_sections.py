"""Every value of the configuration has its limits, and a mistake is told with what is legal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from steermoe import config
from steermoe.config import corpora, method, sections
from steermoe.config.depth import DEPTH

ROOT = Path(__file__).parents[2]
Edit = Callable[[dict[str, Any]], None]
Problems = Callable[[], list[str]]
EXPERTS = method.EXPERTS
DOWNSAMPLERS = "one of average, max, concat, conv, none"
ROUTERS = "one of shared, per_layer, mixed, hierarchical, progressive, static"
LESSON: dict[str, Any] = {"teacher": "folder", "logits": 1.0, "temperature": 2.0, "hidden": 0.0}
MISTAKES = [  # place, value (... removes it), the line that tells it
    (
        "steering",
        3,
        f"steering: found 3; legal: a section with {', '.join(method.Steering.model_fields)}",
    ),
    ("steering.num_experts", ..., f"steering.num_experts: missing; legal: {EXPERTS}"),
    ("steering.num_experts", "8", f'steering.num_experts: found "8"; legal: {EXPERTS}'),
    ("steering.num_experts", 8.0, f"steering.num_experts: found 8.0; legal: {EXPERTS}"),
    ("steering.num_experts", True, f"steering.num_experts: found true; legal: {EXPERTS}"),
    ("steering.num_experts", 0, f"steering.num_experts: found 0; legal: {EXPERTS}"),
    ("steering.num_experts", [4, 1], f"steering.num_experts: found [4, 1]; legal: {EXPERTS}"),
    ("steering.router", "shard", f'steering.router: found "shard"; legal: {ROUTERS}; nearest: shared'),
    ("steering.router", "mixd", f'steering.router: found "mixd"; legal: {ROUTERS}; nearest: mixed'),
    ("steering.groups", 2, "steering.groups: found 2; legal: null, as only router hierarchical has it"),
    ("steering.stages", 2, "steering.stages: found 2; legal: null, as only router progressive has it"),
    ("steering.top_k", 1, "steering.top_k: found 1; legal: a whole number >= 2 or null"),
    ("steering.top_k", 8, "steering.top_k: found 8; legal: null, or a number below steering.num_experts (8)"),
    (
        "steering.layers",
        "none",
        "steering.post_encoder: found false; legal: true where steering.layers is none",
    ),
    ("steering.scale", "none", "steering.scale_init: found 0.1; legal: null where steering.scale is none"),
    (
        "steering.scale_init",
        None,
        "steering.scale_init: found null; legal: a number >= 0 where steering.scale is learned",
    ),
    (
        "projector.width",
        8,
        "projector.width: found 8; legal: null with projection linear; "
        "only mlp, feature_space, adapter_attention have it",
    ),
    (
        "projector.downsample",
        "none",
        "projector.downsample_factor: found 4; legal: 1 where projector.downsample is none",
    ),
    (
        "steering.layers",
        [1, 1],
        f"steering.layers: found [1, 1]; legal: {method.LAYERS}",
    ),
    (
        "steering.layers",
        [True],
        f"steering.layers: found [true]; legal: {method.LAYERS}",
    ),
    ("steering.layers", "al", f'steering.layers: found "al"; legal: {method.LAYERS}'),
    ("steering.scale_init", float("nan"), "steering.scale_init: found NaN; legal: a number >= 0 or null"),
    ("steering.vector_std", True, "steering.vector_std: found true; legal: a number >= 0"),
    ("lora.rnk", 3, "lora.rnk: unknown key; legal: one of rank, alpha, dropout, targets; nearest: rank"),
    ("lora.targets", ["a", "b", "a"], 'lora.targets: found ["a", "a"]; legal: every name once'),
    ("lora.targets", [], "lora.targets: found []; legal: a list of at least one name"),
    ("lora.dropout", 1, "lora.dropout: found 1; legal: a number >= 0 and < 1"),
    ("projector.downsample_factor", 0, "projector.downsample_factor: found 0; legal: a whole number >= 1"),
    (
        "projector.downsample",
        "mx",
        f'projector.downsample: found "mx"; legal: {DOWNSAMPLERS}; nearest: max',
    ),
    ("prompts.answer", "hm", 'prompts.answer: found "hm"; legal: text with {question} in it, once'),
    ("prompts.answer", "{ques", 'prompts.answer: found "{ques"; legal: text with {question} in it, once'),
    ("prompts.transcribe", "a {b}", 'prompts.transcribe: found "a {b}"; legal: text without { and }'),
    ("prompts.format", "chatt", 'prompts.format: found "chatt"; legal: one of plain, chat; nearest: chat'),
    (
        "prompts.system",
        "Be brief.",
        'prompts.system: found "Be brief."; legal: null, as prompts.format is plain',
    ),
    (
        "generation.num_beams",
        4,
        "generation.num_beams: found 4; legal: null, as generation.strategy is greedy",
    ),
    ("generation.num_beams", 1, "generation.num_beams: found 1; legal: a whole number >= 2 or null"),
    (
        "generation.strategy",
        "beam",
        "generation.num_beams: found null; legal: a number, as generation.strategy is beam",
    ),
    (
        "generation.strategy",
        "sample",
        "generation.temperature: found null; legal: a number, as generation.strategy is sample",
    ),
    ("generation.top_p", 0.9, "generation.top_p: found 0.9; legal: null, as generation.strategy is greedy"),
    ("generation.top_p", 1.1, "generation.top_p: found 1.1; legal: a number > 0 and <= 1 or null"),
    (
        "generation.min_new_tokens",
        1000,
        "generation.min_new_tokens: found 1000; legal: at most generation.max_new_tokens, which is 48",
    ),
    ("generation.max_repeats", 0, "generation.max_repeats: found 0; legal: a whole number >= 1 or null"),
    (
        "generation.no_repeat_ngram_size",
        ...,
        "generation.no_repeat_ngram_size: missing; legal: a whole number >= 1 or null",
    ),
    (
        "evaluation.normalizer",
        "fold",
        'evaluation.normalizer: found "fold"; legal: one of none, folded, whisper-english, whisper-basic, chinese; '
        "nearest: folded",
    ),
    (
        "evaluation.normalizers",
        {"digit": "none"},
        'evaluation.normalizers: found "digit"; legal: one of synthetic, digits; nearest: digits',
    ),
    (
        "evaluation.normalizers",
        {"digits": "folded"},
        'evaluation.normalizers: found {"digits": "folded"}; '
        "legal: a normaliser that differs from evaluation.normalizer",
    ),
    (
        "mini:preprocessing.unreadable",
        {"digit": ["a"]},
        'preprocessing: found {"unreadable": "digit"}; legal: one of synthetic, digits',
    ),
    (
        "mini:preprocessing.max_rejected",
        1,
        "preprocessing.max_rejected: found 1; legal: a number >= 0 and < 1",
    ),
    (
        "mini:preprocessing.max_tokens",
        0,
        "preprocessing.max_tokens: found 0; legal: a whole number >= 1 or null",
    ),
    ("evaluation.confidence", 95, "evaluation.confidence: found 95; legal: a number > 0 and < 1"),
    ("seed", -1, "seed: found -1; legal: a whole number from 0 to 4294967295"),
    ("compare", ["linear", "linear"], 'compare: found ["linear", "linear"]; legal: every name once'),
    ("reference", "lora-2", 'reference: found "lora-2"; legal: one of steermoe, linear, lora; nearest: lora'),
    (
        "profile",
        "mnii",
        'profile: found "mnii"; legal: one of audiovisual, mini, paper, paper-dry; nearest: mini',
    ),
    ("profile", 7, "profile: found 7; legal: text"),
    ("variants.x", {"method": "linear"}, "variants.x.overrides: missing; legal: keys with values"),
    (
        "mini:training.learning_rates.steering.vectors",
        ...,
        "training.learning_rates.steering.vectors: missing; legal: a number > 0",
    ),
    (
        "mini:training.learning_rates.linear.lora",
        1e-3,
        "training.learning_rates.linear.lora: unknown key; legal: projection",
    ),
    (
        "mini:training.learning_rates.lora.lora",
        0,
        "training.learning_rates.lora.lora: found 0; legal: a number > 0",
    ),
    (
        "mini:training.learning_rates.lora",
        ...,
        "training.learning_rates.lora: missing; legal: a section with projection, lora",
    ),
    (
        "mini:training.warmup_steps",
        100_000,
        "training.warmup_steps: found 100000; legal: below training.max_steps, which is {steps}",
    ),
    (
        "mini:training.eval_steps",
        100_000,
        "training.eval_steps: found 100000; legal: at most training.max_steps, which is {steps}",
    ),
    (
        "mini:training.epochs",
        3,
        "training.epochs: found 3; legal: null where training.max_steps is a number (set one of them)",
    ),
    (
        "mini:training.max_steps",
        None,
        "training.epochs: found null; legal: a whole number >= 1 where training.max_steps is null",
    ),
    ("mini:training.precision", 16, "training.precision: found 16; legal: one of float32, bfloat16, float16"),
    (
        "mini:training.schedule",
        "cosin",
        'training.schedule: found "cosin"; legal: one of cosine, linear, constant_with_warmup; '
        "nearest: cosine",
    ),
    (
        "mini:corpora.synthetic.test",
        ["clean", "othr"],
        'corpora.synthetic.test: found "othr"; legal: one of train, dev, clean, other; nearest: other',
    ),
    (
        "mini:corpora.synthetic.dev",
        ["train"],
        'corpora.synthetic.dev: found "train"; legal: a split that is not in `train` too',
    ),
    (
        "mini:corpora.digits.strings",
        {"train": 1, "test": 0, "unseen": 1},
        'corpora.digits.strings: found {"test": 0}; legal: rows for `test`, which is in train, dev or test',
    ),
    (
        "mini:corpora.digits.strings",
        {"train": 1},
        'corpora.digits.strings: found {"train": 1}; legal: a number of rows for each of train, test, unseen',
    ),
    (
        "mini:corpora.digits.mirror",
        "",
        'corpora.digits.mirror: found ""; legal: text that is not empty or null',
    ),
    ("mini:corpora.digits.required", "no", 'corpora.digits.required: found "no"; legal: true or false'),
    (
        "mini:encoder.name",
        "wisper",
        'encoder.name: found "wisper"; legal: one of whisper, wav2vec2-conformer, w2v-bert, parakeet, firered; '
        "nearest: whisper",
    ),
    (
        "mini:encoder.window",
        "fill",
        'encoder.window: found "fill"; legal: one of unpadded, full; nearest: full',
    ),
    ("mini:encoder.layers", 0, f"encoder.layers: found 0; legal: {DEPTH}"),
    ("mini:encoder.layers", True, f"encoder.layers: found true; legal: {DEPTH}"),
    ("mini:llm.layers", "al", f'llm.layers: found "al"; legal: {DEPTH}'),
    ("mini:llm.layers", ..., f"llm.layers: missing; legal: {DEPTH}"),
    (
        "mini:training.distillation",
        3,
        "training.distillation: found 3; legal: a section with teacher, logits, temperature, hidden or null",
    ),
    (
        "mini:training.distillation",
        LESSON | {"teacher": ""},
        'training.distillation.teacher: found ""; legal: text that is not empty',
    ),
    (
        "mini:training.distillation",
        {"teacher": "a", "logits": 1.0, "temperature": 2.0},
        "training.distillation.hidden: missing; legal: a number >= 0",
    ),
    (
        "mini:training.distillation",
        LESSON | {"labels": 1.0},
        "training.distillation.labels: unknown key; legal: one of teacher, logits, temperature, hidden",
    ),
    (
        "mini:training.distillation",
        LESSON | {"temperature": 0},
        "training.distillation.temperature: found 0; legal: a number > 0 or null",
    ),
    (
        "mini:training.distillation",
        LESSON | {"temperature": None},
        "training.distillation.temperature: found null; legal: a number > 0 where logits is above 0",
    ),
    (
        "mini:training.distillation",
        LESSON | {"logits": 0, "hidden": 1},
        "training.distillation.temperature: found 2.0; legal: null where logits is 0",
    ),
    (
        "mini:training.distillation",
        LESSON | {"logits": 0, "temperature": None},
        "training.distillation.hidden: found 0.0; legal: a number > 0 where logits is 0, else nothing is learned "
        "from the teacher",
    ),
]


@pytest.mark.parametrize(("place", "value", "line"), MISTAKES)
def test_mistake_is_told(edit: Edit, problems: Problems, place: str, value: Any, line: str) -> None:
    edit({place: value})
    profile, _, _ = place.rpartition(":")
    file = f"configs/{profile}.yaml" if profile else "params.yaml"
    steps = config.load(ROOT / "params.yaml").training.max_steps
    assert problems() == [f"{file}: {line.replace('{steps}', str(steps))}"]


def test_rows_of_a_split_that_nothing_uses(edit: Edit, problems: Problems) -> None:
    edit({"mini:corpora.digits.test": ["test"]})
    assert len(found := problems()) == 1
    assert "legal: 0 for `unseen`, which is not in train, dev or test" in found[0]


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


def test_registries_are_those_of_the_modules() -> None:
    """What is read off the sources is what the modules hold."""
    from steermoe.corpora import CORPORA
    from steermoe.evaluation.normalizers import NORMALIZERS
    from steermoe.models.downsample import DOWNSAMPLERS
    from steermoe.models.encoders import ENCODERS, VIDEO_ENCODERS
    from steermoe.models.projectors import PROJECTIONS
    from steermoe.models.routers import ROUTERS

    library = ROOT / "steermoe"
    assert sections.registered(library / "corpora/__init__.py", "CORPORA") == tuple(CORPORA)
    assert tuple(CORPORA) == tuple(corpora.Corpora.model_fields)
    assert sections.registered(library / "evaluation/normalizers.py", "NORMALIZERS") == tuple(NORMALIZERS)
    assert sections.registered(library / "models/downsample.py", "DOWNSAMPLERS") == tuple(DOWNSAMPLERS)
    assert sections.registered(library / "models/encoders/__init__.py", "ENCODERS") == tuple(ENCODERS)
    found = sections.registered(library / "models/encoders/__init__.py", "VIDEO_ENCODERS")
    assert found == tuple(VIDEO_ENCODERS)
    assert sections.registered(library / "models/projection.py", "PROJECTIONS") == tuple(PROJECTIONS)
    assert sections.registered(library / "models/routers.py", "ROUTERS") == tuple(ROUTERS)


def test_methods_have_learning_rates() -> None:
    ingredients = {name for method in get_args(sections.Method) for name in method.split("+")}
    assert set(sections.LearningRates.model_fields) == ingredients


def test_sections_are_frozen_and_nothing_has_a_default() -> None:
    """A default in code would be a value that DVC does not see; only a corpus may be left out."""

    def kinds(kind: type[BaseModel]) -> list[type[BaseModel]]:
        return [kind, *(inner for child in kind.__subclasses__() for inner in kinds(child))]

    found = [kind for kind in kinds(sections.Section) if kind.__module__.startswith("steermoe.config")]
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
