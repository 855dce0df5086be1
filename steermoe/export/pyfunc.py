"""A trained adapter as MLflow loads it: `mlflow.pyfunc.load_model("models:/steermoe-mini@champion").predict(frame)`.

MLflow copies this file into every model that it logs and runs the copy on its own ("models from code"), so it
needs nothing beside it but the installed library. What is logged is the adapter, never the frozen models under it.
"""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Transcriber(PythonModel):
    """Column `audio`, paths of recordings, and if need be `question`, to a column `text`."""

    def load_context(self, context: Any) -> None:
        """Load the adapter and the frozen models under it.

        A relative path of a frozen model starts from the environment variable STEERMOE_BASE_MODELS, else from
        `base_models` of the model's configuration (`load_model(..., model_config={"base_models": ...})`; by
        default where the adapter was trained), else from the current folder. What is in none is taken as a
        name on the hub. A merged adapter has its own. Weights other than those trained against are refused.
        """
        from steermoe import SteerMoE

        adapter = Path(context.artifacts["adapter"])
        description = json.loads((adapter / "config.json").read_text(encoding="utf-8"))
        variant = description["variant"]
        named = (os.environ.get("STEERMOE_BASE_MODELS"), (context.model_config or {}).get("base_models"))
        roots = [Path(root) for root in named if root and "merged" not in description]
        encoder, llm = (
            next((path for root in roots if (path := root / variant[part]["path"]).is_dir()), None)
            for part in ("encoder", "llm")
        )
        self.model = SteerMoE.from_pretrained(adapter, encoder=encoder, llm=llm)

    def predict(self, context: Any, model_input: pd.DataFrame) -> pd.DataFrame:
        """A text for each row."""
        asked = model_input["question"] if "question" in model_input else [None] * len(model_input)
        questions = [str(question) if isinstance(question, str) else None for question in asked]
        texts = [
            self.model.ask(audio, question).text
            for audio, question in zip(model_input["audio"], questions, strict=True)
        ]
        return pd.DataFrame({"text": texts}, index=model_input.index)


set_model(Transcriber())
