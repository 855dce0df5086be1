"""CTC through the LLM's embedding table: the projector's output must be close to the embeddings of the words said.

Connectionist temporal classification (Graves et al. 2006) over the LLM's own tokens: the score of a token is the dot
product of an audio position with the token's frozen embedding. The LLM is not run, so a step costs little, and the
audio comes to lie where the LLM can read it. From the LLM's loss alone, a projector learns little for thousands of
steps.

Its posteriors can also be what the LLM reads (`CtcHead.soft_tokens`).

Shapes: B batch, A audio positions, H width of the LLM, Y padded target tokens, K tokens that can be said, V all
tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import ctc_loss

from steermoe.models.packing import valid_frames

BLANK = 0  # class of the blank; token k is class k + 1
LEAST = 1e-3  # probability of all tokens by which their embeddings are divided


class CtcHead(nn.Module):
    """Scores audio positions against token embeddings; trained are the blank's vector, its bias, and a scale.

    Attributes:
        spoken: (V,) True for the tokens that can be said, none of a new head (`allow`); saved with the parameters.
        tokens: (K,) their ids in ascending order.

    Args:
        embeddings: of all tokens, (V, H).
    """

    spoken: Tensor
    tokens: Tensor

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        width = embeddings.shape[1]
        rms = 1.0 if embeddings.is_meta else embeddings.detach().float().square().mean().sqrt().item()
        self.blank = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))
        # Dot products of two vectors of the embeddings' rms then have a deviation of about 1.
        self.scale = nn.Parameter(torch.tensor(1 / (rms**2 * width**0.5)))
        self.register_buffer("spoken", torch.zeros(len(embeddings), dtype=torch.bool))
        self.register_buffer("tokens", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_load_state_dict_post_hook(self._refresh)

    def allow(self, tokens: Tensor) -> None:
        """Let these tokens be said, such as those of the training targets, and those that could be already."""
        self.spoken[tokens] = True
        self._refresh()

    def _refresh(self, *_: Any) -> None:
        self.tokens = self.spoken.nonzero()[:, 0]

    def forward(
        self,
        audio_BAH: Tensor,
        lengths_B: Tensor,
        embeddings: nn.Embedding,
        targets_BY: Tensor,
        target_lengths_B: Tensor,
        ends: Tensor,
    ) -> Tensor:
        """Return the CTC loss, summed over the batch, per target token.

        Rows with more tokens than audio positions cannot be aligned, and count as zero.

        Args:
            audio_BAH, lengths_B: the projector's output.
            embeddings: the LLM's frozen table.
            targets_BY, target_lengths_B: token ids of the targets.
            ends: ids of tokens that are not said (end of the answer), and left out.
        """
        said_BY = valid_frames(target_lengths_B, targets_BY.shape[1]) & ~torch.isin(targets_BY, ends)
        log_probs_ABK = self.log_probs(audio_BAH, embeddings).transpose(0, 1)
        classes = torch.searchsorted(self.tokens, targets_BY[said_BY]) + 1
        loss = ctc_loss(
            log_probs_ABK, classes, lengths_B, said_BY.sum(1), BLANK, reduction="sum", zero_infinity=True
        )
        return loss / target_lengths_B.sum()

    def soft_tokens(
        self, audio_BAH: Tensor, lengths_B: Tensor, embeddings: nn.Embedding
    ) -> tuple[Tensor, Tensor]:
        """Return what the LLM reads instead of the projector's output: (tokens_BAH, lengths_B).

        At each position it is the mean of the token embeddings, weighted by their posteriors. Positions whose
        likeliest class is the blank are left out; of a row of blanks, the first stays.
        """
        posteriors_BAK = self.log_probs(audio_BAH, embeddings).exp()
        tokens_BAH = posteriors_BAK[..., 1:] @ embeddings(self.tokens).float()
        tokens_BAH = tokens_BAH / (1 - posteriors_BAK[..., :1]).clamp_min(LEAST)
        kept_BA = posteriors_BAK.argmax(-1) != BLANK
        kept_BA = kept_BA & valid_frames(lengths_B, audio_BAH.shape[1])
        order_BA1 = kept_BA.int().argsort(dim=1, descending=True, stable=True)[..., None]
        tokens_BAH = tokens_BAH.gather(1, order_BA1.expand_as(tokens_BAH)).to(audio_BAH.dtype)
        return tokens_BAH, kept_BA.sum(1).clamp_min(1)

    def log_probs(self, audio_BAH: Tensor, embeddings: nn.Embedding) -> Tensor:
        """Return the log-probabilities (B, A, 1 + K) of blank and tokens, in float32."""
        table_KH = embeddings(self.tokens).float()
        audio_BAH = audio_BAH.float()
        blank_BA1 = (audio_BAH @ self.blank + self.bias)[..., None]
        scores_BAK = self.scale * (audio_BAH @ table_KH.T)
        return torch.cat([blank_BA1, scores_BAK], -1).log_softmax(-1)

    def read(self, audio_BAH: Tensor, lengths_B: Tensor, embeddings: nn.Embedding) -> list[list[int]]:
        """Return the token ids that each row says, by the likeliest class of each position."""
        classes_BA = self.log_probs(audio_BAH, embeddings).argmax(-1)
        rows = []
        for classes_A, length in zip(classes_BA, lengths_B.tolist(), strict=True):
            kept = classes_A[:length].unique_consecutive()
            rows.append(self.tokens[kept[kept != BLANK] - 1].tolist())
        return rows
