"""Pretrain the mini encoder: Whisper's architecture with a CTC head over words, supervised frame by frame.

The synthesiser knows when each word starts, so every 20 ms frame has a label: its word, or blank in gaps and
silence. Cross-entropy on those labels learns many times faster than CTC alone; a CTC term beside it makes the
collapsed sequence right.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import polars as pl
import torch
import typer
from rich.progress import track
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from pretrained import NOTICE
from steermoe.audio import io as waveform
from steermoe.audio.features import LogMel
from steermoe.config import Encoder
from steermoe.corpora import grammar
from steermoe.data.batching import bucketed_batches
from steermoe.models.encoders.whisper import Whisper

FRAMES_PER_SECOND = 50
BLANK = 0
TAIL = 2  # frames after the last loud one that still belong to the last word


class Speech:
    """Log-mels (float16, in memory), frame labels and words of one split.

    Attributes:
        mels: (M, T) each. labels: (S,) each, classes of the CTC head. words: classes of each utterance.
    """

    def __init__(self, folder: Path, split: str, features: LogMel, units: list[str], gap: int) -> None:
        frame = pl.concat(pl.read_parquet(path) for path in sorted(folder.glob(f"{split}-*.parquet")))
        classes = {unit: i + 1 for i, unit in enumerate(units)}
        self.texts: list[str] = frame["transcript"].to_list()
        self.words = [torch.tensor([classes[word] for word in text.split()]) for text in self.texts]
        self.seconds: list[float] = frame["seconds"].to_list()
        self.mels, self.labels = [], []
        columns = zip(frame["audio"], frame["onsets"].to_list(), self.words, strict=True)
        for audio, onsets, words in track(columns, f"read {split}", total=len(frame)):
            mel = features(waveform.load(audio))
            self.mels.append(mel.half())
            self.labels.append(frame_labels(mel, onsets, words, gap))

    def batch(self, chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded log-mels (B, M, T) and their lengths."""
        mels = [self.mels[i].float() for i in chosen]
        padded = pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2)
        return padded, torch.tensor([mel.shape[1] for mel in mels])


def frame_labels(mel: torch.Tensor, onsets: list[float], words: torch.Tensor, gap: int) -> torch.Tensor:
    """The class of every encoder frame: a word from `gap` frames after its onset to the next onset, else blank."""
    labels = torch.full(((mel.shape[1] + 1) // 2,), BLANK)
    energy = mel.mean(0)[::2]
    loud = torch.nonzero(energy > energy.max() - 1.0).flatten()
    ends = [*onsets[1:], (float(loud[-1]) + TAIL) / FRAMES_PER_SECOND]
    for word, start, end in zip(words.tolist(), onsets, ends, strict=True):
        labels[round(start * FRAMES_PER_SECOND) + gap : max(round(end * FRAMES_PER_SECOND), 0)] = word
    return labels


def mask_spans(rng: np.random.Generator, mels: torch.Tensor, lengths: torch.Tensor) -> None:
    """SpecAugment (Park et al. 2019) in place: two spans of frames and two of mels are zeroed in each row."""
    for row, length in zip(mels, lengths.tolist(), strict=True):
        for _ in range(2):
            start, width = rng.integers(0, length), rng.integers(0, 12)
            row[:, start : start + width] = 0
            start, width = rng.integers(0, len(row)), rng.integers(0, 10)
            row[start : start + width] = 0


@torch.no_grad()
def word_error_rate(encoder: Whisper, head: nn.Linear, speech: Speech, units: list[str]) -> float:
    """WER of the greedy CTC path."""
    hypotheses = [""] * len(speech.texts)
    for chosen in bucketed_batches(speech.seconds, 120.0, seed=None, epoch=0):
        hidden, lengths = encoder(*speech.batch(chosen))
        for i, path, length in zip(chosen, head(hidden).argmax(-1), lengths, strict=True):
            collapsed = torch.unique_consecutive(path[:length]).tolist()
            hypotheses[i] = " ".join(units[unit - 1] for unit in collapsed if unit != BLANK)
    return float(jiwer.wer(speech.texts, hypotheses))


def untrained(settings: dict[str, Any], folder: Path) -> Whisper:
    """A Whisper encoder with random weights, written to `folder` and wrapped as the library wraps any other."""
    config = WhisperConfig(
        d_model=settings["width"],
        encoder_layers=settings["layers"],
        encoder_attention_heads=settings["heads"],
        encoder_ffn_dim=settings["ffn"],
        num_mel_bins=settings["mels"],
        max_source_positions=settings["max_seconds"] * FRAMES_PER_SECOND,
        dropout=0.0,
    )
    config.update({"notice": NOTICE})
    model = WhisperEncoder(config)
    model.save_pretrained(folder)
    encoder = Whisper(
        Encoder(
            name="whisper", path=str(folder), revision=None, dtype="float32", window="unpadded", layers="all"
        )
    )
    encoder.model.requires_grad_(True).embed_positions.requires_grad_(False)
    return encoder


def loss_of(
    encoder: Whisper, head: nn.Linear, speech: Speech, chosen: list[int], rng: Any, ctc_weight: float
) -> Any:
    """Frame-wise cross-entropy and `ctc_weight` times CTC of one batch."""
    mels, lengths = speech.batch(chosen)
    mask_spans(rng, mels, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, lengths = encoder(mels, lengths)
        logits = head(hidden)
    logits = logits.float()
    labels = pad_sequence([speech.labels[i] for i in chosen], batch_first=True, padding_value=-100)
    words = [speech.words[i] for i in chosen]
    counts = torch.tensor([len(w) for w in words])
    ctc = F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), torch.cat(words), lengths, counts)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten()) + ctc_weight * ctc


