"""SteerMoE: a frozen speech encoder, steered layer by layer so that a frozen LLM understands it."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steermoe.models.steermoe import SteerMoE

__all__ = ["SteerMoE", "__version__"]
__version__ = "0.1.0"
# Libraries send or store usage data unless told not to before they are imported; what the user has set stays.
NO_USAGE_DATA = {
    "DO_NOT_TRACK": "true",  # huggingface_hub, Prefect's client, MLflow
    "DVC_NO_ANALYTICS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",  # what DVC sends with
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime, which finds speech
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
for _variable, _value in NO_USAGE_DATA.items():
    os.environ.setdefault(_variable, _value)


def __getattr__(name: str) -> Any:
    """`SteerMoE`, imported when first asked for: it takes seconds, and most commands do without."""
    if name == "SteerMoE":
        from steermoe.models.steermoe import SteerMoE

        return SteerMoE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
