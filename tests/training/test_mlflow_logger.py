"""A real MLflow store on SQLite: one run per variant, whichever process logs into it and however often."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from steermoe import config
from steermoe.training.mlflow_logger import Tracker, flat_parameters
from steermoe.training.mlflow_store import UNSENT, open_store
from steermoe.training.rows import DivergedError
from steermoe.training.train import train

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(scope="session")
def variants() -> dict[str, config.VariantConfig]:
    loaded = config.load(PARAMS)
    return {name: loaded.variant(name) for name in ("steermoe", "linear", "lora")}


@pytest.fixture
def root(fresh_store, tmp_path, monkeypatch) -> Path:
    for variable in ("DVC_EXP_NAME", "DVC_STAGE", "DVC_EXP_BASELINE_REV", "STEERMOE_EXECUTION"):
        monkeypatch.delenv(variable, raising=False)
    shutil.copy(fresh_store / "mlflow.db", tmp_path)
    return tmp_path


def runs(root: Path, profile: str = "mini", kind: str = "variant") -> list:
    client = open_store(root)
    experiment = client.get_experiment_by_name(f"steermoe/{profile}")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], f"tags.`steermoe.kind` = '{kind}'")


def points(root: Path, run_id: str, name: str = "x") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in open_store(root).get_metric_history(run_id, name)]


def unsent(root: Path) -> list[Path]:
    return list((root / UNSENT).glob("*.jsonl"))


def adapter(folder: Path, content: bytes = b"weights", name: str = "linear") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter.safetensors").write_bytes(content)
    variant = {"name": name, "method": "m", "encoder": {"path": "e"}, "llm": {"path": "l"}}
    (folder / "config.json").write_text(json.dumps({"variant": variant}))
    return folder


def started(
    root: Path, variant: config.VariantConfig, fingerprint: str = "f", resumes: bool = False
) -> Tracker:
    tracker = Tracker("mini", root)
    tracker.start(variant, fingerprint, "data", resumes)
    return tracker


def trained(root: Path, variant: config.VariantConfig, model: Path, fingerprint: str) -> Tracker:
    """Log as a training does."""
    tracker = started(root, variant, fingerprint)
    tracker.mark_adapter(model)
    tracker.finish()
    return tracker


def attached(root: Path, variant: config.VariantConfig, model: Path) -> Tracker:
    tracker = Tracker("mini", root)
    tracker.attach(variant, model)
    return tracker


def test_processes_that_open_a_fresh_store_at_once_all_log(fresh_store):
    found = runs(fresh_store, "race")
    assert sorted(run.info.run_name for run in found) == ["racer-0", "racer-1", "racer-2"]
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {run.data.metrics["x"] for run in found} == {1.0}
    [execution] = runs(fresh_store, "race", kind="execution")
    assert {run.data.tags["mlflow.parentRunId"] for run in found} == {execution.info.run_id}


def test_a_killed_training_continues_its_run_without_double_points_and_a_finished_one_does_not(
    root, store_process
):
    assert store_process(root, 7, True) == -signal.SIGKILL
    assert store_process(root, 7) == 0
    [run] = [run for run in runs(root, "race") if run.info.run_name == "racer-7"]
    assert run.info.status == "FINISHED"
    assert points(root, run.info.run_id) == [(7, 1.0)]

    assert store_process(root, 7) == 0
    assert len([run for run in runs(root, "race") if run.info.run_name == "racer-7"]) == 2


def test_a_training_that_ended_early_continues_its_run(root, variants):
    """It failed, was stopped, or was killed after it had closed its run."""
    ends = [("KILLED", False, 1), ("FINISHED", False, 1), ("FINISHED", True, 1)]
    for status, resumes, number in [*ends, ("FINISHED", False, 2)]:
        tracker = started(root, variants["linear"], resumes=resumes)
        assert len(runs(root)) == number
        assert open_store(root).get_run(str(tracker.run_id)).info.status == "RUNNING"
        tracker.finish(status)
        assert open_store(root).get_run(str(tracker.run_id)).info.status == status


def test_evaluation_logs_into_the_run_that_trained_the_adapter(root, variants, tmp_path, monkeypatch):
    model = adapter(tmp_path / "model")
    training = trained(root, variants["lora"], model, "f1")

    monkeypatch.setenv("DVC_STAGE", "eval@mini-lora-digits")
    evaluation = attached(root, variants["lora"], model)
    evaluation.log_tree({"clean": {"wer": 0.25, "protocol": "text", "skipped": None}}, "eval/synthetic")
    (tmp_path / "curve.png").write_bytes(b"png")
    evaluation.artifact(tmp_path / "curve.png", "report")
    for rows in ([["c", 3]], [["a", 1], ["b", 0]]):  # the second replaces the first
        evaluation.log_table("predictions/digits.json", ["audio", "errors"], rows)
    evaluation.finish()
    [run] = runs(root)
    assert run.info.run_id == training.run_id
    assert {n: v for n, v in run.data.metrics.items() if n.startswith("eval/")} == {
        "eval/synthetic/clean/wer": 0.25
    }
    assert run.data.tags["dvc.stage"] == "eval@mini-lora-digits"
    artifacts = root / "mlartifacts" / run.info.run_id / "artifacts"
    assert (artifacts / "report" / "curve.png").read_bytes() == b"png"
    table = json.loads((artifacts / "predictions" / "digits.json").read_text())
    assert table == {"columns": ["audio", "errors"], "data": [["a", 1], ["b", 0]]}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "predictions/digits.json", "type": "table"}
    ]


def test_an_adapter_that_was_trained_elsewhere_gets_one_run(root, variants, tmp_path):
    """Also where the first evaluation was killed: the next one closes its run."""
    model = adapter(tmp_path / "m")
    killed = attached(root, variants["linear"], model)
    assert runs(root)[0].info.status == "RUNNING"
    attached(root, variants["linear"], model).finish()
    [run] = runs(root)
    assert (run.info.run_id, run.info.run_name, run.info.status) == (killed.run_id, "linear", "FINISHED")
    other = attached(root, variants["linear"], adapter(tmp_path / "other", b"other weights"))
    assert other.run_id not in (None, run.info.run_id)
    other.finish()


def test_an_execution_lasts_until_its_comparison(root, variants, tmp_path):
    folders = {name: adapter(tmp_path / name, name.encode()) for name in variants}
    for number, (name, variant) in enumerate(variants.items()):
        trained(root, variant, folders[name], f"f{number}")

    def compare(models: dict[str, Path]) -> str:
        tracker = Tracker("mini", root)
        tracker.attach_execution(models)
        tracker.describe("compared", models)
        tracker.finish()
        assert tracker.run_id is not None
        return tracker.run_id

    first = compare(folders)
    [execution] = runs(root, kind="execution")
    assert (execution.info.run_id, execution.info.status) == (first, "FINISHED")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs(root)} == {first}
    assert all(run.info.run_id in execution.data.tags["mlflow.note.content"] for run in runs(root))
    # Compared again with nothing new: no further run.
    assert compare(folders) == first
    assert len(runs(root, kind="execution")) == 1
    # One variant alone, trained anew: an execution of its own, to which the comparison belongs.
    again = adapter(tmp_path / "again", b"other")
    trained(root, variants["lora"], again, "f9")
    second = compare(folders | {"lora": again})
    assert second != first
    assert {run.info.status for run in runs(root, kind="execution")} == {"FINISHED"}
    assert sorted(run.data.tags["mlflow.parentRunId"] for run in runs(root)) == sorted([first] * 3 + [second])


def test_named_executions_leave_the_runs_of_others_alone(root, variants, tmp_path, monkeypatch):
    model = adapter(tmp_path / "m")
    training = trained(root, variants["linear"], model, "f1")
    for name in ("brave-newt", "shy-owl", "brave-newt"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        evaluation = attached(root, variants["linear"], model)
        assert evaluation.run_id != training.run_id
        evaluation.finish()
    names = ["linear", "linear brave-newt", "linear shy-owl"]
    assert sorted(run.info.run_name for run in runs(root)) == names
    executions = {run.info.run_name: run.info.run_id for run in runs(root, kind="execution")}
    parents = {run.info.run_name: run.data.tags["mlflow.parentRunId"] for run in runs(root)}
    assert parents["linear brave-newt"] == executions["brave-newt"]
    assert parents["linear shy-owl"] == executions["shy-owl"]

    monkeypatch.setenv("STEERMOE_EXECUTION", "grid")  # several experiments together
    for name in ("brave-newt", "shy-owl"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        trained(root, variants["lora"], adapter(tmp_path / name, name.encode()), name)
    grid = [run.data.tags for run in runs(root) if run.info.run_name == "lora grid"]
    assert {tags["dvc.exp_name"] for tags in grid} == {"brave-newt", "shy-owl"}
    assert len({tags["mlflow.parentRunId"] for tags in grid}) == 1


def test_parameters_are_the_configuration_and_tags_say_where_a_run_comes_from(root, variants, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "brave-newt")
    started(root, variants["steermoe"]).finish()
    [run] = runs(root)
    assert run.data.params == flat_parameters(variants["steermoe"])
    assert run.data.params["steering.num_experts"] == str(variants["steermoe"].steering.num_experts)
    assert run.data.params["lora"] == "none"
    tags = {name: run.data.tags[f"steermoe.{name}"] for name in ("profile", "data", "fingerprint", "variant")}
    assert tags == {"profile": "mini", "data": "data", "fingerprint": "f", "variant": "steermoe"}
    assert run.data.tags["dvc.exp_name"] == "brave-newt" and run.info.run_name == "steermoe brave-newt"


def test_a_broken_store_stops_nothing_and_gets_all_when_it_is_mended(root, variants, tmp_path, capsys):
    store = root / "mlflow.db"
    good = store.read_bytes()
    store.write_bytes(b"this is no database" * 100)
    tracker = started(root, variants["linear"])
    for step in range(5):
        tracker.log({"x": float(step)}, step=step)
    tracker.mark_adapter(adapter(tmp_path / "model"))
    tracker.finish()
    assert tracker.run_id is None
    assert capsys.readouterr().err.count("cannot be reached") == 1
    [kept] = unsent(root)
    kept.write_bytes(kept.read_bytes() + b"\0" * 40 + b'\n{"method": "ta')  # as a power cut leaves it

    store.write_bytes(good)
    attached(root, variants["linear"], tmp_path / "model").finish()
    assert "has received what was kept" in capsys.readouterr().err
    [run] = runs(root)
    assert run.info.status == "FINISHED" and "steermoe.logged_model" in run.data.tags
    assert points(root, run.info.run_id) == [(step, float(step)) for step in range(5)]
    assert not unsent(root)


def test_what_the_store_refuses_is_reported_and_the_rest_is_logged(root, variants, tmp_path, capsys):
    tracker = started(root, variants["linear"])
    tracker.log({"a name with | is refused": 1.0})
    tracker.artifact(tmp_path / "gone.png")
    tracker.tag({"after": "it"})
    tracker.finish()
    assert capsys.readouterr().err.count("refuses what the stage logs") == 1
    assert runs(root)[0].data.tags["after"] == "it"


def test_a_training_logs_its_curves_and_is_found_by_its_adapter(
    root, shards, quick_variant, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    variant = quick_variant("steering")
    results = train(variant, shards, tmp_path / "out", tmp_path, tracker=Tracker("mini", root))
    [run] = runs(root)
    assert run.info.status == "FINISHED"
    assert run.data.tags["steermoe.fingerprint"] == results["fingerprint"]
    losses = points(root, run.info.run_id, "dev/loss")
    assert [step for step, _ in losses] == [2, 4, 6]
    assert min(loss for _, loss in losses) == results["best_dev_loss"]
    assert run.data.metrics["train/best_step"] == results["best_step"]
    assert run.data.metrics["params/trainable"] == sum(results["trainable_parameters"].values())
    curves = {"train/loss", "train/grad_norm", "train/steering_grad_norm", "train/layer_scale"}
    rates = {f"train/lr_{part}" for part in variant.training.learning_rates}
    machine = {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
    assert curves | rates | machine | {"dev/token_accuracy"} <= run.data.metrics.keys()

    # The same losses by seconds of audio, which only grow.
    seconds = {step: 3600 * hours for step, hours in points(root, run.info.run_id, "train/audio_hours")}
    by_audio = points(root, run.info.run_id, "by_audio/dev_loss")
    assert by_audio == [(round(seconds[step]), loss) for step, loss in losses]
    assert 0 < seconds[2] < seconds[4] < seconds[6] <= 6 * variant.training.max_batch_seconds

    names = ("load_entropy", "effective_experts", "scale", "vector_norm", "steer_to_residual")
    assert {f"steering/{name}/{place}" for name in names for place in range(3)} <= run.data.metrics.keys()
    assert 1 <= run.data.metrics["steering/effective_experts"] <= 4
    assert {(each.dataset.name, each.tags[0].value) for each in run.inputs.dataset_inputs} == {
        ("tones/train", "train"),
        ("tones/dev", "dev"),
    }
    evaluation = attached(root, variant, tmp_path / "out")
    assert evaluation.run_id == run.info.run_id
    evaluation.finish()

    train(variant, shards, tmp_path / "without", tmp_path)  # what is logged changes no weight
    with_, without = (tmp_path / name / "adapter.safetensors" for name in ("out", "without"))
    assert with_.read_bytes() == without.read_bytes()


def test_a_training_that_fails_is_marked_as_failed(root, shards, quick_variant, tmp_path):
    variant = quick_variant(
        "linear", warmup_steps=0, schedule="constant", learning_rates={"projection": 1e30}
    )
    with pytest.raises(DivergedError):
        train(variant, shards, tmp_path / "out", tmp_path, tracker=Tracker("mini", root))
    [run] = runs(root)
    assert run.info.status == "FAILED"


def test_a_store_that_was_killed_while_it_was_created_is_created_anew(forkserver, tmp_path):
    """MLflow's migrations are no transaction: what they leave half-done opens never again."""
    process = forkserver.Process(target=open_store, args=(tmp_path,))
    process.start()
    half = tmp_path / "mlflow.db.new"
    while not (half.exists() and half.stat().st_size > 20_000):  # some of its tables are there
        assert process.is_alive(), "it was created under its own name"
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "mlflow.db").exists()
    assert [e.name for e in open_store(tmp_path).search_experiments()] == ["Default"]
