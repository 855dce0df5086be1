"""The benchmarks run, at sizes that take a moment, and what they assert holds."""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import (
    decoding,
    frozen_features,
    full_size,
    growth,
    loader,
    shapes,
    small_step,
    startup,
    steering_cost,
    train_step,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`run(module, "--option", ...)`: what it prints; its exit status says whether the machine meets the goals."""

    def call(module: ModuleType, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        try:
            module.main()
        except SystemExit as ended:
            assert ended.code in (0, 1, False, True)
        return capsys.readouterr().out

    return call


def rows(printed: str) -> list[list[str]]:
    """Cells of the tables' lines, heads and rules left out."""
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return [
        cells
        for place, cells in enumerate(lines)
        if "---" not in cells[0] and (place + 1 >= len(lines) or "---" not in lines[place + 1][0])
    ]


def test_the_naive_way_has_our_loss_and_our_gradients(tmp_path: Path) -> None:
    """Clips of different lengths: each is padded, in the encoder and in the LLM."""
    torch.manual_seed(0)
    assembly = shapes.model("steermoe", shapes.frozen_models(tmp_path, 64, 2, 800, 64, 2))
    clips = shapes.batch([3.0, 1.7, 0.4], assembly.encoder.features.channels)
    clips["prompt_lengths"] = torch.tensor([12, 5, 9])
    clips["target_lengths"] = torch.tensor([40, 22, 31])
    clips["target_ids"] = clips["target_ids"].masked_fill(
        torch.arange(40) >= clips["target_lengths"][:, None], -100
    )

    def ours() -> torch.Tensor:
        loss = assembly(**clips).loss
        assert loss is not None
        return loss

    train_step.assert_equal(assembly, ours, partial(train_step.naive_loss, assembly, clips, masked=True))
    with pytest.raises(AssertionError, match=r"apart|loss"):  # attending to padding is another model
        train_step.assert_equal(assembly, ours, partial(train_step.naive_loss, assembly, clips, masked=False))


def test_training_step(run: Callable[..., str]) -> None:
    small = ("--shape", "64x2", "--vocabulary", "2000", "--seconds", "5", "--repeats", "1")
    printed = run(train_step, *small, "--precision", "float32", "bfloat16")
    assert "loss and gradients are equal" in printed
    found = rows(printed)
    assert [row[0] for row in found] == ["64x2, 2k, 5 s, float32", "64x2, 2k, 5 s, bfloat16"]
    for row in found:
        assert (
            float(row[3].split()[0]) > 0
        )  # times faster; how many depends on the machine and on who else uses it
        assert float(row[7]) > 2  # times smaller


def test_frozen_features(run: Callable[..., str]) -> None:
    """That both ways have the same bits is asserted inside."""
    found = rows(run(frozen_features, "--utterances", "3", "--repeats", "1", "--threads", "2"))
    assert [row[0] for row in found] == list(frozen_features.WAYS)


def test_cost_of_steering(run: Callable[..., str]) -> None:
    printed = run(
        steering_cost,
        "--width",
        "64",
        "--layers",
        "2",
        "--seconds",
        "2",
        "--vocabulary",
        "800",
        "--repeats",
        "2",
    )
    assert "steering costs" in printed


def test_growth(run: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "growth.png"
    only = ("--only", "seconds", "experts", "--ends", "--repeats", "1", "--out", str(out))
    printed = rows(run(growth, "--width", "64", "--llm", "64", "2", *only))
    assert [row[0] for row in printed] == ["2.5", "30", "8", "64"]
    assert float(printed[1][2]) > 1  # 12 times the audio; an exact ratio would depend on the load
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_loader(run: Callable[..., str]) -> None:
    printed = run(loader, "--clips", "4", "--width", "64", "--layers", "2", "--workers", "1")
    speeds = {row[0]: float(row[1]) for row in rows(printed)}
    assert len(speeds) == 6 and min(speeds.values()) > 0
    assert {"decode", "log-mel", "loader", "loader, features in memory"} <= set(speeds)


def test_startup(run: Callable[..., str]) -> None:
    printed = rows(run(startup, "--repeats", "1", "--stages", "configure"))
    assert [row[0] for row in printed] == ["steermoe --help", "configure"]
    assert len(printed[1][2].split(", ")) == 5  # the packages that cost most
    with pytest.raises(RuntimeError, match="no such thing"):
        startup.cpu([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_full_size_with_few_layers(run: Callable[..., str]) -> None:
    printed = rows(run(full_size, "--tiny", "--max-batch-seconds", "30"))
    shares = {row[0]: float(row[1].rstrip(" %")) for row in printed if row[0] in full_size.PARTS}
    assert set(shares) == set(full_size.PARTS)
    assert all(shares[part] > 0 for part in full_size.PARTS if part != "data")
    assert sum(shares.values()) == pytest.approx(100, abs=1)


def test_clips_are_as_long_as_those_of_librispeech() -> None:
    seconds = full_size.lengths(5000)
    assert sum(seconds) / len(seconds) == pytest.approx(full_size.MEAN)
    assert min(seconds) > 1 and max(seconds) < 30
    assert json.dumps(seconds) == json.dumps(full_size.lengths(5000))


def test_decoding(run: Callable[..., str]) -> None:
    found = rows(run(decoding, "--sentences", "12", "--rows", "4", "--repeats", "1"))
    assert [row[0] for row in found] == ["4, without likelihoods", "4, with likelihoods"]
    for row in found:
        assert 0.8 < float(row[2]) <= float(row[1])  # without waiting, of which there is none in the other


def test_the_products_of_a_step_of_the_small_pair_take_less_than_the_step(run: Callable[..., str]) -> None:
    table = rows(run(small_step, "--layers", "1", "--rows", "2", "--repeats", "1", "--variant", "linear"))
    [(name, step, products, times, _)] = table
    assert name == "linear, float32"
    assert float(products.split()[0]) > 0 and float(step.split()[0]) > 0 and float(times) > 0
