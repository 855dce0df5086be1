"""A student that learns from a teacher: what moves, what stays, what is refused, and that it resumes."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steermoe.audio.features import KaldiFbank, LogMel
from steermoe.config import Distillation, VariantConfig
from steermoe.data.dataset import Batch, UtteranceDataset, collate
from steermoe.distributed import PreemptedError
from steermoe.models.steermoe import SteerMoE
from steermoe.training.checkpointing import last_checkpoint, read_tree
from steermoe.training.distillation import Teacher
from steermoe.training.rows import read_data
from steermoe.training.train import train

from .conftest import outputs

LOGITS = {"logits": 1.0, "temperature": 2.0, "hidden": 0.0}
BOTH = {"logits": 1.0, "temperature": 2.0, "hidden": 0.5}
Variant = Callable[..., VariantConfig]


def section(teacher: Path, **weights: Any) -> Distillation:
    return Distillation.model_validate({"teacher": str(teacher), **weights})


@pytest.fixture(scope="session")
def saved(tiny_variant: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`saved(method, {"dotted.path": value})`: the adapter of a model that says something of its own."""

    def save(method: str = "steering", overrides: dict[str, Any] | None = None) -> Path:
        model = SteerMoE.from_config(tiny_variant(method, overrides))
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in model.trainable_state_dict().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
        folder = tmp_path_factory.mktemp("teacher")
        model.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def teacher(saved: Callable[..., Path]) -> Path:
    return saved()


@pytest.fixture
def student(quick_variant: Variant, teacher: Path) -> Callable[..., VariantConfig]:
    """`student(**weights)`: a variant over two of the encoder's three layers that learns from `teacher`."""

    def make(method: str = "steering", weights: dict[str, Any] = LOGITS, **changed: Any) -> VariantConfig:
        variant = quick_variant(method, distillation=section(teacher, **weights), **changed)
        return variant.model_copy(update={"encoder": variant.encoder.model_copy(update={"layers": 2})})

    return make


def batch_of(variant: VariantConfig, model: SteerMoE, shards: list[Path]) -> Batch:
    rows = read_data(variant, shards).train.head(6)
    data = UtteranceDataset(rows, model.features, model.tokenizer, variant.prompts)
    return collate([data[place] for place in range(6)])


def test_a_student_equal_to_its_teacher_learns_from_the_labels_alone(
    teacher: Path, quick_variant: Variant, shards: list[Path]
) -> None:
    model = SteerMoE.from_pretrained(teacher).train()
    batch = batch_of(quick_variant("steering"), model, shards)
    lesson = Teacher(section(teacher, **BOTH), model).lesson(batch)
    found, plain = model(lesson=lesson, **batch), model(**batch)
    assert plain.distillation is None and found.distillation.abs() < 1e-5
    torch.testing.assert_close(found.loss, plain.loss)


@pytest.mark.parametrize("weights", [LOGITS, {"logits": 0.0, "temperature": None, "hidden": 1.0}])
def test_steps_bring_a_student_nearer_to_its_teacher(
    weights: dict[str, Any], student: Callable[..., VariantConfig], shards: list[Path]
) -> None:
    variant = student(weights=weights)
    model = SteerMoE.from_config(variant).train()
    taught = Teacher.of(model)
    assert taught is not None
    batch = batch_of(variant, model, shards)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    distances = []
    for _ in range(12):
        found = model(lesson=taught.lesson(batch), **batch)
        distances.append(float(found.distillation))
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
    assert distances[0] > 0 and distances[-1] < 0.8 * distances[0]


def test_a_teacher_is_neither_trained_nor_kept(
    student: Callable[..., VariantConfig], make_trainer: Any, tmp_path: Path
) -> None:
    variant = student("lora", BOTH, max_steps=2)
    alone = variant.training.model_copy(update={"distillation": None})
    names, weights = {}, {}
    for name, settings in (("taught", variant), ("plain", variant.model_copy(update={"training": alone}))):
        trainer = make_trainer(settings, name)
        of_teacher = {} if trainer.teacher is None else trainer.teacher.model.state_dict()
        before = {n: p.clone() for n, p in of_teacher.items()}
        trainer.fit()
        assert all(torch.equal(p, before[n]) for n, p in of_teacher.items())
        checkpoint = last_checkpoint(tmp_path / name)
        assert checkpoint is not None
        weights[name] = read_tree(checkpoint / "state.pt")["weights"]
        names[name] = [n for n, _ in trainer.engine.wrapped.named_parameters()]
        if trainer.teacher is not None:
            taught = trainer.teacher.model
            assert not taught.training and not any(p.requires_grad for p in taught.parameters())
    assert names["taught"] == names["plain"] and weights["taught"].keys() == weights["plain"].keys()
    assert any(not torch.equal(p, weights["plain"][n]) for n, p in weights["taught"].items())


