"""MLflow's store, a server or a local file: what becomes of a journal's entries in it."""

import fcntl
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steermoe.training.journal import Entry, Position
from steermoe.training.logged_model import log_model, register_champion

if TYPE_CHECKING:
    from mlflow import MlflowClient

SETTINGS = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server that hangs: MLflow's own limits are minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
for _variable, _value in SETTINGS.items():  # here, for MLflow reads them when it is imported
    os.environ.setdefault(_variable, _value)
KIND = {
    "mlflow.experimentKind": "custom_model_development"
}  # the user interface shows runs, and not traces, first
PERMITTED = 100  # parameters a request
PASSING = (401, 403, 408, 429)  # statuses of a refusal that a person, or time, sets right


class UnreachableError(RuntimeError):
    """The store does not answer, or not as it should: worth another try later."""


class DeletedError(UnreachableError):
    """The run or its experiment was deleted: nothing can be logged into it until somebody restores it."""


class Store:
    """The store that `MLFLOW_TRACKING_URI` names, else mlflow.db and mlartifacts in `root`, made if need be.

    Raises:
        UnreachableError: there is no talking to it.
    """

    def __init__(self, root: Path) -> None:
        with told_apart():
            self.root, self.client = root, open_store(root)
        self._experiments: dict[str, str] = {}

    def perform(self, entries: Sequence[Entry], folder: Path, position: Position) -> None:
        """Do what entries of one kind say; `folder` is where their files are.

        Raises:
            UnreachableError: nothing is known to have been done; try again, doing it twice does no harm.
            DeletedError: the same, once what was deleted is restored.
            ValueError: the store refuses the entries and will refuse them again.
        """
        try:
            with told_apart():
                if entries[0]["do"] == "metrics":
                    self._metrics(entries, position)
                    return
                for entry in entries:
                    DEEDS[entry["do"]](self, entry, folder, position)
        except ValueError:
            with told_apart():
                self._check_deleted(entries[0]["profile"], folder, position)
            raise

    def _check_deleted(self, profile: str, folder: Path, position: Position) -> None:
        """Raise DeletedError where the experiment is deleted, or the run that entries belong to."""
        command, experiment = None, self.client.get_experiment_by_name(f"steermoe/{profile}")
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            what = f"its experiment {experiment.name}"
            command = f"experiments restore --experiment-id {experiment.experiment_id}"
        elif position.run is not None and self.client.get_run(position.run).info.lifecycle_stage == "deleted":
            what, command = f"the run {position.run}", f"runs restore --run-id {position.run}"
        if command is not None:
            where = (
                ""
                if os.environ.get("MLFLOW_TRACKING_URI")
                else f"MLFLOW_TRACKING_URI='{self.client.tracking_uri}' "
            )
            raise DeletedError(
                f"{what} was deleted; `{where}mlflow {command}` brings it back, and what was logged is sent then; "
                f"it is kept in {folder}, which you may delete instead"
            )

    # runs

    def experiment(self, profile: str) -> str:
        """The id of the experiment `steermoe/<profile>`, which is created on first use."""
        name = f"steermoe/{profile}"
        if name not in self._experiments:
            with locked(self.root):
                known = self.client.get_experiment_by_name(name)
                # A local file: else MLflow freezes this process' folder, perhaps a temporary one of DVC's.
                place = None if _is_server() else (self.root / "mlartifacts").as_uri()
                self._experiments[name] = (
                    known.experiment_id if known else self.client.create_experiment(name, place, KIND)
                )
        return self._experiments[name]

    def find(self, experiment: str, query: str) -> Any | None:
        """The newest run that a filter finds."""
        order = ["attributes.start_time DESC"]
        found = self.client.search_runs([experiment], query, max_results=1, order_by=order)
        return found[0] if found else None

    def _open(self, entry: Entry, folder: Path, position: Position) -> None:
        """The next entries belong to the first run that a filter of `find` finds, else to a new one."""
        experiment = self.experiment(entry["profile"])
        found = next((run for query in entry["find"] if (run := self.find(experiment, query))), None)
        if found is None:
            parent = self._execution(experiment, entry["execution"])
            tags = {**entry["tags"], "mlflow.parentRunId": parent}
            position.run, position.made = self._create(experiment, entry["name"], tags, entry["at"]), True
            names = list(entry["parameters"])
            for start in range(0, len(names), PERMITTED):
                some = {name: entry["parameters"][name] for name in names[start : start + PERMITTED]}
                self._parameters(position.run, some)
            return
        identity: str = found.info.run_id
        # No training owns one that an evaluation made, which may have been killed: who logs into it closes it.
        position.run, position.made = identity, "steermoe.fingerprint" not in found.data.tags
        tags = dict(entry["surroundings"])
        if entry["continues"]:  # of an interrupted training, which belongs to the execution that finishes it
            self.client.update_run(identity, status="RUNNING")
            tags["mlflow.parentRunId"] = self._execution(experiment, entry["execution"])
        self._tag(identity, tags)

    def _open_execution(self, entry: Entry, folder: Path, position: Position) -> None:
        """The next entries belong to the execution: the open one, else that of all the variants, else a new one."""
        experiment = self.experiment(entry["profile"])
        found = next(
            (run for query in entry["execution"]["find"] if (run := self.find(experiment, query))), None
        )
        runs = [self.find(experiment, with_adapter(adapter)) for adapter in entry["adapters"].values()]
        parents = {None if run is None else run.data.tags.get("mlflow.parentRunId") for run in runs}
        if found is not None:
            position.run = found.info.run_id
        elif len(parents) == 1 and (parent := parents.pop()) is not None:
            position.run = parent
        else:
            position.run = self._execution(experiment, entry["execution"])
        self._tag(run_of(position), entry["surroundings"])

    def _execution(self, experiment: str, execution: Mapping[str, Any]) -> str:
        """The run of an execution; under a lock, for stages run side by side."""
        with locked(self.root):
            found = next((run for query in execution["find"] if (run := self.find(experiment, query))), None)
            if found is not None:
                return found.info.run_id
            return self._create(experiment, execution["name"], execution["tags"], execution["at"])

    def _create(self, experiment: str, name: str, tags: Mapping[str, str], milliseconds: int) -> str:
        run = self.client.create_run(experiment, start_time=milliseconds, tags=dict(tags), run_name=name)
        return run.info.run_id

    def _parameters(self, run: str, parameters: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run, params=[Param(name, value) for name, value in parameters.items()])

    def _tag(self, run: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])

    # what belongs to a run

    def _metrics(self, entries: Sequence[Entry], position: Position) -> None:
        from mlflow.entities import Metric

        found = [
            Metric(name, value, entry["at"], step)
            for entry in entries
            for name, value, step in entry["values"]
        ]
        for start in range(0, len(found), 1000):
            self.client.log_batch(run_of(position), metrics=found[start : start + 1000])

    def _tags(self, entry: Entry, folder: Path, position: Position) -> None:
        self._tag(run_of(position), entry["tags"])

    def _inputs(self, entry: Entry, folder: Path, position: Position) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = [
            DatasetInput(
                Dataset(
                    name=each["name"], digest=each["digest"][:36], source_type="local",
                    source=json.dumps({"uri": each["source"]}), profile=json.dumps(each["profile"]),
                ),
                [InputTag("mlflow.data.context", each["context"])],
            )
            for each in entry["datasets"]
        ]  # fmt: skip
        self.client.log_inputs(run_of(position), datasets)

    def _artifact(self, entry: Entry, folder: Path, position: Position) -> None:
        path = _kept(entry, folder)
        copy = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        copy(run_of(position), str(path), entry["folder"])

    def _table(self, entry: Entry, folder: Path, position: Position) -> None:
        """A table in the format of MLflow's `log_table`, which would append to the one that is there."""
        run = run_of(position)
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / Path(entry["name"]).name
            path.write_text(
                json.dumps({"columns": entry["columns"], "data": entry["rows"]}), encoding="utf-8"
            )
            self.client.log_artifact(run, str(path), str(Path(entry["name"]).parent))
        tag = "mlflow.loggedArtifacts"  # where the user interface looks for tables
        known = json.loads(self.client.get_run(run).data.tags.get(tag, "[]"))
        table = {"path": entry["name"], "type": "table"}
        if table not in known:
            self.client.set_tag(run, tag, json.dumps([*known, table]))

    def _status(self, entry: Entry, folder: Path, position: Position) -> None:
        if position.made or not entry["made"]:
            self.client.set_terminated(run_of(position), entry["status"], entry["at"])

    def _model(self, entry: Entry, folder: Path, position: Position) -> None:
        """The adapter as a model of the run, if no other run has it already."""
        run = run_of(position)
        if self.find(self.experiment(entry["profile"]), _with_model(entry["adapter"])) is None:
            log_model(self.client, run, entry, _kept(entry, folder))

    def _champion(self, entry: Entry, folder: Path, position: Position) -> None:
        run = self.find(self.experiment(entry["profile"]), _with_model(entry["adapter"]))
        register_champion(self.client, run, entry)

    def _described(self, entry: Entry, folder: Path, position: Position) -> None:
        """A description of the run, with links to the runs of the variants."""
        experiment, lines = self.experiment(entry["profile"]), [entry["text"], ""]
        for variant, adapter in entry["adapters"].items():
            run = self.find(experiment, with_adapter(adapter))
            if run is not None:
                lines.append(f"- [{variant}](#/experiments/{experiment}/runs/{run.info.run_id})")
        self._tag(run_of(position), {"mlflow.note.content": "\n".join(lines)})


