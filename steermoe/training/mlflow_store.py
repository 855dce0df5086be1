"""MLflow's store: open it, find runs and executions, log adapters as models and register the best."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import uuid
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from steermoe.atomic_io import write_text

if TYPE_CHECKING:
    from mlflow import MlflowClient

SETTINGS = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # For a server that does not answer: MLflow's own limits are minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
for _variable, _value in SETTINGS.items():  # here, because MLflow reads them when it is imported
    os.environ.setdefault(_variable, _value)
DVC_TAGS = {
    "dvc.exp_name": "DVC_EXP_NAME",
    "dvc.baseline_rev": "DVC_EXP_BASELINE_REV",
    "dvc.stage": "DVC_STAGE",
}
UNSENT = Path(".runs") / "tracking"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's pages show its runs first, not traces
LOCK = "mlflow.db.lock"  # one process of a project at a time creates what all use
TEMPORARY = (401, 403, 408, 429)  # HTTP statuses that a person, or time, sets right
CODE = Path(__file__).with_name("mlflow_pyfunc.py")
PACKAGES = "steermoe librosa mlflow numpy pandas safetensors soundfile soxr torch transformers".split()
CHAMPION = "champion"  # alias of the best version of a registered model


class Store:
    """The experiment `steermoe/<profile>` of the store that `open_store` opens."""

    def __init__(self, profile: str, root: Path, client: "MlflowClient | None" = None) -> None:
        self.profile, self.root = profile, root
        self.client = client or open_store(root)
        name = f"steermoe/{profile}"
        with FileLock(root / LOCK):
            known = self.client.get_experiment_by_name(name)
            # With a local file, MLflow would take this process' folder, perhaps a temporary one of DVC's.
            is_server = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http")
            location = None if is_server else (root / "mlartifacts").as_uri()
            create = self.client.create_experiment
            self.experiment = known.experiment_id if known else create(name, location, KIND)

    def find(self, query: str) -> Any | None:
        """Return the newest run that matches a filter."""
        order = ["attributes.start_time DESC"]
        found = self.client.search_runs([self.experiment], query, max_results=1, order_by=order)
        return found[0] if found else None

    def execution(self, wanted: Mapping[str, Any]) -> str:
        """Return the run of an execution {query, at, tags, name}, which is created on first use."""
        with FileLock(self.root / LOCK):  # stages run side by side
            run = self.find(wanted["query"]) or self.client.create_run(
                self.experiment, wanted["at"], wanted["tags"], wanted["name"]
            )
            return run.info.run_id

    def log_model(self, run_id: str, folder: Path, adapter: str, step: int) -> None:
        """Log the adapter in a folder as a model of a run, unless that is done; finish what a kill left."""
        from mlflow.entities import LoggedModelOutput

        if self.find(tagged("logged_adapter", adapter)) is not None:
            return
        client, tags = self.client, {"steermoe.adapter": adapter}
        variant = json.loads((folder / "config.json").read_text(encoding="utf-8"))["variant"]
        parameters = {"method": variant["method"], **{p: variant[p]["path"] for p in ("encoder", "llm")}}
        begun = client.search_logged_models([self.experiment], tagged("adapter", adapter))
        model = next((each for each in begun if each.source_run_id == run_id), None)
        if model is None:
            model = client.create_logged_model(self.experiment, variant["name"], run_id, tags, parameters)
        with tempfile.TemporaryDirectory() as work:
            copy, saved = Path(work) / variant["name"], Path(work) / "model"
            copy.mkdir()
            for name in ("adapter.safetensors", "config.json"):
                shutil.copy(folder / name, copy)
            save_model(copy, saved, str(self.root), run_id, model)
            client.log_model_artifacts(model.model_id, str(saved))
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=step)])
        client.set_tag(run_id, "steermoe.logged_model", model.model_id)
        client.set_tag(run_id, "steermoe.logged_adapter", adapter)

    def register(self, adapter: str, tags: Mapping[str, str]) -> None:
        """Register the model of an adapter, and set the alias unless the champion is better by the same measure.

        Raises:
            ValueError: no model of this adapter was logged.
        """
        from mlflow.exceptions import MlflowException

        client, name = self.client, f"steermoe-{self.profile}"
        run = self.find(tagged("logged_adapter", adapter))
        if run is None:
            raise ValueError(f"no model of {tags['steermoe.variant']} was logged; repeat its evaluation")
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # A version that is found by a search does not have its model's id, so it is a tag.
        model = run.data.tags["steermoe.logged_model"]
        versions = client.search_model_versions(f"name = '{name}'")
        found = next((each for each in versions if each.tags.get("steermoe.model") == model), None)
        if found is None:
            source, mark = client.get_logged_model(model).artifact_location, {"steermoe.model": model}
            found = client.create_model_version(name, source, run.info.run_id, mark, model_id=model)
        for key, value in tags.items():
            client.set_model_version_tag(name, found.version, key, value)
        held = client.get_registered_model(name).aliases.get(CHAMPION)
        before = client.get_model_version(name, str(held)).tags if held is not None else {}
        is_comparable = before.get("steermoe.measured_on") == tags["steermoe.measured_on"]
        if not is_comparable or float(before["steermoe.error"]) > float(tags["steermoe.error"]):
            client.set_registered_model_alias(name, CHAMPION, found.version)


def save_model(adapter: Path, folder: Path, base_models: str, run_id: str, model: Any) -> None:
    """Write MLflow's folder of a model; `mlflow.pyfunc.log_model` would load the frozen models to try it."""
    with warnings.catch_warnings():
        # From MLflow's own code, when it is imported and when it reads the example.
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        warnings.filterwarnings("ignore", "Operation with range is deprecated")
        import pandas as pd
        from mlflow.models import Model, ModelSignature
        from mlflow.pyfunc import save_model as save
        from mlflow.types import ColSpec, Schema

        signature = ModelSignature(
            inputs=Schema([ColSpec("string", "audio"), ColSpec("string", "question", required=False)]),
            outputs=Schema([ColSpec("string", "text")]),
        )
        identity, location = model.model_id, model.artifact_location
        save(
            folder,
            mlflow_model=Model(location, run_id, model_uuid=identity, model_id=identity),
            python_model=str(CODE),
            artifacts={"adapter": adapter.resolve().as_uri()},  # a plain path is unquoted like an address
            signature=signature,
            input_example=pd.DataFrame({"audio": ["recording.wav"], "question": ["who is speaking?"]}),
            pip_requirements=[f"{name}=={version(name)}" for name in PACKAGES],
            model_config={"base_models": base_models},
        )


