"""A few seconds of synthetic sound as shards, and variants that train on it in a moment."""

import io
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import distributed

from steermoe import config
from steermoe import distributed as processes
from steermoe.config import VariantConfig
from steermoe.data.dataset import UtteranceDataset
from steermoe.models.steermoe import SteerMoE
from steermoe.training.distillation import Teacher
from steermoe.training.loop import Trainer
from steermoe.training.reporting import StepTimer
from steermoe.training.rows import read_data
from tests.data.conftest import write_shards

PRELOADED = [
    "mlflow",
    "peft",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.whisper.modeling_whisper",
    "steermoe.models.lora",
    "steermoe.training.mlflow_logger",
    "steermoe.training.train",
    "steermoe.evaluation.evaluator",
    "deepspeed",
]
PARAMS = Path(__file__).parents[2] / "params.yaml"
WORDS = ("one", "two", "three", "four")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of floats depend on the number of threads; children of a fork server run with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def forkserver() -> ForkServerContext:
    """Makes processes that have imported what takes seconds, but run nothing yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


Together = Callable[..., list[int | None]]


def _as_rank(environment: dict[str, str], target: Callable[..., None], arguments: tuple) -> None:
    import deepspeed.ops

    # Or DeepSpeed compiles its communication between CPUs, for minutes.
    deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue]
    torch.set_num_threads(1)
    os.environ.update(environment)
    target(*arguments)


@pytest.fixture
def together(forkserver) -> Together:
    """`together(processes, target, *arguments)` runs `target` in a group of processes; gives their exit codes."""

    def run(count: int, target: Callable[..., None], *arguments: object) -> list[int | None]:
        store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
        environments = [processes.environment(rank, count, store.port) for rank in range(count)]
        group = [forkserver.Process(target=_as_rank, args=(e, target, arguments)) for e in environments]
        for process in group:
            process.start()
        try:
            for process in group:
                process.join(120)
        finally:
            for process in group:
                process.kill()
        return [process.exitcode for process in group]

    return run


def after_step(number: int | None, action: Callable[[], object]) -> Callable[[], None]:
    """Call `action` after a number of steps of this process (None: after each); returns what undoes it."""
    real, steps = StepTimer.end, 0

    def end(self: StepTimer) -> None:
        nonlocal steps
        real(self)
        steps += 1
        if number in (None, steps):
            action()

    StepTimer.end = end

    def undo() -> None:
        StepTimer.end = real

    return undo


@pytest.fixture
def at_step(request: pytest.FixtureRequest) -> Callable[[int | None, Callable[[], object]], None]:
    """`at_step(number, action)`: as `after_step`, until the test ends or `at_step` is called again."""
    undone: list[Callable[[], None]] = []

    def undo() -> None:
        while undone:
            undone.pop()()

    def set_action(number: int | None, action: Callable[[], object]) -> None:
        undo()
        undone.append(after_step(number, action))

    request.addfinalizer(undo)
    return set_action


@pytest.fixture
def make_trainer(shards: list[Path], tmp_path: Path) -> Callable[..., Trainer]:
    """`make_trainer(variant, name="run", teacher=None)`: a trainer with a folder of its own for checkpoints."""

    def make(variant: VariantConfig, name: str = "run", **options: Any) -> Trainer:
        model = SteerMoE.from_config(variant)
        if variant.training.distillation is not None:
            options["teacher"] = Teacher.of(model)
        data = read_data(variant, shards)
        train, dev = (
            (
                UtteranceDataset(rows, model.features, model.tokenizer, variant.prompts),
                rows["seconds"].to_list(),
            )
            for rows in (data.train, data.dev)
        )
        (tmp_path / name).mkdir()
        return Trainer(model, train, dev, tmp_path / name, **options)

    return make


def outputs(out: Path) -> dict[str, bytes]:
    """The content of every file of a folder."""
    return {path.name: path.read_bytes() for path in out.iterdir()}


def utterance(split: str, place: int) -> dict:
    """Each word is a tone of its own; lengths differ, so that batches do."""
    generator = np.random.default_rng([place, len(split)])
    words = generator.choice(len(WORDS), size=1 + place % 4)
    time = np.arange(3200) / 16000
    sound = np.concatenate([np.sin(2 * np.pi * 300 * (1 + word) * time) for word in words]) * 0.3
    flac = io.BytesIO()
    soundfile.write(flac, sound.astype(np.float32), 16000, format="FLAC")
    transcript = " ".join(WORDS[word] for word in words)
    return {
        "source_id": f"{split}-{place:03d}",
        "split": split,
        "speaker": "tone",
        "task": "transcribe",
        "prompt": "",
        "transcript": transcript,
        "target": transcript,
        "audio": flac.getvalue(),
        "sample_rate": 16000,
        "seconds": len(sound) / 16000,
    }


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards") / "tones"
    for split, count in (("train", 24), ("dev", 6)):
        write_shards((utterance(split, place) for place in range(count)), folder, split, rows_per_shard=16)
    return [folder]


@pytest.fixture
def quick_variant(tiny_variant) -> Callable[..., VariantConfig]:
    """A variant of 6 steps with an evaluation every 2, and whatever of `training` is given."""

    def make(method: str, **changed: object) -> VariantConfig:
        variant = tiny_variant(method)
        training = variant.training.model_copy(
            update={
                "max_steps": 6,
                "max_batch_seconds": 3.0,
                "max_seconds": 30.0,
                "warmup_steps": 2,
                "schedule": "cosine",
                "eval_steps": 2,
                "patience": 10,
                **changed,
            }
        )
        update = {
            "training": training,
            "train_splits": {"tones": ["train"]},
            "dev_splits": {"tones": ["dev"]},
        }
        if variant.lora is not None:
            update["lora"] = variant.lora.model_copy(
                update={"dropout": 0.2}
            )  # draws from the random generator
        return variant.model_copy(update=update)

    return make


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory, forkserver) -> Path:
    """A store that three processes opened at once when it did not exist yet."""
    root = tmp_path_factory.mktemp("store")
    (root / "model").mkdir()
    for name in ("adapter.safetensors", "config.json"):
        (root / "model" / name).write_bytes(b"weights")
    processes = [forkserver.Process(target=train_one_run, args=(root, n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    return root


def train_one_run(root: Path, number: int, killed: bool = False) -> None:
    """The log of a training with nothing to train, up to its end or to a SIGKILL of this process."""
    os.environ["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = "false"
    from steermoe.training.mlflow_logger import Tracker

    tracker = Tracker("race", root)
    variant = config.load(PARAMS).variant("linear").model_copy(update={"name": f"racer-{number}"})
    tracker.start(variant, f"f{number}", "data")
    tracker.log({"x": 1.0}, step=number)
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
    tracker.finish()


@pytest.fixture
def store_process(forkserver: ForkServerContext) -> Callable[..., int | None]:
    """`store_process(root, number, killed)` runs `train_one_run` in a process of its own; its exit code."""

    def run(*arguments: object) -> int | None:
        process = forkserver.Process(target=train_one_run, args=arguments)
        process.start()
        process.join()
        return process.exitcode

    return run
