"""The assembly: a frozen speech encoder and a frozen LLM, connected by a small number of trained parameters.

features -> encoder, its layers steered (or with LoRA) -> down-sampling -> projection
-> `[prefix ; video ; audio ; prompt ; target]` -> LLM -> loss on the target's tokens.

The video is there if the configuration has a section `video`: a second tower, steered in the same way.

Shapes: B batch, N target tokens of all rows, W width of the packed batch, H width of the LLM, V its vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import ModelOutput

from steermoe import config
from steermoe.config import Generation, VariantConfig
from steermoe.data.dataset import Batch
from steermoe.data.prompts import encode_prompt
from steermoe.data.tokens import token_texts
from steermoe.models.ctc import CtcHead
from steermoe.models.encoders import load_encoder, load_video_encoder
from steermoe.models.inference import MAX_ROWS, Generated, Padding, generate_all
from steermoe.models.joint_decoding import CtcPrefix
from steermoe.models.llm import (
    CausalLM,
    decoder_layers,
    hidden_states,
    input_embeddings,
    load_llm,
    logits,
    vocabulary_size,
)
from steermoe.models.losses import Lesson, hidden_loss
from steermoe.models.packing import pack, target_rows, valid_frames
from steermoe.models.pretrained import digest, exclusive, frozen_weights
from steermoe.models.tower import Tower, seeded

LoadLlm = Callable[[config.Llm], tuple[CausalLM, Any]]


@dataclass
class SteerMoEOutput(ModelOutput):
    """What `SpeechLlm.forward` returns.

    Attributes:
        loss: mean cross-entropy over the target tokens of the batch, end tokens included; in training with aux_loss
            and distillation.
        num_tokens: number of target tokens, N.
        num_correct: how many of them are the likeliest token.
        distillation: the teacher's part of the loss; None without a teacher.
        aux_loss: the weighted losses on routing; None outside of training.
        logits: of the target tokens, (N, V), if requested.
    """

    loss: Tensor | None = None
    num_tokens: Tensor | None = None
    num_correct: Tensor | None = None
    distillation: Tensor | None = None
    aux_loss: Tensor | None = None
    logits: Tensor | None = None


class SpeechLlm(Tower):
    """The audio tower with the LLM; `SteerMoE` is its public interface.

    Attributes:
        config: the resolved configuration of its variant.
        video: the tower of the video, or None.
        llm, tokenizer: the frozen LLM as transformers loads it, and its tokenizer.
    """

    llm: CausalLM

    @exclusive
    def __init__(
        self, variant: VariantConfig, load: LoadLlm = load_llm, local_files_only: bool = False
    ) -> None:
        encoder = load_encoder(variant.encoder, local_files_only)
        llm, tokenizer = load(variant.llm)
        embeddings = input_embeddings(llm)
        super().__init__(encoder, variant.steering, variant.projector, embeddings, variant.seed)
        self.config, self.llm, self.tokenizer = variant, llm, tokenizer
        self.video: Tower | None = None
        if (video := variant.video) is not None:
            frames = load_video_encoder(video.encoder, local_files_only)
            self.video = Tower(frames, video.steering, video.projector, embeddings, variant.seed, "video.")
        self.ctc: CtcHead | None = None
        if (ctc := variant.training.ctc) is not None:
            texts = token_texts(tokenizer, len(embeddings)) if ctc.spelling else None
            with seeded(variant.seed, "ctc"):
                self.ctc = CtcHead(embeddings, texts, ctc.num_sampled)
        self._adapters = self._with_lora()
        if variant.training.gradient_checkpointing:
            # transformers offers it in training mode only. Hooks stay outside: steering runs once.
            for layer in [*(x for tower in self._towers for x in tower.encoder.layers), *decoder_layers(llm)]:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        self.train(False)

    @property
    def _towers(self) -> list[Tower]:
        return [self] if self.video is None else [self, self.video]

    def _with_lora(self) -> dict[str, list[nn.Parameter]]:
        """Insert LoRA into encoder and LLM if the variant has it; return its parameters by part."""
        frozen: dict[str, tuple[config.Lora | None, nn.Module, Iterable[nn.Module]]] = {
            "lora": (self.config.lora, self.encoder.model, self.encoder.layers),
            "llm_lora": (self.config.llm_lora, self.llm, decoder_layers(self.llm)),
        }
        adapters = {}
        for part, (section, model, layers) in frozen.items():
            if section is not None:
                from steermoe.models.lora import add_lora  # here, as peft takes seconds to import

                with seeded(self.config.seed, part):
                    adapters[part] = add_lora(section, model, layers, part)
        return adapters

    # trained and frozen parameters

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return all trained parameters by part: projection, vectors, router, lora, llm_lora.

        The part `projection` includes down-sampling and CTC head.
        """
        groups: dict[str, list[nn.Parameter]] = {}
        for tower in self._towers:
            for part, parameters in tower.trained_parts().items():
                groups.setdefault(part, []).extend(parameters)
        if self.ctc is not None:
            groups["projection"].extend(self.ctc.parameters())
        return groups | self._adapters

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Return the trained parameters by name, and `fixed_state`."""
        trained = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        return trained | self.fixed_state()

    def fixed_state(self) -> dict[str, Tensor]:
        """Return what belongs to the trained parameters but has no gradient: the tokens that the CTC head knows."""
        return {} if self.ctc is None else {"ctc.spoken": self.ctc.spoken}

    def frozen_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of the weights of each of `frozen_parts`."""
        return {part: digest(weights) for part, weights in self.frozen_parts().items()}

    def frozen_parts(self) -> dict[str, dict[str, Tensor]]:
        """Return the weights of encoder, LLM and video encoder, if there is one, without LoRA."""
        parts = {"encoder": self.encoder.model, "llm": self.llm}
        parts |= {} if self.video is None else {"video": self.video.encoder.model}
        return {part: frozen_weights(model) for part, model in parts.items()}

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of the trained parts; the frozen models stay in evaluation mode."""
        super().train(mode)
        self.llm.eval()
        if self._adapters:
            from steermoe.models.lora import train_lora

            train_lora(self.encoder, mode)
            train_lora(self.llm, mode)
        return self

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.projection.parameters()).device

    # forward

    def encode(
        self,
        features_BMT: Tensor,
        lengths_B: Tensor,
        prompt_BPH: Tensor | None = None,
        prompt_lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Turn features into what the LLM reads: as `Tower.encode`, or the soft tokens of the CTC head."""
        return self._read(super().encode(features_BMT, lengths_B, prompt_BPH, prompt_lengths_B))

    def _read(self, audio: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        section = self.config.training.ctc
        if self.ctc is None or section is None or not section.soft_tokens:
            return audio
        return self.ctc.soft_tokens(*audio, self.llm.get_input_embeddings())

    def forward(
        self,
        features: Tensor,
        feature_lengths: Tensor,
        prefix_ids: Tensor,
        prefix_lengths: Tensor,
        prompt_ids: Tensor,
        prompt_lengths: Tensor,
        target_ids: Tensor,
        target_lengths: Tensor,
        video_features: Tensor | None = None,
        video_lengths: Tensor | None = None,
        indices: Tensor | None = None,
        lesson: Lesson | None = None,
        ctc_only: bool = False,
        return_logits: bool = False,
    ) -> SteerMoEOutput:
        """Compute the loss of a batch, `model(**batch)`; see `data.dataset.Batch` for the tensors.

        Args:
            lesson: the teacher's view of the target tokens, for distillation.
            ctc_only: compute the CTC loss alone, without the LLM.
            return_logits: return the logits of the target tokens, too.
        """
        batch = Batch(
            features, feature_lengths, prefix_ids, prefix_lengths, prompt_ids, prompt_lengths,
            target_ids, target_lengths, video_features, video_lengths,
        )  # fmt: skip
        parts = self._prompt_parts(batch)
        if ctc_only:
            output = SteerMoEOutput(self._ctc_loss(batch, parts), target_lengths.sum())
        else:
            hidden_NH, targets_N = self._target_hidden_states(batch, parts)
            head = partial(logits, self.llm)
            found = hidden_loss(hidden_NH, targets_N, head, vocabulary_size(self.llm), lesson)
            output = SteerMoEOutput(found.loss, found.num_tokens, found.num_correct, found.distillation)
            if return_logits:
                output.logits = head(hidden_NH)
            ctc = self.config.training.ctc
            if self.training and ctc is not None and output.loss is not None:
                output.loss = output.loss + ctc.coef * self._ctc_loss(batch, parts)
        if self.training and output.loss is not None:
            losses = [tower.routing_losses() for tower in self._towers]
            for loss in losses:
                output.loss = output.loss + loss
            output.aux_loss = torch.as_tensor(sum(losses), device=output.loss.device).detach()
        return output

    def _ctc_loss(self, batch: Batch, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the CTC loss of a batch, whose prompt parts end with the audio and the prompt."""
        assert self.ctc is not None and batch.target_ids is not None and batch.target_lengths is not None
        audio_BAH, lengths_B = parts[-2]
        ends = torch.as_tensor(self.llm.generation_config.eos_token_id, device=audio_BAH.device)
        table = self.llm.get_input_embeddings()
        return self.ctc(audio_BAH, lengths_B, table, batch.target_ids, batch.target_lengths, ends)

    @exclusive
    def target_hidden_states(self, **batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last hidden states (N, H) that predict the target tokens of a `Batch`, and these tokens (N,)."""
        whole = Batch(**batch)
        return self._target_hidden_states(whole, self._prompt_parts(whole))

    def _target_hidden_states(
        self, batch: Batch, parts: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        target_ids, target_lengths = batch.target_ids, batch.target_lengths
        assert target_ids is not None and target_lengths is not None
        parts = [*parts[:-2], self._read(parts[-2]), parts[-1]]
        # A row's last target token is predicted, but not read.
        rows_BWH, _ = self.packed([*parts, (target_ids[:, :-1], target_lengths - 1)], "right")
        before_B = torch.stack([lengths for _, lengths in parts]).sum(0)
        hidden_BWH = hidden_states(self.llm, rows_BWH)
        predicting = target_rows(before_B, target_lengths, target_ids.shape[1])
        return hidden_BWH[predicting], target_ids[valid_frames(target_lengths, target_ids.shape[1])]

    @exclusive
    @torch.no_grad()
    def read_prompt(
        self, batch: Batch, padding: Padding, ctc_weight: float
    ) -> tuple[Tensor, Tensor, list[CtcPrefix | None]]:
        """Return all that the LLM reads before an answer.

        Args:
            batch, padding: the rows, and the side on which they are padded.
            ctc_weight: of CTC in transcripts (`generation.ctc_weight`).

        Returns:
            rows (B, W, H); True where they are valid, (B, W); for each row its CTC scores, if there is a weight and
            the row is to be transcribed.

        Raises:
            ValueError: there is a weight, but the adapter has no CTC head.
        """
        *before, audio, prompt = self._prompt_parts(batch)
        rows_BWH, valid_BW = self.packed([*before, self._read(audio), prompt], padding)
        scores: list[CtcPrefix | None] = [None] * batch.rows
        if not ctc_weight:
            return rows_BWH, valid_BW, scores
        if self.ctc is None:
            raise ValueError(
                f"generation.ctc_weight: found {ctc_weight:g}, but the adapter has no CTC head; legal: 0, or an "
                "adapter that was trained with training.ctc"
            )
        asked = encode_prompt(self.config.prompts, self.tokenizer, "transcribe", "").suffix
        log_probs_BAK = self.ctc.log_probs(audio[0], self.llm.get_input_embeddings())
        for row, (ids, count, length) in enumerate(
            zip(batch.prompt_ids.tolist(), batch.prompt_lengths.tolist(), audio[1].tolist(), strict=True)
        ):
            if ids[:count] == asked:
                scores[row] = CtcPrefix(log_probs_BAK[row, :length], self.ctc.tokens)
        return rows_BWH, valid_BW, scores

    def generate_all(
        self,
        batches: Iterable[Batch],
        generation: Generation,
        seed: int = 0,
        scored: bool = False,
        max_rows: int = MAX_ROWS,
    ) -> Iterator[Generated]:
        """Yield the answers to all rows of batches, in the order in which they end.

        Args:
            batches: each is encoded when there are free slots for its rows.
            generation, seed: how to decode, and the seed of sampling.
            scored: return log-likelihoods, those of the LLM whatever the decoding strategy made of them.
            max_rows: rows that the LLM decodes at a time, of several batches if it can (`continues`).
        """
        embed = partial(self.read_prompt, ctc_weight=generation.ctc_weight)
        return generate_all(self.llm, embed, batches, generation, seed, scored, max_rows)

    def _prompt_parts(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Return what comes before a target, parts with their lengths: prefix, video, the projected audio, prompt."""
        expected, found = self.video is not None, batch.video_features is not None
        if expected != found:
            raise ValueError(
                "video: found none, but the model has a video tower: give a video with every recording"
                if expected
                else "video: found one, but the model has no video tower: give the audio alone"
            )
        prompt = batch.prompt_ids, batch.prompt_lengths
        embedded = self._embedded(batch.prompt_ids), batch.prompt_lengths
        parts = [(batch.prefix_ids, batch.prefix_lengths)]
        audio = super().encode(batch.features, batch.feature_lengths, *embedded)
        if self.video is not None and batch.video_features is not None and batch.video_lengths is not None:
            parts.append(self.video.encode(batch.video_features, batch.video_lengths, *embedded))
        return [*parts, audio, prompt]

    def packed(self, parts: Sequence[tuple[Tensor, Tensor]], padding: Padding) -> tuple[Tensor, Tensor]:
        """Return parts with their lengths as rows for the LLM (`pack`); token ids are embedded, audio is not."""
        embedded = [p if p.is_floating_point() else self._embedded(p) for p, _ in parts]
        dtype = self.llm.get_input_embeddings().weight.dtype
        return pack([e.to(dtype) for e in embedded], [lengths for _, lengths in parts], padding)

    def _embedded(self, ids: Tensor) -> Tensor:
        return self.llm.get_input_embeddings()(ids.clamp(min=0))
