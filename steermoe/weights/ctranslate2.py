"""Convert a Whisper in CTranslate2's format, as faster-whisper has it, to the format of Hugging Face.

The layout of `model.bin` is that of CTranslate2's `ModelSpec` (converters, MIT licence): little-endian; version, name
of the specification, its revision; the variables with name, shape, type and bytes; aliases of variables. Values are
copied as they are.
"""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FILE, SPECIFICATION = "model.bin", "WhisperSpec"
VERSIONS = (5, 6)  # of the container
TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
FLOATS = (0, 4)
END, START, PREVIOUS, PLAIN = "<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"
TASKS = ("transcribe", "translate")
MULTILINGUAL = 51865  # tokens, or more
STEP = 0.02  # seconds between timestamps
ATTENTION = {"self_attention": "self_attn", "attention": "encoder_attn"}
NORM = {"gamma": "weight", "beta": "bias"}
PLACES = {  # of variables outside of the layers
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
    "layer_norm": "layer_norm",
    "conv1": "conv1",
    "conv2": "conv2",
}
LAYER = re.compile(r"layer_(\d+)/(\w+)/(\w+)/(\w+)")
Arrays = dict[str, np.ndarray]


def is_ctranslate2(folder: Path) -> bool:
    """Return whether a folder has a Whisper of CTranslate2, and nothing that transformers reads."""
    if not (folder / FILE).is_file() or any(folder.glob("*.safetensors")):
        return False
    with (folder / FILE).open("rb") as file:
        head = file.read(6 + len(SPECIFICATION))
    return len(head) > 6 and head[6:] == SPECIFICATION.encode()


def convert(source: Path, out: Path) -> None:
    """Write a whole Whisper that transformers loads: weights, configuration, tokenizer, feature extractor.

    Args:
        source: folder with model.bin, tokenizer.json, and config.json for what is suppressed in decoding.
        out: folder to write into.

    Raises:
        ValueError: a file is missing or damaged, or the model is not a Whisper in float16 or float32.
    """
    from safetensors.numpy import save_file

    variables = read(source / FILE)
    try:
        tensors = dict(_tensors(variables))
        sizes = _sizes(variables, tensors)
        _check(tensors, sizes)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{source / FILE}: cannot be converted: {error}") from error
    tokenizer = _tokenizer(source / "tokenizer.json", sizes["vocab_size"])
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    _save_settings(sizes, tokenizer, source, out)


