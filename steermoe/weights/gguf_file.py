"""Convert a GGUF file, as llama.cpp reads it, to the format of Hugging Face; quantised weights become float32.

transformers reads the file (with the package `gguf`): weights, configuration, tokenizer, chat template. The model that
it returns keeps the file's quantisation as a setting and refuses to be saved, so its weights are written here.
"""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from importlib.util import find_spec
from pathlib import Path

MAGIC = b"GGUF"
PARTS = "-00001-of-"  # in the name of the first file of several


def is_gguf(path: Path) -> bool:
    """Return whether a file has GGUF's first bytes, or else its suffix."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"


def convert(source: Path, out: Path) -> None:
    """Write a causal LM with its tokenizer that transformers loads.

    Args:
        source: a GGUF file.
        out: folder to write into.

    Raises:
        ValueError: the file is damaged, one of several, or of an architecture that transformers does not read; or the
            package gguf is missing.
    """
    if find_spec("gguf") is None:
        raise ValueError(f"{source}: reading it needs the package gguf: pip install gguf")
    if PARTS in source.name:
        raise ValueError(f"{source}: one of several files; join them with llama.cpp's gguf-split --merge")
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                source.parent, gguf_file=source.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        except Exception as error:  # a damaged file fails anywhere in the reader
            raise ValueError(
                f"{source}: damaged, or not a model that transformers reads from GGUF: {error}"
            ) from error
    out.mkdir(parents=True, exist_ok=True)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    weights = {tensor.data_ptr(): (name, tensor) for name, tensor in reversed(model.state_dict().items())}
    save_file(  # of tied ones the first, which is the embedding table
        {name: tensor.contiguous() for name, tensor in weights.values()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what transformers logs of settings that a GGUF file lacks, and its bars where there is no terminal."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
