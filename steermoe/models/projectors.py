"""Projections of audio tokens into the LLM's embedding space, including aligners, which read the prompt.

They start so that inputs of unit rms come out with the rms of the LLM's token embeddings; otherwise audio would
initially be many times louder than text.
Shapes: B batch, A audio tokens, P prompt tokens, E width of an audio token, H width of the LLM, W hidden width.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from steermoe import config
from steermoe.models.packing import valid_frames


class Projection(nn.Module, ABC):
    """Base class.

    Attributes:
        reads_prompt: whether `forward` depends on the prompt.
    """

    reads_prompt = False

    def __init__(self, section: config.Projector, width: int, embeddings: Tensor) -> None:
        super().__init__()
        self.rms = 1.0 if embeddings.is_meta else embeddings.detach().float().square().mean().sqrt().item()

    def match_embedding_rms(self, linear: nn.Linear) -> nn.Linear:
        """Initialise `linear` with weights of standard deviation rms / sqrt(inputs) and a zero bias."""
        nn.init.normal_(linear.weight, std=self.rms / linear.in_features**0.5)
        nn.init.zeros_(linear.bias)
        return linear

    @abstractmethod
    def forward(self, audio_BAE: Tensor, prompt_BPH: Tensor, prompt_lengths_B: Tensor) -> Tensor:
        """Map audio tokens (B, A, E) of any floating type to (B, A, H), given the embedded prompt."""


class Linear(Projection):
    """One Linear(E, H): H*(E + 1) parameters."""

    def __init__(self, section: config.Projector, width: int, embeddings: Tensor) -> None:
        super().__init__(section, width, embeddings)
        self.linear = self.match_embedding_rms(nn.Linear(width, embeddings.shape[1]))

    def forward(self, audio_BAE: Tensor, prompt_BPH: Tensor, prompt_lengths_B: Tensor) -> Tensor:
        """Project each token."""
        return self.linear(audio_BAE.to(self.linear.weight.dtype))


class Mlp(Projection):
    """Linear(E, W), ReLU, Linear(W, H), as SLAM-ASR's projector (Ma et al. 2024): W*(E + 1) + H*(W + 1)."""

    def __init__(self, section: config.Projector, width: int, embeddings: Tensor) -> None:
        super().__init__(section, width, embeddings)
        assert section.width is not None
        self.up = nn.Linear(width, section.width)
        nn.init.kaiming_normal_(self.up.weight, nonlinearity="relu")  # rms 1 after the ReLU
        self.down = self.match_embedding_rms(nn.Linear(section.width, embeddings.shape[1]))

    def forward(self, audio_BAE: Tensor, prompt_BPH: Tensor, prompt_lengths_B: Tensor) -> Tensor:
        """Project each token."""
        return self.down(self.up(audio_BAE.to(self.up.weight.dtype)).relu())


class FeatureSpace(Projection):
    """Audio attends to the prompt in a shared space: W*(E + H + 2) + 4*W*(W + 1) + H*(W + 1).

    out(a + attention(a, t, t)) with a = Linear(E, W) of the audio, t = Linear(H, W) of the prompt. The
    attention's output matrix starts at zero, so initially the prompt has no effect.
    """

    reads_prompt = True

    def __init__(self, section: config.Projector, width: int, embeddings: Tensor) -> None:
        super().__init__(section, width, embeddings)
        assert section.width is not None and section.heads is not None
        self.audio, self.text = nn.Linear(width, section.width), nn.Linear(embeddings.shape[1], section.width)
        nn.init.normal_(self.audio.weight, std=width**-0.5)
        nn.init.normal_(self.text.weight, std=embeddings.shape[1] ** -0.5 / self.rms)
        self.attention = _attention(section.width, section.heads)
        self.out = self.match_embedding_rms(nn.Linear(section.width, embeddings.shape[1]))

    def forward(self, audio_BAE: Tensor, prompt_BPH: Tensor, prompt_lengths_B: Tensor) -> Tensor:
        """Let every audio token attend to the valid tokens of its prompt."""
        audio_BAW = self.audio(audio_BAE.to(self.audio.weight.dtype))
        text_BPW = self.text(prompt_BPH.to(self.text.weight.dtype))
        return self.out(audio_BAW + _attend(self.attention, audio_BAW, text_BPW, prompt_lengths_B))


