"""A training that is killed, anywhere, and repeated ends as one that nobody disturbed."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from steermoe import atomic_io as staging
from steermoe.atomic_io import Staging, StagingBusyError
from steermoe.config import VariantConfig, Video
from steermoe.data import video
from steermoe.data.batching import bucketed_batches
from steermoe.data.shards import read_rows, write_shards
from steermoe.models import adapter, attention
from steermoe.models import checkpoint as adapter
from steermoe.models.llm import load_llm
from steermoe.models.steermoe import SteerMoE
from steermoe.training import callbacks, checkpoints, progress
from steermoe.training import train as training
from steermoe.training.rows import read_data, warn_of_long_targets
from steermoe.training.train import FrozenChangedError, train
from steermoe.training.trainer import AdapterTrainer, DivergedError
from tests.data.conftest import write_shards

OUTPUTS = ("adapter.safetensors", "config.json", "history.csv")


def _die_at(
    call: int, owner: object, name: str, before: bool, when: Callable[..., bool] | None = None
) -> None:
    """Have the `call`-th call of `owner.name` end this process, before or after it did its work."""
    real, calls = getattr(owner, name), 0

    def dying(*args, **kwargs):
        nonlocal calls
        calls += when is None or when(*args)
        doomed = calls == call
        if doomed and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if doomed:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


def _is_retired(path: Path, *_: object) -> bool:
    return Path(path).name.startswith(".retired")


KILLS: dict[str, tuple] = {  # where: what to patch, and the steps that are left for the second try
    "before the first checkpoint": (1, callbacks.StepTimer, "on_step_end", False, None, 6),
    "between checkpoints": (5, callbacks.StepTimer, "on_step_end", False, None, 2),
    "amid the files of a checkpoint": (5, checkpoints, "write_tree", False, None, 4),
    "before a checkpoint has its name": (2, checkpoints, "commit_checkpoint", True, None, 4),
    "before older checkpoints are gone": (2, checkpoints, "discard_leftovers", True, None, 2),
    "before the outputs": (1, adapter, "write", True, None, 0),
    "amid the outputs": (1, adapter, "write", False, None, 0),
    "before the outputs have their place": (1, Staging, "publish", True, None, 0),
    "before the work is retired": (1, Staging, "retire", True, None, 0),
    "before the work is removed": (1, staging, "_remove", True, _is_retired, 0),
    "while the work is removed": (1, shutil, "rmtree", True, _is_retired, 6),
}


def _in_child(variant: str, shards: list[Path], out: Path, root: Path, where: str | None) -> None:
    torch.set_num_threads(1)
    if where is not None:
        _die_at(*KILLS[where][:3], before=KILLS[where][3], when=KILLS[where][4])
    steps = 0
    timed = callbacks.StepTimer.on_step_end

    def count(self, *args, **kwargs):
        nonlocal steps
        steps += 1
        timed(self, *args, **kwargs)

    callbacks.StepTimer.on_step_end = count
    train(VariantConfig.from_json(variant), shards, out, root)
    (out / "steps").write_text(str(steps))


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
def undisturbed(references, shards, quick_variant, tmp_path) -> Callable[[str], dict[str, bytes]]:
    def outputs(method: str) -> dict[str, bytes]:
        if method not in references:
            train(quick_variant(method), shards, tmp_path / "reference", tmp_path)
            references[method] = {name: (tmp_path / "reference" / name).read_bytes() for name in OUTPUTS}
        return references[method]

    return outputs


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


def test_outputs_hold_the_best_weights_and_a_row_an_evaluation(shards, quick_variant, tmp_path):
    variant = quick_variant("steering")
    results = train(variant, shards, tmp_path / "out", tmp_path, timing=tmp_path / "t" / "timing.json")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(OUTPUTS)
    header, *rows = (tmp_path / "out" / "history.csv").read_text().splitlines()
    table = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    assert [int(row["step"]) for row in table] == [2, 4, 6]
    assert min(float(row["dev_loss"]) for row in table) == results["best_dev_loss"]
    assert all(row["lr_lora"] == "" and float(row["layer_scale"]) > 0 for row in table)
    timing = json.loads((tmp_path / "t" / "timing.json").read_text())
    assert timing == results
    assert results["seconds_per_step"] > 0
    assert results["steps"] == 6 and not results["stopped_early"]
    weights = load_file(tmp_path / "out" / "adapter.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == sum(results["trainable_parameters"].values())


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_a_frozen_weight_that_training_changed_is_named_and_nothing_is_written(
    part, shards, quick_variant, tmp_path, monkeypatch
):
    real = AdapterTrainer.train

    def tampering(self: AdapterTrainer, *args: object, **kwargs: object) -> None:
        real(self, *args, **kwargs)  # pyright: ignore[reportArgumentType]
        weights = self.adapted.frozen_parts()[part]
        weights[sorted(weights)[3]].view(-1)[0] += 1e-3

    variant = quick_variant("steering")
    tensor = sorted(SteerMoE.from_config(variant).frozen_parts()[part])[3]
    with monkeypatch.context() as patched, pytest.raises(FrozenChangedError, match=f"{part}, {tensor}"):
        patched.setattr(AdapterTrainer, "train", tampering)
        train(variant, shards, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FrozenChangedError, match=tensor):  # its checkpoints are no base for another try
        train(variant, shards, tmp_path / "out", tmp_path)


def test_the_hashes_before_and_after_are_told_and_are_the_adapters(shards, quick_variant, tmp_path):
    results = train(quick_variant("linear"), shards, tmp_path / "out", tmp_path)
    saved = adapter.read(tmp_path / "out").frozen
    assert results["frozen"] == {part: {"before": of, "after": of} for part, of in saved.items()}
    assert saved == SteerMoE.from_pretrained(tmp_path / "out").frozen_hashes()


def _fail(*args: object, **kwargs: object) -> None:
    raise RuntimeError("no further today")


def test_patience_ends_a_training_and_the_best_is_kept(shards, quick_variant, tmp_path, monkeypatch):
    # The words of these dev rows are never trained on: the more a model learns others, the worse they fare.
    unheard = pl.lit("house dog")
    dev = read_rows(shards[0], ["dev"]).with_columns(transcript=unheard, target=unheard)
    folder = tmp_path / "tones"
    write_shards(dev.iter_rows(named=True), folder, "dev", rows_per_shard=16)
    shutil.copy(shards[0] / "train-00000.parquet", folder)
    variant = quick_variant(
        "linear", max_steps=60, warmup_steps=0, patience=2, schedule="constant_with_warmup"
    )
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="no further"):
        patched.setattr(adapter, "write", _fail)
        train(variant, [folder], tmp_path / "out", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(AdapterTrainer, "train", _fail)  # stopped is stopped: a resume trains no step more
        results = train(variant, [folder], tmp_path / "out", tmp_path)
    assert results["stopped_early"]
    assert results["steps"] == results["best_step"] + 2 * variant.training.eval_steps < 60

    again = quick_variant(
        "linear", max_steps=results["best_step"], warmup_steps=0, patience=2, schedule="constant_with_warmup"
    )
    train(again, [folder], tmp_path / "short", tmp_path)
    best, last = (load_file(tmp_path / out / "adapter.safetensors") for out in ("out", "short"))
    for name, tensor in best.items():
        assert torch.equal(tensor, last[name])


def test_a_training_that_diverges_says_so_and_writes_nothing(shards, quick_variant, tmp_path):
    variant = quick_variant(
        "linear", warmup_steps=0, schedule="constant_with_warmup", learning_rates={"projection": 1e30}
    )
    with pytest.raises(DivergedError, match=r"diverged by step \d.*training\.learning_rates"):
        train(variant, shards, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_training_that_stops_short_is_an_error_and_resumes(
    undisturbed, shards, quick_variant, tmp_path, monkeypatch
):
    def interrupt(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3
        return control

    with monkeypatch.context() as patched:
        patched.setattr(progress.ProgressLines, "on_step_end", interrupt)
        with pytest.raises(RuntimeError, match="ended at step 3 of 6"):
            train(quick_variant("steering"), shards, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
    train(quick_variant("steering"), shards, tmp_path / "out", tmp_path)
    assert (tmp_path / "out" / "adapter.safetensors").read_bytes() == undisturbed("steering")[
        "adapter.safetensors"
    ]


def test_other_code_that_resumes_is_told(shards, quick_variant, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="no further"):
        patched.setattr(adapter, "write", _fail)
        train(quick_variant("linear"), shards, tmp_path / "out", tmp_path)
    monkeypatch.setattr(training, "code_digest", lambda *packages: "other")
    train(quick_variant("linear"), shards, tmp_path / "out", tmp_path)
    assert "resumes a training that other code began" in capsys.readouterr().out


def test_rows_that_are_missing_are_named(shards, quick_variant, tmp_path):
    variant = quick_variant("linear")
    with pytest.raises(ValueError, match="no shards of corpus 'songs'; given are \\['tones'\\]"):
        train(variant.model_copy(update={"train_splits": {"songs": ["train"]}}), shards, tmp_path, tmp_path)
    with pytest.raises(ValueError, match="no rows in"):
        train(variant.model_copy(update={"dev_splits": {"tones": []}}), shards, tmp_path, tmp_path)


def test_all_rows_over_max_seconds_are_refused_before_the_first_step(shards, quick_variant, tmp_path):
    with pytest.raises(
        ValueError, match=r"training\.max_seconds: found 0\.1; all 24 .* tones/train/train-000 \(0\.20 s\)"
    ):
        train(quick_variant("linear", max_seconds=0.1), shards, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_training_of_epochs_reads_every_row_so_often_and_is_evaluated_at_its_end(
    shards, quick_variant, tmp_path, capsys
):
    variant = quick_variant("linear", max_steps=None, epochs=2, eval_steps=5)
    results = train(variant, shards, tmp_path / "out", tmp_path)
    seconds = read_data(variant, shards).train["seconds"].to_list()
    counts = [len(bucketed_batches(seconds, 3.0, variant.seed, epoch)) for epoch in range(2)]
    assert results["steps"] == sum(counts) and results["steps"] % 5
    assert f"2 epochs are {sum(counts)} steps" in capsys.readouterr().out
    rows = (tmp_path / "out" / "history.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == [5, 10, sum(counts)]
    with pytest.raises(ValueError, match=r"eval_steps: found 99.* at most 12, as 2 epochs"):
        train(
            quick_variant("linear", max_steps=None, epochs=2, eval_steps=99),
            shards,
            tmp_path / "other",
            tmp_path,
        )


def test_rows_over_max_seconds_are_dropped_and_counted(shards, quick_variant, tmp_path, capsys):
    results = train(quick_variant("linear", max_seconds=0.5), shards, tmp_path / "out", tmp_path)
    assert (results["train_rows"], results["dropped_rows"]) == (12, 12)
    assert "12 of 24 training rows are longer than training.max_seconds (0.5)" in capsys.readouterr().out


@pytest.mark.parametrize("beyond", [24, 8, 0])
def test_targets_that_no_answer_can_reach_are_reported(shards, quick_variant, capsys, beyond):
    rows = read_data(quick_variant("linear"), shards).train
    texts = ["one two three four" if row % 3 == 0 else "one two three" for row in range(24)]
    tokenizer = load_llm(quick_variant("linear").llm)[1]
    shorter, longest = (len(tokenizer.encode(text, add_special_tokens=False)) + 1 for text in texts[1::-1])
    most = {24: shorter - 1, 8: shorter, 0: longest}[beyond]
    warn_of_long_targets("variant", rows.with_columns(pl.Series("target", texts)), tokenizer, most)
    told = capsys.readouterr().err
    assert (f"{beyond} of 24 training rows" in told) == (beyond > 0) == bool(told)
    assert not beyond or f"{rows['source_id'][0]!r} of {longest} tokens" in told


def test_a_training_says_beforehand_what_evaluation_would_cut(shards, quick_variant, tmp_path, capsys):
    train(quick_variant("linear"), shards, tmp_path / "out", tmp_path, max_new_tokens=1)
    assert "24 of 24 training rows" in capsys.readouterr().err


@pytest.mark.parametrize(("precision", "is_short"), [("bfloat16", True), ("float32", False)])
def test_in_bfloat16_short_sequences_are_attended_to_by_products(
    shards, quick_variant, tmp_path, monkeypatch, precision, is_short
):
    real, lengths = attention.attention, []

    def noted(query, key, *rest, **options):
        lengths.append(key.shape[-2])
        return real(query, key, *rest, **options)

    monkeypatch.setattr(attention, "attention", noted)
    train(quick_variant("linear", precision=precision), shards, tmp_path / "out", tmp_path)
    assert bool(lengths) == is_short and all(length <= attention.LONGEST for length in lengths)


def test_the_work_folder_is_held_while_training(shards, quick_variant, tmp_path, monkeypatch):
    held = []

    def look(self, *args, **kwargs):
        [folder] = (tmp_path / ".runs").iterdir()
        with pytest.raises(StagingBusyError, match=f"process {os.getpid()} makes this output already"):
            Staging(tmp_path / "out", json.loads((folder / "key.json").read_text()), tmp_path)
        held.append(folder)

    monkeypatch.setattr(progress.ProgressLines, "on_train_begin", look)
    train(quick_variant("linear"), shards, tmp_path / "out", tmp_path)
    assert held


def test_a_second_branch_is_trained_too(quick_variant, video_section, shards, tmp_path):
    rows = read_rows(shards[0], ["train", "dev"]).to_dicts()
    for place, row in enumerate(rows):
        drawn = np.random.default_rng(place).integers(0, 256, (1 + place % 3, 8, 8), dtype=np.uint8)
        row["video"] = video.encode(drawn)
    for split in ("train", "dev"):
        write_shards((row for row in rows if row["split"] == split), tmp_path / "tones", split, 16)
    plain = quick_variant("steering")
    variant = plain.model_copy(update={"video": Video.model_validate(video_section())})
    before = SteerMoE.from_config(variant).trainable_state_dict()
    results = train(variant, [tmp_path / "tones"], tmp_path / "out", tmp_path)
    after = load_file(tmp_path / "out" / "adapter.safetensors")
    assert after.keys() == before.keys() and any(name.startswith("video.steering.") for name in after)
    assert all(not torch.equal(after[name], before[name]) for name in before)
    sizes = {"projection": 0, "vectors": 0, "router": 0}
    for name, tensor in before.items():
        part = next((part for part in ("projection", "router") if part in name), "vectors")
        sizes[part] += tensor.numel()
    assert results["trainable_parameters"] == sizes
    # On the audio of the same rows, a variant without the branch is what it is without any video.
    train(plain, [tmp_path / "tones"], tmp_path / "deaf", tmp_path)
    train(plain, shards, tmp_path / "reference", tmp_path)
    ours, theirs = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("deaf", "reference"))
    assert ours == theirs
    with pytest.raises(ValueError, match="rows without column 'video'"):
        train(variant, shards, tmp_path / "blind", tmp_path)
