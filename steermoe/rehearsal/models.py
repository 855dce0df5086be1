"""Tiny models with random weights, of the classes and with the files of the real ones."""

from pathlib import Path
from typing import Any

import torch

from steermoe.rehearsal.texts import every_word

WIDTH = 32
VOCABULARY = 480
END = "<|endoftext|>"
WHISPER_TOKENS = ("<|startoftranscript|>", "<|en|>", "<|zh|>", "<|de|>", "<|es|>", "<|fr|>", "<|translate|>",
                  "<|transcribe|>", "<|startofprev|>", "<|notimestamps|>")  # fmt: skip
CHAT_TEMPLATE = (  # ChatML, as Qwen2.5-Instruct has it, without tools
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_models(seed: int, out: Path) -> None:
    """Write `whisper`, `conformer`, `qwen` and `qwen-small` into folders of `out`."""
    torch.manual_seed(seed)
    whisper(out / "whisper")
    conformer(out / "conformer")
    qwen(out / "qwen", layers=2)
    qwen(out / "qwen-small", layers=1)


def tokenizer(tokens: tuple[str, ...]) -> Any:
    """A byte-level BPE, as Whisper's and Qwen's are, trained on what is said here; `tokens` are special."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(every_word(), vocab_size=VOCABULARY, min_frequency=1, special_tokens=[END])
    made = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=END)
    made.add_special_tokens({"additional_special_tokens": list(tokens)})
    return made


def whisper(folder: Path) -> None:
    """A whole multilingual Whisper of 128 bands and 30 s, as large-v3."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    times = tuple(f"<|{0.02 * step:.2f}|>" for step in range(1501))
    words = tokenizer((*WHISPER_TOKENS, *times))
    ids = dict(zip(WHISPER_TOKENS, words.convert_tokens_to_ids(list(WHISPER_TOKENS)), strict=True))
    end, start = words.eos_token_id, ids["<|startoftranscript|>"]
    sizes = WhisperConfig(
        d_model=WIDTH, encoder_layers=3, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=2 * WIDTH, decoder_ffn_dim=2 * WIDTH, num_mel_bins=128, max_source_positions=1500,
        max_target_positions=64, vocab_size=len(words), init_std=0.2, decoder_start_token_id=start,
        eos_token_id=end, bos_token_id=end, pad_token_id=end, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(sizes)
    languages = {name: ids[name] for name in WHISPER_TOKENS[1:6]}
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start, eos_token_id=end, pad_token_id=end, bos_token_id=end, is_multilingual=True,
        lang_to_id=languages, task_to_id={"translate": ids["<|translate|>"], "transcribe": ids["<|transcribe|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"], max_length=64, max_initial_timestamp_index=50,
        prev_sot_token_id=ids["<|startofprev|>"],
    )  # fmt: skip
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)


def conformer(folder: Path) -> None:
    """FireRedASR's encoder, as `firered_convert` writes it."""
    from steermoe.models.encoders.firered import FireRedConfig, FireRedConformer

    sizes = FireRedConfig(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, conv_kernel_size=7)
    model = FireRedConformer(sizes)
    with torch.no_grad():
        model.cmvn.mean.fill_(10.0)  # of log filter banks of 16-bit samples, about
        model.cmvn.inverse_std.fill_(0.25)
    model.save_pretrained(folder)


def qwen(folder: Path, layers: int) -> None:
    """An instruction-tuned Qwen2 in small: chat template, stop tokens, generation settings that ask for sampling."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    words = tokenizer(("<|im_start|>", "<|im_end|>"))
    words.chat_template = CHAT_TEMPLATE
    end = words.eos_token_id
    sizes = Qwen2Config(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.2,
        bos_token_id=None, eos_token_id=end, pad_token_id=end, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(sizes)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05, eos_token_id=end,
        pad_token_id=end,
    )  # fmt: skip
    model.save_pretrained(folder)
    words.save_pretrained(folder)
