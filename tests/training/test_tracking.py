"""A real MLflow store on sqlite: one run an arm, whoever logs into it and however often."""

import shutil
from pathlib import Path

import pytest

from steermoe import config
from steermoe.training.tracking import Tracker, flat_parameters, open_store
from steermoe.training.train import train
from steermoe.training.trainer import DivergedError

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(scope="session")
def arms() -> dict[str, config.ArmConfig]:
    loaded = config.load(PARAMS)
    return {name: loaded.arm(name) for name in ("steermoe", "linear", "lora")}


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory, forkserver) -> Path:
    """A store that three processes opened at once when it did not exist yet."""
    root = tmp_path_factory.mktemp("store")
    processes = [forkserver.Process(target=_track_one_run, args=(root, f"racer-{n}")) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    return root


def _track_one_run(root: Path, name: str) -> None:
    tracker = Tracker("race", root)
    tracker.attach_named(name)
    tracker.log({"x": 1.0})
    tracker.finish()
    assert not tracker.is_off


@pytest.fixture
def root(fresh_store, tmp_path, monkeypatch) -> Path:
    for variable in ("DVC_EXP_NAME", "DVC_STAGE", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(variable, raising=False)
    shutil.copy(fresh_store / "mlflow.db", tmp_path)
    return tmp_path


def runs(root: Path, profile: str = "mini") -> list:
    client = open_store(root)
    experiment = client.get_experiment_by_name(f"steermoe/{profile}")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])


def adapter(folder: Path, content: bytes = b"weights") -> Path:
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(content)
    return folder


def test_processes_that_open_a_fresh_store_at_once_all_log(fresh_store):
    found = runs(fresh_store, "race")
    assert sorted(run.info.run_name for run in found) == ["racer-0", "racer-1", "racer-2"]
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {run.data.metrics["x"] for run in found} == {1.0}


def test_a_training_that_was_killed_goes_on_in_its_run_and_a_finished_one_does_not(root, arms):
    first = Tracker("mini", root)
    first.start(arms["steermoe"], "f1", "data")
    first.log({"train/loss": 2.0}, step=10)  # and then the process is killed

    second = Tracker("mini", root)
    second.start(arms["steermoe"], "f1", "data")
    second.log({"train/loss": 1.0}, step=20)
    second.finish()
    assert second.run_id == first.run_id
    [run] = runs(root)
    assert run.info.status == "FINISHED"
    history = second.client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(10, 2.0), (20, 1.0)]

    third = Tracker("mini", root)
    third.start(arms["steermoe"], "f1", "data")
    assert third.run_id != first.run_id


def test_evaluation_logs_into_the_run_that_trained_the_adapter(root, arms, tmp_path, monkeypatch):
    model = adapter(tmp_path / "model")
    training = Tracker("mini", root)
    training.start(arms["lora"], "f1", "data")
    training.mark_adapter(model)
    training.finish()

    monkeypatch.setenv("DVC_STAGE", "eval@mini-lora-digits")
    evaluation = Tracker("mini", root)
    evaluation.attach(arms["lora"], model)
    evaluation.log_tree({"clean": {"wer": 0.25, "protocol": "text", "skipped": None}}, "eval/synthetic")
    (tmp_path / "curve.png").write_bytes(b"png")
    evaluation.artifact(tmp_path / "curve.png", "report")
    evaluation.finish()
    assert not evaluation.is_off
    [run] = runs(root)
    assert run.info.run_id == training.run_id
    assert run.data.metrics == {"eval/synthetic/clean/wer": 0.25}
    assert run.data.tags["dvc.stage"] == "eval@mini-lora-digits"
    assert (
        root / "mlartifacts" / run.info.run_id / "artifacts" / "report" / "curve.png"
    ).read_bytes() == b"png"


