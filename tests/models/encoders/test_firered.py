"""FireRedASR-AED's encoder: parts against other libraries' implementations, and the conversion of its checkpoint."""

import argparse
import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Wav2Vec2ConformerConfig
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerRelPositionalEmbedding,
    Wav2Vec2ConformerSelfAttention,
)

from steermoe.audio.features import KaldiFbank
from steermoe.config import Encoder
from steermoe.models.encoders import firered_convert, load_encoder
from steermoe.models.encoders.firered import (
    Attention,
    FireRedConfig,
    FireRedConformer,
    relative_positions,
)
from steermoe.models.encoders.firered_convert import cmvn, convert

from .conftest import FIRERED, cmvn_ark, firered_weights

Save = Callable[..., Path]


def section(folder: Path) -> Encoder:
    return Encoder(
        name="firered", path=str(folder), revision=None, dtype="float32", window="unpadded", layers="all"
    )


@torch.no_grad()
def test_positions_and_attention_are_transformers_own() -> None:
    """Its wav2vec 2.0 Conformer computes the same relative attention, behind a norm that it shares."""
    sizes = Wav2Vec2ConformerConfig(hidden_size=32, num_attention_heads=4, max_source_positions=40)
    sizes._attn_implementation = "eager"
    theirs, ours = Wav2Vec2ConformerSelfAttention(sizes).eval(), Attention(32, 4)
    pairs = {"q": ours.w_qs, "k": ours.w_ks, "v": ours.w_vs, "out": ours.fc}
    for name, linear in pairs.items():
        getattr(theirs, f"linear_{name}").load_state_dict({"weight": linear.weight, "bias": torch.zeros(32)})
    theirs.linear_pos.load_state_dict(ours.linear_pos.state_dict())
    for name in ("pos_bias_u", "pos_bias_v"):
        getattr(ours, name).normal_()
        getattr(theirs, name).copy_(getattr(ours, name))
    hidden = torch.randn(2, 13, 32)
    positions = Wav2Vec2ConformerRelPositionalEmbedding(sizes)(hidden)
    torch.testing.assert_close(relative_positions(hidden), positions[0], atol=1e-5, rtol=0)
    normal = torch.nn.functional.layer_norm(hidden, (32,))
    expected, _ = theirs(normal, relative_position_embeddings=positions)
    torch.testing.assert_close(ours(hidden, positions[0], None), expected, atol=1e-5, rtol=1e-4)
    valid = torch.arange(13) < torch.tensor([13, 5])[:, None]
    masked = ours(hidden, positions[0], valid)
    mask = torch.zeros(2, 1, 1, 13).masked_fill(~valid[:, None, None], torch.finfo(torch.float32).min)
    expected, _ = theirs(normal, attention_mask=mask, relative_position_embeddings=positions)
    torch.testing.assert_close(masked, expected, atol=1e-5, rtol=1e-4)


def test_it_has_as_many_parameters_as_is_published() -> None:
    with torch.device("meta"):
        model = FireRedConformer(FireRedConfig())
    trained = [p for name, p in model.named_parameters() if not name.startswith("cmvn.")]
    assert sum(p.numel() for p in trained) == 710_543_968


@torch.no_grad()
def test_a_converted_checkpoint_is_the_checkpoint(save_firered: Save, tmp_path: Path) -> None:
    source = save_firered(tmp_path / "source")
    convert(source, tmp_path / "deep" / "out")
    out = tmp_path / "deep" / "out"
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    weights, original = load_file(out / "model.safetensors"), firered_weights()
    assert torch.equal(
        weights["layer_stack.2.ffn1.project.weight"], original["encoder.layer_stack.2.ffn1.net.4.weight"]
    )
    values = {name: t for name, t in original.items() if name.startswith("encoder.") and ".pe" not in name}
    assert sum(t.numel() for t in weights.values()) == sum(t.numel() for t in values.values()) + 2 * 80
    encoder = load_encoder(section(out))
    assert (encoder.width, len(encoder.layers), encoder.frames_per_second) == (32, 3, 25.0)
    noise = np.random.default_rng(3).standard_normal(8_000).astype(np.float32) * 0.1
    plain = KaldiFbank(80)(noise)
    mean, std = torch.linspace(8.0, 14.0, 80)[:, None], torch.linspace(2.0, 4.0, 80)[:, None]
    torch.testing.assert_close(encoder.features(noise), (plain - mean) / std, atol=1e-4, rtol=1e-4)
    with pytest.raises(FileExistsError, match="exists"):
        convert(source, out)


