"""What the frozen models' licences ask and forbid: printed before any of their weights is fetched."""

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelCard:
    """The card of a model.

    Attributes:
        name: hub id.
        licence: its name.
        restrictions: what it asks or forbids, in plain words.
        gigabytes: to download, of weights in safetensors; None where there are none on the hub.
    """

    name: str
    licence: str
    restrictions: str
    gigabytes: float | None

    def text(self) -> str:
        """The card for people, a few lines."""
        size = "see below" if self.gigabytes is None else f"{self.gigabytes:g} GB to download"
        lines = {
            "model": f"{self.name}: {size}; https://huggingface.co/{self.name}",
            "licence": self.licence,
            "mind": self.restrictions,
        }
        return "\n".join(
            textwrap.fill(text, 100, initial_indent=f"{key:8}", subsequent_indent=" " * 8)
            for key, text in lines.items()
        )


def card(hub_id: str) -> ModelCard:
    """The card of a model of the hub; one that sends the reader there where none is written here."""
    unknown = "not known here; read the model's page before you use it"
    return MODEL_CARDS.get(hub_id, ModelCard(hub_id, unknown, "what its licence says", None))


_FREE = "keep the licence's text and notices; commercial use is allowed"
MODEL_CARDS = {
    of.name: of
    for of in (
        ModelCard("openai/whisper-large-v3", "Apache-2.0", _FREE, 3.1),
        ModelCard("Qwen/Qwen2.5-0.5B-Instruct", "Apache-2.0", _FREE, 1.0),
        ModelCard("Qwen/Qwen2.5-1.5B-Instruct", "Apache-2.0", _FREE, 3.1),
        ModelCard(
            "Qwen/Qwen2.5-3B-Instruct",
            "Qwen Research Licence",
            "NON-COMMERCIAL: research and evaluation only; what is trained against it falls under it too",
            6.2,
        ),
        ModelCard("Qwen/Qwen2.5-7B-Instruct", "Apache-2.0", _FREE, 15.2),
        ModelCard(
            "FireRedTeam/FireRedASR-AED-L",
            "Apache-2.0",
            f"{_FREE}; the weights are a pickle: convert them once (steermoe.models.encoders.firered_convert)",
            None,
        ),
    )
}
