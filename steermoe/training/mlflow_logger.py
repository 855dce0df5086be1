"""Log trainings, evaluations and comparisons to MLflow (docs/mlflow.md).

The experiment `steermoe/<profile>` has one parent run per execution of the pipeline and one child run per variant. A
training tags its run with the digest of its adapter; evaluations, which are other processes, find it by this tag.
No stage fails because of MLflow: what cannot be sent is kept in `.runs/tracking/*.jsonl` and sent later.
"""

import functools
import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from steermoe.atomic_io import project_root, write_text
from steermoe.config import VariantConfig
from steermoe.data.filters import skipped_reason
from steermoe.data.shards import shards_of
from steermoe.training.mlflow_store import (
    UNSENT,
    Store,
    describe_execution,
    execution_name,
    is_refusal,
    tagged,
    workspace,
)
from steermoe.training.rows import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

TABLES = "mlflow.loggedArtifacts"  # the tag in which MLflow's pages look for tables
RETRY_SECONDS = 300.0  # between two attempts while MLflow cannot be reached


def _sent(method: Callable[..., None]) -> Callable[..., None]:
    """Let a method that writes to MLflow keep its arguments for later where MLflow cannot be reached."""

    @functools.wraps(method)
    def call(self: "Tracker", *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(method).bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = {name: value for name, value in bound.arguments.items() if name != "self"}
        self._send({"method": method.__name__, "at": int(time.time() * 1000), "arguments": arguments})

    return call


class Tracker:
    """Log into one run of the experiment `steermoe/<profile>`.

    Every method can be repeated without harm. `run_id` is None while MLflow cannot be reached: only MLflow makes ids.

    Args:
        profile: the selected profile.
        root: the project's root, with mlflow.db and mlartifacts unless MLFLOW_TRACKING_URI is set.
    """

    def __init__(self, profile: str, root: Path | None = None) -> None:
        self.profile, self.root = profile, (root or project_root()).resolve()
        self.run_id: str | None = None
        self._is_ours = False  # `finish` closes the run
        self._last_steps: dict[str, int] | None = None  # of metrics that an interrupted training has logged
        self._connection: Store | None = None
        self._monitor: Any = None
        self._warned: set[str] = set()
        self._unsent: Path | None = None  # file of what is unsent; locked while this process lives
        self._lock: FileLock | None = None
        self._retry_at, self._at, self._step = 0.0, 0, 0

    def start(self, variant: VariantConfig, fingerprint: str, data: str, resumes: bool = False) -> None:
        """Open the run of a training, or continue that of the same training that was interrupted.

        Args:
            variant: the variant to train.
            fingerprint: of the training.
            data: digest of its shards.
            resumes: it continues from a checkpoint; its run may have been closed just before it was killed.
        """
        query = f"{tagged('fingerprint', fingerprint)} and {tagged('workspace', workspace(self.root))}"
        query += "" if resumes else " and attributes.status != 'FINISHED'"
        self._open(variant, {"steermoe.fingerprint": fingerprint, "steermoe.data": data}, query, True)
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() != "false" and self.run_id:
            with suppress(Exception):  # the training does without them
                from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

                address = self._client.tracking_uri
                self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=address)
                self._monitor.start()

    def attach(self, variant: VariantConfig, model: Path) -> None:
        """Log into the run that trained the adapter in folder `model`, or into a new one.

        A named execution does not change the runs of other executions.
        """
        adapter = adapter_digest(model)
        query = f"{tagged('adapter', adapter)} and {tagged('variant', variant.name)}"
        if execution_name():
            execution = describe_execution(self.profile, self.root)["tags"]["steermoe.execution"]
            query += f" and {tagged('execution', execution)}"
        self._open(variant, {"steermoe.adapter": adapter}, query, False)
        self._log_model(model, adapter)

    def attach_execution(self, models: Mapping[str, Path]) -> None:
        """Log into the run of this execution, or of the one that trained all adapters {variant: folder}."""
        adapters = [adapter_digest(model) for model in models.values()]
        self._open_execution(describe_execution(self.profile, self.root), adapters)

    def mark_adapter(self, model: Path) -> None:
        """Let `attach` find this run by the adapter in folder `model`, and log the adapter as a model."""
        adapter = adapter_digest(model)
        self.tag({"steermoe.adapter": adapter})
        self._log_model(model, adapter)

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run (FINISHED, FAILED, KILLED) if it is this tracker's, and send what is unsent if possible."""
        if self._monitor is not None:
            self._monitor.finish()
        self._retry_at = 0.0
        self._close(status)
        if self._lock is not None:
            self._lock.release()  # what is left is for the next stage

    @_sent
    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at an optimizer step; what an interrupted training logged up to this step is there already."""
        from mlflow.entities import Metric

        self._step = step
        if self._last_steps is not None:
            for name in metrics.keys() - self._last_steps.keys():
                history = self._client.get_metric_history(self._run, name)
                self._last_steps[name] = max((point.step for point in history), default=-1)
            metrics = {name: value for name, value in metrics.items() if step > self._last_steps[name]}
        new = [Metric(name, float(value), self._at, step) for name, value in metrics.items()]
        self._client.log_batch(self._run, metrics=new)

    def log_tree(self, tree: Mapping[str, Any], prefix: str) -> None:
        """Log the numbers in nested dicts as `<prefix>/<key>/<key>`."""
        flat = _flat(tree, "/").items()
        self.log({f"{prefix}/{name}": value for name, value in flat if type(value) in (int, float)})

    @_sent
    def log_inputs(self, shards: Path, splits: Mapping[str, Sequence[str]], context: str) -> None:
        """Log the splits {corpus: names} in folder `shards` as datasets that are used for train, dev or test."""
        import polars as pl
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for folder, names in ((Path(shards) / corpus, names) for corpus, names in splits.items()):
            for split in () if skipped_reason(folder) else names:
                paths = shards_of(folder, split)
                seconds = pl.scan_parquet(paths).select("seconds").collect()["seconds"]
                size = json.dumps({"num_rows": len(seconds), "hours": round(seconds.sum() / 3600, 4)})
                source, name = json.dumps({"uri": str(folder.resolve())}), f"{folder.name}/{split}"
                dataset = Dataset(name, digest(paths)[:36], "local", source, profile=size)
                inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        self._client.log_inputs(self._run, inputs)

    @_sent
    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log rows of plain values as the artifact `name` (.json), which replaces an older one."""
        self._client.log_dict(self._run, {"columns": columns, "data": rows}, name)
        known = json.loads(self._client.get_run(self._run).data.tags.get(TABLES, "[]"))
        table = {"path": name, "type": "table"}
        if table not in known:
            self._client.set_tag(self._run, TABLES, json.dumps([*known, table]))

    @_sent
    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, or all files of a folder, into the run."""
        copy = self._client.log_artifacts if Path(path).is_dir() else self._client.log_artifact
        copy(self._run, str(path), folder)

    @_sent
    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._set_tags(tags)

    @_sent
    def describe(self, text: str, models: Mapping[str, Path]) -> None:
        """Describe the run in Markdown, followed by links to the runs of adapters {variant: folder}."""
        experiment, lines = self._store.experiment, [text, ""]
        for variant, model in models.items():
            if run := self._store.find(tagged("adapter", adapter_digest(Path(model)))):
                lines.append(f"- [{variant}](#/experiments/{experiment}/runs/{run.info.run_id})")
        self._client.set_tag(self._run, "mlflow.note.content", "\n".join(lines))

    def register_best(self, variant: str, model: Path, loss: float, measured_on: str) -> None:
        """Register the best adapter as a version of `steermoe-<profile>`, with the alias `champion`.

        A champion with a lower loss by the same measure stays champion.
        """
        tags = {
            "steermoe.variant": variant,
            "steermoe.error": repr(loss),
            "steermoe.measured_on": measured_on,
        }
        self._register(adapter_digest(model), tags)

    # what is written, now or later

    def _open(self, variant: VariantConfig, tags: Mapping[str, str], query: str, is_training: bool) -> None:
        execution = describe_execution(self.profile, self.root)
        own = {**execution["tags"], "steermoe.kind": "variant", "steermoe.variant": variant.name, **tags}
        name = " ".join(filter(None, (variant.name, execution_name())))
        self._open_variant(name, own, flat_parameters(variant), query, execution, is_training)

    @_sent
    def _open_variant(
        self, name: str, tags: dict[str, str], parameters: dict[str, str], query: str, execution: dict[str, Any],
        is_training: bool,
    ) -> None:  # fmt: skip
        from mlflow.entities import Param

        found = self._store.find(query)
        if is_training or found is None:
            tags = {**tags, "mlflow.parentRunId": self._store.execution(execution)}
        else:
            tags = {tag: value for tag, value in tags.items() if not tag.startswith("steermoe.")}
        run = found or self._client.create_run(self._store.experiment, self._at, tags, name)
        self.run_id = run.info.run_id
        # A run without fingerprint was created by an evaluation, perhaps a killed one: any other may close it.
        self._is_ours = is_training or "steermoe.fingerprint" not in run.data.tags
        self._last_steps = {} if found and is_training else None
        if found:
            self._set_tags(tags)
        if found and is_training:
            self._client.update_run(run.info.run_id, status="RUNNING")
        values = [Param(key, value) for key, value in parameters.items() if key not in run.data.params]
        for start in range(0, len(values), 100):  # MLflow takes at most so many in a request
            self._client.log_batch(run.info.run_id, params=values[start : start + 100])

    @_sent
    def _open_execution(self, execution: dict[str, Any], adapters: list[str]) -> None:
        found = self._store.find(execution["query"])
        runs = [self._store.find(tagged("adapter", adapter)) for adapter in adapters]
        parents = {None if run is None else run.data.tags.get("mlflow.parentRunId") for run in runs}
        parent = parents.pop() if len(parents) == 1 else None
        self.run_id = found.info.run_id if found else parent or self._store.execution(execution)
        self._is_ours = True

    @_sent
    def _log_model(self, model: Path, adapter: str) -> None:
        model = Path(model)
        if model.exists() and adapter_digest(model) == adapter:  # else a later stage logs it
            self._store.log_model(self._run, model, adapter, self._step)

    @_sent
    def _register(self, adapter: str, tags: dict[str, str]) -> None:
        self._store.register(adapter, tags)

    @_sent
    def _close(self, status: str) -> None:
        if self._is_ours:
            self._client.set_terminated(self._run, status, self._at)

    # MLflow's store

    @property
    def _store(self) -> Store:
        if self._connection is None:
            self._connection = Store(self.profile, self.root)
            self._send_left_behind()
        return self._connection

    @property
    def _client(self) -> "MlflowClient":
        return self._store.client

    @property
    def _run(self) -> str:
        if self.run_id is None:
            raise ValueError("MLflow refused to create its run")
        return self.run_id

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self._run, tags=[RunTag(name, value) for name, value in tags.items()])

    # while MLflow cannot be reached

    def _send(self, entry: dict[str, Any]) -> None:
        """Perform an entry, or keep it where MLflow cannot be reached; then try from time to time to send all."""
        if self._unsent is None and self._attempt(entry):
            return
        self._keep(entry)
        if self._unsent is not None and time.monotonic() >= self._retry_at:
            self._flush(self._unsent)

    def _attempt(self, entry: Mapping[str, Any] | str) -> bool:
        """Perform an entry; False if it should be tried later. What MLflow refuses is reported and left out."""
        try:
            values: Any = json.loads(entry) if isinstance(entry, str) else entry
            self._at = values["at"]
            getattr(Tracker, values["method"]).__wrapped__(self, **values["arguments"])
        except Exception as error:  # whatever it is, the stage goes on
            reason = (str(error) or type(error).__name__).splitlines()[0][:300]
            if is_refusal(error):
                self._warn(f"refuses what the stage logs, which is left out ({reason})")
                return True
            self._warn(
                f"cannot be reached; the stage goes on, and what it logs is kept and sent later ({reason})"
            )
            return False
        return True

    def _keep(self, entry: dict[str, Any]) -> None:
        lines = [json.dumps(entry, default=str)]
        try:
            if self._unsent is None:
                path = self.root / UNSENT / f"{time.time_ns()}-{os.getpid()}.jsonl"
                self._lock = FileLock(f"{path}.lock")
                self._lock.acquire()
                self._unsent, self._retry_at = path, time.monotonic() + RETRY_SECONDS
                lines.insert(0, self._state())
            with self._unsent.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            self._warn(f"cannot be reached, and what is logged cannot be kept ({error})")

    def _state(self) -> str:
        """Return the first line of a file of unsent entries: what another process needs to send them."""
        return json.dumps({"profile": self.profile, "run": self.run_id, "is_ours": self._is_ours})

    def _flush(self, path: Path) -> None:
        """Send the unsent entries of a file in order, and remove it, or keep the rest of them."""
        entries = path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        while entries and self._attempt(entries[0]):
            del entries[0]
        if entries:
            write_text(path, "\n".join([self._state(), *entries, ""]))
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return
        path.unlink()
        self._unsent = None
        self._warn("can be reached again, and has received what was kept")

    def _send_left_behind(self) -> None:
        """Send what stages that have ended kept, oldest first."""
        for path in sorted((self.root / UNSENT).glob("*.jsonl")):
            with suppress(Timeout, LookupError, ValueError, OSError), FileLock(f"{path}.lock", timeout=0):
                state = json.loads(path.read_text(encoding="utf-8", errors="replace").partition("\n")[0])
                tracker = Tracker(state["profile"], self.root)
                tracker.run_id, tracker._is_ours = state["run"], state["is_ours"]
                tracker._connection = Store(tracker.profile, self.root, self._client)
                tracker._warned = self._warned
                tracker._flush(path)

    def _warn(self, message: str) -> None:
        """Print a message about MLflow, once."""
        kind = message.partition(" (")[0]
        if kind not in self._warned:
            where = os.environ.get("MLFLOW_TRACKING_URI") or self.root / "mlflow.db"
            print(f"MLflow ({where}) {message}", file=sys.stderr, flush=True)
        self._warned.add(kind)


def adapter_digest(model: Path) -> str:
    """Return the SHA-256 of the adapter in a folder."""
    return hashlib.sha256((model / "adapter.safetensors").read_bytes()).hexdigest()


def flat_parameters(variant: VariantConfig) -> dict[str, str]:
    """Return the configuration as {"steering.num_experts": "8", ...}; what a method lacks is `none`."""
    flat = _flat(variant.model_dump(), ".")
    return {name: "none" if value is None else str(value) for name, value in flat.items()}


def _flat(tree: Mapping[str, Any], separator: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        inner = _flat(value, separator) if isinstance(value, Mapping) else {}
        flat |= {f"{name}{separator}{key}": v for key, v in inner.items()} or {name: value}
    return flat