class ModalitySteering(Projection):
    """Audio and prompt are steered by N experts each, then fused: 2*N*(E + H) + 2*N + H*(E + H + 1).

    Each is x + gates(x) @ vectors; a Linear(E + H, H) reads the audio token and the prompt's mean. Its weights on the
    prompt start at zero, so initially the prompt has no effect.
    """

    reads_prompt = True

    def __init__(self, section: config.Projector, width: int, embeddings: Tensor) -> None:
        super().__init__(section, width, embeddings)
        assert section.experts is not None
        text = embeddings.shape[1]
        self.audio_router = nn.Linear(width, section.experts)
        self.text_router = nn.Linear(text, section.experts)
        self.audio_vectors = nn.Parameter(0.01 * torch.randn(section.experts, width))
        self.text_vectors = nn.Parameter(0.01 * self.rms * torch.randn(section.experts, text))
        self.fusion = nn.Linear(width + text, text)
        nn.init.normal_(self.fusion.weight[:, :width], std=self.rms / width**0.5)
        nn.init.zeros_(self.fusion.weight[:, width:])
        nn.init.zeros_(self.fusion.bias)

    def forward(self, audio_BAE: Tensor, prompt_BPH: Tensor, prompt_lengths_B: Tensor) -> Tensor:
        """Fuse each audio token with the mean of its prompt; an empty prompt counts as zeros."""
        audio_BAE, prompt_BPH = (x.to(self.fusion.weight.dtype) for x in (audio_BAE, prompt_BPH))
        audio_BAE = audio_BAE + self.audio_router(audio_BAE).softmax(-1) @ self.audio_vectors
        prompt_BPH = prompt_BPH + self.text_router(prompt_BPH).softmax(-1) @ self.text_vectors
        valid_BP = valid_frames(prompt_lengths_B, prompt_BPH.shape[1])
        mean_BH = (prompt_BPH * valid_BP[..., None]).sum(1) / prompt_lengths_B.clamp(min=1)[:, None]
        mean_BAH = mean_BH[:, None].expand(-1, audio_BAE.shape[1], -1)
        return self.fusion(torch.cat([audio_BAE, mean_BAH], -1))


class AdapterAttention(Projection):
    """`Mlp`, then attention to the prompt in the LLM's space: W*(E + 1) + H*(W + 1) + 4*H*(H + 1).

    x + attention(x, prompt, prompt), where x is the output of the MLP. The attention's output matrix starts at zero,
    so initially the prompt has no effect.
    """

    reads_prompt = True

    def __init__(self, section: config.Projector, width: int, embeddings: Tensor) -> None:
        super().__init__(section, width, embeddings)
        assert section.heads is not None
        self.adapter = Mlp(section, width, embeddings)
        self.attention = _attention(embeddings.shape[1], section.heads)

    def forward(self, audio_BAE: Tensor, prompt_BPH: Tensor, prompt_lengths_B: Tensor) -> Tensor:
        """Let every audio token attend to the valid tokens of its prompt."""
        audio_BAH = self.adapter(audio_BAE, prompt_BPH, prompt_lengths_B)
        prompt_BPH = prompt_BPH.to(audio_BAH.dtype)
        return audio_BAH + _attend(self.attention, audio_BAH, prompt_BPH, prompt_lengths_B)


def _attention(width: int, heads: int) -> nn.MultiheadAttention:
    if width % heads:
        raise ValueError(
            f"projector.heads: found {heads}; legal: a divisor of the attention's width, {width}"
        )
    attention = nn.MultiheadAttention(width, heads, batch_first=True)
    nn.init.zeros_(attention.out_proj.weight)
    nn.init.zeros_(attention.out_proj.bias)
    return attention


def _attend(attention: nn.MultiheadAttention, audio: Tensor, text: Tensor, lengths_B: Tensor) -> Tensor:
    if not text.shape[1]:  # the same as for a row of padding alone
        return attention.out_proj.bias.expand_as(audio)
    padding_BP = ~valid_frames(lengths_B, text.shape[1])
    return attention(audio, text, text, key_padding_mask=padding_BP, need_weights=False)[0]


def make_projection(section: config.Projector, width: int, embeddings: Tensor) -> Projection:
    """Build the projection that the section names.

    Raises:
        ValueError: the width of its attention is not a multiple of its heads.
    """
    return PROJECTIONS[section.projection](section, width, embeddings)


PROJECTIONS: dict[str, type[Projection]] = {
    "linear": Linear,
    "mlp": Mlp,
    "feature_space": FeatureSpace,
    "modality_steering": ModalitySteering,
    "adapter_attention": AdapterAttention,
}
