"""The encoder's own decoder, a baseline: a CTC head over words, a whole CTC model, or a whole Whisper."""

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoTokenizer,
    PretrainedConfig,
    WhisperForConditionalGeneration,
)

from steermoe.audio import io as waveform
from steermoe.config import Encoder, Generation
from steermoe.evaluation.predictions import System, batchwise
from steermoe.hub import located
from steermoe.models.encoders import load_encoder
from steermoe.models.generation import describe, ended, options, seeded

CTC_HEAD, CTC_UNITS = "ctc_head.safetensors", "ctc_units.json"
BLANK = 0
# Languages that Whisper calls otherwise than BCP 47 does: Mandarin, Norwegian, Javanese, Filipino.
WHISPERS_OWN = {"cmn": "zh", "nb": "no", "jv": "jw", "fil": "tl", "und": ""}


class Decoder(ABC):
    """A row of DECODERS, built from the encoder's section, generation settings, a seed and a device."""

    decoding: str
    window: float = 0.0  # seconds that every utterance is padded to

    @abstractmethod
    def __init__(self, section: Encoder, generation: Generation, seed: int, device: torch.device) -> None: ...

    @staticmethod
    @abstractmethod
    def is_offered(path: str) -> bool:
        """Return whether the encoder at `path` comes with such a decoder."""

    def knows(self, tag: str) -> bool:
        """Return whether it can write a language, by its BCP 47 tag."""
        return True

    @abstractmethod
    def __call__(self, waveforms: Sequence[np.ndarray], languages: Sequence[str]) -> list[str]:
        """Return the text of each waveform, (N,) at 16 kHz; `languages` are BCP 47 tags, or und."""


class CtcDecoder(Decoder):
    """A linear layer to blank and units (words), decoded greedily."""

    def __init__(self, section: Encoder, generation: Generation, seed: int, device: torch.device) -> None:
        folder = Path(section.path)
        # The head was trained on the whole encoder, whatever the variants use of it.
        self.encoder = load_encoder(section.model_copy(update={"layers": "all"})).to(device)
        self.features, self.window = self.encoder.features, self.encoder.window_seconds
        self.device = device
        self.head = {name: tensor.to(device) for name, tensor in load_file(folder / CTC_HEAD).items()}
        self.units: list[str] = json.loads((folder / CTC_UNITS).read_text(encoding="utf-8"))
        found, expected = tuple(self.head["weight"].shape), (len(self.units) + 1, self.encoder.width)
        if found != expected:
            raise ValueError(
                f"{folder / CTC_HEAD}: found weight of shape {found}, expected {expected}: blank and the "
                f"{len(self.units)} units of {CTC_UNITS} over the encoder's width"
            )
        self.decoding = f"CTC head over {len(self.units)} units, greedy"

    @staticmethod
    def is_offered(path: str) -> bool:
        """Return whether there is a head in the encoder's folder."""
        return (Path(path) / CTC_HEAD).is_file()

    def __call__(self, waveforms: Sequence[np.ndarray], languages: Sequence[str]) -> list[str]:
        """Return the text of each waveform."""
        features = [self.features(samples) for samples in waveforms]
        lengths = torch.tensor([each.shape[1] for each in features], device=self.device)
        padded = pad_sequence([each.T for each in features], batch_first=True).transpose(1, 2)
        hidden, lengths = self.encoder(padded.to(self.device), lengths)
        logits = hidden.float() @ self.head["weight"].float().T + self.head["bias"].float()
        paths = logits.argmax(-1).cpu()
        return [self.text(path[:length]) for path, length in zip(paths, lengths.tolist(), strict=True)]

    def text(self, path: torch.Tensor) -> str:
        """Return the units of a path of classes, without repeats and blanks."""
        collapsed = torch.unique_consecutive(path).tolist()
        return " ".join(self.units[unit - 1] for unit in collapsed if unit != BLANK)


