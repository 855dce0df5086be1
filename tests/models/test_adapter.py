import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe.models import checkpoint as adapter
from steermoe.models.steermoe import SteerMoE

METHODS = ("steering", "linear", "lora")


@pytest.fixture(scope="module", params=METHODS)
def model(request: pytest.FixtureRequest, tiny_variant: Callable[..., Any]) -> SteerMoE:
    model = SteerMoE.from_config(tiny_variant(request.param))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.fixture
def saved(model: SteerMoE, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the weights as someone would who also keeps the checksum right."""
    weights = load_file(folder / adapter.WEIGHTS)
    change(weights)
    frozen = json.loads((folder / adapter.CONFIG).read_text())["frozen"]
    adapter.write(folder, adapter.Adapter(adapter.read(folder).variant, frozen, weights))


@torch.no_grad()
def test_what_was_saved_comes_back(
    model: SteerMoE, saved: Path, make_batch: Callable[..., dict[str, torch.Tensor]], heard: Any, greedy: Any
) -> None:
    again = SteerMoE.from_pretrained(saved)
    batch = make_batch()
    assert torch.equal(again(**batch).loss, model(**batch).loss)
    answers = model.generate(heard(batch), generation=greedy(5))
    assert again.generate(heard(batch), generation=greedy(5)) == answers
    assert again.config == model.config
    assert not again.training


def test_only_what_was_trained_is_saved(model: SteerMoE, saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["adapter.safetensors", "config.json"]
    weights = load_file(saved / "adapter.safetensors")
    assert set(weights) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name in weights if name.startswith("llm.")]
    assert all(".lora_" in name for name in weights if name.startswith("encoder."))
    trained = sum(p.numel() for group in model.parameter_groups().values() for p in group)
    assert sum(w.numel() for w in weights.values()) == trained


def test_the_same_weights_are_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    SteerMoE.from_pretrained(saved).save_pretrained(tmp_path / "again")
    for name in ("adapter.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_a_damaged_file_is_an_error(saved: Path) -> None:
    content = bytearray((saved / "adapter.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "adapter.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter\.safetensors: found SHA-256 .*damaged"):
        SteerMoE.from_pretrained(saved)


def test_weights_of_another_shape_or_name_are_errors(saved: Path) -> None:
    rewrite(saved, lambda w: w.update({"projection.linear.bias": torch.zeros(7)}))
    with pytest.raises(
        ValueError, match=r"projection\.linear\.bias: found shape \(7,\), the model needs \(32,\)"
    ):
        SteerMoE.from_pretrained(saved)
    rewrite(saved, lambda w: w.update({"projection.linear.gain": w.pop("projection.linear.bias")}))
    with pytest.raises(
        ValueError,
        match=r"projection\.linear\.bias is missing; projection\.linear\.gain is not part of this model",
    ):
        SteerMoE.from_pretrained(saved)


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_a_tampered_hash_is_an_error(saved: Path, part: str) -> None:
    description = json.loads((saved / "config.json").read_text())
    description["frozen"][part] = "0" * 64
    (saved / "config.json").write_text(json.dumps(description))
    with pytest.raises(
        ValueError, match=rf"trained against another {part}: .* from_pretrained\(\.\.\., {part}="
    ):
        SteerMoE.from_pretrained(saved)


def test_other_frozen_weights_are_an_error_and_moved_ones_are_not(
    saved: Path, tiny_encoder_dir: Path, tiny_llm_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_encoder_dir, tmp_path / "encoder")
    shutil.copytree(tiny_llm_dir, tmp_path / "llm")
    moved = SteerMoE.from_pretrained(saved, encoder=tmp_path / "encoder", llm=str(tmp_path / "llm"))
    assert moved.config.encoder.path == str(tmp_path / "encoder")
    encoder = WhisperEncoder.from_pretrained(tiny_encoder_dir)
    with torch.no_grad():
        dict(encoder.named_parameters())["layers.1.fc1.bias"][3] += 1e-4
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(
        ValueError, match=rf"trained against another encoder: the weights in '{tmp_path}/encoder'"
    ):
        SteerMoE.from_pretrained(saved, encoder=tmp_path / "encoder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not the description of an adapter"),
        ('{"model_type": "whisper"}', r"found keys \['model_type'\], expected"),
        ("[]", "not the description of an adapter"),
        (
            '{"format": 99, "variant": {}, "frozen": {}, "weights": ""}',
            "found format 99, this version reads format 1",
        ),
    ],
)
def test_other_files_are_not_taken_for_an_adapter(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match=message):
        adapter.read(tmp_path)


def test_an_adapter_without_a_key_of_today_says_what_to_add(saved: Path) -> None:
    description = json.loads((saved / "config.json").read_text())
    del description["variant"]["prompts"]["summarize"]
    (saved / "config.json").write_text(json.dumps(description))
    with pytest.raises(
        ValueError,
        match=r"config\.json: variant's configuration: prompts\.summarize: missing; .*add what is missing",
    ):
        SteerMoE.from_pretrained(saved)
    description["variant"]["prompts"]["summarize"] = "in short: "
    (saved / "config.json").write_text(json.dumps(description))
    assert SteerMoE.from_pretrained(saved).config.prompts.summarize == "in short: "


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no adapter: config\.json and adapter\.safetensors missing"):
        adapter.read(tmp_path)


def test_a_failed_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        rewrite(saved, lambda w: w.clear())
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@torch.no_grad()
def test_an_adapter_knows_how_many_layers_it_was_trained_with(
    tiny_variant: Callable[..., Any], make_batch: Callable[..., Any], heard: Any, greedy: Any, tmp_path: Path
) -> None:
    small = SteerMoE.from_config(tiny_variant("steering", {"encoder.layers": 2, "llm.layers": 1}))
    whole = SteerMoE.from_config(tiny_variant("steering"))
    assert (len(small.encoder.layers), len(whole.encoder.layers)) == (2, 3)
    assert all(small.frozen_hashes()[part] != digest for part, digest in whole.frozen_hashes().items())
    small.save_pretrained(tmp_path)
    again = SteerMoE.from_pretrained(tmp_path)
    assert again.config == small.config and again.frozen_hashes() == small.frozen_hashes()
    inputs = heard(make_batch(prefix=(5, 6)))  # which is cached
    assert again.generate(inputs, greedy(6)) == small.generate(inputs, greedy(6))
