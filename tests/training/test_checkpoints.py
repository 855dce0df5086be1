"""What a checkpoint gives back is what it was given, to the bit; half a checkpoint is none."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from steermoe.training import checkpoints


def test_an_optimizer_continues_as_if_it_had_not_stopped(tmp_path):
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.9, 0.99))

    torch.manual_seed(0)
    model, optimizer = make()
    steps(model, optimizer, 3)
    tree = {"w": model.state_dict(), "o": optimizer.state_dict(), "r": checkpoints.random_states()}
    checkpoints.write_tree(tmp_path / "state.safetensors", tree)
    steps(model, optimizer, 3)

    resumed, resumed_optimizer = make()
    tree = checkpoints.read_tree(tmp_path / "state.safetensors")
    resumed.load_state_dict(tree["w"])
    resumed_optimizer.load_state_dict(tree["o"])
    checkpoints.restore_random_states(tree["r"])
    steps(resumed, resumed_optimizer, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_every_random_generator_is_restored():
    _ = random.gauss(0, 1), np.random.standard_normal()  # leaves half a Gaussian pair in both generators
    states = checkpoints.random_states()

    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.standard_normal(), torch.rand(()).item()]

    first = draw()
    checkpoints.restore_random_states(states)
    assert draw() == first


def test_trees_keep_types_and_exact_numbers(tmp_path):
    tree = {3: [1e-4, (0.1 + 0.2, None, True)], "empty": {}, "x": torch.tensor(2, dtype=torch.int16)}
    checkpoints.write_tree(tmp_path / "t.safetensors", tree)
    again = checkpoints.read_tree(tmp_path / "t.safetensors")
    assert again == tree
    assert again["x"].dtype == torch.int16
    assert isinstance(again[3][1], tuple)


def test_what_is_no_tensor_or_plain_value_is_refused(tmp_path):
    with pytest.raises(TypeError, match="not Linear"):
        checkpoints.write_tree(tmp_path / "t.safetensors", {"model": nn.Linear(1, 1)})


def test_only_a_committed_checkpoint_is_found_and_replaces_older_ones(tmp_path):
    def write(step: int) -> None:
        partial = tmp_path / checkpoints.PARTIAL / f"checkpoint-{step}"
        partial.mkdir(parents=True)
        (partial / "weights").write_text(str(step))

    write(9)
    assert checkpoints.last_checkpoint(tmp_path) is None
    checkpoints.commit_checkpoint(tmp_path, 9)
    write(10)
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    checkpoints.commit_checkpoint(tmp_path, 10)
    write(11)
    checkpoints.discard_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    assert (tmp_path / "checkpoint-10" / "weights").read_text() == "10"