class HubCtcDecoder(Decoder):
    """A whole CTC model of the hub (Wav2Vec2 and its kin, Parakeet) as transformers runs it, decoded greedily.

    Recordings are not batched: padding would change the output of models whose feature extractor normalises over time
    or whose convolutions have no mask.
    """

    def __init__(self, section: Encoder, generation: Generation, seed: int, device: torch.device) -> None:
        model: Any = AutoModelForCTC.from_pretrained(section.path, dtype=getattr(torch, section.dtype))
        self.model = model.eval()
        self.model.to(device)
        self.extractor = AutoFeatureExtractor.from_pretrained(section.path)
        self.tokenizer = AutoTokenizer.from_pretrained(section.path)
        groups = "group_tokens" in signature(type(self.tokenizer)._decode).parameters
        self.ungrouped: dict[str, Any] = {"group_tokens": False} if groups else {}
        self.blank = self.model.config.pad_token_id
        self.decoding = f"CTC head over {self.model.config.vocab_size - 1} units, greedy"

    @staticmethod
    def is_offered(path: str) -> bool:
        """Return whether the checkpoint is a whole CTC model."""
        architectures = PretrainedConfig.get_config_dict(path)[0].get("architectures") or []
        return len(architectures) == 1 and architectures[0].endswith("ForCTC")

    def __call__(self, waveforms: Sequence[np.ndarray], languages: Sequence[str]) -> list[str]:
        """Return the text of each waveform."""
        return [self._text(samples) for samples in waveforms]

    def _text(self, samples: np.ndarray) -> str:
        inputs = self.extractor(samples, sampling_rate=waveform.RATE, return_tensors="pt")
        moved = {
            name: tensor.to(self.model.device, self.model.dtype if tensor.is_floating_point() else None)
            for name, tensor in inputs.items()
        }
        path = self.model(**moved).logits[0].argmax(-1)
        units = [unit for unit in torch.unique_consecutive(path).tolist() if unit != self.blank]
        # Equal units next to each other were separated by a blank: the tokenizer must not merge them.
        return self.tokenizer.decode(units, skip_special_tokens=True, **self.ungrouped).strip()


class WhisperDecoder(Decoder):
    """A whole Whisper as transformers runs it, which transcribes the language of the row or, for und, its own guess.

    Longer audio than its window is decoded window by window, each beginning where the timestamps of the last one end
    (Radford et al. 2022, section 4.5), without the fallback to sampling.
    """

    def __init__(self, section: Encoder, generation: Generation, seed: int, device: torch.device) -> None:
        dtype = getattr(torch, section.dtype)
        model: Any = WhisperForConditionalGeneration.from_pretrained(section.path, dtype=dtype)
        self.model = model.eval()
        self.model.to(device)
        self.model.generation_config.max_length = (
            None  # max_new_tokens says it, and both together are a warning
        )
        self.extractor = AutoFeatureExtractor.from_pretrained(section.path)
        self.window = float(self.extractor.chunk_length)
        self.tokenizer = AutoTokenizer.from_pretrained(section.path)
        # Four positions are taken: start, language, task, no timestamps.
        room = self.model.config.max_target_positions - 4
        longest = min(generation.max_new_tokens, room)
        shortest = min(generation.min_new_tokens, room)
        self.generation = generation.model_copy(
            update={"max_new_tokens": longest, "min_new_tokens": shortest}
        )
        self.seed = seed
        self.task: dict[str, Any] = {}
        if getattr(self.model.generation_config, "is_multilingual", False):
            self.task["task"] = "transcribe"
        self.known = getattr(self.model.generation_config, "lang_to_id", None) or {}
        how = describe(self.generation, seed)
        self.decoding = f"Whisper's decoder, {how}, a window; with the language of the row, if known"

    @staticmethod
    def is_offered(path: str) -> bool:
        """Return whether the checkpoint is a whole Whisper."""
        config = PretrainedConfig.get_config_dict(path)[0]
        return config.get("architectures") == [WhisperForConditionalGeneration.__name__]

    def __call__(self, waveforms: Sequence[np.ndarray], languages: Sequence[str]) -> list[str]:
        """Return the text of each waveform; ValueError for a language that Whisper does not know."""
        texts = [""] * len(waveforms)
        groups: dict[tuple[str | None, bool], list[int]] = {}
        for row, (samples, language) in enumerate(zip(waveforms, languages, strict=True)):
            beyond = len(samples) > self.extractor.n_samples
            groups.setdefault((self.language(language), beyond), []).append(row)
        for (language, beyond), rows in groups.items():
            given: dict[str, Any] = {} if language is None else {"language": language}
            # Windows of several recordings move on at different times: those are decoded one by one.
            for batch in [[row] for row in rows] if beyond else [rows]:
                found = self._generate([waveforms[row] for row in batch], beyond, given)
                for row, text in zip(batch, found, strict=True):
                    texts[row] = text
        return texts

    def language(self, tag: str) -> str | None:
        """Return Whisper's name of a language; None for und, or if the model is monolingual."""
        if not self.knows(tag):
            legal = ", ".join(sorted(name.strip("<|>") for name in self.known))
            raise ValueError(f"a row's language is {tag!r}; this Whisper knows: {legal}")
        return (_whispers(tag) or None) if "task" in self.task else None

    def knows(self, tag: str) -> bool:
        """Return whether the decoder accepts the language, or does not need one."""
        code = _whispers(tag)
        return not code or not self.known or "task" not in self.task or f"<|{code}|>" in self.known

    def _generate(self, waveforms: Sequence[np.ndarray], beyond: bool, given: dict[str, Any]) -> list[str]:
        windows: dict[str, Any] = {"truncation": False, "padding": "longest"} if beyond else {}
        inputs = self.extractor(
            list(waveforms),
            sampling_rate=waveform.RATE,
            return_tensors="pt",
            return_attention_mask=True,
            **windows,
        )
        with seeded(self.generation, self.seed, self.model.device):
            tokens = self.model.generate(
                inputs["input_features"].to(self.model.device, self.model.dtype),
                attention_mask=inputs["attention_mask"].to(self.model.device),
                **options(self.generation),
                **self.task,
                **given,
                **({"return_timestamps": True, "condition_on_prev_tokens": False} if beyond else {}),
            )
        answers = [ended(ids, set(), self.generation.max_repeats) for ids in tokens.tolist()]
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]


