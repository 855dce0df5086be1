"""Projections from audio tokens into the LLM's embedding space, those that read the prompt (aligners) included.

All start so that inputs of unit rms come out with the rms of the LLM's token embeddings; without that, audio is
many times louder than text at first.
Shapes: B batch, A audio tokens, P prompt tokens, D' width after down-sampling, H width of the LLM, W hidden width.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn

from steermoe import config
from steermoe.models.encoders.encoder import valid_frames
from steermoe.registry import choose


class Projection(nn.Module, ABC):
    """What every projection has.

    Attributes:
        reads_prompt: whether `forward` looks at the prompt.

    Args:
        section: the configuration of the projector.
        width: D'.
        embeddings: the LLM's token embeddings, (tokens, H).
    """

    reads_prompt = False

    def __init__(self, section: config.Projector, width: int, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.rms = 1.0 if embeddings.is_meta else embeddings.detach().float().square().mean().sqrt().item()

    def loud_as_text(self, linear: nn.Linear) -> nn.Linear:
        """`linear` with weights of standard deviation rms / sqrt(inputs), and no bias at first."""
        nn.init.normal_(linear.weight, std=self.rms / linear.in_features**0.5)
        nn.init.zeros_(linear.bias)
        return linear

    @abstractmethod
    def forward(
        self, audio_BAD: torch.Tensor, prompt_BPH: torch.Tensor, prompt_lengths_B: torch.Tensor
    ) -> torch.Tensor:
        """Audio tokens (B, A, D') of any floating type, and the embedded prompt, to (B, A, H)."""


class Linear(Projection):
    """One Linear(D', H): H*(D' + 1) parameters."""

    def __init__(self, section: config.Projector, width: int, embeddings: torch.Tensor) -> None:
        super().__init__(section, width, embeddings)
        self.linear = self.loud_as_text(nn.Linear(width, embeddings.shape[1]))

    def forward(
        self, audio_BAD: torch.Tensor, prompt_BPH: torch.Tensor, prompt_lengths_B: torch.Tensor
    ) -> torch.Tensor:
        """The prompt does not matter."""
        return self.linear(audio_BAD.to(self.linear.weight.dtype))


class Mlp(Projection):
    """Linear(D', W), ReLU, Linear(W, H), as SLAM-ASR's projector (Ma et al. 2024): W*(D' + 1) + H*(W + 1)."""

    def __init__(self, section: config.Projector, width: int, embeddings: torch.Tensor) -> None:
        super().__init__(section, width, embeddings)
        assert section.width is not None
        self.up = nn.Linear(width, section.width)
        nn.init.kaiming_normal_(self.up.weight, nonlinearity="relu")  # rms 1 behind the ReLU
        self.down = self.loud_as_text(nn.Linear(section.width, embeddings.shape[1]))

    def forward(
        self, audio_BAD: torch.Tensor, prompt_BPH: torch.Tensor, prompt_lengths_B: torch.Tensor
    ) -> torch.Tensor:
        """The prompt does not matter."""
        return self.down(self.up(audio_BAD.to(self.up.weight.dtype)).relu())


class FeatureSpace(Projection):
    """Audio and prompt meet in a shared space, and go on to the LLM's: W*(D' + H + 2) + 4*W*(W + 1) + H*(W + 1).

    out(a + attention(a, t, t)) with a = Linear(D', W) of the audio, t = Linear(H, W) of the prompt. The
    attention's last matrix starts at zero: at first the prompt is not heard.
    """

    reads_prompt = True

    def __init__(self, section: config.Projector, width: int, embeddings: torch.Tensor) -> None:
        super().__init__(section, width, embeddings)
        assert section.width is not None and section.heads is not None
        self.audio, self.text = nn.Linear(width, section.width), nn.Linear(embeddings.shape[1], section.width)
        nn.init.normal_(self.audio.weight, std=width**-0.5)
        nn.init.normal_(self.text.weight, std=embeddings.shape[1] ** -0.5 / self.rms)
        self.attention = _attention(section.width, section.heads)
        self.out = self.loud_as_text(nn.Linear(section.width, embeddings.shape[1]))

    def forward(
        self, audio_BAD: torch.Tensor, prompt_BPH: torch.Tensor, prompt_lengths_B: torch.Tensor
    ) -> torch.Tensor:
        """Every audio token looks at the valid tokens of its prompt."""
        audio_BAW = self.audio(audio_BAD.to(self.audio.weight.dtype))
        text_BPW = self.text(prompt_BPH.to(self.text.weight.dtype))
        return self.out(audio_BAW + _attend(self.attention, audio_BAW, text_BPW, prompt_lengths_B))


class ModalitySteering(Projection):
    """Audio and prompt are each steered by N experts of their own, and fused: 2*N*(D' + H) + 2*N + H*(D' + H + 1).

    Each is x + gates(x) @ vectors; the prompt is then meaned over its tokens, and a Linear(D' + H, H) reads both
    side by side. Its weights on the prompt start at zero: at first it is not heard.
    """

    reads_prompt = True

    def __init__(self, section: config.Projector, width: int, embeddings: torch.Tensor) -> None:
        super().__init__(section, width, embeddings)
        assert section.experts is not None
        text = embeddings.shape[1]
        self.audio_router, self.text_router = (
            nn.Linear(width, section.experts),
            nn.Linear(text, section.experts),
        )
        self.audio_vectors = nn.Parameter(0.01 * torch.randn(section.experts, width))
        self.text_vectors = nn.Parameter(0.01 * self.rms * torch.randn(section.experts, text))
        self.fusion = nn.Linear(width + text, text)
        nn.init.normal_(self.fusion.weight[:, :width], std=self.rms / width**0.5)
        nn.init.zeros_(self.fusion.weight[:, width:])
        nn.init.zeros_(self.fusion.bias)

    def forward(
        self, audio_BAD: torch.Tensor, prompt_BPH: torch.Tensor, prompt_lengths_B: torch.Tensor
    ) -> torch.Tensor:
        """Prompts of no tokens count as zeros."""
        audio_BAD, prompt_BPH = (x.to(self.fusion.weight.dtype) for x in (audio_BAD, prompt_BPH))
        audio_BAD = audio_BAD + self.audio_router(audio_BAD).softmax(-1) @ self.audio_vectors
        prompt_BPH = prompt_BPH + self.text_router(prompt_BPH).softmax(-1) @ self.text_vectors
        valid_BP = valid_frames(prompt_lengths_B, prompt_BPH.shape[1])
        mean_BH = (prompt_BPH * valid_BP[..., None]).sum(1) / prompt_lengths_B.clamp(min=1)[:, None]
        mean_BAH = mean_BH[:, None].expand(-1, audio_BAD.shape[1], -1)
        return self.fusion(torch.cat([audio_BAD, mean_BAH], -1))


class AdapterAttention(Projection):
    """A bottleneck into the LLM's space, then attention to the prompt there: W*(D' + 1) + H*(W + 1) + 4*H*(H + 1).

    x + attention(x, prompt, prompt) with x = Linear(W, H) of ReLU of Linear(D', W) of the audio. The attention's
    last matrix starts at zero: at first the prompt is not heard.
    """

    reads_prompt = True

    def __init__(self, section: config.Projector, width: int, embeddings: torch.Tensor) -> None:
        super().__init__(section, width, embeddings)
        assert section.heads is not None
        self.adapter = Mlp(section, width, embeddings)
        self.attention = _attention(embeddings.shape[1], section.heads)

    def forward(
        self, audio_BAD: torch.Tensor, prompt_BPH: torch.Tensor, prompt_lengths_B: torch.Tensor
    ) -> torch.Tensor:
        """Every audio token looks at the valid tokens of its prompt."""
        audio_BAH = self.adapter(audio_BAD, prompt_BPH, prompt_lengths_B)
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


def _attend(
    attention: nn.MultiheadAttention, audio: torch.Tensor, text: torch.Tensor, lengths_B: torch.Tensor
) -> torch.Tensor:
    if not text.shape[1]:  # as of a row of padding alone
        return attention.out_proj.bias.expand_as(audio)
    padding_BP = ~valid_frames(lengths_B, text.shape[1])
    return attention(audio, text, text, key_padding_mask=padding_BP, need_weights=False)[0]


def make_projection(section: config.Projector, width: int, embeddings: torch.Tensor) -> Projection:
    """The projection that the section names.

    Raises:
        ValueError: there is no such projection, or its attention's width is no multiple of its heads.
    """
    return choose(PROJECTIONS, section.projection, "projector.projection")(section, width, embeddings)


PROJECTIONS: dict[str, type[Projection]] = {
    "linear": Linear,
    "mlp": Mlp,
    "feature_space": FeatureSpace,
    "modality_steering": ModalitySteering,
    "adapter_attention": AdapterAttention,
}
