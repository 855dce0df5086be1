"""A training that is interrupted, anywhere and by anything, ends like one that was not when it is repeated."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steermoe import atomic_io as staging
from steermoe.atomic_io import Staging, StagingBusyError
from steermoe.config import VariantConfig
from steermoe.config.run import Ctc
from steermoe.data.shards import read_rows
from steermoe.distributed import PreemptedError
from steermoe.models import checkpoint as adapter
from steermoe.models.steermoe import SteerMoE
from steermoe.training import checkpointing
from steermoe.training.checkpointing import CheckpointError
from steermoe.training.reporting import ProgressReport, StepTimer
from steermoe.training.rows import DIVERGED, DivergedError
from steermoe.training.train import train

from .conftest import after_step, outputs


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _is_retired(path: Path, *_: object) -> bool:
    return Path(path).name.startswith(".retired")


def _always(*_: object) -> bool:
    return True


KILLS: dict[
    str, tuple
] = {  # where: which call of what, before or after it, and the steps left for the second try
    "before the first checkpoint": (1, StepTimer, "end", False, _always, 6),
    "between checkpoints": (5, StepTimer, "end", False, _always, 2),
    "amid the files of a checkpoint": (3, checkpointing, "write_tree", False, _always, 4),
    "before a checkpoint has its name": (2, checkpointing, "commit_checkpoint", True, _always, 4),
    "before older checkpoints are gone": (2, checkpointing, "discard_leftovers", True, _always, 2),
    "before the outputs": (1, adapter, "write", True, _always, 0),
    "before the outputs have their place": (1, Staging, "publish", True, _always, 0),
    "before the work is removed": (1, staging, "_remove", True, _is_retired, 0),
    "while the work is removed": (1, shutil, "rmtree", True, _is_retired, 6),
}


def _in_child(variant: str, shards: list[Path], out: Path, root: Path, where: str | None) -> None:
    torch.set_num_threads(1)
    if where is not None:
        number, owner, name, before, counts, _ = KILLS[where]
        real, calls = getattr(owner, name), 0

        def dying(*args, **kwargs):
            nonlocal calls
            calls += counts(*args)
            if calls == number and before:
                kill()
            result = real(*args, **kwargs)
            if calls == number:
                kill()
            return result

        setattr(owner, name, dying)
    steps: list[int] = []
    after_step(None, lambda: steps.append(1))
    train(VariantConfig.from_json(variant), shards, out, root)
    (out / "steps").write_text(str(len(steps)))


@pytest.fixture
def child(forkserver) -> Callable[..., int | None]:
    """Trains in a process of its own; returns its exit code."""

    def run(*arguments: object) -> int | None:
        process = forkserver.Process(target=_in_child, args=arguments)
        process.start()
        process.join()
        return process.exitcode

    return run


@pytest.fixture(scope="module")
def references() -> dict[str, dict[str, bytes]]:
    return {}


@pytest.fixture
def undisturbed(references, shards, quick_variant, tmp_path) -> Callable[..., dict[str, bytes]]:
    """`undisturbed(method)`: the outputs of a training that nothing interrupts."""

    def of(method: str = "steering") -> dict[str, bytes]:
        if method not in references:
            train(quick_variant(method), shards, tmp_path / "undisturbed", tmp_path)
            references[method] = outputs(tmp_path / "undisturbed")
        return references[method]

    return of


@pytest.mark.parametrize("place", range(len(KILLS)), ids=list(KILLS))
def test_a_killed_training_is_finished_to_the_same_bytes(
    place, child, undisturbed, shards, quick_variant, tmp_path
):
    where = list(KILLS)[place]
    method = ("lora", "steering")[place % 2]  # LoRA has dropout here: it draws from the random generator
    arguments = (quick_variant(method).to_json(), shards, tmp_path / "out", tmp_path)
    assert child(*arguments, where) == -signal.SIGKILL
    assert child(*arguments, None) == 0
    for name, content in undisturbed(method).items():
        assert (tmp_path / "out" / name).read_bytes() == content, name
    assert int((tmp_path / "out" / "steps").read_text()) == KILLS[where][-1]
    assert list((tmp_path / ".runs").iterdir()) == []


@pytest.mark.parametrize("step", [3, 4, 6])
def test_sigterm_ends_a_training_after_its_step_and_it_goes_on_to_the_same_bytes(
    step, undisturbed, shards, quick_variant, tmp_path, at_step
):
    expected = undisturbed()
    at_step(step, terminate)
    with pytest.raises(PreemptedError, match=f"ended by SIGTERM at step {step} of 6; repeat the command"):
        train(quick_variant("steering"), shards, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
    [checkpoint] = tmp_path.glob(".runs/*/scratch/checkpoint-*")
    assert checkpoint.name == f"checkpoint-{step}"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    train(quick_variant("steering"), shards, tmp_path / "out", tmp_path)
    assert outputs(tmp_path / "out") == expected


def test_evaluations_begin_after_the_steps_with_ctc_alone(shards, quick_variant, tmp_path, at_step):
    """A training that SIGTERM ends among these steps goes on to the same bytes."""
    variant = quick_variant(
        "steering", ctc=Ctc(steps=3, coef=0.5, soft_tokens=True, spelling=True, num_sampled=4)
    )
    train(variant, shards, tmp_path / "whole", tmp_path)
    lines = (tmp_path / "whole" / "history.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "4", "6"]
    at_step(2, terminate)
    with pytest.raises(PreemptedError, match="at step 2 of 6"):
        train(variant, shards, tmp_path / "out", tmp_path)
    train(variant, shards, tmp_path / "out", tmp_path)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


@pytest.mark.parametrize("criterion", ["loss", "wer"])
def test_sigterm_amid_an_evaluation_keeps_the_steps_before_it(
    criterion, undisturbed, shards, quick_variant, tmp_path, monkeypatch, at_step
):
    scored: dict[str, Any] = {"criterion": "wer", "wer_rows": 5, "wer_normalizers": {"tones": "folded"}}
    variant = quick_variant("steering", **(scored if criterion == "wer" else {}))
    if criterion == "wer":
        train(variant, shards, tmp_path / "whole", tmp_path)
    expected = undisturbed() if criterion == "loss" else outputs(tmp_path / "whole")
    real, amid = (
        ProgressReport.evaluating,
        {"loss": "evaluating on dev", "wer": "answering on dev"}[criterion],
    )

    def evaluating(self, step, work, *batches):
        if step == 4 and work == amid:
            terminate()
        real(self, step, work, *batches)

    with monkeypatch.context() as patched:
        patched.setattr(ProgressReport, "evaluating", evaluating)
        with pytest.raises(PreemptedError, match="at step 4 of 6"):
            train(variant, shards, tmp_path / "out", tmp_path)
    steps: list[int] = []
    at_step(None, lambda: steps.append(1))
    train(variant, shards, tmp_path / "out", tmp_path)
    assert outputs(tmp_path / "out") == expected
    assert len(steps) == 2  # step 4 itself was not repeated


def _broken(monkeypatch, row: int, gradient: bool) -> None:
    """Make the loss, or a gradient, of the batch with a given row NaN."""
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
def test_rows_of_a_loss_that_is_not_finite_are_named(gradient, shards, quick_variant, tmp_path, monkeypatch):
    rows = read_rows(shards[0], ["train"])
    _broken(monkeypatch, row=20, gradient=gradient)
    with pytest.raises(
        DivergedError, match=r"diverged by step \d.*learning_rates.*its rows are in"
    ) as caught:
        train(quick_variant("steering", eval_steps=1), shards, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
    path = Path(re.findall(r"rows are in (\S+)", str(caught.value))[0])
    assert path.name == DIVERGED
    report = json.loads(path.read_text())
    assert report["found"] == {"grad_norm" if gradient else "loss": "nan"}
    ids = [row["source_id"] for row in report["rows"]]
    assert rows["source_id"][20] in ids and len(ids) < len(rows)
    assert {(row["corpus"], row["split"]) for row in report["rows"]} == {("tones", "train")}
    step = report["step"]
    kept = [p.name for p in path.parent.glob("checkpoint-*")]
    assert kept == ([f"checkpoint-{step}"] if step else [])  # the last step before it, whole


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 700 kB."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("a small file system is mounted by root, on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount file systems")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    undisturbed, shards, quick_variant, tmp_path, small_disk, monkeypatch
):
    expected, commit, filler = undisturbed(), checkpointing.commit_checkpoint, small_disk / "filler"

    def fill(run, step):
        commit(run, step)
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    with monkeypatch.context() as patched:
        patched.setattr(checkpointing, "commit_checkpoint", fill)
        with pytest.raises(CheckpointError, match=r"step 4 cannot.*No space left.*checkpoint-2 is kept"):
            train(quick_variant("steering"), shards, tmp_path / "out", small_disk)
    [checkpoint] = small_disk.glob(".runs/*/scratch/checkpoint-*")
    assert checkpoint.name == "checkpoint-2"
    checkpointing.read_tree(checkpoint / "state.pt")
    filler.unlink(missing_ok=True)
    train(quick_variant("steering"), shards, tmp_path / "out", small_disk)
    assert outputs(tmp_path / "out") == expected


def test_the_work_folder_is_held_while_training(shards, quick_variant, tmp_path, at_step):
    held = []

    def look() -> None:
        [folder] = (tmp_path / ".runs").iterdir()
        with pytest.raises(StagingBusyError, match=f"process {os.getpid()} "):
            Staging(tmp_path / "out", json.loads((folder / "key.json").read_text()), tmp_path)
        held.append(folder)

    at_step(1, look)
    train(quick_variant("linear", max_steps=2), shards, tmp_path / "out", tmp_path)
    assert held


def test_nothing_but_tensors_and_plain_values_is_read(tmp_path):
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "tree.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        checkpointing.read_tree(tmp_path / "tree.pt")


def test_only_a_committed_checkpoint_is_found_and_replaces_older_ones(tmp_path):
    def write(step: int) -> None:
        partial = tmp_path / checkpointing.PARTIAL / f"checkpoint-{step}"
        partial.mkdir(parents=True)
        (partial / "weights").write_text(str(step))

    write(9)
    assert checkpointing.last_checkpoint(tmp_path) is None
    checkpointing.commit_checkpoint(tmp_path, 9)
    write(10)
    assert checkpointing.last_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    checkpointing.commit_checkpoint(tmp_path, 10)
    write(11)
    checkpointing.discard_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    assert (tmp_path / "checkpoint-10" / "weights").read_text() == "10"
