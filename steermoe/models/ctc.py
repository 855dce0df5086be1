"""CTC over the LLM's own tokens: a projector learns what is said, and says it, without the LLM.

Connectionist temporal classification (Graves et al. 2006): the score of a token is the dot product of an audio
position with a vector of the token, its frozen embedding. The LLM is not run, so a step costs little. From the LLM's
loss alone, a projector learns little for thousands of steps.

The embeddings hold little about sounds, so a token is recognised only after many examples of it. With `Spelling`, a
vector made of its letters is added, which tokens of like spelling share, rare and unseen ones too.

The posteriors can also be what the LLM reads (`CtcHead.soft_tokens`).

Shapes: B batch, A audio positions, H width of the LLM, Y padded target tokens, K tokens that can be said, V all
tokens, N n-grams of a token, C characters of a token.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import ctc_loss, embedding_bag

from steermoe.models.packing import valid_frames

BLANK = 0  # class of the blank; token k is class k + 1
LEAST = 1e-3  # probability of all tokens by which their embeddings are divided
LONGEST = 4  # letters of an n-gram
BUCKETS, WIDTH = 8192, 96  # hashed n-grams, and their width


class CtcHead(nn.Module):
    """Scores audio positions against vectors of tokens.

    Trained are the blank's vector, its bias, a scale, and the spelling.

    Attributes:
        spoken: (V,) True for the tokens that can be said, none of a new head (`allow`); saved with the parameters.
        tokens: (K,) their ids in ascending order.
        spelling: makes the vectors that are added to the tokens' embeddings, or None.

    Args:
        embeddings: of all tokens, (V, H).
        texts: of all tokens, if their spelling counts.
        num_sampled: of how many tokens, beside those of its targets, a training batch computes the scores; None: all.
    """

    spoken: Tensor
    tokens: Tensor

    def __init__(
        self, embeddings: Tensor, texts: Sequence[str] | None = None, num_sampled: int | None = None
    ) -> None:
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
        self.spelling = None if texts is None else Spelling(texts, embeddings)
        self.num_sampled = num_sampled

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
        targets = targets_BY[said_BY]
        tokens, weight = self._sampled(targets)
        log_probs_BAK = self._log_probs(audio_BAH, self._table(tokens, embeddings), weight)
        classes = torch.searchsorted(tokens, targets) + 1
        loss = ctc_loss(
            log_probs_BAK.transpose(0, 1), classes, lengths_B, said_BY.sum(1), BLANK, reduction="sum",
            zero_infinity=True,
        )  # fmt: skip
        return loss / target_lengths_B.sum()

    def _sampled(self, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the tokens whose scores a batch computes, in order, and the logarithm of how many each stands for.

        Sampled softmax (Jean et al. 2015): a token that was drawn stands for those that were not.
        """
        others = self.tokens[~torch.isin(self.tokens, targets)]
        if not self.training or self.num_sampled is None or self.num_sampled >= len(others):
            return self.tokens, None
        drawn = torch.randperm(len(others))[: self.num_sampled].to(others.device)
        tokens = torch.cat([targets.unique(), others[drawn]]).sort().values
        is_target = torch.isin(tokens, targets)
        return tokens, torch.where(is_target, 0.0, math.log(len(others) / self.num_sampled))

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
        return self._log_probs(audio_BAH, self._table(self.tokens, embeddings))

    def _table(self, tokens_K: Tensor, embeddings: nn.Embedding) -> Tensor:
        """Return the vectors of tokens (K, H) in float32."""
        table_KH = embeddings(tokens_K).float()
        return table_KH if self.spelling is None else table_KH + self.spelling(tokens_K)

    def _log_probs(self, audio_BAH: Tensor, table_KH: Tensor, weight_K: Tensor | None = None) -> Tensor:
        audio_BAH = audio_BAH.float()
        blank_BA1 = (audio_BAH @ self.blank + self.bias)[..., None]
        scores_BAK = self.scale * (audio_BAH @ table_KH.T)
        scores_BAK = scores_BAK if weight_K is None else scores_BAK + weight_K
        return torch.cat([blank_BA1, scores_BAK], -1).log_softmax(-1)

    def read(self, audio_BAH: Tensor, lengths_B: Tensor, embeddings: nn.Embedding) -> list[list[int]]:
        """Return the token ids that each row says, by the likeliest class of each position."""
        classes_BA = self.log_probs(audio_BAH, embeddings).argmax(-1)
        rows = []
        for classes_A, length in zip(classes_BA, lengths_B.tolist(), strict=True):
            kept = classes_A[:length].unique_consecutive()
            rows.append(self.tokens[kept[kept != BLANK] - 1].tolist())
        return rows