def save(folder: Path, encoder: Whisper, head: nn.Linear, units: list[str], mels: int) -> None:
    """Write the encoder in Hugging Face format, its CTC head and the head's units; weights as float16."""
    encoder.model.half().save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)
    head_weights = {name: tensor.half().contiguous() for name, tensor in head.state_dict().items()}
    save_file(head_weights, folder / "ctc_head.safetensors")
    (folder / "ctc_units.json").write_text(json.dumps(units))


def main(params: Path, speech: Path, out: Path) -> None:
    """Train on the shards in SPEECH as PARAMS says; write the encoder to OUT."""
    settings = YAML(typ="safe").load(params)["encoder"]
    torch.manual_seed(settings["seed"])
    rng = np.random.default_rng(settings["seed"])
    units, features = grammar.vocabulary(), LogMel(settings["mels"])
    dev, train = (
        Speech(speech, split, features, units, settings["word_gap_frames"]) for split in ("dev", "train")
    )
    out.mkdir(parents=True, exist_ok=True)
    encoder, head = untrained(settings, out), nn.Linear(settings["width"], len(units) + 1)
    trained = [p for p in [*encoder.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, settings["learning_rate"], weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min(
            (i + 1) / settings["warmup_steps"], 0.5 + 0.5 * math.cos(math.pi * i / settings["steps"])
        ),
    )
    began, epoch, queue = time.time(), 0, []
    for step in range(1, settings["steps"] + 1):
        if not queue:
            queue = bucketed_batches(train.seconds, settings["max_batch_seconds"], settings["seed"], epoch)
            epoch += 1
        loss = loss_of(encoder, head, train, queue.pop(), rng, settings["ctc_weight"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == settings["steps"]:
            print(
                f"step {step}: loss {loss.item():.3f}, {(time.time() - began) / step:.2f} s/step", flush=True
            )
        if step % 500 == 0 or step == settings["steps"]:
            print(f"step {step}: dev WER {word_error_rate(encoder, head, dev, units):.4f}", flush=True)
    save(out, encoder, head, units, settings["mels"])


if __name__ == "__main__":
    typer.run(main)
