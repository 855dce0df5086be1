"""A real MLflow store on sqlite: one run a variant, whoever logs into it and however often."""

import json
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from steermoe import config
from steermoe.training.rows import DivergedError
from steermoe.training.sender import Sender
from steermoe.training.store import open_store
from steermoe.training.tracking import JOURNALS, Tracker, flat_parameters
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


def adapter(folder: Path, content: bytes = b"weights") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter.safetensors").write_bytes(content)
    (folder / "config.json").write_text("{}")
    return folder


def trained(root: Path, variant: config.VariantConfig, model: Path, fingerprint: str) -> Tracker:
    """A training as it logs, but for the training."""
    tracker = Tracker("mini", root)
    tracker.start(variant, fingerprint, "data")
    tracker.mark_adapter(model)
    tracker.finish()
    return tracker


def test_processes_that_open_a_fresh_store_at_once_all_log(fresh_store):
    found = runs(fresh_store, "race")
    assert sorted(run.info.run_name for run in found) == ["racer-0", "racer-1", "racer-2"]
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {run.data.metrics["x"] for run in found} == {1.0}
    [execution] = runs(fresh_store, "race", kind="execution")
    assert {run.data.tags["mlflow.parentRunId"] for run in found} == {execution.info.run_id}


def test_a_training_that_was_killed_goes_on_in_its_run_and_a_finished_one_does_not(root, store_process):
    assert store_process(root, 7, True) == -signal.SIGKILL
    assert store_process(root, 7) == 0
    [run] = [run for run in runs(root, "race") if run.info.run_name == "racer-7"]
    assert run.info.status == "FINISHED"
    # Whatever the killed process had written down is there, though it may not have been sent by it.
    history = open_store(root).get_metric_history(run.info.run_id, "x")
    assert [(point.step, point.value) for point in history] == [(7, 1.0), (7, 1.0)]

    assert store_process(root, 7) == 0
    assert len([run for run in runs(root, "race") if run.info.run_name == "racer-7"]) == 2


def test_a_training_that_was_killed_after_its_last_word_goes_on_in_its_run(root, variants):
    for resumes, number in ((False, 1), (True, 1), (False, 2)):
        tracker = Tracker("mini", root)
        tracker.start(variants["linear"], "f1", "data", resumes)
        tracker.finish()
        assert len(runs(root)) == number
    assert {run.info.status for run in runs(root)} == {"FINISHED"}


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_training_that_was_ended_with_notice_goes_on_in_its_run(root, variants, status):
    first = Tracker("mini", root)
    first.start(variants["steermoe"], "f1", "data")
    first.finish(status)
    [run] = runs(root)
    assert run.info.status == status
    second = Tracker("mini", root)
    second.start(variants["steermoe"], "f1", "data")
    assert second.run_id == run.info.run_id
    assert runs(root)[0].info.status == "RUNNING"
    second.finish()
    assert runs(root)[0].info.status == "FINISHED"


def test_evaluation_logs_into_the_run_that_trained_the_adapter(root, variants, tmp_path, monkeypatch):
    model = adapter(tmp_path / "model")
    training = trained(root, variants["lora"], model, "f1")

    monkeypatch.setenv("DVC_STAGE", "eval@mini-lora-digits")
    evaluation = Tracker("mini", root)
    evaluation.attach(variants["lora"], model)
    evaluation.log_tree({"clean": {"wer": 0.25, "protocol": "text", "skipped": None}}, "eval/synthetic")
    (tmp_path / "curve.png").write_bytes(b"png")
    evaluation.artifact(tmp_path / "curve.png", "report")
    evaluation.log_table("predictions/digits.json", ["audio", "errors"], [["a", 1], ["b", 0]])
    evaluation.finish()
    [run] = runs(root)
    assert run.info.run_id == training.run_id
    assert run.data.metrics["eval/synthetic/clean/wer"] == 0.25
    assert {name for name in run.data.metrics if name.startswith("eval/")} == {"eval/synthetic/clean/wer"}
    assert run.data.tags["dvc.stage"] == "eval@mini-lora-digits"
    artifacts = root / "mlartifacts" / run.info.run_id / "artifacts"
    assert (artifacts / "report" / "curve.png").read_bytes() == b"png"
    table = json.loads((artifacts / "predictions" / "digits.json").read_text())
    assert table == {"columns": ["audio", "errors"], "data": [["a", 1], ["b", 0]]}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "predictions/digits.json", "type": "table"}
    ]


