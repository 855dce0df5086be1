"""Runs in MLflow, on a local sqlite store: the only file that imports mlflow.

A run is an arm. Training, evaluation and the comparison log into the same one: training marks it with the
digest of the adapter that it wrote, and who has the adapter finds it by that. Tracking never fails a stage:
the first error is told, and the rest of the stage goes untracked.
"""

import fcntl
import functools
import hashlib
import os
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, get_args

from pydantic import BaseModel

from steermoe.config import ArmConfig
from steermoe.data.staging import project_root
from steermoe.training.parameter_groups import PARTS

if TYPE_CHECKING:
    from mlflow import MlflowClient

DVC_TAGS = {
    "dvc.exp_name": "DVC_EXP_NAME",
    "dvc.baseline_rev": "DVC_EXP_BASELINE_REV",
    "dvc.stage": "DVC_STAGE",
}
SETTINGS = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
ABSENT = "none"  # value of a parameter that an arm's method does not have
Arguments = ParamSpec("Arguments")
Method = Callable[Concatenate["Tracker", Arguments], None]


def _harmless(method: Method[Arguments]) -> Method[Arguments]:
    """Tell the first failure of a tracker, then leave it off."""

    @functools.wraps(method)
    def guarded(self: "Tracker", *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        if self.is_off:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.is_off = True
            message = f"{type(error).__name__}: {error}"
            print(f"MLflow tracking is off for the rest of this stage ({method.__name__}: {message})")

    return guarded


class Tracker:
    """Logs into one run of the experiment `steermoe/<profile>`.

    Args:
        profile: the profile in force.
        root: folder of mlflow.db and mlartifacts.
    """

    def __init__(self, profile: str, root: Path | None = None) -> None:
        self.profile, self.root = profile, (root or project_root()).resolve()
        self.run_id: str | None = None
        self.is_off = False
        self._client: MlflowClient | None = None
        self._closes = False  # the run is this tracker's to close, not a finished training's

    @_harmless
    def start(self, arm: ArmConfig, fingerprint: str, data: str) -> None:
        """Begin the run of a training, or go on with the one that a killed process left open."""
        tags = {"steermoe.fingerprint": fingerprint, "steermoe.data": data}
        self.run_id = self._find("steermoe.fingerprint", fingerprint, "attributes.status = 'RUNNING'")
        if self.run_id is None:
            self._create(arm.name, tags | {"steermoe.arm": arm.name}, flat_parameters(arm))
        else:
            self._tag(_surroundings())
        self._closes = True

    @_harmless
    def attach(self, arm: ArmConfig, model: Path) -> None:
        """Log into the run that trained the adapter in folder `model`, or into a new one."""
        adapter = adapter_digest(model)
        self.run_id = self._find("steermoe.adapter", adapter, f"tags.`steermoe.arm` = '{arm.name}'")
        if self.run_id is None:
            self._create(
                arm.name, {"steermoe.adapter": adapter, "steermoe.arm": arm.name}, flat_parameters(arm)
            )
        else:
            self._tag(_surroundings())

    @_harmless
    def attach_named(self, name: str) -> None:
        """Log into the run of something that is not trained: a baseline, a comparison."""
        self.run_id = self._find("steermoe.arm", name, "attributes.status = 'FINISHED'")
        if self.run_id is None:
            self._create(name, {"steermoe.arm": name}, {})
        else:
            self._tag(_surroundings())

    @_harmless
    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at an optimizer step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self._run, metrics=[Metric(k, float(v), now, step) for k, v in metrics.items()])

    @_harmless
    def log_tree(self, tree: Mapping[str, Any], prefix: str) -> None:
        """Log the numbers in nested dicts as `<prefix>/<key>/<key>`."""
        numbers = {f"{prefix}/{name}": value for name, value in _flat(tree, "/").items() if _is_number(value)}
        type(self).log(self, numbers, step=0)

    @_harmless
    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, or all files of a folder, into the run."""
        copy = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        copy(self._run, str(path), folder)

    @_harmless
    def mark_adapter(self, model: Path) -> None:
        """Let `attach` find this run by the adapter in folder `model`."""
        self._tag({"steermoe.adapter": adapter_digest(model)})

    @_harmless
    def finish(self, status: str = "FINISHED") -> None:
        """Close the run: FINISHED, FAILED or KILLED. One that was attached to is closed already."""
        if self._closes:
            self.client.set_terminated(self._run, status)

    @property
    def _run(self) -> str:
        assert self.run_id is not None, "no run yet: call start or attach first"
        return self.run_id

    @property
    def client(self) -> "MlflowClient":
        """MLflow's own client of the store, which is created on first use."""
        if self._client is None:
            self._client = open_store(self.root)
        return self._client

    @functools.cached_property
    def experiment(self) -> str:
        """The id of the experiment, which is created on first use."""
        name = f"steermoe/{self.profile}"
        with _lock(self.root):
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                return found.experiment_id
            # Else MLflow freezes this process' folder, perhaps a temporary one of DVC's, into the experiment.
            return self.client.create_experiment(name, (self.root / "mlartifacts").as_uri())

    def _find(self, tag: str, value: str, condition: str) -> str | None:
        query = f"tags.`{tag}` = '{value}' and {condition}"
        found = self.client.search_runs(
            [self.experiment], query, max_results=1, order_by=["attributes.start_time DESC"]
        )
        return found[0].info.run_id if found else None

    def _create(self, name: str, tags: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        run_name = " ".join(part for part in (name, os.environ.get("DVC_EXP_NAME")) if part)
        everything = {"steermoe.profile": self.profile, **tags, **_surroundings()}
        run = self.client.create_run(self.experiment, tags=everything, run_name=run_name)
        self.run_id, self._closes = run.info.run_id, True
        self.client.log_batch(self.run_id, params=[Param(k, v) for k, v in parameters.items()])

    def _tag(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self._run, tags=[RunTag(name, value) for name, value in tags.items()])


def adapter_digest(model: Path) -> str:
    """SHA-256 of the adapter in a folder: what ties evaluations to the training."""
    return hashlib.sha256((model / "adapter.safetensors").read_bytes()).hexdigest()


def open_store(root: Path) -> "MlflowClient":
    """A client of `root`/mlflow.db, which is created if need be.

    Under a lock: two processes that open a fresh file at once both run MLflow's migrations, and one fails.
    """
    for variable, value in SETTINGS.items():
        os.environ.setdefault(variable, value)
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root), warnings.catch_warnings():
        # MLflow's own tables, defined at import, use what SQLAlchemy 2.1 deprecates.
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy is deprecated", DeprecationWarning)
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
        client.search_experiments(max_results=1)
        return client


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    with (root / "mlflow.db.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def flat_parameters(arm: ArmConfig) -> dict[str, str]:
    """{"steering.num_experts": "8", ...}: the same keys for every arm, `none` where a method lacks it."""
    flat = _flat(_complete(ArmConfig, arm), ".")
    flat |= {f"training.learning_rates.{p}": arm.training.learning_rates.get(p) for p in PARTS}
    return {name: ABSENT if value is None else str(value) for name, value in flat.items()}


def _complete(kind: type[BaseModel], section: BaseModel | None) -> dict[str, Any]:
    """A section as nested dicts; an absent one with all its fields, as None."""
    values: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        value = None if section is None else getattr(section, name)
        kinds = [k for k in (field.annotation, *get_args(field.annotation)) if isinstance(k, type)]
        nested = next((k for k in kinds if issubclass(k, BaseModel)), None)
        values[name] = value if nested is None else _complete(nested, value)
    return values


def _flat(tree: Mapping[str, Any], separator: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}{separator}{inner}": v for inner, v in _flat(value, separator).items()}
        else:
            flat[name] = value
    return flat


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _surroundings() -> dict[str, str]:
    """Tags that say under what a stage ran: DVC's experiment and stage, the git revision."""
    tags = {tag: os.environ[variable] for tag, variable in DVC_TAGS.items() if os.environ.get(variable)}
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if revision.returncode == 0:
        tags["mlflow.source.git.commit"] = revision.stdout.strip()
    return tags