def open_store(root: Path) -> "MlflowClient":
    """A client of the store that `MLFLOW_TRACKING_URI` names, else of `root`/mlflow.db, made if need be.

    Under a lock: two processes that open a fresh file at once both run MLflow's migrations, and one fails.
    """
    root.mkdir(parents=True, exist_ok=True)
    with locked(root), warnings.catch_warnings():
        # MLflow's own tables, defined at import, use what SQLAlchemy 2.1 deprecates.
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy is deprecated", DeprecationWarning)
        from mlflow import MlflowClient

        address, file = os.environ.get("MLFLOW_TRACKING_URI"), root / "mlflow.db"
        if not address and not file.exists():
            _make(file)
        client = MlflowClient(address or sqlite_address(file))
        client.search_experiments(max_results=1)
        return client


def _make(file: Path) -> None:
    """A store with all its tables, whole or not at all: one killed amid MLflow's migrations opens never again."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = file.with_name(f"{file.name}.new")
    for left in (temporary, temporary.with_name(f"{temporary.name}-journal")):
        left.unlink(missing_ok=True)
    store = SqlAlchemyStore(sqlite_address(temporary), (file.parent / "mlartifacts").as_uri())
    store.engine.dispose()
    temporary.replace(file)


def sqlite_address(file: Path) -> str:
    """The address of an SQLite file, whatever characters its path has (`%`, `?`, `#` mean something in addresses)."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(file)).render_as_string()


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """One process of this project at a time."""
    with (root / "mlflow.db.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def told_apart() -> Iterator[None]:
    """Errors of the store as UnreachableError where another try may succeed, and else as ValueError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        status = error.get_http_status_code()
        if 400 <= status < 500 and status not in PASSING:
            raise ValueError(str(error)) from error
        raise UnreachableError(str(error)) from error
    except (OSError, SQLAlchemyError) as error:
        raise UnreachableError(f"{type(error).__name__}: {error}") from error


def with_adapter(adapter: str) -> str:
    """The filter of the runs that trained or evaluated the adapter of a digest."""
    return f"tags.`steermoe.adapter` = '{adapter}'"


def _with_model(adapter: str) -> str:
    return f"tags.`steermoe.logged_adapter` = '{adapter}'"


def run_of(position: Position) -> str:
    """The run that an entry belongs to; ValueError where what should have opened one was refused."""
    if position.run is None:
        raise ValueError("there is no run to log this into")
    return position.run


def _kept(entry: Entry, folder: Path) -> Path:
    """The copy that an entry names; ValueError where it is gone, else it would be waited for."""
    path = folder / entry["file"]
    if not path.exists():
        raise ValueError(f"{path} is gone")
    return path


def _is_server() -> bool:
    return os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://"))


Deed = Callable[[Store, Entry, Path, Position], None]
DEEDS: dict[str, Deed] = {
    "open": Store._open,
    "execution": Store._open_execution,
    "tags": Store._tags,
    "inputs": Store._inputs,
    "artifact": Store._artifact,
    "table": Store._table,
    "model": Store._model,
    "champion": Store._champion,
    "describe": Store._described,
    "status": Store._status,
}