def test_an_adapter_that_was_trained_elsewhere_gets_a_run(root, variants, tmp_path):
    model = adapter(tmp_path / "m")
    for _ in range(2):
        evaluation = Tracker("mini", root)
        evaluation.attach(variants["linear"], model)
        evaluation.finish()
    [run] = runs(root)
    assert (run.info.run_name, run.info.status) == ("linear", "FINISHED")
    other = Tracker("mini", root)
    other.attach(variants["linear"], adapter(tmp_path / "other", b"other weights"))
    assert other.run_id not in (None, run.info.run_id)
    other.finish()


def test_the_run_of_a_killed_evaluation_is_closed_by_the_next(root, variants, tmp_path):
    model = adapter(tmp_path / "m")
    killed = Tracker("mini", root)
    killed.attach(variants["linear"], model)
    assert killed.run_id is not None
    [run] = runs(root)
    assert run.info.status == "RUNNING"
    evaluation = Tracker("mini", root)
    evaluation.attach(variants["linear"], model)
    evaluation.finish()
    [run] = runs(root)
    assert (run.info.run_id, run.info.status) == (killed.run_id, "FINISHED")


def test_an_execution_lasts_until_its_comparison(root, variants, tmp_path):
    folders = {name: adapter(tmp_path / name, name.encode()) for name in variants}
    for place, (name, variant) in enumerate(variants.items()):
        trained(root, variant, folders[name], f"f{place}")

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


