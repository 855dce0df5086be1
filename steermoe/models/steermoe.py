"""SteerMoE: a frozen speech encoder, a frozen LLM, and the little between them that is trained.

features -> encoder, its layers steered (or with LoRA) -> down-sampling -> projection
-> `[prefix ; video ; audio ; prompt ; target]` -> LLM -> loss on the target's tokens, or text.

The video is there where the configuration has a section `video`: a second branch, steered the same way.

Shapes: B batch, M feature channels, T feature frames, S encoder frames, D encoder width, P0 prefix tokens, A audio
tokens, P prompt tokens, Y target tokens, N target tokens of all rows, H width of the LLM, V its vocabulary.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import nn
from transformers import Cache

from steermoe import config
from steermoe.audio.level import levelled
from steermoe.config import Generation, VariantConfig
from steermoe.data.adapters import adapter_folder
from steermoe.models import adapter
from steermoe.models.answers import Audio, answer_spoken, to_waveform
from steermoe.models.chat import chat
from steermoe.models.encoders import load_encoder, load_video_encoder
from steermoe.models.encoders.encoder import valid_frames
from steermoe.models.exclusive import exclusive
from steermoe.models.frozen import digest, frozen_weights
from steermoe.models.generating import MOST_ROWS, Generated, generate_all
from steermoe.models.generation import GREEDY
from steermoe.models.inputs import Inputs
from steermoe.models.llm import (
    CausalLM,
    decoder_layers,
    hidden_states,
    input_embeddings,
    load_llm,
    logits,
    narrows,
    vocabulary_size,
)
from steermoe.models.losses import Lesson, Loss, hidden_loss
from steermoe.models.prefix import prefix_cache
from steermoe.models.recompute import recompute
from steermoe.models.seeds import seeded
from steermoe.models.sequence import pack, target_rows
from steermoe.models.tools import Answer
from steermoe.models.tower import Branch

LoadLlm = Callable[[config.Llm], tuple[CausalLM, Any]]


class SteerMoE(Branch):
    """The assembly, a branch for the audio with the LLM behind it.

    `from_config` builds it for training, `from_pretrained` for use. Several threads may use a model: each call
    waits for the one before (`exclusive`).

    Attributes:
        config: the resolved configuration of its variant.
        video: the branch of the video, or None.
        llm: the frozen LLM as transformers loads it.
        tokenizer: the LLM's.
        narrows: hidden states of the LLM that nobody wants may be spared (`llm.narrows`).
    """

    llm: CausalLM

    @exclusive
    def __init__(self, variant: VariantConfig, load: LoadLlm = load_llm) -> None:
        encoder = load_encoder(variant.encoder)
        llm, tokenizer = load(variant.llm)
        super().__init__(encoder, variant.steering, variant.projector, input_embeddings(llm), variant.seed)
        self.config, self.llm, self.tokenizer = variant, llm, tokenizer
        self.video: Branch | None = None
        if variant.video is not None:
            eye, embeddings = load_video_encoder(variant.video.encoder), input_embeddings(llm)
            self.video = Branch(
                eye, variant.video.steering, variant.video.projector, embeddings, variant.seed, "video."
            )
        self._adapters = self._with_lora()
        # Recomputing would have to know in the backward pass what was wanted.
        self.narrows = not variant.training.gradient_checkpointing and narrows(self.llm)
        if variant.training.gradient_checkpointing:
            of_video = [] if self.video is None else self.video.encoder.layers
            recompute([*self.encoder.layers, *of_video, *decoder_layers(self.llm)])
        self.train(False)

    def _with_lora(self) -> dict[str, list[nn.Parameter]]:
        """Adapters put into encoder and LLM, where the variant has them: their parameters by part."""
        frozen: dict[str, tuple[config.Lora | None, nn.Module, Iterable[nn.Module]]] = {
            "lora": (self.config.lora, self.encoder.model, self.encoder.layers),
            "llm_lora": (self.config.llm_lora, self.llm, decoder_layers(self.llm)),
        }
        adapters = {}
        for part, (section, model, layers) in frozen.items():
            if section is not None:
                from steermoe.models.lora import add_lora  # here, for peft takes seconds to import

                with seeded(self.config.seed, part):
                    adapters[part] = add_lora(section, model, layers, part)
        return adapters

    # building, saving, loading

    @classmethod
    def from_config(cls, variant: VariantConfig) -> Self:
        """Return a model with initial trained parts, the same for the same seed; ValueError if a model cannot load."""
        return cls(variant)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        encoder: str | Path | None = None,
        llm: str | Path | None = None,
        load: LoadLlm = load_llm,
        video: str | Path | None = None,
    ) -> Self:
        """A trained model.

        Args:
            source: a folder that `save_pretrained` wrote, or a repository on the hub.
            encoder, llm, video: paths of the frozen models, if they have moved (`adapter.find_frozen`).
            load: returns LLM and tokenizer; the weights of an LLM that another function loads are not compared.

        Raises:
            ValueError: the adapter is damaged, does not fit its configuration, or belongs to other frozen weights.
        """
        folder = adapter_folder(source)
        saved = adapter.read(folder)
        variant = adapter.with_frozen(saved.variant, folder, {"encoder": encoder, "llm": llm, "video": video})
        model = cls(variant, load)
        adapter.check_weights(saved.weights, model.trainable_state_dict(), str(source))
        found = model.frozen_hashes()
        if load is not load_llm:
            found["llm"] = saved.frozen["llm"]
        adapter.check_frozen(found, saved.frozen, adapter.frozen_paths(variant), str(source))
        model.load_state_dict(dict(saved.weights), strict=False)  # all names were checked
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapter.safetensors and config.json, the same bytes for the same weights; see `adapter`."""
        trained = adapter.Adapter(self.config, self.frozen_hashes(), self.trainable_state_dict())
        adapter.write(Path(folder), trained)

    def push_to_hub(self, repo_id: str, private: bool = False, card: str | None = None) -> str:
        """Upload what `save_pretrained` writes, and a model card; returns the repository's address."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            if card is not None:
                (Path(folder) / adapter.CARD).write_text(card, encoding="utf-8")
            return adapter.push(Path(folder), repo_id, private)

    # what is trained, and what is not

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All trained parameters by part.

        projection (with what down-sampling trains); vectors (with the scales) and router; lora; llm_lora.
        """
        groups = self.trained_parts()
        for part, parameters in ({} if self.video is None else self.video.trained_parts()).items():
            groups.setdefault(part, []).extend(parameters)
        return groups | self._adapters

    def trainable_state_dict(self) -> dict[str, torch.Tensor]:
        """The trained parameters by name, and nothing else."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def frozen_hashes(self) -> dict[str, str]:
        """SHA-256 of the weights of `frozen_parts` now."""
        return {part: digest(weights) for part, weights in self.frozen_parts().items()}

    def frozen_parts(self) -> dict[str, dict[str, torch.Tensor]]:
        """The weights of encoder, LLM and, where there is one, video encoder, adapters aside."""
        parts = {"encoder": self.encoder.model, "llm": self.llm}
        parts |= {} if self.video is None else {"video": self.video.encoder.model}
        return {part: frozen_weights(model) for part, model in parts.items()}

    def train(self, mode: bool = True) -> Self:
        """Switch what is trained; the frozen models stay in evaluation mode."""
        super().train(mode)
        self.llm.eval()
        if self._adapters:
            from steermoe.models.lora import train_lora

            train_lora(self.encoder, mode)
            train_lora(self.llm, mode)
        return self

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.projection.parameters()).device

    @exclusive
    @torch.no_grad()
    def gates(self, audio: str | Path | np.ndarray) -> list[np.ndarray]:
        """The gates of a recording: an array (frames, experts) for each of `steering.places`, without padding.

        Raises:
            ValueError: the model has no steering, or the recording cannot be read.
        """
        if self.steering is None:
            raise ValueError(f"method {self.config.method} has no gates; steering has")
        features = self.features(levelled(to_waveform(audio, "recording")))[None].to(self.device)
        seen: list[np.ndarray] = []
        with self.steering.observed(lambda _, hidden, gates: seen.append(gates[0].float().cpu().numpy())):
            self.hear(features, torch.tensor([features.shape[2]], device=self.device))
        return [gates[: int(self.lengths_of(len(gates))[0])] for gates in seen]

    # forward

    def forward(self, lesson: Lesson | None = None, **batch: torch.Tensor) -> Loss:
        """The loss of a batch as `predicting` takes it, with that of a lesson about it."""
        hidden_NH, targets_N = self.predicting(**batch)
        head = partial(logits, self.llm)
        found = hidden_loss(hidden_NH, targets_N, head, vocabulary_size(self.llm), lesson)
        if self.training and found.loss is not None:
            found.loss = found.loss + self.routing_losses()
            if self.video is not None:
                found.loss = found.loss + self.video.routing_losses()
        return found

    @exclusive
    def predicting(
        self, target_ids: torch.Tensor, target_lengths: torch.Tensor, **batch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden states (N, H) that predict the target tokens of a batch, and these tokens (N,).

        The batch is as the collator makes it: targets (B, Y), and all of `Inputs`. A row's last target token is
        predicted, never read.
        """
        read, cache = self.read(Inputs.of(batch))
        rows_BWH, _valid = self.packed([*read, (target_ids[:, :-1], target_lengths - 1)], "right")
        before_B = torch.stack([lengths for _, lengths in read]).sum(0)
        wanted = target_rows(before_B, target_lengths, target_ids.shape[1])
        hidden_BWH = hidden_states(self.llm, rows_BWH, cache, wanted if self.narrows else None)
        return hidden_BWH[wanted], target_ids[valid_frames(target_lengths, target_ids.shape[1])]

    @exclusive
    def generate(self, inputs: Inputs, generation: Generation, seed: int = 0) -> list[list[int]]:
        """Answers as token ids, without end and padding tokens."""
        found = {answer.row: answer.ids for answer in self.generate_all([inputs], generation, seed)}
        return [found[row] for row in range(len(found))]

    def generate_all(
        self,
        batches: Iterable[Inputs],
        generation: Generation,
        seed: int = 0,
        scored: bool = False,
        most: int = MOST_ROWS,
    ) -> Iterator[Generated]:
        """Answers to all rows of batches, in the order in which they end.

        Args:
            batches: each is encoded when there is room for its rows.
            generation, seed: how to decode, and the seed of sampling.
            scored: tell log-likelihoods, too. They are the LLM's own, whatever the decoding strategy made of them.
            most: rows that the LLM continues at a time, where rows of different batches may be (`continues`).
        """
        return generate_all(self, batches, generation, seed, scored, most)

    @exclusive
    @torch.no_grad()
    def embed_prompt(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all that the LLM reads before an answer, for a decoding loop of one's own.

        Returns:
            left-padded rows (B, W, H), and True where they are valid, (B, W).
        """
        prefix = inputs.prefix_ids, inputs.prefix_lengths
        return self.packed([prefix, *self.behind_prefix(inputs)], "left")

    def transcribe(
        self,
        audio: Audio | Sequence[Audio],
        question: str | None = None,
        generation: Generation = GREEDY,
        seed: int = 0,
        video: np.ndarray | Sequence[np.ndarray] | None = None,
    ) -> str | list[str]:
        """Return the text of a recording (a path, or a waveform at 16 kHz), or of each of several.

        The text is empty where nobody speaks. Low confidence and models that know few words are logged as warnings,
        which `ask` returns.

        Args:
            audio: one recording or several; arrays as `audio.base.as_waveform` takes them.
            question, generation, seed: as in `ask`.
            video: frames beside the recording, or beside each of several, as `ask` takes them.

        Raises:
            ValueError: a recording cannot be read, or is longer than the encoder takes; the model has a video
                branch and there is no video, or the other way round.
        """
        if isinstance(audio, str | Path | np.ndarray):
            videos = None if video is None else [np.asarray(video)]
            return answer_spoken(self, [audio], question, None, generation, seed, videos=videos)[0].text
        videos = None if video is None else list(video)
        answers = answer_spoken(self, audio, question, None, generation, seed, videos=videos)
        return [answer.text for answer in answers]

    @exclusive
    def ask(
        self,
        audio: Audio,
        question: str | None = None,
        tools: Sequence[dict] | None = None,
        generation: Generation = GREEDY,
        seed: int = 0,
        prompt: str | None = None,
        return_gates: bool = False,
        video: np.ndarray | None = None,
    ) -> Answer:
        """Return the answer to a recording, which may call tools: parsed and checked, never run.

        The text is empty where nobody speaks; a model that was trained on sounds is asked unless there is silence.

        Args:
            audio: a path, or a waveform at 16 kHz.
            question: what to answer about it; None: write down what is said.
            tools: what may be called: function definitions as OpenAI's API and chat templates take them,
                `{"type": "function", "function": {"name", "description", "parameters": <JSON schema>}}`.
            generation, seed: how to decode, and the seed of sampling.
            prompt: the text behind the audio, in place of the configuration's; then there is no question.
            return_gates: return the gates of the recording, too (`gates`).
            video: what is seen, uint8 frames (T, H, W) in shades of grey or (T, H, W, 3) in colours; for a model
                with a video branch, and no other.

        Raises:
            ValueError: as `transcribe`, and `gates` if they are returned; a tool is no such definition; the prompt
                format has no place for tools; or both question and prompt are given.
        """
        if question is not None and prompt is not None:
            raise ValueError(f"found question {question!r} and a prompt, which is asked as it is: give one")
        videos = None if video is None else [video]
        (answer,) = answer_spoken(self, [audio], question, tools, generation, seed, prompt, videos)
        return replace(answer, gates=tuple(self.gates(audio))) if return_gates else answer

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[dict] | None = None,
        generation: Generation = GREEDY,
        seed: int = 0,
    ) -> Answer:
        """Return the answer to a conversation; nothing of it is kept.

        Args:
            messages: as in OpenAI's chat API, `[{"role": "user", "content": [{"type": "input_audio", "input_audio":
                {"data": <base64>}}, {"type": "text", "text": "What is said?"}]}]`; parts `{"type": "audio", "audio":
                <path, or waveform at 16 kHz>}` are taken, too. How turns are joined: `data.prompts.conversation`.
            tools, generation, seed: as in `ask`.

        Raises:
            ValueError: as `ask`; or a message is not of that form.
        """
        return chat(self, messages, tools, generation, seed)

    def behind_prefix(self, inputs: Inputs) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What the LLM reads between prefix and target, parts with their lengths."""
        prompt = inputs.prompt_ids, inputs.prompt_lengths
        embedded = self._embedded(inputs.prompt_ids), inputs.prompt_lengths
        parts = [self.encode(inputs.features, inputs.feature_lengths, *embedded), prompt]
        seen = inputs.video(self.video is not None)
        if self.video is not None and seen is not None:
            parts.insert(0, self.video.encode(*seen, *embedded))
        return parts

    def read(self, inputs: Inputs) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], Cache | None]:
        """What the LLM reads before a target, parts with their lengths; the prefix as a cache where that is exact."""
        read, prefix = self.behind_prefix(inputs), (inputs.prefix_ids, inputs.prefix_lengths)
        # A layer that is computed again in the backward pass would append to the cache again.
        again = self.config.training.gradient_checkpointing and torch.is_grad_enabled()
        cache = None if again else prefix_cache(self.llm, *prefix)
        return (read if cache is not None else [prefix, *read]), cache

    def packed(
        self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], padding: Literal["left", "right"]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Parts with their lengths as rows for the LLM (`pack`): audio as it is, token ids through its embeddings.

        Padding of -100 is embedded as any token.
        """
        embedded = [p if p.is_floating_point() else self._embedded(p) for p, _ in parts]
        dtype = self.llm.get_input_embeddings().weight.dtype
        return pack([e.to(dtype) for e in embedded], [lengths for _, lengths in parts], padding)

    def _embedded(self, ids: torch.Tensor) -> torch.Tensor:
        return self.llm.get_input_embeddings()(ids.clamp(min=0))
