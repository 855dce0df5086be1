"""A model with a video tower: `[video ; audio ; prompt]`, steered, trained, saved and asked."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steermoe.config import ConfigError
from steermoe.data.dataset import Batch, collate, make_item
from steermoe.data.prompts import Prompt
from steermoe.models.steermoe import SteerMoE

from .conftest import MakeBatch, stirred

FRAMES = (2, 5, 1, 3)  # of the videos that belong to the rows of `make_batch`
TinyVariant = Callable[..., Any]
Section = Callable[..., dict[str, Any]]


def seen(row: int) -> np.ndarray:
    """The video of a row, (T, 8, 8, 3)."""
    return np.random.default_rng(row).integers(0, 256, (FRAMES[row], 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def model(tiny_variant: TinyVariant, video_section: Section) -> SteerMoE:
    return stirred(SteerMoE.from_config(tiny_variant("steering", {"video": video_section()})))


@pytest.fixture
def make_seen(model: SteerMoE, make_batch: MakeBatch) -> MakeBatch:
    """`make_seen(rows)`: batches of `make_batch` with videos, as the collator puts them in."""

    def make(rows: tuple[int, ...] = (0, 1, 2, 3), **options: Any) -> Batch:
        assert model.video is not None
        items = [make_item(torch.zeros(80, 1), Prompt([], [])) for _ in rows]
        for row, item in zip(rows, items, strict=True):
            item["video"] = model.video.features(seen(row))
        videos = {name: collate(items)[name] for name in ("video_features", "video_lengths")}
        return make_batch(rows=rows, **options, **videos)

    return make


@torch.no_grad()
def test_the_video_is_between_prefix_and_audio(model: SteerMoE, make_seen: MakeBatch) -> None:
    assert model.video is not None
    table, batch = model.llm.get_input_embeddings(), make_seen((1,), prefix=(7, 8, 9))
    rows, valid, _ = model.read_prompt(batch, "left", 0.0)
    video, frames = model.video.encode(batch["video_features"], batch["video_lengths"])
    audio, _ = model.encode(batch.features, batch.feature_lengths)
    assert frames.tolist() == [FRAMES[1]]  # one token a frame
    expected = torch.cat([table(batch.prefix_ids), video, audio, table(batch.prompt_ids)], dim=1)
    assert valid.all() and torch.equal(rows, expected)


@torch.no_grad()
def test_rows_do_not_depend_on_their_batch(model: SteerMoE, make_seen: MakeBatch, greedy: Any) -> None:
    together, whole = model.generate(make_seen(), greedy(7)), model(**make_seen())
    alone = [model(**make_seen((row,))) for row in range(4)]
    mean = sum(float(one.loss) * int(one.num_tokens) for one in alone) / int(whole.num_tokens)
    assert float(whole.loss) == pytest.approx(mean, rel=1e-4)
    assert [model.generate(make_seen((row,)), greedy(7))[0] for row in range(4)] == together
    changed = dict(make_seen((0,)))
    changed["video_features"] = -changed["video_features"]
    assert not torch.equal(model(**changed).loss, alone[0].loss)  # the video matters


def test_both_towers_are_trained_and_nothing_else(model: SteerMoE, make_seen: MakeBatch) -> None:
    trained = set(model.trainable_state_dict())
    audio = {name for name in trained if not name.startswith("video.")}
    assert {"steering.vectors", "projection.linear.weight"} <= audio
    assert trained == audio | {f"video.{name}" for name in audio}
    groups = model.parameter_groups()
    assert set(groups) == {"projection", "vectors", "router"}
    grouped = [id(p) for group in groups.values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    model.train()(**make_seen()).loss.backward()
    for name, parameter in model.named_parameters():
        learns = parameter.grad is not None and bool(parameter.grad.any())
        assert learns is parameter.requires_grad, name
    assert model.video is not None and not model.video.encoder.training and model.video.training


@torch.no_grad()
def test_with_scale_zero_both_towers_are_unsteered(
    model: SteerMoE, make_seen: MakeBatch, tiny_variant: TinyVariant, video_section: Section
) -> None:
    assert model.video is not None and model.video.steering is not None and model.steering is not None
    steered = model(**make_seen()).loss
    plain = SteerMoE.from_config(tiny_variant("linear", {"video": video_section() | {"steering": None}}))
    with model.steering.scaled(0), model.video.steering.scaled(0):
        unsteered = model(**make_seen()).loss
    torch.testing.assert_close(unsteered, plain(**make_seen()).loss)
    assert not torch.allclose(steered, unsteered)


def test_losses_on_routing_are_of_both_towers(
    make_seen: MakeBatch, tiny_variant: TinyVariant, video_section: Section
) -> None:
    video = video_section(router_aux_loss_coef=0.5, hook_point="attention")
    weighted = SteerMoE.from_config(tiny_variant("steering", {"video": video})).train()
    output = weighted(**make_seen())
    assert weighted.video is not None and float(weighted.routing_losses()) == 0
    expected: Any = weighted.video.routing_losses()
    assert output.aux_loss.item() == pytest.approx(expected.item()) and expected > 0.1
    torch.testing.assert_close(output.loss - output.aux_loss, weighted.eval()(**make_seen()).loss)
    assert weighted.video.frame_lengths(25).tolist() == [5 * count for count in FRAMES]


def test_saved_and_loaded_it_answers_the_same(
    model: SteerMoE, make_seen: MakeBatch, tiny_video_dir: Path, tmp_path: Path, greedy: Any
) -> None:
    model.save_pretrained(tmp_path / "adapter")
    moved = tmp_path / "moved"
    shutil.copytree(tiny_video_dir, moved)
    again, batch = SteerMoE.from_pretrained(tmp_path / "adapter", video=moved), make_seen()
    with torch.no_grad():
        assert torch.equal(again(**batch).loss, model(**batch).loss)
    assert again.generate(batch, greedy(5)) == model.generate(batch, greedy(5))
    assert again.frozen_hashes() == model.frozen_hashes() and {*model.frozen_hashes()} == {
        "encoder",
        "llm",
        "video",
    }
    assert again.config.video is not None and again.config.video.encoder.path == str(moved)
    with torch.no_grad():
        assert again.video is not None
        next(again.video.encoder.model.parameters()).add_(1)
    again.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"trained against another video: the weights in .* have SHA-256"):
        SteerMoE.from_pretrained(tmp_path / "other")


def test_asked_in_python(model: SteerMoE) -> None:
    audio = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    answers = [model.ask(audio, "who", max_new_tokens=6, video=seen(row)) for row in (0, 1)]
    assert model.ask([audio, audio], "who", max_new_tokens=6, video=[seen(0), seen(1)]) == answers
    grey = seen(1)[..., 0]
    coloured = np.repeat(grey[..., None], 3, axis=3)
    assert model.transcribe(audio, video=grey) == model.transcribe(audio, video=coloured)
    ids = model.generate(audio=audio, video=grey, prompt="who", max_new_tokens=6)
    assert len(ids) == 1


def test_missing_and_unexpected_videos_are_errors(
    model: SteerMoE, make_seen: MakeBatch, make_batch: MakeBatch, tiny_variant: TinyVariant
) -> None:
    audio, deaf = np.zeros(16_000, np.float32), SteerMoE.from_config(tiny_variant("steering"))
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: model.ask(audio), "video: found 0 for 1 recordings, but the model has a video tower"),
        (lambda: model.transcribe([audio, audio], video=[seen(0)]), "video: found 1 for 2 recordings"),
        (lambda: deaf.ask(audio, video=seen(0)), "video: found 1, but the model has no video tower"),
        (lambda: model(**make_batch()), "video: found none, but the model has a video tower"),
        (lambda: deaf(**make_seen()), "video: found one, but the model has no video tower"),
        (lambda: model.chat([{"role": "user", "content": "hello"}]), "video"),
        (
            lambda: model.ask(audio, video=np.zeros((8, 8), np.uint8)),
            r"expected uint8 frames \(T, H, W\) or \(T, H, W, 3\)",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("method", "changed", "problem"),
    [
        ("linear", {}, r"video: .*method is linear"),
        ("steering", {"projector.downsample_after_layer": 0}, r"video\.projector: .*downsample_after_layer"),
        ("steering", {"encoder.name": "whisper"}, r"video\.encoder\.name: .*whisper.*vit"),
        ("steering", {"encoder.window": "full"}, r"video\.encoder\.window"),
        ("steering", {"steering.top_k": 9}, r"video\.steering\.top_k"),
        ("steering", {"projector.width": 4}, r"video\.projector\.width"),
    ],
)
def test_settings_without_effect_are_refused(
    tiny_variant: TinyVariant, video_section: Section, method: str, changed: dict, problem: str
) -> None:
    video = video_section()
    for path, value in changed.items():
        part, key = path.split(".")
        video[part] = video[part] | {key: value}
    with pytest.raises(ConfigError, match=problem):
        tiny_variant(method, {"video": video})