def open_store(root: Path) -> "MlflowClient":
    """Return a client of the store that MLFLOW_TRACKING_URI names, else of `root`/mlflow.db, created if need be.

    Under a lock: of two processes that create the file at once, MLflow's migrations fail in one.
    """
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / LOCK), warnings.catch_warnings():
        # MLflow's own tables, defined at import, use what SQLAlchemy 2.1 deprecates.
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy is deprecated", DeprecationWarning)
        from mlflow import MlflowClient

        address, file = os.environ.get("MLFLOW_TRACKING_URI"), root / "mlflow.db"
        if not address and not file.exists():
            _create(file)
        client = MlflowClient(address or sqlite_address(file))
        client.search_experiments(max_results=1)
        return client


def _create(file: Path) -> None:
    """Create a store with all its tables or none: after a kill amid MLflow's migrations it could not be opened."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = file.with_name(f"{file.name}.new")
    for left in (temporary, temporary.with_name(f"{temporary.name}-journal")):
        left.unlink(missing_ok=True)
    store = SqlAlchemyStore(sqlite_address(temporary), (file.parent / "mlartifacts").as_uri())
    store.engine.dispose()
    temporary.replace(file)


def sqlite_address(file: Path) -> str:
    """Return the address of an SQLite file; `%`, `?` and `#` of its path would mean something in an address."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(file)).render_as_string()


def is_refusal(error: Exception) -> bool:
    """Return whether MLflow would refuse the same again."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return 400 <= error.get_http_status_code() < 500 and error.get_http_status_code() not in TEMPORARY
    return isinstance(error, ValueError | TypeError | FileNotFoundError)


def tagged(tag: str, value: str) -> str:
    """Return the filter of runs with a tag `steermoe.<tag>`."""
    return f"tags.`steermoe.{tag}` = '{value}'"


def describe_execution(profile: str, root: Path) -> dict[str, Any]:
    """Describe the parent run of this execution: {query} to find it, {at, tags, name} to create it."""
    name, workspace_id, now = execution_name(), workspace(root), time.time()
    key = hashlib.sha256(f"{workspace_id} {name or ''}".encode()).hexdigest()[:16]
    query = f"{tagged('execution', key)} and {tagged('kind', 'execution')}"
    query += "" if name else " and attributes.status = 'RUNNING'"
    tags = {tag: os.environ[variable] for tag, variable in DVC_TAGS.items() if os.environ.get(variable)}
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if revision.returncode == 0:
        tags["mlflow.source.git.commit"] = revision.stdout.strip()
    own = {"kind": "execution", "execution": key, "workspace": workspace_id, "profile": profile}
    tags |= {f"steermoe.{tag}": value for tag, value in own.items()}
    title = name or time.strftime(f"{profile} %Y-%m-%d %H:%M", time.localtime(now))
    return {"query": query, "name": title, "tags": tags, "at": int(now * 1000)}


def execution_name() -> str | None:
    """Return the name of this execution; None where all until the next comparison is one."""
    return os.environ.get("STEERMOE_EXECUTION") or os.environ.get("DVC_EXP_NAME") or None


def workspace(root: Path) -> str:
    """Return the id of a workspace, made once: unlike a host's name or a path, no other workspace has it."""
    path = root / UNSENT / "workspace"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            write_text(path, uuid.uuid4().hex[:16] + "\n")
    return path.read_text().strip()
