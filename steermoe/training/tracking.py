"""Runs in MLflow: an experiment a profile, in it a run for each execution of the pipeline, under it one a variant.

Training, evaluation and the comparison are processes of their own and log into the same runs. A training marks its
run with the digest of the adapter that it wrote, and who has the adapter finds it by that. An execution is what
`STEERMOE_EXECUTION` names, else DVC's experiment, else all that a workspace does until its comparison is made.
Tracking never fails a stage, and none waits for it: all goes through a journal (docs/mlflow.md).
"""

import hashlib
import os
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from steermoe.atomic_io import project_root, write_text
from steermoe.config import VariantConfig
from steermoe.training.inputs import inputs
from steermoe.training.journal import Journal
from steermoe.training.machine import Machine
from steermoe.training.optim import PARTS
from steermoe.training.sender import Sender

DVC_TAGS = {
    "dvc.exp_name": "DVC_EXP_NAME",
    "dvc.baseline_rev": "DVC_EXP_BASELINE_REV",
    "dvc.stage": "DVC_STAGE",
}
ABSENT = "none"  # value of a parameter that a variant's method does not have
JOURNALS = Path(".runs") / "tracking"
ADAPTER_FILES = ["adapter.safetensors", "config.json"]


class Tracker:
    """Logs into one run of the experiment `steermoe/<profile>`.

    Args:
        profile: the selected profile.
        root: the project's root: of journals, and of mlflow.db and mlartifacts unless MLFLOW_TRACKING_URI is set.
    """

    def __init__(self, profile: str, root: Path | None = None) -> None:
        self.profile, self.root = profile, (root or project_root()).resolve()
        self._sender: Sender | None = None
        self._closes = False  # the run is this tracker's to close
        self._variant: VariantConfig | None = None
        self._load: Machine | None = None
        self._step, self._is_broken = 0, False

    # runs

    def start(self, variant: VariantConfig, fingerprint: str, data: str, resumes: bool = False) -> None:
        """Begin the run of a training, or go on with that of the same training that was interrupted.

        Args:
            variant: what is trained.
            fingerprint: of the training.
            data: digest of its shards.
            resumes: it goes on from a checkpoint, so its run may be closed: a kill came after its last word.
        """
        place = _workspace(self.root)
        query = f"tags.`steermoe.fingerprint` = '{fingerprint}' and tags.`steermoe.workspace` = '{place}'"
        if not resumes:
            query += " and attributes.status != 'FINISHED'"
        tags = {"steermoe.fingerprint": fingerprint, "steermoe.data": data}
        self._open(variant, tags, [query], continues=True)
        self._closes = True
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() != "false":
            self._begun().sample(self._machine)

    def attach(self, variant: VariantConfig, model: Path) -> None:
        """Log into the run that trained the adapter in folder `model`, or into a new one.

        A named execution leaves the runs of others as they are.
        """
        adapter = adapter_digest(model)
        query = f"tags.`steermoe.adapter` = '{adapter}' and tags.`steermoe.variant` = '{variant.name}'"
        execution = self._execution()
        if _named():
            query += f" and tags.`steermoe.execution` = '{execution['tags']['steermoe.execution']}'"
        self._open(variant, {"steermoe.adapter": adapter}, [query], continues=False)
        self._log_model(model, adapter)

    def attach_execution(self, models: Mapping[str, Path]) -> None:
        """Log into the run of this execution, or of the one that all adapters {variant: folder} are from."""
        adapters = {variant: adapter_digest(model) for variant, model in models.items()}
        self._write(
            "execution", execution=self._execution(), adapters=adapters, surroundings=_surroundings(),
        )  # fmt: skip
        self._closes = True

    def mark_adapter(self, model: Path) -> None:
        """Let `attach` find this run by the adapter in folder `model`, and log that as a model."""
        adapter = adapter_digest(model)
        self._write("tags", tags={"steermoe.adapter": adapter})
        self._log_model(model, adapter)

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run (FINISHED, FAILED, KILLED) if it is this tracker's, and send what has not been sent."""
        if self._sender is not None:
            self._write("status", status=status, made=not self._closes)
            self._sender.close()

    @property
    def run_id(self) -> str | None:
        """The run's id, which only the store can tell; None as long as that is out of reach."""
        if self._sender is None:
            return None
        self._sender.drain()
        return self._sender.journal.position.run

    # what belongs to a run

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at an optimizer step."""
        self._step = step
        self._write("metrics", values=[[name, float(value), step] for name, value in metrics.items()])

    def log_tree(self, tree: Mapping[str, Any], prefix: str) -> None:
        """Log the numbers in nested dicts as `<prefix>/<key>/<key>`."""
        self.log({f"{prefix}/{name}": value for name, value in _flat(tree, "/").items() if _is_number(value)})

    def log_inputs(self, shards: Path, splits: Mapping[str, Sequence[str]], context: str) -> None:
        """Note the splits {corpus: names} in the folder `shards` as read, for train, dev or test."""
        self._write("inputs", datasets=inputs(shards, splits, context))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log rows of plain values as the artifact `name` (.json), which replaces an older one."""
        self._write("table", name=name, columns=list(columns), rows=[list(row) for row in rows])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, or all files of a folder, into the run."""
        self._write("artifact", copy=path, folder=folder)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._write("tags", tags=dict(tags))

    def describe(self, text: str, models: Mapping[str, Path]) -> None:
        """Give the run a description in Markdown, followed by links to the runs of adapters {variant: folder}."""
        adapters = {variant: adapter_digest(model) for variant, model in models.items()}
        self._write("describe", text=text, adapters=adapters)

    def crown(self, variant: str, model: Path, error: float, measured_on: str) -> None:
        """Register the adapter that won as a version of `steermoe-<profile>`, and as its champion.

        Args:
            variant: its variant.
            model: folder of the adapter.
            error: what it was chosen by, on dev data.
            measured_on: what that was measured by; a champion with a lower error by the same stays champion.
        """
        tags = {
            "steermoe.variant": variant,
            "steermoe.error": repr(error),
            "steermoe.measured_on": measured_on,
        }
        self._write("champion", variant=variant, adapter=adapter_digest(model), tags=tags)

    def _log_model(self, model: Path, adapter: str) -> None:
        variant = self._variant
        assert variant is not None, "no run yet: call start or attach first"
        self._write(
            "model",
            copy=model,
            names=ADAPTER_FILES,
            name=variant.name,
            adapter=adapter,
            parameters={"method": variant.method, "encoder": variant.encoder.path, "llm": variant.llm.path},
            base_models=str(self.root),
            step=self._step,
        )

    def _machine(self) -> dict[str, Any]:
        """An entry of how busy the machine is."""
        if self._load is None:
            self._load = Machine()
        values = [[name, value, self._step] for name, value in self._load.load().items()]
        return self._entry("metrics", values=values)

    def _open(
        self, variant: VariantConfig, tags: Mapping[str, str], find: Sequence[str], continues: bool
    ) -> None:
        self._variant = variant
        name = " ".join(part for part in (variant.name, _named()) if part)
        execution = self._execution()
        own = {
            "steermoe.kind": "variant", "steermoe.variant": variant.name, "steermoe.profile": self.profile,
            "steermoe.execution": execution["tags"]["steermoe.execution"],
            "steermoe.workspace": _workspace(self.root), "steermoe.entry": uuid.uuid4().hex,
        }  # fmt: skip
        surroundings = _surroundings()
        # The first filter: a store that hung may have made the run and not said so.
        self._write(
            "open", name=name, find=[f"tags.`steermoe.entry` = '{own['steermoe.entry']}'", *find],
            tags={**own, **tags, **surroundings}, parameters=flat_parameters(variant), execution=execution,
            surroundings={**surroundings, **({"steermoe.execution": own["steermoe.execution"]} if continues else {})},
            continues=continues,
        )  # fmt: skip

    def _execution(self) -> dict[str, Any]:
        """What the store needs to find or make the run of this execution."""
        named, place, now = _named(), _workspace(self.root), time.time()
        key = hashlib.sha256(f"{place} {named or ''}".encode()).hexdigest()[:16]
        query = f"tags.`steermoe.execution` = '{key}' and tags.`steermoe.kind` = 'execution'"
        tags = {
            "steermoe.kind": "execution", "steermoe.execution": key, "steermoe.workspace": place,
            "steermoe.profile": self.profile, **_surroundings(),
        }  # fmt: skip
        name = named or time.strftime(f"{self.profile} %Y-%m-%d %H:%M", time.localtime(now))
        find = [query if named else f"{query} and attributes.status = 'RUNNING'"]
        return {"find": find, "name": name, "tags": tags, "at": int(now * 1000)}

    def _entry(self, kind: str, **content: Any) -> dict[str, Any]:
        return {"do": kind, "at": int(time.time() * 1000), "profile": self.profile, **content}

    def _write(
        self, kind: str, copy: Path | None = None, names: Sequence[str] | None = None, **content: Any
    ) -> None:
        """Write an entry down, with a copy of a file or folder; a full disk is told once, and stops nothing."""
        try:
            sender = self._begun()
            if copy is not None:
                content["file"] = sender.journal.keep(copy, names)
            sender.send(self._entry(kind, **content))
        except OSError as error:
            if not self._is_broken:
                print(f"{self.root / JOURNALS}: {error}; what cannot be written there is not logged")
            self._is_broken = True

    def _begun(self) -> Sender:
        if self._sender is None:
            self._sender = Sender(self.root, Journal.begin(self.root / JOURNALS))
        return self._sender


def adapter_digest(model: Path) -> str:
    """SHA-256 of the adapter in a folder: what ties evaluations to the training."""
    return hashlib.sha256((model / "adapter.safetensors").read_bytes()).hexdigest()


def flat_parameters(variant: VariantConfig) -> dict[str, str]:
    """{"steering.num_experts": "8", ...}: the same keys for every variant, `none` where a method lacks it."""
    flat = _flat(_complete(VariantConfig, variant), ".")
    flat |= {f"training.learning_rates.{p}": variant.training.learning_rates.get(p) for p in PARTS}
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


def _named() -> str | None:
    """The name of this execution, where it has one."""
    return os.environ.get("STEERMOE_EXECUTION") or os.environ.get("DVC_EXP_NAME") or None


def _workspace(root: Path) -> str:
    """A name of this workspace, made up once: unlike a host's name or a path, it is nobody else's."""
    path = root / JOURNALS / "workspace"
    if not path.exists():
        made = path.with_name(f"workspace-{os.getpid()}")
        write_text(made, uuid.uuid4().hex[:16] + "\n")
        with suppress(FileExistsError):  # the first of several processes wins
            os.link(made, path)
        made.unlink()
    return path.read_text().strip()
