"""SteerMoE: a frozen speech encoder, a frozen LLM, and the little between them that is trained.

features -> encoder, its layers steered (or with LoRA) -> down-sampling -> projection
-> `[audio ; prompt ; target]` -> LLM -> loss on the target's tokens, or text.

Shapes: B batch, M feature channels, T feature frames, S encoder frames, D encoder width, A audio tokens,
P prompt tokens, Y target tokens, N target tokens of all rows, H width of the LLM, V its vocabulary.
"""

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.utils.generic import ModelOutput

from steermoe.audio import waveform
from steermoe.config import ArmConfig
from steermoe.data.batching import bucketed_batches
from steermoe.data.prompts import render
from steermoe.models import adapter
from steermoe.models.downsample import make_downsampler
from steermoe.models.encoders import load_encoder
from steermoe.models.encoders.encoder import valid_frames
from steermoe.models.frozen import digest, frozen_weights
from steermoe.models.llm import CausalLM, decode, hidden_states, load_llm, logits
from steermoe.models.projection import make_projection
from steermoe.models.sequence import pack, target_rows
from steermoe.models.steering import Steering

Audio = str | Path | np.ndarray
BATCH_SECONDS = 120.0  # of `transcribe`, padding included


@dataclass
class Loss(ModelOutput):
    """What a training step needs.

    Attributes:
        loss: mean cross-entropy over all target tokens of the batch, end tokens included.
        num_tokens: how many these are.
        num_correct: how many of them are the likeliest token where they stand.
    """

    loss: torch.Tensor | None = None
    num_tokens: torch.Tensor | None = None
    num_correct: torch.Tensor | None = None