@pytest.mark.parametrize("method", ["linear", "lora"])  # cached features; dropout, which draws random numbers
def test_a_training_with_a_teacher_resumes_to_the_same_bytes(
    method: str, student: Callable[..., VariantConfig], shards: list[Path], tmp_path: Path, at_step: Any
) -> None:
    variant = student(method, BOTH, precision="bfloat16")
    train(variant, shards, tmp_path / "whole", tmp_path, feature_cache_gb=1)
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(PreemptedError, match="at step 3 of 6"):
        train(variant, shards, tmp_path / "out", tmp_path, feature_cache_gb=1)
    train(variant, shards, tmp_path / "out", tmp_path, feature_cache_gb=1)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


def test_another_teacher_is_another_training(
    student: Callable[..., VariantConfig],
    teacher: Path,
    saved: Callable[..., Path],
    shards: list[Path],
    tmp_path: Path,
) -> None:
    """Though it lies in the same place."""
    place = tmp_path / "teacher"
    found = []
    for source in (teacher, saved("linear")):
        place.mkdir(exist_ok=True)
        for file in source.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        variant = student()
        training = variant.training.model_copy(
            update={"distillation": section(place, **LOGITS), "max_steps": 2}
        )
        variant = variant.model_copy(update={"training": training})
        found.append(train(variant, shards, tmp_path / "out", tmp_path)["fingerprint"])
    assert found[0] != found[1]


def refused(student: SteerMoE, teacher: Path, **weights: Any) -> str:
    with pytest.raises(ValueError, match=r"^training\.distillation\.teacher: ") as caught:
        Teacher(section(teacher, **(weights or LOGITS)), student)
    return str(caught.value)


def test_a_teacher_that_hears_or_reads_something_else_is_refused(
    saved: Callable[..., Path],
    tiny_variant: Any,
    save_tiny_llm: Callable[..., Path],
    tiny_chat_dir: Path,
    video_section: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    student = SteerMoE.from_config(tiny_variant("linear"))
    end = "legal: an adapter where both are the same"
    asks = {"prompts.transcribe": "write: "}
    assert refused(student, saved("linear", asks)).endswith(
        f"whose prompts.transcribe is 'write: ', the student's is 'please transcribe the audio: '; {end}"
    )
    in_turns = {"llm.path": str(tiny_chat_dir), "prompts.format": "chat"}
    chat = saved("linear", in_turns)
    assert "2 of them not in the student's as they are" in refused(student, chat)
    seeing = refused(student, saved("steering", {"video": video_section()}))
    assert "whose video branch is True, the student's is False" in seeing
    window = refused(student, saved("linear", {"encoder.window": "full"}))
    assert "whose features of a second of noise is (80, 102), the student's is (80, 100)" in window
    shutil.copytree(tiny_chat_dir, tmp_path / "chat")
    template = tmp_path / "chat" / "chat_template.jinja"
    template.write_text(template.read_text() + "\n")
    line = refused(
        SteerMoE.from_config(tiny_variant("linear", in_turns)),
        saved("linear", in_turns | {"llm.path": str(template.parent)}),
    )
    assert "whose tokenizer's chat_template is " in line
    wide = save_tiny_llm(tmp_path / "wide", "qwen2", hidden_size=48, tie_word_embeddings=True)
    wider = saved("linear", {"llm.path": str(wide)})
    assert Teacher(section(wider, **LOGITS), student).model.config.llm.path == str(wide)
    line = refused(student, wider, **BOTH)
    assert f"whose LLM's width, which hidden compares, is 48, the student's is 32; {end}" in line


def test_a_teacher_that_ends_answers_otherwise_is_refused(
    saved: Callable[..., Path], tiny_variant: Any, tiny_llm_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_llm_dir, tmp_path / "llm")
    settings = tmp_path / "llm" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": "!"}))
    line = refused(
        SteerMoE.from_config(tiny_variant("linear")), saved("linear", {"llm.path": str(settings.parent)})
    )
    assert "whose tokenizer's eos_token is '!', the student's is '<|endoftext|>'" in line


def test_features_of_another_kind_are_refused(
    saved: Callable[..., Path], teacher: Path, tiny_variant: Any, tmp_path: Path
) -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    sizes = WhisperConfig(
        d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=64, num_mel_bins=128,
        max_source_positions=200,
    )  # fmt: skip
    WhisperEncoder(sizes).save_pretrained(tmp_path)
    WhisperFeatureExtractor(feature_size=128, chunk_length=4).save_pretrained(tmp_path)
    line = refused(
        SteerMoE.from_config(tiny_variant("linear")), saved("linear", {"encoder.path": str(tmp_path)})
    )
    student = SteerMoE.from_config(tiny_variant("linear"))
    student.features = KaldiFbank(80)
    assert "whose kind of features is 'LogMel', the student's is 'KaldiFbank'" in refused(student, teacher)
    student.features = LogMel(80)
    student.features._filters_MF *= 2
    assert "whose features' mean and deviation of a second of noise is (" in refused(student, teacher)
    assert "whose features of a second of noise is (128, 100), the student's is (80, 100)" in line


def test_a_teacher_that_is_not_there(quick_variant: Variant, shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    variant = quick_variant("linear", distillation=section(tmp_path / "empty", **LOGITS))
    with pytest.raises(
        ValueError, match=r"teacher: .*no adapter: config\.json and adapter\.safetensors missing"
    ):
        train(variant, shards, tmp_path / "out", tmp_path)
    assert not (tmp_path / ".runs").exists()
