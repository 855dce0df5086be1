"""Whole Whispers with random weights, whose window is 4 s."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)


def sized(vocabulary: int, start: int, end: int, **others: Any) -> WhisperConfig:
    """A tiny one's configuration, by the tokens that begin and end a text."""
    return WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=80, max_source_positions=200,
        max_target_positions=64, vocab_size=vocabulary, decoder_start_token_id=start,
        eos_token_id=end, bos_token_id=end, pad_token_id=end, suppress_tokens=None,
        begin_suppress_tokens=None, **others,
    )  # fmt: skip


def save_multilingual(folder: Path, tiny_llm_dir: Path) -> Path:
    """Save one with the special tokens of a multilingual Whisper, timestamps of its window among them."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_llm_dir)
    names = ["<|startoftranscript|>", "<|en|>", "<|de|>", "<|zh|>", "<|translate|>", "<|transcribe|>"]
    names += ["<|startofprev|>", "<|notimestamps|>"] + [f"<|{0.02 * step:.2f}|>" for step in range(201)]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.save_pretrained(folder)
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
    end, start = tokenizer.eos_token_id, ids["<|startoftranscript|>"]
    torch.manual_seed(6)
    sizes = sized(len(tokenizer), start, end, init_std=0.5)
    model = WhisperForConditionalGeneration(sizes)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start, eos_token_id=end, pad_token_id=end, bos_token_id=end,
        is_multilingual=True, no_timestamps_token_id=ids["<|notimestamps|>"], max_initial_timestamp_index=50,
        prev_sot_token_id=ids["<|startofprev|>"],
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in ("en", "de", "zh")},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")},
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=4).save_pretrained(folder)
    return folder
