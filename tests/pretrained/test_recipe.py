"""The recipe of the base models runs from end to end (a few steps of tiny models), and the shipped ones are good."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors import safe_open
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from pretrained import soft_text, synthesize, train_encoder, train_llm, train_video
from steermoe.config import Encoder, Llm, VideoEncoder
from steermoe.corpora import grammar
from steermoe.models.encoders import load_encoder, load_video_encoder
from steermoe.models.generation import GREEDY, answer_texts
from steermoe.models.llm import load_llm, load_tokenizer

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "pretrained"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    values = YAML(typ="safe").load(SHIPPED / "params.yaml")
    values["speech"] |= {"utterances": 12, "dev_utterances": 4}
    values["encoder"] |= {
        "width": 16,
        "layers": 1,
        "heads": 2,
        "ffn": 16,
        "steps": 3,
        "max_batch_seconds": 12,
    }
    values["llm"] |= {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 16, "steps": 3, "batch": 4}
    values["video"] |= {"width": 16, "layers": 1, "heads": 2, "ffn": 16, "steps": 3, "batch": 4}
    params = tmp_path / "params.yaml"
    with params.open("w") as file:
        YAML(typ="safe").dump(values, file)
    return params


def test_encoder_recipe(tiny: Path, tmp_path: Path) -> None:
    synthesize.main(tiny, tmp_path / "speech")
    train_encoder.main(tiny, tmp_path / "speech", tmp_path / "encoder")
    path = str(tmp_path / "encoder")
    encoder = load_encoder(
        Encoder(name="whisper", path=path, revision=None, dtype="float32", window="unpadded", layers="all")
    )
    assert (encoder.width, encoder.features.channels, len(encoder.layers)) == (16, 80, 1)
    units = json.loads((tmp_path / "encoder" / "ctc_units.json").read_text())
    with safe_open(tmp_path / "encoder" / "ctc_head.safetensors", "pt") as head:
        assert head.get_slice("weight").get_shape() == [len(units) + 1, 16]


def test_llm_recipe(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_llm, "HELD_OUT", 3)
    train_llm.main(tiny, tmp_path / "llm")
    load_llm(
        Llm(path=str(tmp_path / "llm"), revision=None, dtype="float32", quantization="none", layers="all")
    )
    lines = (tmp_path / "llm" / "text_tasks.jsonl").read_text().splitlines()
    assert len(lines) == 3 * len(soft_text.TASKS)
    assert set(json.loads(lines[0])) == {"task", "prompt", "target"}


def test_frame_labels_follow_the_word_times() -> None:
    mel = torch.full((80, 100), 1.0)
    labels = train_encoder.frame_labels(mel, [0.2, 0.5], torch.tensor([7, 9]), gap=2)
    assert len(labels) == 50
    assert labels[:12].eq(0).all()  # silence and the gap at the first word's start
    assert labels[12:25].eq(7).all()
    assert labels[27:].eq(9).all()


def test_soft_weights_say_the_words_in_order() -> None:
    words = "anna has the red drum".split()
    weights = soft_text.soft_weights(np.random.default_rng(3), words)[:, : soft_text.SLOTS]
    spoken = [int(row.argmax()) for row in weights if row.max() > 0.4]
    assert spoken == sorted(spoken) and set(spoken) == set(range(len(words)))


def test_every_word_is_one_token_of_the_shipped_tokenizer() -> None:
    tokenizer = load_tokenizer(str(SHIPPED / "llm"))
    for word in grammar.vocabulary():
        assert len(tokenizer(word)["input_ids"]) == 1, word


def test_shipped_units_are_the_words_of_the_grammar() -> None:
    assert json.loads((SHIPPED / "encoder" / "ctc_units.json").read_text()) == grammar.vocabulary()


def test_shipped_weights_are_small_safetensors() -> None:
    files = [*SHIPPED.glob("*/*.safetensors")]
    assert len(files) == 4
    assert sum(path.stat().st_size for path in files) <= 25e6
    assert not [*SHIPPED.glob("*/*.bin"), *SHIPPED.glob("*/*.pt")]


def test_shipped_llm_answers_held_out_text() -> None:
    llm, tokenizer = load_llm(
        Llm(path=str(SHIPPED / "llm"), revision=None, dtype="float32", quantization="none", layers="all")
    )
    items = [json.loads(line) for line in (SHIPPED / "llm" / "text_tasks.jsonl").read_text().splitlines()]
    for task, least in (("repeat", 0.9), ("question", 0.85), ("arithmetic", 0.85)):
        chosen = [item for item in items if item["task"] == task][:40]
        prompts = [tokenizer.encode(item["prompt"], add_special_tokens=False) for item in chosen]
        answers = answer_texts(llm, tokenizer, prompts, GREEDY.model_copy(update={"max_new_tokens": 16}), 0)
        right = sum(answer == item["target"] for answer, item in zip(answers, chosen, strict=True))
        assert right / len(chosen) >= least, task


def test_video_recipe(tiny: Path, tmp_path: Path) -> None:
    train_video.main(tiny, tmp_path / "video")
    path = str(tmp_path / "video")
    encoder = load_video_encoder(VideoEncoder(name="vit", path=path, revision=None, dtype="float32"))
    assert (encoder.width, len(encoder.layers), encoder.frames_per_second) == (16, 1, 26)


@torch.no_grad()
def test_the_shipped_video_encoder_tells_shapes_apart() -> None:
    """By a linear readout of the mean of a frame's tokens, which is what the projector hands on."""
    path = str(SHIPPED / "video")
    encoder = load_video_encoder(VideoEncoder(name="vit", path=path, revision=None, dtype="float32"))
    rng = np.random.default_rng(99)
    processor = ViTImageProcessorPil.from_pretrained(path)
    pixels, answers = train_video.frames(rng, processor, 900)
    hidden, _ = encoder(pixels.flatten(1)[..., None], torch.ones(900, dtype=torch.long))
    features = torch.cat([hidden.mean(1), torch.ones(900, 1)], 1)
    for question, words in enumerate(train_video.WORDS.values()):
        wanted = torch.nn.functional.one_hot(answers[:, question], len(words)).float()
        readout = torch.linalg.lstsq(features[:600], wanted[:600]).solution
        right = (features[600:] @ readout).argmax(1) == answers[600:, question]
        assert right.float().mean() > 0.9, list(train_video.WORDS)[question]
    profile = YAML(typ="safe").load(ROOT / "configs" / "audiovisual.yaml")
    assert profile["video"]["projector"]["downsample_factor"] == encoder.frames_per_second  # a token a frame
