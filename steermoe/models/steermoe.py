"""SteerMoE: the public interface of a model, for training, loading, transcribing and answering."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from transformers import GenerationConfig

from steermoe.audio.augment import levelled
from steermoe.config import Generation, VariantConfig
from steermoe.data.dataset import Batch
from steermoe.hub import adapter_folder
from steermoe.models import checkpoint
from steermoe.models.chat import chat
from steermoe.models.generation import GREEDY, generation_settings
from steermoe.models.inference import (
    Audio,
    answer_spoken,
    batch_of,
    check_videos,
    prompt_of,
    to_waveform,
)
from steermoe.models.llm import (
    load_llm,
)
from steermoe.models.pretrained import DTYPES, digest, exclusive
from steermoe.models.speech_llm import LoadLlm, SpeechLlm
from steermoe.models.tools import Answer

Settings = Generation | GenerationConfig | None


class Gates(dict[str, np.ndarray]):
    """Gates (frames, experts) of a recording by layer, `post` after the encoder; without padding.

    Attributes:
        frame_rate: encoder frames per second, before any down-sampling between layers.
    """

    def __init__(self, gates: Mapping[str, np.ndarray], frame_rate: float) -> None:
        super().__init__(gates)
        self.frame_rate = frame_rate


class SteerMoE(SpeechLlm):
    """A speech LLM as it is used. Several threads may share a model: calls wait for each other.

    Attributes:
        generation, normalizer: the settings by which it decodes and is evaluated unless a call says otherwise.

    Args:
        variant: its resolved configuration.
        load: returns LLM and tokenizer for their section.
        local_files_only: do not download frozen models.
        generation, normalizer: as the attributes.
    """

    def __init__(
        self,
        variant: VariantConfig,
        load: LoadLlm = load_llm,
        local_files_only: bool = False,
        generation: Generation = GREEDY,
        normalizer: str | None = None,
    ) -> None:
        super().__init__(variant, load, local_files_only)
        self.generation, self.normalizer = generation, normalizer

    @classmethod
    def from_config(
        cls, variant: VariantConfig, generation: Generation = GREEDY, normalizer: str | None = None
    ) -> Self:
        """Build a model with initial trained parts, which depend on the seed; ValueError if a model cannot load."""
        return cls(variant, generation=generation, normalizer=normalizer)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        encoder: str | Path | None = None,
        llm: str | Path | None = None,
        video: str | Path | None = None,
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        quantization: str | None = None,
        device_map: str | torch.device | None = None,
        local_files_only: bool = False,
        load: LoadLlm | None = None,
    ) -> Self:
        """Load a trained model.

        Args:
            source: a folder that `save_pretrained` wrote, or a repository on the hub.
            encoder, llm, video: folders, files, hub ids or names of the frozen models; None: those of the adapter's
                configuration (see `checkpoint.find_frozen`).
            revision: branch, tag or commit of the repository.
            dtype: float32 or bfloat16, of the frozen models; None: as trained.
            quantization: of the LLM, none, int8 or nf4; None: as trained.
            device_map: a device for the whole model, or "auto" for a GPU if there is one; None: the CPU.
            local_files_only: do not download anything.
            load: returns LLM and tokenizer for their section; the weights of such an LLM are not compared.

        Raises:
            ValueError: the adapter is damaged, does not fit its configuration, or was trained with other frozen
                weights. Another dtype or quantisation than in training is a logged warning.
        """
        name = str(dtype).removeprefix("torch.") if dtype is not None else None
        if name is not None and name not in DTYPES:
            raise ValueError(f"dtype: found {name}; legal: {', '.join(DTYPES)}")
        folder = adapter_folder(source, revision, local_files_only)
        saved = checkpoint.read(folder)
        paths = {"encoder": encoder, "llm": llm, "video": video}
        variant = checkpoint.with_frozen(saved.variant, folder, paths, name, quantization)
        loader = load or partial(load_llm, local_files_only=local_files_only)
        model = cls(variant, loader, local_files_only, saved.generation or GREEDY, saved.normalizer)
        checkpoint.check_weights(saved.weights, model.trainable_state_dict(), str(source))
        parts = model.frozen_parts()
        if load is not None:
            del parts["llm"]
        found = {part: digest(weights) for part, weights in parts.items()}
        checkpoint.check_frozen(found, saved, variant, str(source))
        model.load_state_dict(dict(saved.weights), strict=False)  # all names were checked
        if device_map is not None:
            cuda = "cuda" if torch.cuda.is_available() else "cpu"
            model.to(cuda if device_map == "auto" else device_map)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapter.safetensors and config.json; the same weights give the same bytes. See `checkpoint`."""
        weights, hashes = self.trainable_state_dict(), self.frozen_hashes()
        trained = checkpoint.Adapter(
            self.config, hashes, weights, generation=self.generation, normalizer=self.normalizer
        )
        checkpoint.write(Path(folder), trained)

    def push_to_hub(self, repo_id: str, private: bool = False, card: str | None = None) -> str:
        """Upload what `save_pretrained` writes, and a model card; return the repository's address."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            if card is not None:
                (Path(folder) / checkpoint.CARD).write_text(card, encoding="utf-8")
            return checkpoint.push(Path(folder), repo_id, private)

    # use

    def _settings(self, given: Settings, changes: Mapping[str, Any]) -> Generation:
        base = given if isinstance(given, Generation) else self.generation
        return generation_settings(base, given if isinstance(given, GenerationConfig) else None, **changes)

    @exclusive
    def generate(
        self,
        batch: Batch | None = None,
        generation_config: Settings = None,
        seed: int = 0,
        *,
        audio: Audio | Sequence[Audio] | None = None,
        prompt: str | None = None,
        video: np.ndarray | Sequence[np.ndarray] | None = None,
        **settings: Any,
    ) -> list[list[int]]:
        """Return the token ids of an answer to each row, without end tokens, for `tokenizer.batch_decode`.

        Args:
            batch: as `collate` makes it; or None, with `audio`.
            generation_config: how to decode; None: `self.generation`.
            seed: of sampling.
            audio, video: recordings, one or several, as for `ask`.
            prompt: the text after the audio; None: that for a transcription.
            **settings: single settings, such as max_new_tokens, num_beams or do_sample.

        Raises:
            ValueError: not one of `batch` and `audio` is given, or as `ask` and `generation_settings`.
        """
        if (batch is None) == (audio is None):
            raise ValueError("generate: give either a batch or audio")
        if batch is None:
            recordings = [audio] if isinstance(audio, str | Path | np.ndarray) else list(audio or ())
            videos = [video] if isinstance(video, np.ndarray) else None if video is None else list(video)
            check_videos(self, len(recordings), videos)
            waveforms = [to_waveform(each, f"recording {n}") for n, each in enumerate(recordings)]
            batch = batch_of(self, waveforms, prompt_of(self, None, prompt, None)[0], videos)
        how = self._settings(generation_config, settings)
        found = {answer.row: answer.ids for answer in self.generate_all([batch], how, seed)}
        return [found[row] for row in range(len(found))]

    @overload
    def transcribe(self, audio: Audio, **options: Any) -> str: ...
    @overload
    def transcribe(self, audio: Sequence[Audio], **options: Any) -> list[str]: ...
    def transcribe(self, audio: Any, **options: Any) -> str | list[str]:
        """Return the transcript of a recording (a path, or a waveform at 16 kHz), or of each recording of a list.

        The text is empty where nobody speaks. Low confidence, and models that know few words, are logged warnings.

        Args:
            audio: a recording, or a list of them.
            **options: generation_config, seed, video and single settings, as for `ask`.

        Raises:
            ValueError: as `ask`.
        """
        found = self.ask(audio, **options)
        return [answer.text for answer in found] if isinstance(found, list) else found.text

    @overload
    def ask(self, audio: Audio, question: str | None = ..., **options: Any) -> Answer: ...
    @overload
    def ask(self, audio: Sequence[Audio], question: str | None = ..., **options: Any) -> list[Answer]: ...
    @exclusive
    def ask(
        self,
        audio: Any,
        question: str | None = None,
        tools: Sequence[dict] | None = None,
        *,
        prompt: str | None = None,
        video: Any = None,
        generation_config: Settings = None,
        seed: int = 0,
        return_gates: bool = False,
        **settings: Any,
    ) -> Answer | list[Answer]:
        """Answer a question about a recording, or about each recording of a list; tool calls are checked, not run.

        The text is empty where nobody speaks; a model that was trained on sounds is asked unless there is silence.

        Args:
            audio: a path, or a waveform at 16 kHz; or a list of them.
            question: the question; None: transcribe.
            tools: function definitions as OpenAI's API and chat templates take them,
                `{"type": "function", "function": {"name", "description", "parameters": <JSON schema>}}`.
            prompt: the text after the audio, instead of the configuration's; then there is no question.
            video: uint8 frames (T, H, W) or (T, H, W, 3) that belong to the recording, or a list of them; for
                models with a video tower only.
            generation_config: how to decode; None: `self.generation`.
            seed: of sampling.
            return_gates: return the gates of each recording, too.
            **settings: single settings, such as max_new_tokens, num_beams or do_sample.

        Raises:
            ValueError: a recording cannot be read, or is longer than the encoder takes; a video is missing or not
                expected; a tool is not such a definition, or the prompt format does not support tools; both
                question and prompt are given; or as `generation_settings` and `gates`.
        """
        if question is not None and prompt is not None:
            raise ValueError(f"found question {question!r} and a prompt, which replaces it: give one of them")
        single = isinstance(audio, str | Path | np.ndarray)
        recordings = [audio] if single else list(audio)
        videos = None if video is None else [np.asarray(video)] if single else list(video)
        how = self._settings(generation_config, settings)
        found = answer_spoken(self, recordings, question, tools, how, seed, prompt, videos)
        if return_gates:
            found = [replace(a, gates=self.gates(r)) for a, r in zip(found, recordings, strict=True)]
        return found[0] if single else found

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[dict] | None = None,
        generation_config: Settings = None,
        seed: int = 0,
        **settings: Any,
    ) -> Answer:
        """Return the answer to a conversation; nothing of it is stored.

        Args:
            messages: as in OpenAI's chat API, `[{"role": "user", "content": [{"type": "input_audio", "input_audio":
                {"data": <base64>}}, {"type": "text", "text": "What is said?"}]}]`; parts `{"type": "audio", "audio":
                <path, or waveform at 16 kHz>}` are allowed, too. How turns are joined: `data.prompts.conversation`.
            tools, generation_config, seed, **settings: as for `ask`.

        Raises:
            ValueError: as `ask`; or a message is not of that form.
        """
        return chat(self, messages, tools, self._settings(generation_config, settings), seed)

    @exclusive
    @torch.no_grad()
    def gates(self, audio: Audio) -> Gates:
        """Return the gates of a recording, without padding.

        Raises:
            ValueError: the model has no steering, or the recording cannot be read.
        """
        if self.steering is None:
            raise ValueError(f"method {self.config.method} has no gates; steering has")
        features = self.features(levelled(to_waveform(audio, "recording")))[None].to(self.device)
        seen: list[np.ndarray] = []
        with self.steering.observed(lambda _, hidden, gates: seen.append(gates[0].float().cpu().numpy())):
            self.encode_frames(features, torch.tensor([features.shape[2]], device=self.device))
        trimmed = [gates[: int(self.frame_lengths(len(gates))[0])] for gates in seen]
        names = map(str, self.steering.hook_points)
        return Gates(dict(zip(names, trimmed, strict=True)), self.encoder.frames_per_second)