def read(path: Path) -> Arrays:
    """Return the variables of a `model.bin` by name, as views of the file.

    Raises:
        ValueError: the file is damaged, or of another version or specification.
    """
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    reader = _Reader(data)
    try:
        version, name, _ = reader.number("I"), reader.text(), reader.number("I")
        if version not in VERSIONS or name != SPECIFICATION:
            raise ValueError(
                f"{path}: found version {version} of {name!r}; expected {SPECIFICATION} of version "
                f"{' or '.join(map(str, VERSIONS))}"
            )
        found: Arrays = {}
        for _ in range(reader.number("I")):
            name, rank = reader.text(), reader.number("B")
            shape = [reader.number("I") for _ in range(rank)]
            kind, size = reader.number("B"), reader.number("I")
            found[name] = reader.bytes(size).view(TYPES[kind]).reshape(shape)
        for _ in range(reader.number("I")):  # aliases: the output embeddings are tied
            alias, name = reader.text(), reader.text()
            found.setdefault(alias, found[name])
    except (struct.error, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged, or not a model of CTranslate2 ({error})") from error
    if reader.at != len(data):
        raise ValueError(f"{path}: damaged: {len(data) - reader.at} bytes follow after the last variable")
    return found


class _Reader:
    """Reads numbers, texts and bytes of a file one after another; struct.error behind its end."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.at = data, 0

    def bytes(self, size: int) -> np.ndarray:
        found = self.data[self.at : self.at + size]
        if len(found) != size:
            raise struct.error(f"{size} bytes expected at {self.at}, found {len(found)}")
        self.at += size
        return found

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.bytes(struct.calcsize(f"<{kind}")).tobytes())[0]

    def text(self) -> str:
        return self.bytes(self.number("H")).tobytes().decode().rstrip("\0")


def _tensors(variables: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weights under transformers' names; the scalars, which are settings, are left out."""
    for name, value in variables.items():
        if not value.ndim or name == "decoder/projection/weight" or "alignment" in name:
            continue
        if value.dtype not in (np.float16, np.float32):
            raise ValueError(
                f"{name} has the type {value.dtype}; only float16 and float32 can be converted: use the "
                "model without quantization"
            )
        side, _, rest = name.partition("/")
        if match := LAYER.fullmatch(rest):
            number, block, part, kind = match.groups()
            where = f"model.{side}.layers.{number}"
            yield from ((f"{where}.{each}", array) for each, array in _layer(block, part, kind, value))
        else:
            place, _, kind = rest.partition("/")
            if place not in PLACES:
                raise ValueError(f"found the variable {name}, which a Whisper does not have")
            yield (
                f"model.{side}.{PLACES[place]}.{NORM.get(kind, 'weight' if kind == 'encodings' else kind)}",
                value,
            )


def _layer(block: str, part: str, kind: str, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weights that a variable of a layer holds; queries, keys and values are stacked in one."""
    if block == "ffn":
        places = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}
        yield f"{places[part]}.{NORM.get(kind, kind)}", value
        return
    attention = ATTENTION[block]
    if part == "layer_norm":
        yield f"{attention}_layer_norm.{NORM[kind]}", value
        return
    stacks = {"self_attention": ["qkv", "o"], "attention": ["q", "kv", "o"]}[block]
    stack = stacks[int(part.removeprefix("linear_"))]
    for letter, array in zip(stack, np.split(value, len(stack)), strict=True):
        if letter == "k" and kind == "bias":
            if array.any():
                raise ValueError("the keys have a bias; Whisper's have none")
            continue
        yield f"{attention}.{'out' if letter == 'o' else letter}_proj.{kind}", array


def _sizes(variables: Arrays, tensors: Arrays) -> dict[str, Any]:
    """Return the arguments of WhisperConfig that the shapes of the weights tell."""
    layers = {
        side: len({name.split(".")[3] for name in tensors if name.startswith(f"model.{side}.layers.")})
        for side in ("encoder", "decoder")
    }
    shapes = {name: array.shape for name, array in tensors.items()}
    width, mels = shapes["model.encoder.conv1.weight"][:2]
    sizes: dict[str, Any] = {
        "vocab_size": shapes["model.decoder.embed_tokens.weight"][0],
        "num_mel_bins": mels,
        "d_model": width,
        "max_source_positions": shapes["model.encoder.embed_positions.weight"][0],
        "max_target_positions": shapes["model.decoder.embed_positions.weight"][0],
    }
    for side, count in layers.items():
        heads = variables.get(f"{side}/num_heads")
        sizes |= {
            f"{side}_layers": count,
            f"{side}_attention_heads": width // 64 if heads is None else int(heads),
            f"{side}_ffn_dim": shapes[f"model.{side}.layers.0.fc1.weight"][0],
        }
    return sizes


def _check(tensors: Arrays, sizes: dict[str, Any]) -> None:
    """Raise ValueError unless the weights are those of a Whisper of these sizes, by name and shape."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(**sizes, pad_token_id=0))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected.pop("proj_out.weight")  # tied
    found = {name: array.shape for name, array in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise ValueError(f"{', '.join(wrong[:5])} are missing, too many, or of another shape than Whisper's")


def _tokenizer(path: Path, vocabulary: int) -> Any:
    """Return the tokenizer, with the timestamps that CTranslate2's folders leave out."""
    from tokenizers import Tokenizer
    from transformers import AddedToken, PreTrainedTokenizerFast

    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; faster-whisper's folders have it; copy it from the original model"
        )
    described = json.loads(path.read_text(encoding="utf-8"))
    merges, ids = described["model"]["merges"], described["model"]["vocab"]
    if merges[0] == "Ġ a" and ids["Ġt"] < ids["Ġa"]:  # some converters took the first merge for a heading
        merges.insert(0, "Ġ t")
    special = [token["content"] for token in described["added_tokens"] if token["special"]]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), eos_token=END, bos_token=END, unk_token=END,
        pad_token=END, extra_special_tokens=[token for token in special if token != END],
    )  # fmt: skip
    times = [f"<|{STEP * step:.2f}|>" for step in range(vocabulary - len(tokenizer))]
    tokenizer.add_tokens([AddedToken(time, normalized=False, special=False) for time in times])
    return tokenizer


def _save_settings(sizes: dict[str, Any], tokenizer: Any, source: Path, out: Path) -> None:
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor

    described = {}
    if (source / "config.json").is_file():
        described = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tokens = tokenizer.get_vocab()
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokens[END])
    multilingual = bool(described.get("lang_ids")) or sizes["vocab_size"] >= MULTILINGUAL
    config = WhisperConfig(
        **sizes, **ends, decoder_start_token_id=tokens[START], dtype="float16",
        architectures=["WhisperForConditionalGeneration"],
    )  # fmt: skip
    config.save_pretrained(out)
    languages = range(tokens[START] + 1, min(tokens[f"<|{task}|>"] for task in TASKS))
    many = {
        "lang_to_id": {token: number for token, number in tokens.items() if number in languages},
        "task_to_id": {task: tokens[f"<|{task}|>"] for task in TASKS},
    }
    GenerationConfig(
        **ends, decoder_start_token_id=tokens[START], max_length=sizes["max_target_positions"],
        is_multilingual=multilingual, no_timestamps_token_id=tokens[PLAIN], prev_sot_token_id=tokens[PREVIOUS],
        max_initial_timestamp_index=50, return_timestamps=False,
        suppress_tokens=described.get("suppress_ids", []),
        begin_suppress_tokens=described.get("suppress_ids_begin", []),
        alignment_heads=described.get("alignment_heads", []), **(many if multilingual else {}),
    ).save_pretrained(out)  # fmt: skip
    seconds = (
        2 * sizes["max_source_positions"] // 100
    )  # features come at 100 a second, half as many positions
    WhisperFeatureExtractor(feature_size=sizes["num_mel_bins"], chunk_length=seconds).save_pretrained(out)
    tokenizer.save_pretrained(out)
    settings = out / "tokenizer_config.json"
    named = json.loads(settings.read_text(encoding="utf-8")) | {"tokenizer_class": "WhisperTokenizer"}
    settings.write_text(json.dumps(named, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