def test_an_adapter_that_was_trained_elsewhere_gets_a_run(root, arms, tmp_path):
    for _ in range(2):
        evaluation = Tracker("mini", root)
        evaluation.attach(
            arms["linear"], adapter(tmp_path / "m") if not (tmp_path / "m").exists() else tmp_path / "m"
        )
        evaluation.finish()
    [run] = runs(root)
    assert (run.info.run_name, run.info.status) == ("linear", "FINISHED")
    other = Tracker("mini", root)
    other.attach(arms["linear"], adapter(tmp_path / "other", b"other weights"))
    assert other.run_id != run.info.run_id


def test_every_arm_has_the_same_parameters_and_tags_say_where_it_comes_from(root, arms, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "brave-newt")
    for place, arm in enumerate(arms.values()):
        tracker = Tracker("mini", root)
        tracker.start(arm, f"f{place}", "abc")
        tracker.finish()
    found = {run.data.tags["steermoe.arm"]: run for run in runs(root)}
    assert found.keys() == arms.keys()
    keys = {name: set(run.data.params) for name, run in found.items()}
    assert keys["steermoe"] == keys["linear"] == keys["lora"]
    assert found["steermoe"].data.params["steering.num_experts"] == str(arms["steermoe"].steering.num_experts)
    assert found["linear"].data.params["steering.num_experts"] == "none"
    assert found["lora"].data.params["training.learning_rates.vectors"] == "none"
    tags = found["linear"].data.tags
    assert (tags["steermoe.profile"], tags["steermoe.data"], tags["steermoe.fingerprint"]) == (
        "mini",
        "abc",
        "f1",
    )
    assert tags["dvc.exp_name"] == "brave-newt"
    assert found["linear"].info.run_name == "linear brave-newt"


def test_parameters_are_the_whole_configuration(arms):
    flat = flat_parameters(arms["steermoe"])
    assert flat["training.learning_rates.vectors"] == str(arms["steermoe"].training.learning_rates["vectors"])
    assert flat["prompts.transcribe"] == arms["steermoe"].prompts.transcribe
    assert flat["lora.rank"] == "none"
    assert flat["method"] == "steering"


def test_a_broken_store_is_told_once_and_stops_nothing(tmp_path, arms, capsys):
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    tracker = Tracker("mini", tmp_path)
    tracker.start(arms["linear"], "f", "data")
    tracker.log({"x": 1.0}, step=1)
    tracker.finish()
    assert tracker.is_off
    assert capsys.readouterr().out.count("tracking is off") == 1


def test_a_training_logs_its_curves_and_is_found_by_its_adapter(root, shards, quick_arm, tmp_path):
    arm = quick_arm("steering")
    tracker = Tracker("mini", root)
    results = train(arm, shards, tmp_path / "out", tmp_path, tracker=tracker)
    [run] = runs(root)
    assert run.info.status == "FINISHED"
    assert run.data.tags["steermoe.fingerprint"] == results["fingerprint"]
    history = open_store(root).get_metric_history(run.info.run_id, "dev/loss")
    assert [point.step for point in history] == [2, 4, 6]
    assert min(point.value for point in history) == results["best_dev_loss"]
    assert run.data.metrics["train/best_step"] == results["best_step"]
    assert run.data.metrics["params/trainable"] == sum(results["trainable_parameters"].values())
    curves = {"train/loss", "train/grad_norm", "train/steering_grad_norm", "train/layer_scale"}
    rates = {f"train/lr_{part}" for part in arm.training.learning_rates}
    assert curves | rates | {"dev/token_accuracy"} <= run.data.metrics.keys()

    evaluation = Tracker("mini", root)
    evaluation.attach(arm, tmp_path / "out")
    assert evaluation.run_id == run.info.run_id


def test_a_training_that_fails_is_marked_as_failed(root, shards, quick_arm, tmp_path):
    arm = quick_arm("linear", warmup_steps=0, schedule="constant", learning_rates={"projection": 1e30})
    with pytest.raises(DivergedError):
        train(arm, shards, tmp_path / "out", tmp_path, tracker=Tracker("mini", root))
    [run] = runs(root)
    assert run.info.status == "FAILED"