def test_the_command(save_firered: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = save_firered(tmp_path / "source"), tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["firered_convert", str(source), str(out)])
    firered_convert.main()
    load_encoder(section(out))
    with pytest.raises(SystemExit, match=r"firered_convert: .*exists"):
        firered_convert.main()


class Hostile:
    """Unpickled, it would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("place", ["args", "inside args", "weights", "legacy"])
def test_a_hostile_pickle_is_refused_and_does_not_run(save_firered: Save, tmp_path: Path, place: str) -> None:
    trace = tmp_path / "ran"
    hostile = Hostile(trace)
    source = save_firered(tmp_path / "source")
    package: dict[str, Any] = {"args": argparse.Namespace(**FIRERED), "model_state_dict": firered_weights()}
    if place == "args":
        package["args"] = hostile
    elif place == "inside args":
        package["args"].note = hostile
    else:
        package["model_state_dict"]["encoder.evil"] = hostile
    torch.save(package, source / "model.pth.tar", _use_new_zipfile_serialization=place != "legacy")
    with pytest.raises(ValueError, match=r"model\.pth\.tar: refused: .*could run code"):
        convert(source, tmp_path / "out")
    assert not trace.exists() and not (tmp_path / "out").exists()
    torch.load(io.BytesIO((source / "model.pth.tar").read_bytes()), weights_only=False)
    assert trace.exists()  # so it was one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"args": argparse.Namespace(**FIRERED | {"d_model": "32"})}, r"args: found \{'d_model': '32'\}"),
        ({"args": {"d_model": 32}}, r"args: found \{'idim': None, "),
        ({"args": argparse.Namespace(**FIRERED | {"d_model": 16})}, "expected|needs"),
        ({"args": argparse.Namespace(**FIRERED | {"n_layers_enc": 4})}, r"layer_stack\.3\..* is missing"),
        ({"args": argparse.Namespace(**FIRERED | {"n_layers_enc": 2})}, r"layer_stack\.2\..* is not part"),
        ({"model_state_dict": {"encoder.x": 3}}, r"encoder\.x: found int, expected a tensor"),
    ],
)
def test_what_does_not_fit_is_told(
    save_firered: Save, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    source = save_firered(tmp_path / "source", **changes)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there_or_damaged(save_firered: Save, tmp_path: Path) -> None:
    source = save_firered(tmp_path / "source")
    whole = (source / "model.pth.tar").read_bytes()
    (source / "model.pth.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="refused: it is damaged"):
        convert(source, tmp_path / "out")
    torch.save([1, 2], source / "model.pth.tar")
    with pytest.raises(ValueError, match="found list, expected a dictionary with args"):
        convert(source, tmp_path / "out")
    (source / "model.pth.tar").unlink()
    with pytest.raises(ValueError, match=r"model\.pth\.tar: no such file"):
        convert(source, tmp_path / "out")
    with pytest.raises(ValueError, match=r"cmvn\.ark: no such file"):
        cmvn(tmp_path / "cmvn.ark")


def test_statistics_of_features(tmp_path: Path) -> None:
    mean, std = np.array([3.0, -2.0, 5.0]), np.array([2.0, 0.5, 0.0])
    content = cmvn_ark(mean, std)
    path = tmp_path / "cmvn.ark"
    path.write_bytes(content)
    found, inverse = cmvn(path)
    torch.testing.assert_close(found, torch.tensor([3.0, -2.0, 5.0]))
    torch.testing.assert_close(inverse, torch.tensor([0.5, 2.0, 1e10]), rtol=1e-5, atol=0)
    for damaged in (
        content[:-1],
        content + b"\0",
        b"\0BCM " + content[5:],
        b"key " + content,
        b"",
        b"\0BDM ",
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cmvn\.ark: found .*expected"):
            cmvn(path)
    no_frames = np.zeros((2, 4))
    path.write_bytes(b"\0BDM " + struct.pack("<bibi", 4, 2, 4, 4) + no_frames.tobytes())
    with pytest.raises(ValueError, match="expected sums and sums of squares"):
        cmvn(path)
