"""Licences of base models: what they ask and forbid, shown before any weights are downloaded."""

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class BaseModel:
    """A base model: its licence, what that asks or forbids, and gigabytes to download, None if not on the hub."""

    licence: str
    restrictions: str
    gigabytes: float | None


def licence_note(hub_id: str) -> str:
    """Return size, licence and restrictions of a base model in a few lines; of an unknown one, where to read them."""
    known = BASE_MODELS.get(hub_id, UNKNOWN)
    size = "see below" if known.gigabytes is None else f"{known.gigabytes:g} GB to download"
    lines = {
        "model": f"{hub_id}: {size}; https://huggingface.co/{hub_id}",
        "licence": known.licence,
        "mind": known.restrictions,
    }
    return "\n".join(
        textwrap.fill(text, 100, initial_indent=f"{key:8}", subsequent_indent=" " * 8)
        for key, text in lines.items()
    )


FREE = "keep the licence's text and notices; commercial use is allowed"
UNKNOWN = BaseModel("not known here; read the model's page before you use it", "what its licence says", None)
RESEARCH = "NON-COMMERCIAL: research and evaluation only; what is trained against it falls under it too"
PICKLE = f"{FREE}; the weights are a pickle: convert them once (steermoe.models.encoders.firered_convert)"
BASE_MODELS = {
    "openai/whisper-large-v3": BaseModel("Apache-2.0", FREE, 3.1),
    "Qwen/Qwen2.5-0.5B-Instruct": BaseModel("Apache-2.0", FREE, 1.0),
    "Qwen/Qwen2.5-1.5B-Instruct": BaseModel("Apache-2.0", FREE, 3.1),
    "Qwen/Qwen2.5-3B-Instruct": BaseModel("Qwen Research Licence", RESEARCH, 6.2),
    "Qwen/Qwen2.5-7B-Instruct": BaseModel("Apache-2.0", FREE, 15.2),
    "FireRedTeam/FireRedASR-AED-L": BaseModel("Apache-2.0", PICKLE, None),
}
