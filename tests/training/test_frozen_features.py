"""An encoder that nothing trains is run once an utterance, and nobody sees the difference."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from steermoe.config import VariantConfig
from steermoe.models.attention import ShortAttention
from steermoe.models.steermoe import SteerMoE
from steermoe.training.frozen_features import FOLDER, frozen_features, is_frozen
from steermoe.training.train import train

OUTPUTS = ("adapter.safetensors", "config.json", "history.csv")
POST = {"steering.layers": "none", "steering.post_encoder": True}


def kept(root: Path) -> dict[str, bytes]:
    files = (root / FOLDER).rglob("*") if (root / FOLDER).exists() else ()
    return {path.name: path.read_bytes() for path in files if path.is_file()}


def trained(variant: VariantConfig, shards: list[Path], root: Path, gigabytes: float) -> list[bytes]:
    train(variant, shards, root / "out", root, feature_cache_gb=gigabytes)
    return [(root / "out" / name).read_bytes() for name in OUTPUTS]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Utterances of every pass through an encoder's layers."""
    from steermoe.models.encoders.whisper import Whisper

    passes: list[int] = []
    real = Whisper.finish
    monkeypatch.setattr(
        Whisper, "finish", lambda self, hidden: passes.append(len(hidden)) or real(self, hidden)
    )
    return passes


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_is_the_same_to_the_byte_whatever_is_kept(
    precision: str, shards: list[Path], quick_variant: Any, tmp_path: Path, counted: list[int]
) -> None:
    variant = quick_variant("linear", precision=precision)
    without = trained(variant, shards, tmp_path / "without", 0)
    everything = len(counted)
    assert kept(tmp_path / "without") == {} and set(counted) == {1}

    counted.clear()
    assert trained(variant, shards, tmp_path / "with", 1) == without
    first, files = len(counted), kept(tmp_path / "with")
    assert first == len(files) < everything

    counted.clear()
    assert trained(variant, shards, tmp_path / "with", 1) == without
    assert counted == [] and kept(tmp_path / "with") == files

    one = max(map(len, files.values()))
    counted.clear()
    assert trained(variant, shards, tmp_path / "little", 3.5 * one / 1e9) == without
    assert first < len(counted) < everything
    assert 0 < sum(map(len, kept(tmp_path / "little").values())) <= 3.5 * one


def test_another_variant_over_the_same_encoder_finds_them(
    shards: list[Path], quick_variant: Any, tiny_variant: Any, tmp_path: Path, counted: list[int]
) -> None:
    trained(quick_variant("linear"), shards, tmp_path, 1)
    steering = tiny_variant("steering", POST).steering
    post = quick_variant("steering").model_copy(update={"steering": steering})
    counted.clear()
    found = trained(post, shards, tmp_path, 1)
    assert counted == []
    assert trained(post, shards, tmp_path / "without", 0) == found


@pytest.mark.parametrize(
    ("method", "overrides", "frozen"),
    [
        ("linear", {}, True),
        ("linear+llm_lora", {}, True),
        ("steering", POST, True),
        ("steering", {}, False),
        ("steering", {"steering.layers": "last-1"}, False),
        ("lora", {}, False),
        ("linear", {"projector.downsample_after_layer": 0}, False),
    ],
)
def test_it_holds_where_no_gradient_enters_the_encoder(
    method: str, overrides: dict[str, Any], frozen: bool, tiny_variant: Any, tmp_path: Path
) -> None:
    model = SteerMoE.from_config(tiny_variant(method, overrides)).train()
    assert is_frozen(model) == frozen
    features, lengths = torch.randn(2, 80, 60), torch.tensor([60, 33])
    batched, steps = model.encoder(features, lengths)
    if overrides.get("projector.downsample_after_layer") is None:  # what autograd itself says
        assert batched.requires_grad == (not frozen)
    with frozen_features(model, tmp_path, 1):
        assert (model.encode_override is not None) == frozen
        if model.encode_override is not None:
            alone, found = model.encode_override(features, lengths)
            assert torch.equal(found, steps)
            for row, length in enumerate(steps):
                torch.testing.assert_close(alone[row, :length], batched[row, :length], atol=1e-5, rtol=1e-4)
    assert model.encode_override is None


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_outputs_are_those_of_the_encoder_on_one_thread_whatever_their_batch(
    dtype: torch.dtype | None,
    tiny_variant: Callable[..., Any],
    tmp_path: Path,
    threads: Callable[[int], None],
) -> None:
    model = SteerMoE.from_config(tiny_variant("linear"))
    lengths = torch.tensor([60, 33, 50, 58])
    features = torch.randn(4, 80, 60)
    threads(1)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None), ShortAttention():
        alone = [
            model.encoder(features[row : row + 1, :, :length], lengths[row : row + 1])[0][0]
            for row, length in enumerate(lengths.tolist())
        ]
    for count, rows, gigabytes in ((1, [0, 1, 2, 3], 0), (3, [3, 1], 1), (2, [2, 3, 0, 1], 1), (4, [1], 0)):
        threads(count)
        autocast = torch.autocast("cpu", dtype, enabled=dtype is not None)
        with frozen_features(model, tmp_path, gigabytes), autocast:
            assert model.encode_override is not None
            found, steps = model.encode_override(features[rows], lengths[rows])
        assert torch.get_num_threads() == count
        for row, hidden, length in zip(rows, found, steps.tolist(), strict=True):
            assert torch.equal(hidden[:length], alone[row]), (count, rows, row)


