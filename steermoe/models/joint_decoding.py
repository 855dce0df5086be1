"""Joint decoding: the next token of a transcript is likely for the LLM, and agrees with the audio by CTC.

The score of a token is (1 - w) times its log-probability by the LLM plus w times its CTC prefix score (Watanabe et al.
2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", section II.C), greedily instead of in a
beam. The end is scored by the probability that nothing else is said.

Shapes: A audio positions, K tokens that the CTC head knows, C candidates, V vocabulary.
"""

from collections.abc import Collection

import numpy as np
from torch import Tensor

CANDIDATES = 64  # tokens with the highest CTC posteriors at any position; others are not said


class CtcPrefix:
    """A transcript that grows, with its CTC scores; begins empty.

    Attributes:
        ids: (C,) tokens that can follow.

    Args:
        log_probs: (A, 1 + K) of blank and tokens, of one recording (`CtcHead.log_probs`).
        tokens: (K,) ids.
    """

    def __init__(self, log_probs: Tensor, tokens: Tensor) -> None:
        likeliest = log_probs[:, 1:].amax(0).topk(min(CANDIDATES, len(tokens))).indices
        self.ids = tokens[likeliest].cpu()
        scores = log_probs.double().cpu().numpy()
        self._tokens_AC, self._blank_A = scores[:, 1 + likeliest.cpu().numpy()], scores[:, 0]
        # Probabilities that the positions up to each say the transcript, by whether the last one is blank.
        self._by_token_A = np.full(len(scores), -np.inf)
        self._by_blank_A = np.cumsum(self._blank_A)
        self._prefix = 0.0  # log-probability of all that begins with the transcript
        self._is_empty, self._last = True, -1  # place of the last token

    def scores(self) -> tuple[np.ndarray, float]:
        """Return the log-probability of each token (C,) to come next, and that nothing comes, given what is said."""
        following_C = np.logaddexp.reduce(self._reached_AC() + self._tokens_AC, 0)
        whole = np.logaddexp(self._by_token_A[-1], self._by_blank_A[-1])
        return following_C - self._prefix, float(whole) - self._prefix

    def append(self, place: int) -> None:
        """Let the transcript grow by the candidate in this place."""
        reached_A, token_A = self._reached_AC()[:, place], self._tokens_AC[:, place]
        self._prefix = float(np.logaddexp.reduce(reached_A + token_A))
        by_token = by_blank = -np.inf
        for position, reached in enumerate(reached_A):
            by_blank = np.logaddexp(by_blank, by_token) + self._blank_A[position]
            by_token = np.logaddexp(by_token, reached) + token_A[position]
            self._by_token_A[position], self._by_blank_A[position] = by_token, by_blank
        self._is_empty, self._last = False, place

    def choose(self, log_probs_V: Tensor, weight: float, stops: Collection[int]) -> int:
        """Append the token with the highest joint score and return it; a stop is returned only.

        Args:
            log_probs_V: the LLM's; -inf for tokens that must not follow.
            weight: of CTC, from 0 to 1.
            stops: ids that end the transcript.
        """
        following_C, end = self.scores()
        llm_C = log_probs_V[self.ids.to(log_probs_V.device)].double().cpu().numpy()
        joint_C = (1 - weight) * llm_C + weight * following_C
        place = int(joint_C.argmax())
        stop = max(stops, key=lambda token: float(log_probs_V[token]))
        if (1 - weight) * float(log_probs_V[stop]) + weight * end >= joint_C[place]:
            return stop
        self.append(place)
        return int(self.ids[place])

    def _reached_AC(self) -> np.ndarray:
        """Return the log-probability that the positions before each say the transcript, and a token can follow there.

        The token that was said last can follow a blank only.
        """
        first = 0.0 if self._is_empty else -np.inf
        said_A = np.logaddexp(self._by_token_A, self._by_blank_A)
        reached_AC = np.repeat(np.concatenate([[first], said_A[:-1]])[:, None], len(self.ids), 1)
        if not self._is_empty:
            reached_AC[1:, self._last] = self._by_blank_A[:-1]
        return reached_AC
