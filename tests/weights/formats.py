"""Write models in other formats, to be converted: CTranslate2's Whisper, GGUF's Llama, and wheels."""

import base64
import hashlib
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, LlamaForCausalLM, WhisperForConditionalGeneration

KINDS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def save_ctranslate2(model: WhisperForConditionalGeneration, folder: Path, dtype: str = "float32") -> Path:
    """Write model.bin of a Whisper, as CTranslate2's converter does."""
    weights = {name: tensor.numpy().astype(dtype) for name, tensor in model.state_dict().items()}
    found: dict[str, Any] = {}
    for side, layers, heads in (
        ("encoder", model.config.encoder_layers, model.config.encoder_attention_heads),
        ("decoder", model.config.decoder_layers, model.config.decoder_attention_heads),
    ):
        found[f"{side}/num_heads"] = np.array(heads, np.int16)
        found[f"{side}/position_encodings/encodings"] = weights[f"model.{side}.embed_positions.weight"]
        found |= norm(f"{side}/layer_norm", weights, f"model.{side}.layer_norm")
        for n in range(layers):
            ours, theirs = f"model.{side}.layers.{n}", f"{side}/layer_{n}"
            found |= attention(f"{theirs}/self_attention", weights, f"{ours}.self_attn", ("qkv", "o"))
            if side == "decoder":
                found |= attention(f"{theirs}/attention", weights, f"{ours}.encoder_attn", ("q", "kv", "o"))
            found |= norm(f"{theirs}/ffn/layer_norm", weights, f"{ours}.final_layer_norm")
            for kind in ("weight", "bias"):
                found[f"{theirs}/ffn/linear_0/{kind}"] = weights[f"{ours}.fc1.{kind}"]
                found[f"{theirs}/ffn/linear_1/{kind}"] = weights[f"{ours}.fc2.{kind}"]
    for name in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            found[f"encoder/{name}/{kind}"] = weights[f"model.encoder.{name}.{kind}"]
    found["decoder/embeddings/weight"] = weights["model.decoder.embed_tokens.weight"]
    write_variables(found, {"decoder/projection/weight": "decoder/embeddings/weight"}, folder / "model.bin")
    return folder


def attention(
    name: str, weights: Mapping[str, np.ndarray], ours: str, stacks: tuple[str, ...]
) -> dict[str, np.ndarray]:
    found = norm(f"{name}/layer_norm", weights, f"{ours}_layer_norm")
    for n, stack in enumerate(stacks):
        parts = [f"{ours}.{'out' if letter == 'o' else letter}_proj" for letter in stack]
        found[f"{name}/linear_{n}/weight"] = np.concatenate([weights[f"{part}.weight"] for part in parts])
        nothing = np.zeros_like(weights[f"{ours}.q_proj.bias"])
        found[f"{name}/linear_{n}/bias"] = np.concatenate([weights.get(f"{p}.bias", nothing) for p in parts])
    return found


def norm(name: str, weights: Mapping[str, np.ndarray], ours: str) -> dict[str, np.ndarray]:
    return {f"{name}/gamma": weights[f"{ours}.weight"], f"{name}/beta": weights[f"{ours}.bias"]}


def write_variables(variables: Mapping[str, np.ndarray], aliases: Mapping[str, str], path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables)))
        for name, array in variables.items():
            file.write(text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape))
            file.write(struct.pack("<BI", KINDS[array.dtype.name], array.nbytes) + array.tobytes())
        file.write(struct.pack("<I", len(aliases)))
        for alias, name in aliases.items():
            file.write(text(alias) + text(name))


def save_gguf(folder: Path, path: Path) -> Path:
    """Write the Llama of a folder as llama.cpp's converter does: rows of queries and keys in another order."""
    from gguf import GGUFWriter

    llm = LlamaForCausalLM.from_pretrained(folder)
    settings: Any = llm.config
    weights = {name: tensor.numpy() for name, tensor in llm.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_freq_base(settings.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(settings.hidden_size // settings.num_attention_heads)
    writer.add_vocab_size(settings.vocab_size)
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.convert_ids_to_tokens(list(range(settings.vocab_size)))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in described["merges"]]
    )
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.eos_token_id)
    writer.add_chat_template("{% for turn in messages %}{{ turn.content }}{% endfor %}")
    heads = {"q_proj": settings.num_attention_heads, "k_proj": settings.num_key_value_heads}
    for name, array in weights.items():
        part = name.split(".")[-2]
        if part in heads:
            halves = array.reshape(heads[part], 2, -1, array.shape[1])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(gguf_name(name), array.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    outside = {
        "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }  # fmt: skip
    inside = {
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
        "up_proj": "ffn_up", "down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    if name in outside:
        return outside[name]
    parts = name.split(".")
    return f"blk.{parts[2]}.{inside[parts[-2]]}.weight"


def save_wheel(folder: Path, name: str, files: Mapping[str, bytes], version: str = "1.0") -> Path:
    """Write a wheel with some files in it, which pip accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    content = dict(files) | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }

    def line(path: str, data: bytes) -> str:
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        return f"{path},sha256={digest},{len(data)}\n"

    content[f"{info}/RECORD"] = "".join(line(*item) for item in content.items()).encode()
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as zipped:
        for path, data in content.items():
            zipped.writestr(path, data)
    return wheel