def test_an_utterance_that_is_twice_in_a_batch_is_encoded_once(
    tiny_variant: Callable[..., Any], tmp_path: Path, counted: list[int]
) -> None:
    model = SteerMoE.from_config(tiny_variant("linear"))
    features = torch.randn(2, 80, 60)[[0, 1, 0]]
    with frozen_features(model, tmp_path, 1):
        assert model.encode_override is not None
        found, _ = model.encode_override(features, torch.tensor([60, 60, 60]))
    assert counted == [1, 1] and len(kept(tmp_path)) == 2
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


@pytest.mark.parametrize("gigabytes", [0, 1])
def test_what_one_thread_raises_is_raised_and_the_others_are_given_back(
    gigabytes: float, tiny_variant: Callable[..., Any], tmp_path: Path, threads: Callable[[int], None]
) -> None:
    model = SteerMoE.from_config(tiny_variant("linear"))
    threads(2)
    with frozen_features(model, tmp_path, gigabytes):
        assert model.encode_override is not None
        with pytest.raises(ValueError, match="too short for a single frame"):
            model.encode_override(torch.randn(3, 80, 60), torch.tensor([60, 0, 60]))
        assert torch.get_num_threads() == 2


def test_damaged_features_are_computed_again(tiny_variant: Callable[..., Any], tmp_path: Path) -> None:
    model = SteerMoE.from_config(tiny_variant("linear"))
    features, lengths = torch.randn(3, 80, 60), torch.tensor([60, 33, 50])

    def heard() -> torch.Tensor:
        with frozen_features(model, tmp_path, 1):
            assert model.encode_override is not None
            return model.encode_override(features, lengths)[0]

    before = heard()
    first, second, third = sorted((tmp_path / FOLDER).glob("*/*"))
    contents = [path.read_bytes() for path in (first, second, third)]
    first.write_bytes(contents[0][:-8])  # cut off
    second.write_bytes(contents[1][:-1] + bytes([contents[1][-1] ^ 1]))  # a bit is another
    third.write_bytes(b"")
    leftover = first.with_name(f".{first.name}.{os.getpid()}.tmp")
    leftover.write_bytes(b"half")
    assert torch.equal(heard(), before)
    assert [path.read_bytes() for path in (first, second, third)] == contents
    assert not leftover.exists()


def test_features_of_another_encoder_make_room(tiny_variant: Callable[..., Any], tmp_path: Path) -> None:
    features, lengths = torch.randn(1, 80, 60), torch.tensor([60])
    first, other = (
        SteerMoE.from_config(tiny_variant("linear", {"encoder.dtype": dtype}))
        for dtype in ("float32", "bfloat16")
    )

    def folders() -> int:
        return len(list((tmp_path / FOLDER).glob("*/*")))

    with frozen_features(first, tmp_path, 1):
        assert first.encode_override is not None
        first.encode_override(features, lengths)
        with frozen_features(other, tmp_path, 1):  # at the same time: both stay
            assert other.encode_override is not None
            other.encode_override(features, lengths)
            assert folders() == 2
    with frozen_features(other, tmp_path, 1):
        assert folders() == 1