def test_experiments_are_executions_of_their_own_and_leave_the_runs_of_others_alone(
    root, variants, tmp_path, monkeypatch
):
    model = adapter(tmp_path / "m")
    training = trained(root, variants["linear"], model, "f1")
    for name in ("brave-newt", "shy-owl", "brave-newt"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        evaluation = Tracker("mini", root)
        evaluation.attach(variants["linear"], model)
        assert evaluation.run_id != training.run_id
        evaluation.finish()
    assert sorted(run.info.run_name for run in runs(root)) == [
        "linear",
        "linear brave-newt",
        "linear shy-owl",
    ]
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


def test_every_variant_has_the_same_parameters_and_tags_say_where_it_comes_from(root, variants, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "brave-newt")
    for place, variant in enumerate(variants.values()):
        tracker = Tracker("mini", root)
        tracker.start(variant, f"f{place}", "abc")
        tracker.finish()
    found = {run.data.tags["steermoe.variant"]: run for run in runs(root)}
    assert found.keys() == variants.keys()
    keys = {name: set(run.data.params) for name, run in found.items()}
    assert keys["steermoe"] == keys["linear"] == keys["lora"]
    assert found["steermoe"].data.params["steering.num_experts"] == str(
        variants["steermoe"].steering.num_experts
    )
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


def test_parameters_are_the_whole_configuration(variants):
    flat = flat_parameters(variants["steermoe"])
    assert flat["training.learning_rates.vectors"] == str(
        variants["steermoe"].training.learning_rates["vectors"]
    )
    assert flat["prompts.transcribe"] == variants["steermoe"].prompts.transcribe
    assert flat["lora.rank"] == "none"
    assert flat["method"] == "steering"


def test_a_broken_store_is_told_once_stops_nothing_and_gets_all_when_it_is_mended(root, variants, capsys):
    store = root / "mlflow.db"
    good = store.read_bytes()
    store.write_bytes(b"this is no database" * 100)
    tracker = Tracker("mini", root)
    tracker.start(variants["linear"], "f", "data")
    for step in range(5):
        tracker.log({"x": float(step)}, step=step)
    tracker.finish()
    assert tracker.run_id is None
    assert capsys.readouterr().out.count("cannot be reached") == 1

    store.write_bytes(good)
    other = Tracker("mini", root)
    other.start(variants["lora"], "g", "data")
    other.finish()
    assert "an earlier stage had left" in capsys.readouterr().out
    [run] = [run for run in runs(root) if run.info.run_name == "linear"]
    assert run.info.status == "FINISHED"
    assert len(open_store(root).get_metric_history(run.info.run_id, "x")) == 5
    assert [path.name for path in (root / JOURNALS).iterdir()] == ["workspace"]


def test_what_the_store_refuses_is_told_and_holds_up_nothing(root, variants, capsys):
    tracker = Tracker("mini", root)
    tracker.start(variants["linear"], "f", "data")
    tracker.log({"a name with | is refused": 1.0})
    tracker.tag({"after": "it"})
    tracker.finish()
    assert "refused 'metrics'" in capsys.readouterr().out
    assert runs(root)[0].data.tags["after"] == "it"


@pytest.mark.parametrize("what", ["experiment", "run"])
def test_what_was_deleted_loses_nothing_and_the_command_that_restores_it_is_told(
    root, variants, capsys, what
):
    def logged(profile: str, variant: str) -> Tracker:
        tracker = Tracker(profile, root)
        tracker.start(variants[variant], variant, "data")
        return tracker

    tracker, client = logged("mini", "linear"), open_store(root)
    tracker.log({"x": 0.0}, step=0)
    run = tracker.run_id
    assert run is not None
    experiment = client.get_run(run).info.experiment_id
    identity = {"experiment": experiment, "run": run}[what]
    getattr(client, f"delete_{what}")(identity)
    tracker.log({"x": 1.0}, step=1)
    tracker.mark_adapter(adapter(root / "model"))
    tracker.finish()
    assert f"mlflow {what}s restore --{what}-id {identity}" in capsys.readouterr().out
    for profile, variant in (("mini", "lora"), ("other", "steermoe")):  # begun after it
        logged(profile, variant).finish()
    assert len(runs(root, "other")) == 1  # what is kept holds up nothing else
    getattr(client, f"restore_{what}")(identity)
    logged("other", "lora").finish()
    assert [point.value for point in client.get_metric_history(run, "x")] == [0.0, 1.0]
    assert "steermoe.logged_model" in client.get_run(run).data.tags
    assert {each.info.run_name for each in runs(root)} == {"linear", "lora"}
    assert [path.name for path in (root / JOURNALS).iterdir()] == ["workspace"]


def test_a_copy_that_is_gone_holds_up_nothing(root, variants, tmp_path, monkeypatch, capsys):
    (tmp_path / "curve.png").write_bytes(b"png")
    tracker = Tracker("mini", root)
    with monkeypatch.context() as patched:
        patched.setattr(Sender, "send", lambda self, entry: self.journal.append(entry))
        tracker.start(variants["linear"], "f", "data")
        tracker.artifact(tmp_path / "curve.png")
        [journal] = [path for path in (root / JOURNALS).iterdir() if path.is_dir()]
        shutil.rmtree(journal / "files")
        tracker.tag({"after": "it"})
        tracker.finish()
    assert "refused 'artifact'" in capsys.readouterr().out
    assert runs(root)[0].data.tags["after"] == "it"


def test_a_store_that_is_locked_for_long_does_not_keep_a_training_waiting(root, variants):
    tracker = Tracker("mini", root)
    tracker.start(variants["linear"], "f", "data")
    assert tracker.run_id is not None
    other = sqlite3.connect(root / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    for step in range(100):
        tracker.log({"x": 1.0}, step=step)
    assert time.monotonic() - began < 100 * 5  # what sqlite alone would wait for them
    other.execute("ROLLBACK")
    other.close()
    tracker.finish()
    assert len(open_store(root).get_metric_history(runs(root)[0].info.run_id, "x")) == 100


def test_a_training_logs_its_curves_and_is_found_by_its_adapter(root, shards, quick_variant, tmp_path):
    variant = quick_variant("steering")
    tracker = Tracker("mini", root)
    results = train(variant, shards, tmp_path / "out", tmp_path, tracker=tracker)
    [run] = runs(root)
    assert run.info.status == "FINISHED"
    assert run.data.tags["steermoe.fingerprint"] == results["fingerprint"]
    client = open_store(root)
    history = client.get_metric_history(run.info.run_id, "dev/loss")
    assert [point.step for point in history] == [2, 4, 6]
    assert min(point.value for point in history) == results["best_dev_loss"]
    assert run.data.metrics["train/best_step"] == results["best_step"]
    assert run.data.metrics["params/trainable"] == sum(results["trainable_parameters"].values())
    curves = {"train/loss", "train/grad_norm", "train/steering_grad_norm", "train/layer_scale"}
    rates = {f"train/lr_{part}" for part in variant.training.learning_rates}
    machine = {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
    assert curves | rates | machine | {"dev/token_accuracy"} <= run.data.metrics.keys()

    # The same losses by the audio that was heard, which only grows.
    heard = client.get_metric_history(run.info.run_id, "train/audio_hours")
    by_audio = client.get_metric_history(run.info.run_id, "by_audio/dev_loss")
    assert [point.value for point in by_audio] == [point.value for point in history]
    seconds = {point.step: 3600 * point.value for point in heard}
    assert [point.step for point in by_audio] == [round(seconds[step]) for step in (2, 4, 6)]
    assert 0 < seconds[2] < seconds[4] < seconds[6] <= 6 * variant.training.max_batch_seconds

    places = range(3)
    names = ("load_entropy", "effective_experts", "scale", "vector_norm", "steer_to_residual")
    assert {f"steering/{name}/{place}" for name in names for place in places} <= run.data.metrics.keys()
    assert 1 <= run.data.metrics["steering/effective_experts"] <= 4
    assert {(each.dataset.name, each.tags[0].value) for each in run.inputs.dataset_inputs} == {
        ("tones/train", "train"),
        ("tones/dev", "dev"),
    }

    evaluation = Tracker("mini", root)
    evaluation.attach(variant, tmp_path / "out")
    assert evaluation.run_id == run.info.run_id
    evaluation.finish()


def test_tracking_changes_no_weight(root, shards, quick_variant, tmp_path):
    variant = quick_variant("steering")
    train(variant, shards, tmp_path / "with", tmp_path, tracker=Tracker("mini", root))
    train(variant, shards, tmp_path / "without", tmp_path)
    with_, without = (tmp_path / name / "adapter.safetensors" for name in ("with", "without"))
    assert with_.read_bytes() == without.read_bytes()


def test_a_training_that_fails_is_marked_as_failed(root, shards, quick_variant, tmp_path):
    variant = quick_variant(
        "linear", warmup_steps=0, schedule="constant", learning_rates={"projection": 1e30}
    )
    with pytest.raises(DivergedError):
        train(variant, shards, tmp_path / "out", tmp_path, tracker=Tracker("mini", root))
    [run] = runs(root)
    assert run.info.status == "FAILED"


def test_a_store_that_was_killed_while_it_was_made_is_made_anew(forkserver, tmp_path):
    """MLflow's migrations are no transaction: what they leave half-done opens never again."""
    process = forkserver.Process(target=open_store, args=(tmp_path,))
    process.start()
    half = tmp_path / "mlflow.db.new"
    while not (half.exists() and half.stat().st_size > 20_000):  # some of its tables are there
        assert process.is_alive(), "it was made under its own name"
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "mlflow.db").exists()
    assert [e.name for e in open_store(tmp_path).search_experiments()] == ["Default"]
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.lock"}
