"""A model with a second branch: `[video ; audio ; prompt]`, steered, trained, saved and asked."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steermoe.config import ConfigError
from steermoe.data.dataset import Batch, collate
from steermoe.models.steermoe import SteerMoE

Batch = dict[str, torch.Tensor]
FRAMES = (2, 5, 1, 3)  # of the videos beside the rows of `make_batch`
TinyVariant = Callable[..., Any]
Section = Callable[..., dict[str, Any]]


def seen(row: int) -> np.ndarray:
    """The video of a row, (T, 8, 8, 3)."""
    return np.random.default_rng(row).integers(0, 256, (FRAMES[row], 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def model(tiny_variant: TinyVariant, video_section: Section) -> SteerMoE:
    """Away from the initial values, at which steering does next to nothing."""
    model = SteerMoE.from_config(tiny_variant("steering", {"video": video_section()}))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "projection" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


@pytest.fixture
def make_seen(model: SteerMoE, make_batch: Callable[..., Batch]) -> Callable[..., Batch]:
    """`make_seen(rows)`: batches of `make_batch` with videos, as the collator puts them in."""
    branch = model.video
    assert branch is not None

    def make(rows: tuple[int, ...] = (0, 1, 2, 3), **options: Any) -> Batch:
        empty: Any = {
            "features": torch.zeros(80, 1),
            "prefix_ids": [],
            "prompt_ids": [],
            "target_ids": [],
            "index": 0,
        }
        collated = collate([empty | {"video": branch.features(seen(row))} for row in rows])
        videos = {name: collated[name] for name in ("video_features", "video_lengths")}
        return make_batch(rows=rows, **options) | videos

    return make


@torch.no_grad()
def test_the_video_stands_before_the_audio_and_behind_the_prefix(
    model: SteerMoE, make_seen: Callable[..., Batch]
) -> None:
    assert model.video is not None
    table = model.llm.get_input_embeddings()
    batch = make_seen((1,), prefix=(7, 8, 9))
    rows, valid = model.embed_prompt(Batch(**batch))
    video, frames = model.video.encode(batch["video_features"], batch["video_lengths"])
    audio, _ = model.encode(batch["features"], batch["feature_lengths"])
    assert frames.tolist() == [FRAMES[1]]  # one token a frame
    expected = torch.cat([table(batch["prefix_ids"]), video, audio, table(batch["prompt_ids"])], dim=1)
    assert valid.all() and torch.equal(rows, expected)


@torch.no_grad()
def test_rows_do_not_depend_on_their_batch(
    model: SteerMoE, make_seen: Callable[..., Batch], greedy: Any
) -> None:
    together = model.generate(Batch.of(make_seen()), greedy(7))
    whole = model(**make_seen())
    alone = [model(**make_seen((row,))) for row in range(4)]
    tokens = make_seen()["target_lengths"].tolist()
    mean = sum(float(one.loss) * count for one, count in zip(alone, tokens, strict=True)) / sum(tokens)
    assert float(whole.loss) == pytest.approx(mean, rel=1e-4)
    assert [model.generate(Batch.of(make_seen((row,))), greedy(7))[0] for row in range(4)] == together
    for row, found in enumerate(alone):
        changed = make_seen((row,))
        changed["video_features"] = -changed["video_features"]
        assert not torch.equal(model(**changed).loss, found.loss)  # it is looked at


def test_what_is_declared_is_trained_in_both_branches_and_nothing_else(
    model: SteerMoE, make_seen: Callable[..., Batch]
) -> None:
    parts = {"steering.vectors", "steering.scales", "steering.router.weight", "steering.router.bias"}
    parts |= {"projection.linear.weight", "projection.linear.bias"}
    trained = set(model.trainable_state_dict())
    audio = {name for name in trained if not name.startswith("video.")}
    assert audio and trained == audio | {f"video.{name}" for name in audio}
    assert {"steering.vectors", "projection.linear.weight"} <= audio
    groups = model.parameter_groups()
    assert set(groups) == {"projection", "vectors", "router"}
    grouped = [id(p) for group in groups.values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    model.train()(**make_seen()).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name
    assert model.video is not None and not model.video.encoder.training and model.video.training


@torch.no_grad()
def test_without_strength_a_branch_is_as_unsteered(
    model: SteerMoE, make_seen: Callable[..., Batch], tiny_variant: TinyVariant, video_section: Section
) -> None:
    assert model.video is not None and model.video.steering is not None and model.steering is not None
    steered = model(**make_seen()).loss
    model.video.steering.set_scale(0)
    model.steering.set_scale(0)
    plain = SteerMoE.from_config(tiny_variant("linear", {"video": video_section() | {"steering": None}}))
    assert plain.video is not None and plain.video.steering is None
    torch.testing.assert_close(model(**make_seen()).loss, plain(**make_seen()).loss)
    assert not torch.allclose(steered, model(**make_seen()).loss)


def test_losses_on_routing_are_of_both_branches(
    make_seen: Callable[..., Batch], tiny_variant: TinyVariant, video_section: Section
) -> None:
    video = video_section(router_aux_loss_coef=0.5, hook_point="attention")
    weighted = SteerMoE.from_config(tiny_variant("steering", {"video": video})).train()
    plain = SteerMoE.from_config(
        tiny_variant("steering", {"video": video_section(hook_point="attention")})
    ).train()
    added = (weighted(**make_seen()).loss - plain(**make_seen()).loss).item()
    assert weighted.video is not None and float(weighted.routing_losses()) == 0
    expected = weighted.video.routing_losses()
    assert (
        isinstance(expected, torch.Tensor)
        and added == pytest.approx(expected.item(), rel=1e-3)
        and added > 0.1
    )
    assert weighted.video.frame_lengths(25).tolist() == [5 * count for count in FRAMES]


def test_saved_and_loaded_it_answers_the_same(
    model: SteerMoE, make_seen: Callable[..., Batch], tiny_video_dir: Path, tmp_path: Path, greedy: Any
) -> None:
    model.save_pretrained(tmp_path / "adapter")
    again = SteerMoE.from_pretrained(tmp_path / "adapter")
    batch = make_seen()
    with torch.no_grad():
        assert torch.equal(again(**batch).loss, model(**batch).loss)
    assert again.generate(Batch(**batch), greedy(5)) == model.generate(Batch(**batch), greedy(5))
    moved = tmp_path / "moved"
    shutil.copytree(tiny_video_dir, moved)
    given = SteerMoE.from_pretrained(tmp_path / "adapter", video=moved)
    assert given.frozen_hashes() == model.frozen_hashes() and set(model.frozen_hashes()) == {
        "encoder",
        "llm",
        "video",
    }
    assert given.config.video is not None and given.config.video.encoder.path == str(moved)
    with torch.no_grad():
        assert given.video is not None
        next(given.video.encoder.model.parameters()).add_(1)
    given.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"trained against another video: the weights in .* have SHA-256"):
        SteerMoE.from_pretrained(tmp_path / "other")


def test_asked_in_python(model: SteerMoE, greedy: Any) -> None:
    audio = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    settings = greedy(6)
    answers = [model.ask(audio, "who", generation=settings, video=seen(row)).text for row in (0, 1)]
    assert model.transcribe([audio, audio], "who", settings, video=[seen(0), seen(1)]) == answers
    assert model.transcribe(audio, "who", settings, video=seen(1)) == answers[1]
    grey = seen(1)[..., 0]
    coloured = np.repeat(grey[..., None], 3, axis=3)
    assert model.ask(audio, video=grey, generation=settings) == model.ask(
        audio, video=coloured, generation=settings
    )


def test_a_missing_and_a_needless_video_are_told(
    model: SteerMoE,
    make_seen: Callable[..., Batch],
    make_batch: Any,
    tiny_variant: TinyVariant,
    tmp_path: Path,
) -> None:
    audio = np.zeros(16_000, np.float32)
    deaf = SteerMoE.from_config(tiny_variant("steering"))
    for call in (model.ask, model.transcribe):
        with pytest.raises(ValueError, match="video: found 0 for 1 recordings; the model has a video branch"):
            call(audio)
    with pytest.raises(ValueError, match="video: found 1 for 2 recordings"):
        model.transcribe([audio, audio], video=[seen(0)])
    with pytest.raises(ValueError, match="video: found 1; the model has no video branch"):
        deaf.ask(audio, video=seen(0))
    with pytest.raises(ValueError, match="video: found none; the model has a video branch"):
        model(**make_batch())
    with pytest.raises(ValueError, match="video: found one; the model has no video branch"):
        deaf(**make_seen())
    with pytest.raises(ValueError, match="conversations hold no videos"):
        model.chat([{"role": "user", "content": "hello"}])
    with pytest.raises(ValueError, match=r"expected uint8 frames \(T, H, W\) or \(T, H, W, 3\)"):
        model.ask(audio, video=np.zeros((8, 8), np.uint8))
    deaf.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the adapter has no video branch: leave it out"):
        SteerMoE.from_pretrained(tmp_path, video="somewhere")


@pytest.mark.parametrize(
    ("method", "changed", "problem"),
    [
        ("linear", {}, r'video: found \{"steering": .*; legal: null, as the method is linear'),
        (
            "steering",
            {"projector.downsample_after_layer": 0},
            r'video\.projector: found \{"downsample_after_layer": 0\}; legal: null: a layer of',
        ),
        ("steering", {"encoder.name": "whisper"}, r'video\.encoder\.name: found "whisper"; legal: .*vit'),
        (
            "steering",
            {"encoder.window": "full"},
            r"video\.encoder\.window: unknown key; legal: one of name, path",
        ),
        (
            "steering",
            {"steering.top_k": 9},
            r"video\.steering\.top_k: found 9; legal: null, or a number below",
        ),
        (
            "steering",
            {"projector.width": 4},
            r"video\.projector\.width: found 4; legal: null with projection linear",
        ),
    ],
)
def test_settings_without_effect_are_refused(
    tiny_variant: TinyVariant, video_section: Section, method: str, changed: dict, problem: str
) -> None:
    video = video_section()
    for path, value in changed.items():
        section, key = path.split(".")
        video[section] = video[section] | {key: value}
    with pytest.raises(ConfigError, match=problem):
        tiny_variant(method, {"video": video})
