"""Load a trained adapter in MLflow: `mlflow.pyfunc.load_model("models:/steermoe-mini@champion").predict(frame)`.

MLflow copies this file into every logged model and runs the copy ("models from code"), so that it needs the installed
library alone. What is logged is the adapter, never the frozen models.
"""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Transcriber(PythonModel):
    """Return a column `text` for a column `audio` of paths, and optionally a column `question`."""

    def load_context(self, context: Any) -> None:
        """Load the adapter and its frozen models.

        A relative path of a frozen model starts from the environment variable STEERMOE_BASE_MODELS, else from
        `base_models` of `load_model(..., model_config={"base_models": ...})`, by default the project that trained the
        adapter, else from the current folder. A path that is in none of them is a name on the hub. A merged adapter
        brings its own frozen models. Weights other than those of the training are refused.
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
        """Return a text for each row."""
        asked = model_input["question"] if "question" in model_input else [None] * len(model_input)
        questions = [str(question) if isinstance(question, str) else None for question in asked]
        texts = [
            self.model.ask(audio, question).text
            for audio, question in zip(model_input["audio"], questions, strict=True)
        ]
        return pd.DataFrame({"text": texts}, index=model_input.index)


set_model(Transcriber())
