"""A trained adapter as a model in MLflow, and the best of a profile under an alias in the registry."""

import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steermoe.training.journal import Entry

if TYPE_CHECKING:
    from mlflow import MlflowClient

CODE = Path(__file__).parents[1] / "export" / "pyfunc.py"
NEEDED = (
    "steermoe",
    "mlflow",
    "numpy",
    "pandas",
    "safetensors",
    "soundfile",
    "soxr",
    "torch",
    "transformers",
)
CHAMPION = "champion"  # alias of the best version of a registered model


def log_model(client: "MlflowClient", run_id: str, entry: Entry, adapter: Path) -> None:
    """Log the adapter in a folder as a model of a run, or finish what a killed process began of that."""
    from mlflow.entities import LoggedModelOutput

    experiment, tags = client.get_run(run_id).info.experiment_id, {"steermoe.adapter": entry["adapter"]}
    begun = client.search_logged_models([experiment], f"tags.`steermoe.adapter` = '{entry['adapter']}'")
    model = next((each for each in begun if each.source_run_id == run_id), None)
    if model is None:
        model = client.create_logged_model(
            experiment, entry["name"], run_id, tags=tags, params=entry["parameters"]
        )
    with tempfile.TemporaryDirectory() as work:
        saved = Path(work) / "model"
        save(adapter, saved, entry["base_models"], run_id, model)
        client.log_model_artifacts(model.model_id, str(saved))
    client.finalize_logged_model(model.model_id, "READY")
    outputs = client.get_run(run_id).outputs
    if model.model_id not in [each.model_id for each in (outputs.model_outputs if outputs else [])]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=entry["step"])])
    client.set_tag(run_id, "steermoe.logged_model", model.model_id)
    client.set_tag(run_id, "steermoe.logged_adapter", entry["adapter"])


def save(adapter: Path, folder: Path, base_models: str, run_id: str, model: Any) -> None:
    """Write MLflow's folder of a model. `mlflow.pyfunc.log_model` would load the frozen models to try it out."""
    with warnings.catch_warnings():
        # Of MLflow's own code: its classes for agents, defined at import; what it does with an example's index.
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        warnings.filterwarnings("ignore", "Operation with range is deprecated")
        import pandas as pd
        from mlflow.models import Model, ModelSignature
        from mlflow.pyfunc import save_model
        from mlflow.types import ColSpec, Schema

        signature = ModelSignature(
            inputs=Schema([ColSpec("string", "audio"), ColSpec("string", "question", required=False)]),
            outputs=Schema([ColSpec("string", "text")]),
        )
        save_model(
            folder,
            mlflow_model=Model(
                model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id
            ),
            python_model=str(CODE),
            artifacts={"adapter": adapter.resolve().as_uri()},  # a plain path is unquoted like an address
            signature=signature,
            input_example=pd.DataFrame({"audio": ["recording.wav"], "question": ["who is speaking?"]}),
            pip_requirements=[f"{name}=={version(name)}" for name in NEEDED],
            model_config={"base_models": base_models},
        )


def register_champion(client: "MlflowClient", run: Any | None, entry: Entry) -> None:
    """Register the winner's model, and give it the alias unless the champion so far is better.

    Champions are compared where both were chosen by the same measure.

    Raises:
        ValueError: no model of this adapter was logged.
    """
    from mlflow.exceptions import MlflowException

    if run is None:
        raise ValueError(f"{entry['variant']}: no model of this adapter was logged; repeat its evaluation")
    model = run.data.tags["steermoe.logged_model"]
    name, tags = f"steermoe-{entry['profile']}", entry["tags"]
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    mark = "steermoe.model"  # a version that is searched for does not tell its model
    versions = client.search_model_versions(f"name = '{name}'")
    found = next((each for each in versions if each.tags.get(mark) == model), None)
    if found is None:
        source = client.get_logged_model(model).artifact_location
        found = client.create_model_version(name, source, run.info.run_id, {mark: model}, model_id=model)
    for key, value in tags.items():
        client.set_model_version_tag(name, found.version, key, value)
    held = client.get_registered_model(name).aliases.get(CHAMPION)
    if held is not None and str(held) != str(found.version):
        before = client.get_model_version(name, held).tags
        comparable = before.get("steermoe.measured_on") == tags["steermoe.measured_on"]
        if comparable and float(before["steermoe.error"]) <= float(tags["steermoe.error"]):
            return
    client.set_registered_model_alias(name, CHAMPION, found.version)