class Spelling(nn.Module):
    """Vectors of tokens from their letters: the mean over n-grams of trained vectors, then a linear map.

    After fastText (Bojanowski et al. 2017) and letter-to-word encoders (Collobert et al. 2020). N-grams of 1 to 4
    characters of the text in lower case, with marks at both ends, and the whole text are hashed into 8,192 buckets.

    Args:
        texts: of all tokens.
        embeddings: of all tokens, (V, H).
    """

    buckets: Tensor
    ends: Tensor
    counts: Tensor

    def __init__(self, texts: Sequence[str], embeddings: Tensor) -> None:
        super().__init__()
        rms = 1.0 if embeddings.is_meta else embeddings.detach().float().square().mean().sqrt().item()
        self.ngrams = nn.Parameter(0.04 * torch.randn(BUCKETS, WIDTH))
        self.out = nn.Linear(WIDTH, embeddings.shape[1], bias=False)
        nn.init.normal_(self.out.weight, std=25 * rms / WIDTH**0.5)
        buckets, counts = hashed_ngrams(texts)
        self.register_buffer("buckets", torch.from_numpy(buckets), persistent=False)
        self.register_buffer("ends", torch.from_numpy(counts.cumsum()), persistent=False)
        self.register_buffer("counts", torch.from_numpy(counts), persistent=False)

    def forward(self, tokens_K: Tensor) -> Tensor:
        """Return the vectors (K, H) of tokens."""
        counts_K = self.counts[tokens_K]
        starts_K = counts_K.cumsum(0) - counts_K
        shift_K = self.ends[tokens_K] - counts_K - starts_K
        places = torch.arange(int(counts_K.sum()), device=tokens_K.device) + shift_K.repeat_interleave(
            counts_K
        )
        return self.out(embedding_bag(self.buckets[places], self.ngrams, starts_K, mode="mean"))


def hashed_ngrams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the buckets of the n-grams of all texts, one text after the other, and how many each has.

    All texts that are no words (`is_word`) have one, which is the same.
    """
    words = [f"<{text.lower()}>" if is_word(text) else "" for text in texts]
    longest = max(LONGEST, *map(len, words))
    letters_VC = np.zeros((len(words), longest), np.uint64)
    for row, word in enumerate(words):
        letters_VC[row, : len(word)] = [ord(letter) for letter in word]
    lengths_V = np.array([len(word) for word in words])
    rows, hashes = [np.arange(len(words))], [_mixed(_rolled(letters_VC), 0)]
    for length in range(1, LONGEST + 1):
        windows = np.lib.stride_tricks.sliding_window_view(letters_VC, length, axis=1)
        row, place = np.nonzero(np.arange(windows.shape[1]) <= lengths_V[:, None] - length)
        rows.append(row)
        hashes.append(_mixed(_rolled(windows[row, place]), length))
    order = np.concatenate(rows).argsort(kind="stable")
    return np.concatenate(hashes)[order], np.bincount(np.concatenate(rows), minlength=len(words))


def is_word(text: str) -> bool:
    """Return whether a text is a word or a part of one: letters, with or without a space before, or an apostrophe."""
    return text.removeprefix(" ").replace("'", "", 1).isalpha()


def _rolled(letters_NC: np.ndarray) -> np.ndarray:
    """Return a number for each row of letters (polynomial hash, modulo 2^64)."""
    found_N = np.zeros(len(letters_NC), np.uint64)
    for column_N in letters_NC.T:
        found_N = found_N * np.uint64(1_000_003) + column_N
    return found_N


def _mixed(numbers_N: np.ndarray, length: int) -> np.ndarray:
    """Return buckets of hashed n-grams of one length; the upper bits of a product depend on all bits."""
    spread_N = (numbers_N + np.uint64(length)) * np.uint64(0x9E3779B97F4A7C15)
    return (spread_N >> np.uint64(40)).astype(np.int64) % BUCKETS
