"""What goes wrong around a training: it says so, leaves the last checkpoint whole, and goes on when repeated."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from steermoe.data.shards import read_rows
from steermoe.distributed import PreemptedError
from steermoe.models.steermoe import SteerMoE
from steermoe.training import callbacks, checkpoints
from steermoe.training.divergence import REPORT
from steermoe.training.resumable import CheckpointError
from steermoe.training.train import train
from steermoe.training.trainer import AdapterTrainer, DivergedError


@pytest.fixture
def undisturbed(shards, quick_variant, tmp_path) -> dict[str, bytes]:
    train(quick_variant("steering"), shards, tmp_path / "undisturbed", tmp_path)
    return {path.name: path.read_bytes() for path in (tmp_path / "undisturbed").iterdir()}


def outputs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_sigterm_ends_a_training_after_its_step_and_it_goes_on_to_the_same_bytes(
    step, undisturbed, shards, quick_variant, tmp_path, monkeypatch
):
    ended = callbacks.StepTimer.on_step_end

    def end(self, args, state, *rest, **kwargs):
        ended(self, args, state, *rest, **kwargs)
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(callbacks.StepTimer, "on_step_end", end)
        with pytest.raises(PreemptedError, match=f"ended by SIGTERM at step {step} of 6; repeat the command"):
            train(quick_variant("steering"), shards, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
    [checkpoint] = tmp_path.glob(".runs/*/scratch/checkpoint-*")
    assert checkpoint.name == f"checkpoint-{step}"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    train(quick_variant("steering"), shards, tmp_path / "out", tmp_path)
    assert outputs(tmp_path / "out") == undisturbed


def test_sigterm_amid_an_evaluation_keeps_the_steps_before_it(
    undisturbed, shards, quick_variant, tmp_path, monkeypatch
):
    prepared, steps = AdapterTrainer._prepare_inputs, 0

    def prepare(self, inputs):
        if not self.objective.training and self.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return prepared(self, inputs)

    with monkeypatch.context() as patched:
        patched.setattr(AdapterTrainer, "_prepare_inputs", prepare)
        with pytest.raises(PreemptedError, match="at step 4 of 6"):
            train(quick_variant("steering"), shards, tmp_path / "out", tmp_path)
    timed = callbacks.StepTimer.on_step_end

    def count(self, *args, **kwargs):
        nonlocal steps
        steps += 1
        timed(self, *args, **kwargs)

    monkeypatch.setattr(callbacks.StepTimer, "on_step_end", count)
    train(quick_variant("steering"), shards, tmp_path / "out", tmp_path)
    assert outputs(tmp_path / "out") == undisturbed
    assert steps == 2  # step 4 itself was not repeated


class _Broken:
    """Makes the loss, or a gradient, of the batch with a given row NaN."""

    def __init__(self, monkeypatch, row: int, gradient: bool) -> None:
        forward = SteerMoE.forward

        def broken(model, *args, **kwargs):
            found = forward(model, *args, **kwargs)
            assert found.loss is not None
            if model.training and (kwargs["indices"] == row).any():
                if gradient:
                    found.loss.register_hook(lambda grad: grad * torch.nan)
                else:
                    found.loss = found.loss * torch.nan
            return found

        monkeypatch.setattr(SteerMoE, "forward", broken)


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
def test_rows_of_a_loss_that_is_no_number_are_told(gradient, shards, quick_variant, tmp_path, monkeypatch):
    rows = read_rows(shards[0], ["train"])
    with monkeypatch.context() as patched:
        _Broken(patched, row=20, gradient=gradient)
        with pytest.raises(DivergedError, match=r"diverged by step \d.*its rows are in (.*)") as caught:
            train(quick_variant("steering", eval_steps=1), shards, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
    path = Path(re.findall(r"rows are in (\S+)", str(caught.value))[0])
    assert path.name == REPORT
    report = json.loads(path.read_text())
    assert report["found"] == {"grad_norm" if gradient else "loss": "nan"}
    ids = [row["source_id"] for row in report["rows"]]
    assert rows["source_id"][20] in ids and len(ids) < len(rows)
    for row in report["rows"]:  # the row is where the report says
        found = pl.read_parquet(row["shard"])["source_id"][row["row"]]
        assert (row["corpus"], row["split"], found) == ("tones", "train", row["source_id"])
    step = report["step"]
    kept = [p.name for p in path.parent.glob("checkpoint-*")]
    assert kept == ([f"checkpoint-{step}"] if step else [])  # the last step before it, whole


def _needs_mounts() -> None:
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("a small file system is mounted by root, on Linux")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 700 kB; `fill()` leaves no room in it, `free()` makes some again."""
    _needs_mounts()
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount file systems")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint(
    undisturbed, shards, quick_variant, tmp_path, small_disk, monkeypatch
):
    commit, filler = checkpoints.commit_checkpoint, small_disk / "filler"

    def fill(run, step):
        commit(run, step)
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "commit_checkpoint", fill)
        with pytest.raises(CheckpointError, match=r"step 4 cannot.*No space left.*kept is checkpoint-2"):
            train(quick_variant("steering"), shards, tmp_path / "out", small_disk)
    [checkpoint] = small_disk.glob(".runs/*/scratch/checkpoint-*")
    assert checkpoint.name == "checkpoint-2"
    checkpoints.read_tree(checkpoint / "weights.safetensors")
    filler.unlink()
    train(quick_variant("steering"), shards, tmp_path / "out", small_disk)
    assert outputs(tmp_path / "out") == undisturbed


def test_a_folder_that_may_not_be_written_is_named(
    undisturbed, shards, quick_variant, tmp_path, small_disk, monkeypatch
):
    commit = checkpoints.commit_checkpoint

    def lock(run, step):
        commit(run, step)
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "commit_checkpoint", lock)
        with pytest.raises(CheckpointError, match=r"step 4 cannot.*Read-only.*kept is checkpoint-2"):
            train(quick_variant("steering"), shards, tmp_path / "out", small_disk)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    [checkpoint] = small_disk.glob(".runs/*/scratch/checkpoint-*")
    assert checkpoint.name == "checkpoint-2"
    train(quick_variant("steering"), shards, tmp_path / "out", small_disk)
    assert outputs(tmp_path / "out") == undisturbed
