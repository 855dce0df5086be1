"""An encoder that nothing trains is run once for each utterance, and the results are the same."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from steermoe.config import VariantConfig
from steermoe.models.steermoe import SteerMoE
from steermoe.training.feature_cache import FOLDER, feature_cache, is_frozen
from steermoe.training.train import train

OUTPUTS = ("adapter.safetensors", "config.json", "history.csv")
POST = {"steering.layers": "none", "steering.post_encoder": True}


def kept(root: Path) -> dict[str, bytes]:
    files = (root / FOLDER).rglob("*") if (root / FOLDER).exists() else ()
    return {path.name: path.read_bytes() for path in files if path.is_file()}


def trained(variant: VariantConfig, shards: list[Path], root: Path, gigabytes: float) -> list[bytes]:
    train(variant, shards, root / "out", root, feature_cache_gb=gigabytes)
    return [(root / "out" / name).read_bytes() for name in OUTPUTS]


def encode(
    model: SteerMoE, root: Path, gigabytes: float, features: torch.Tensor, lengths: torch.Tensor
) -> Any:
    """What the model's encoder returns within the cache."""
    with feature_cache(model, root, gigabytes):
        assert model.encode_override is not None
        return model.encode_override(features, lengths)


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


def test_training_is_the_same_to_the_byte_whatever_is_kept(
    shards: list[Path], quick_variant: Any, tiny_variant: Any, tmp_path: Path, counted: list[int]
) -> None:
    variant = quick_variant("linear", precision="bfloat16")
    without = trained(variant, shards, tmp_path / "without", 0)
    everything = len(counted)
    assert kept(tmp_path / "without") == {} and set(counted) == {1}

    counted.clear()
    assert trained(variant, shards, tmp_path / "with", 1) == without
    first, files = len(counted), kept(tmp_path / "with")
    assert first == len(files) < everything

    counted.clear()
    assert trained(variant, shards, tmp_path / "with", 1) == without
    steering = tiny_variant("steering", POST).steering  # another variant over the same encoder finds them
    post = quick_variant("steering", precision="bfloat16").model_copy(update={"steering": steering})
    found = trained(post, shards, tmp_path / "with", 1)
    assert counted == [] and kept(tmp_path / "with") == files
    assert trained(post, shards, tmp_path / "without", 0) == found

    one = max(map(len, files.values()))
    counted.clear()
    assert trained(variant, shards, tmp_path / "little", 3.5 * one / 1e9) == without
    assert first < len(counted) < everything
    assert 0 < sum(map(len, kept(tmp_path / "little").values())) <= 3.5 * one


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
    with feature_cache(model, tmp_path, 1):
        assert (model.encode_override is not None) == frozen
        if model.encode_override is not None:
            alone, found = model.encode_override(features, lengths)
            assert torch.equal(found, steps)
            for row, length in enumerate(steps):
                torch.testing.assert_close(alone[row, :length], batched[row, :length], atol=1e-5, rtol=1e-4)
    assert model.encode_override is None


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_outputs_are_the_same_whatever_the_batch_and_the_number_of_threads(
    dtype: torch.dtype | None, tiny_variant: Any, tmp_path: Path, threads: Callable[[int], None]
) -> None:
    model = SteerMoE.from_config(tiny_variant("linear"))
    features, lengths = torch.randn(4, 80, 60), torch.tensor([60, 33, 50, 58])
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        threads(1)
        alone, steps = encode(model, tmp_path, 0, features, lengths)
        for count, rows, size in ((3, [3, 1], 1), (2, [2, 3, 0, 1], 1), (4, [1], 0)):
            threads(count)
            found, _ = encode(model, tmp_path, size, features[rows], lengths[rows])
            assert torch.get_num_threads() == count
            for row, hidden in zip(rows, found, strict=True):
                assert torch.equal(hidden[: steps[row]], alone[row, : steps[row]]), (count, rows, row)


def test_an_error_in_a_thread_is_raised(
    tiny_variant: Any, tmp_path: Path, threads: Callable[[int], None]
) -> None:
    model = SteerMoE.from_config(tiny_variant("linear"))
    threads(2)
    with pytest.raises(ValueError, match="too short for a single frame"):
        encode(model, tmp_path, 1, torch.randn(3, 80, 60), torch.tensor([60, 0, 60]))
    assert torch.get_num_threads() == 2


def test_damaged_files_are_computed_again_and_other_encoders_removed(
    tiny_variant: Any, tmp_path: Path, counted: list[int]
) -> None:
    model = SteerMoE.from_config(tiny_variant("linear"))
    features, lengths = torch.randn(2, 80, 60)[[0, 1, 0]], torch.tensor([60, 33, 60])
    before, _ = encode(model, tmp_path, 1, features, lengths)
    assert counted == [1, 1]  # an utterance that is twice in a batch is encoded once
    paths = sorted((tmp_path / FOLDER).glob("*/*"))
    contents = [path.read_bytes() for path in paths]
    paths[0].write_bytes(contents[0][:-8])
    paths[1].write_bytes(b"")
    assert torch.equal(encode(model, tmp_path, 1, features, lengths)[0], before)
    assert [path.read_bytes() for path in paths] == contents
    other = SteerMoE.from_config(tiny_variant("linear", {"encoder.dtype": "bfloat16"}))
    encode(other, tmp_path, 1, features[:1], lengths[:1])
    assert len(list((tmp_path / FOLDER).glob("*/*"))) == 1
