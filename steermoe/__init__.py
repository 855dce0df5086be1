"""SteerMoE connects a frozen speech encoder to a frozen LLM by training steering vectors and a projection."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steermoe.asr.recognizer import Recognizer
    from steermoe.asr.transcript import Segment, Transcript, Word
    from steermoe.config import Generation, VariantConfig
    from steermoe.models.steermoe import SteerMoE
    from steermoe.models.tools import Answer

__all__ = [
    "Answer",
    "Generation",
    "Recognizer",
    "Segment",
    "SteerMoE",
    "Transcript",
    "VariantConfig",
    "Word",
    "__version__",
]
__version__ = "0.3.0.dev0"
HOMES = {  # imported when first used: the model takes seconds, and most commands do without
    "Answer": "steermoe.models.tools",
    "Generation": "steermoe.config",
    "Recognizer": "steermoe.asr.recognizer",
    "Segment": "steermoe.asr.transcript",
    "SteerMoE": "steermoe.models.steermoe",
    "Transcript": "steermoe.asr.transcript",
    "VariantConfig": "steermoe.config",
    "Word": "steermoe.asr.transcript",
}
# Libraries send or store usage data unless these are set before they are imported; the user's own values stay.
NO_USAGE_DATA = {
    "DO_NOT_TRACK": "true",  # huggingface_hub, Prefect's client, MLflow
    "DVC_NO_ANALYTICS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",  # what DVC sends with
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime, which detects speech
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
for _variable, _value in NO_USAGE_DATA.items():
    os.environ.setdefault(_variable, _value)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in HOMES:
        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
