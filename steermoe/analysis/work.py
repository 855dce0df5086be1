"""Floating point operations and saved activations of training on one clip.

A multiplication with its addition counts as two operations. A frozen weight needs no gradient of its own: the
backward pass of a frozen linear map costs as much as its forward pass, that of attention 2.5 times as much,
for it computes the scores again (FlashAttention-2, Dao 2023). Elementwise work is left out.

Letters: S encoder frames, A audio tokens, P prompt tokens, Y target tokens, D encoder width, L its layers.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from steermoe.analysis.audit import Sections
from steermoe.analysis.presets import EncoderShape, LlmShape
from steermoe.models.gating import hook_points

RECOMPUTED = 2.5  # backward of attention over its forward
PRECISE = 4  # bytes of a float32


@dataclass(frozen=True)
class Clip:
    """A clip as the models see it.

    Attributes:
        frames: S.
        audio, prompt, target: A, P and Y.
    """

    frames: int
    audio: int
    prompt: int
    target: int

    @property
    def positions(self) -> int:
        """Positions of the LLM."""
        return self.audio + self.prompt + self.target


@dataclass(frozen=True)
class Work:
    """Operations on one clip: forward and backward of the frozen models, all of the trained parts."""

    encoder_forward: float
    encoder_backward: float
    llm_forward: float
    llm_backward: float
    trained: float

    @property
    def total(self) -> float:
        """The sum."""
        return sum(vars(self).values())


def clip(
    seconds: float, encoder: EncoderShape, sections: Sections, prompt_tokens: int, target_tokens: int
) -> Clip:
    """The lengths of a clip of so many seconds."""
    frames = max(1, int(seconds * encoder.frames_per_second))
    audio = math.ceil(frames / sections.projector.downsample_factor)
    return Clip(frames, audio, prompt_tokens, target_tokens)


def work(
    heard: Clip, encoder: EncoderShape, llm: LlmShape, sections: Sections, trained: dict[str, int]
) -> Work:
    """Operations of one training step on one clip; `trained` are parameters by part (see `audit`)."""
    linear = 2 * encoder.matmul_weights * heard.frames
    attention = 4 * heard.frames**2 * encoder.width * len(encoder.layers)
    stem = 2 * encoder.stem_weights * heard.frames
    below = backpropagated(sections, len(encoder.layers)) / len(encoder.layers)
    head = 2 * llm.head_weights * (heard.prompt + heard.target)
    read = 2 * llm.matmul_weights * heard.positions
    causal = 2 * heard.positions**2 * llm.attention_width * len(llm.layers)
    per_token = trained.get("projection", 0) + trained.get("downsample", 0)
    per_frame = sum(trained.values()) - per_token
    return Work(
        encoder_forward=linear + attention + stem,
        encoder_backward=below * (linear + RECOMPUTED * attention),
        llm_forward=read + causal + head,
        llm_backward=read + RECOMPUTED * causal + head,
        trained=6 * (per_token * heard.audio + per_frame * heard.frames),
    )


def backpropagated(sections: Sections, layers: int) -> int:
    """Layers of the encoder that a gradient goes through: those above the first one that is changed."""
    if sections.lora is not None:
        return layers
    steered = steered_layers(sections, layers)
    if not steered or sections.steering is None:
        return 0
    inside = sections.steering.hook_point == "attention"  # of the first one the feed-forward, counted whole
    return layers - 1 - min(steered) + inside


def steered_layers(sections: Sections, layers: int) -> list[int]:
    """Numbers of the steered layers of an encoder of so many."""
    if sections.steering is None:
        return []
    return [place.layer for place in hook_points(sections.steering, layers) if place.layer is not None]


def activations(
    heard: Clip, encoder: EncoderShape, llm: LlmShape, sections: Sections, bytes_a_number: int
) -> float:
    """Bytes that the forward pass of a clip keeps for its backward pass, attention fused.

    Of a frozen linear map nothing is kept; of the nonlinear maps between them, their inputs.
    """
    through = backpropagated(sections, len(encoder.layers))
    below = 0.0
    if through:
        below = heard.frames * sum(kept_bytes(layer, bytes_a_number) for layer in encoder.layers[-through:])
    if sections.steering is not None:  # the frame itself in float32, for router and vectors
        count = len(hook_points(sections.steering, len(encoder.layers)))
        below += heard.frames * count * encoder.width * PRECISE
    above = heard.positions * sum(kept_bytes(layer, bytes_a_number) for layer in llm.layers)
    vocabulary = llm.head_weights / llm.width
    logits = (
        heard.target * vocabulary * (bytes_a_number + 2 * PRECISE)
    )  # as computed, in float32, its gradient
    return below + above + logits


def kept_bytes(layer: nn.Module, bytes_a_number: int) -> float:
    """Bytes that a frozen transformer layer keeps of one position.

    The outputs of its linear maps but those that end a branch (a sum keeps nothing), what attention returns,
    the product of a gated activation, and the input of every norm: of an RMSNorm in float32, as transformers
    computes it.
    """
    maps = [part for part in layer.modules() if isinstance(part, nn.Linear)]
    if not maps:
        return 0.0
    width = min(part.in_features for part in maps)
    widest = max(part.out_features for part in maps)
    inner = [part.out_features for part in maps if part.out_features == widest > width]
    attention = [part.out_features for part in maps if part.out_features <= width == part.in_features]
    kept = sum(inner) + sum(attention)  # the output map of attention stands for what attention returns
    if len(inner) > 1:
        kept += widest
    norms = [part for part in layer.modules() if type(part).__name__.endswith("Norm")]
    of_norms = sum(width * _norm_bytes(norm, bytes_a_number) for norm in norms)
    return kept * bytes_a_number + of_norms


def _norm_bytes(norm: Any, bytes_a_number: int) -> int:
    return bytes_a_number if isinstance(norm, nn.LayerNorm) else PRECISE
