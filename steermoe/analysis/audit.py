"""How many parameters a configuration has, part by part: the real modules, built on the meta device, counted.

Shapes: D encoder width, D' width after down-sampling, H width of the LLM.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steermoe import config
from steermoe.analysis.presets import EncoderShape, LlmShape, count, encoder_shape, llm_shape
from steermoe.models.downsample import make_downsampler
from steermoe.models.pretrained import Depth
from steermoe.models.projectors import make_projection
from steermoe.models.steering import Steering

TRAINED = ("vectors", "scales", "router", "downsample", "projection", "lora", "llm_lora")


@dataclass(frozen=True)
class Sections:
    """What decides which parts are trained, and how large they and the frozen ones are."""

    method: str
    steering: config.Steering | None
    lora: config.Lora | None
    projector: config.Projector
    llm_lora: config.Lora | None = None
    encoder_layers: Depth = "all"
    llm_layers: Depth = "all"

    @classmethod
    def of(cls, variant: config.VariantConfig) -> "Sections":
        """Those of a variant."""
        layers = variant.encoder.layers, variant.llm.layers
        return cls(
            variant.method, variant.steering, variant.lora, variant.projector, variant.llm_lora, *layers
        )


@dataclass(frozen=True)
class Audit:
    """Parameters of one configuration.

    Attributes:
        encoder, llm: names of the frozen models.
        sections: what was built between them.
        frozen: parameters of `encoder` and `llm`.
        trained: parameters of each trained part, those of TRAINED first; parts without any are left out.
    """

    encoder: str
    llm: str
    sections: Sections
    frozen: dict[str, int]
    trained: dict[str, int]

    @property
    def total(self) -> int:
        """All that are trained."""
        return sum(self.trained.values())

    @property
    def share(self) -> float:
        """Of all parameters, how many are trained."""
        return self.total / (self.total + sum(self.frozen.values()))

    def part(self, name: str) -> int:
        """Parameters of a part, 0 where there is none; `trained` is their sum.

        Raises:
            ValueError: there is no part of that name.
        """
        counts = {**dict.fromkeys(TRAINED, 0), **self.trained, **self.frozen, "trained": self.total}
        if name not in counts:
            raise ValueError(f"part: found {name!r}; legal: {', '.join(counts)}")
        return counts[name]

    def to_json(self) -> dict[str, Any]:
        """The whole of it as plain values."""
        return {
            "encoder": self.encoder,
            "llm": self.llm,
            "method": self.sections.method,
            "frozen": self.frozen,
            "trained": self.trained,
            "trained_total": self.total,
            "trained_share": self.share,
        }


def audit(sections: Sections, encoder: str, llm: str) -> Audit:
    """Count the parameters of a configuration over two frozen models, presets or not (see `presets`).

    Raises:
        ValueError: a model is not known, or a setting does not fit it.
    """
    heard = encoder_shape(encoder, depth=sections.encoder_layers)
    read = llm_shape(llm, depth=sections.llm_layers)
    frozen = {"encoder": heard.parameters_in_all, "llm": read.parameters_in_all}
    return Audit(heard.name, read.name, sections, frozen, trained_parameters(sections, heard, read))


def trained_parameters(sections: Sections, encoder: EncoderShape, llm: LlmShape) -> dict[str, int]:
    """Parameters of each trained part; LoRA is put into `encoder`, steering hooks onto its layers.

    Raises:
        ValueError: a setting does not fit the encoder.
    """
    # One row that is not on the meta device: the projection reads the loudness of the embeddings off it.
    embeddings = torch.ones(1, llm.width)
    with torch.device("meta"):
        downsample = make_downsampler(sections.projector, encoder.width, len(encoder.layers))
        parts = {
            "downsample": count(downsample),
            "projection": count(make_projection(sections.projector, downsample.width, embeddings)),
        }
        if sections.steering is not None:
            for name, parameter in Steering(
                sections.steering, encoder.layers, encoder.width
            ).named_parameters():
                part = name.partition(".")[0]
                parts[part] = parts.get(part, 0) + parameter.numel()
        if sections.lora is not None:
            parts["lora"] = _lora(sections.lora, encoder.model, encoder.layers, "lora")
        if sections.llm_lora is not None:
            parts["llm_lora"] = _lora(sections.llm_lora, llm.model, llm.layers, "llm_lora")
    order = sorted(parts, key=lambda part: TRAINED.index(part) if part in TRAINED else len(TRAINED))
    return {part: parts[part] for part in order if parts[part]}


def _lora(section: config.Lora, model: nn.Module, layers: nn.ModuleList, setting: str) -> int:
    from steermoe.models.lora import add_lora  # here, for peft takes seconds to import

    return sum(parameter.numel() for parameter in add_lora(section, model, layers, setting))