class SteerMoE(nn.Module):
    """The assembly; `from_config` builds it for training, `from_pretrained` for use.

    Attributes:
        config: the resolved configuration of its arm.
        encoder: the frozen encoder; with LoRA, the trained adapters lie inside it.
        steering: the trained steering, or None for the other methods.
        downsample, projection: the bridge; the projection is trained.
        llm: the frozen LLM as transformers loads it.
        tokenizer: the LLM's.
        features: waveform to features, as the encoder wants them.
    """

    llm: CausalLM
    projection: nn.Module

    def __init__(self, arm: ArmConfig) -> None:
        super().__init__()
        self.config = arm
        self.encoder = load_encoder(arm.encoder)
        self.llm, self.tokenizer = load_llm(arm.llm)
        self.features = self.encoder.features
        self.downsample = make_downsampler(arm.bridge, self.encoder.width)
        # A generator state for each part: every arm with the same seed starts from the same projection.
        with _seeded(arm.seed, "projection"):
            embeddings = self.llm.get_input_embeddings().weight
            self.projection = make_projection(arm.bridge, self.downsample.width, embeddings)
        self.steering: Steering | None = None
        self._lora: list[nn.Parameter] = []
        if arm.steering is not None:
            with _seeded(arm.seed, "steering"):
                self.steering = Steering(arm.steering, self.encoder.layers, self.encoder.width)
        if arm.lora is not None:
            from steermoe.models.lora import add_lora  # here, for peft takes seconds to import

            with _seeded(arm.seed, "lora"):
                self._lora = add_lora(arm.lora, self.encoder)
        self.train(False)

    # building, saving, loading

    @classmethod
    def from_config(cls, arm: ArmConfig) -> Self:
        """A model whose trained parts are at their initial values, the same for the same seed.

        Raises:
            ValueError: the frozen models cannot be loaded, or a setting does not fit them.
        """
        return cls(arm)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, encoder: str | Path | None = None, llm: str | Path | None = None
    ) -> Self:
        """A trained model.

        Args:
            source: a folder that `save_pretrained` wrote, or a repository on the hub.
            encoder, llm: where the frozen models are, if not where they were when it was trained.

        Raises:
            ValueError: the adapter is damaged, does not fit its configuration, or was trained against other
                weights of encoder or LLM.
        """
        saved = adapter.read(source)
        arm = saved.arm
        for part, path in (("encoder", encoder), ("llm", llm)):
            if path is not None:
                section = getattr(arm, part).model_copy(update={"path": str(path)})
                arm = arm.model_copy(update={part: section})
        model = cls(arm)
        adapter.check_weights(saved.weights, model.trainable_state_dict(), str(source))
        paths = {"encoder": arm.encoder.path, "llm": arm.llm.path}
        adapter.check_frozen(model.frozen_hashes(), saved.frozen, paths, str(source))
        model.load_state_dict(dict(saved.weights), strict=False)  # all names were checked
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapter.safetensors and config.json, the same bytes for the same weights; see `adapter`."""
        trained = adapter.Adapter(self.config, self.frozen_hashes(), self.trainable_state_dict())
        adapter.write(Path(folder), trained)

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Upload what `save_pretrained` writes; returns the repository's address."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return adapter.push(Path(folder), repo_id, private)

    # what is trained, and what is not

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All trained parameters by part: projection; vectors (scales included) and router; lora."""
        groups = {"projection": list(self.projection.parameters())}
        if self.steering is not None:
            groups["vectors"] = [self.steering.vectors, self.steering.scales]
            groups["router"] = list(self.steering.router.parameters())
        if self._lora:
            groups["lora"] = list(self._lora)
        return groups

    def trainable_state_dict(self) -> dict[str, torch.Tensor]:
        """The trained parameters by name, and nothing else."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def frozen_hashes(self) -> dict[str, str]:
        """SHA-256 of the encoder's and of the LLM's weights as they are now, adapters aside."""
        return {
            "encoder": digest(frozen_weights(self.encoder.model)),
            "llm": digest(frozen_weights(self.llm)),
        }

    def train(self, mode: bool = True) -> Self:
        """Switch what is trained; the frozen models stay in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        self.llm.eval()
        if self._lora:
            from steermoe.models.lora import train_lora

            train_lora(self.encoder, mode)
        return self

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.projection.parameters()).device

    # forward

    def encode(
        self, features_BMT: torch.Tensor, lengths_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features to audio tokens in the LLM's embedding space: (audio_BAH, lengths_B).

        Raises:
            ValueError: the audio is longer than the encoder takes.
        """
        hidden_BSD, lengths_B = self.encoder(features_BMT, lengths_B)
        pooled_BAD, lengths_B = self.downsample(hidden_BSD, lengths_B)
        return self.projection(pooled_BAD), lengths_B

    def forward(
        self,
        features: torch.Tensor,
        feature_lengths: torch.Tensor,
        prompt_ids: torch.Tensor,
        prompt_lengths: torch.Tensor,
        target_ids: torch.Tensor,
        target_lengths: torch.Tensor,
        **_: Any,
    ) -> Loss:
        """The loss of a batch as the collator makes it: features (B, M, T), ids (B, P) and (B, Y).

        A row's last target token is predicted, never read.
        """
        audio_BAH, audio_lengths = self.encode(features, feature_lengths)
        parts = [audio_BAH, prompt_ids, target_ids[:, :-1]]
        lengths = [audio_lengths, prompt_lengths, target_lengths - 1]
        rows_BWH, _valid = pack(self._embedded(parts), lengths, "right")
        hidden_BWH = hidden_states(self.llm, rows_BWH)
        rows, columns = target_rows(audio_lengths + prompt_lengths, target_lengths, target_ids.shape[1])
        logits_NV = logits(self.llm, hidden_BWH[rows, columns]).float()
        targets = target_ids[valid_frames(target_lengths, target_ids.shape[1])]
        loss = nn.functional.cross_entropy(logits_NV, targets)
        correct = (logits_NV.detach().argmax(-1) == targets).sum()
        return Loss(loss=loss, num_tokens=torch.tensor(len(targets), device=loss.device), num_correct=correct)

    @torch.no_grad()
    def generate(
        self,
        features: torch.Tensor,
        feature_lengths: torch.Tensor,
        prompt_ids: torch.Tensor,
        prompt_lengths: torch.Tensor,
        max_new_tokens: int,
    ) -> list[list[int]]:
        """Greedy answers as token ids, without end and padding tokens; the arguments are as in `forward`."""
        audio_BAH, audio_lengths = self.encode(features, feature_lengths)
        embedded = self._embedded([audio_BAH, prompt_ids])
        rows_BWH, valid_BW = pack(embedded, [audio_lengths, prompt_lengths], "left")
        return decode(self.llm, rows_BWH, valid_BW, max_new_tokens)

    def transcribe(
        self, audio: Audio | Sequence[Audio], question: str | None = None, max_new_tokens: int = 200
    ) -> str | list[str]:
        """Text of a recording (a path, or a waveform at 16 kHz), or of each of several.

        Args:
            audio: one recording or several.
            question: what to answer about it; None: write down what is said.
            max_new_tokens: longest answer.

        Raises:
            ValueError: a recording cannot be read, or is longer than the encoder takes.
        """
        if isinstance(audio, str | Path | np.ndarray):
            return self.transcribe([audio], question, max_new_tokens)[0]
        waveforms = [a if isinstance(a, np.ndarray) else waveform.load(a) for a in audio]
        seconds = [len(samples) / waveform.RATE for samples in waveforms]
        texts = [""] * len(waveforms)
        for rows in bucketed_batches(seconds, BATCH_SECONDS, seed=None, epoch=0):
            answers = self._answers([waveforms[row] for row in rows], question, max_new_tokens)
            for row, answer in zip(rows, answers, strict=True):
                texts[row] = answer
        return texts

    def _answers(self, waveforms: list[np.ndarray], question: str | None, max_new_tokens: int) -> list[str]:
        features = [self.features(samples) for samples in waveforms]
        lengths = torch.tensor([f.shape[1] for f in features])
        padded = pad_sequence([f.T for f in features], batch_first=True).transpose(1, 2)
        task = "transcribe" if question is None else "answer"
        prompt = render(self.config.prompts, task, question or "")
        ids = torch.tensor([self.tokenizer(prompt, add_special_tokens=False)["input_ids"]] * len(features))
        prompt_lengths = torch.full((len(features),), ids.shape[1])
        batch = [tensor.to(self.device) for tensor in (padded, lengths, ids, prompt_lengths)]
        answers = self.generate(*batch, max_new_tokens=max_new_tokens)
        return [self.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]

    def _embedded(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """Token ids through the LLM's embeddings (padding of -100 as any token), audio as it is; one type."""
        table = self.llm.get_input_embeddings()
        embedded = [p if p.is_floating_point() else table(p.clamp(min=0)) for p in parts]
        return [e.to(table.weight.dtype) for e in embedded]


@contextmanager
def _seeded(seed: int, part: str) -> Iterator[None]:
    """Draw from a generator of this part's own, and leave the global one as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + zlib.crc32(part.encode()))
        yield