def _whispers(tag: str) -> str:
    """Return Whisper's name of a language; "" for und."""
    language = tag.split("-")[0]
    return WHISPERS_OWN.get(language, language)


@dataclass(frozen=True)
class OwnDecoder(System):
    """The encoder's own decoder as a system; `knows` says whether it can write a language, by its BCP 47 tag."""

    knows: Callable[[str], bool]


def own_decoder(
    section: Encoder, generation: Generation, seed: int, device: str = "cpu"
) -> OwnDecoder | None:
    """Return the decoder that comes with the encoder, for rows to transcribe; None if there is none."""
    section = located(section, "encoder")
    kind = next((kind for kind in DECODERS.values() if kind.is_offered(section.path)), None)
    if kind is None:
        return None
    decoder = kind(section, generation, seed, torch.device(device))

    @torch.inference_mode()
    def respond(rows: pl.DataFrame) -> list[str]:
        return decoder([waveform.load(audio) for audio in rows["audio"]], rows["language"].to_list())

    return OwnDecoder(batchwise(respond), decoder.decoding, device, decoder.knows, window=decoder.window)


def decodable(system: OwnDecoder, rows: pl.DataFrame) -> tuple[OwnDecoder, pl.DataFrame, str]:
    """Select the rows in languages that the decoder knows.

    Returns:
        the decoder, whose `decoding` says which rows are left out; the selected rows; a description of the others,
        by language, the most frequent first ("" if there are none).
    """
    unknown = Counter(tag for tag in rows["language"] if not system.knows(tag))
    if not unknown:
        return system, rows, ""
    ordered = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{tag}: {count}" for tag, count in ordered)
    words = f"{unknown.total()} utterances in languages that it does not know ({listed})"
    partial = replace(system, decoding=f"{system.decoding}; not over {words}")
    return partial, rows.filter(~pl.col("language").is_in(list(unknown))), words


DECODERS: dict[str, type[Decoder]] = {"ctc": CtcDecoder, "whisper": WhisperDecoder, "hub-ctc": HubCtcDecoder}
