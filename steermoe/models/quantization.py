"""A frozen LLM in fewer bits, by bitsandbytes: gradients go through it to the audio, it takes none itself.

int8: LLM.int8() (Dettmers et al. 2022); nf4: 4-bit NormalFloat with double quantization (QLoRA, Dettmers et al. 2023).
Embeddings, norms and output embeddings keep their type. The text skills are then those of the quantized LLM.
"""

import os
from importlib.util import find_spec
from typing import Any

import torch

from steermoe.registry import choose


def load_options(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """More arguments for transformers' `from_pretrained`; none for `none`.

    Args:
        name: row of QUANTIZATIONS.
        dtype: what the products are computed in.

    Raises:
        ValueError: there is no such row, bitsandbytes is not installed, or nf4 is asked for without a GPU: on CPUs
            it packs weights for inference at the first evaluation, and no gradient goes through them any more.
    """
    options: dict[str, Any] | None = choose(QUANTIZATIONS, name, "llm.quantization")
    if options is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"llm.quantization: found {name!r}, which needs bitsandbytes: pip install 'steermoe[quantization]'"
        )
    if "load_in_4bit" in options and not torch.cuda.is_available():
        raise ValueError(f"llm.quantization: found {name!r}, which needs a CUDA GPU; legal here: none, int8")
    from transformers import BitsAndBytesConfig

    if "load_in_4bit" in options:
        options = options | {"bnb_4bit_compute_dtype": dtype}
    place = int(os.environ.get("LOCAL_RANK", "0")) if torch.cuda.is_available() else "cpu"
    return {"quantization_config": BitsAndBytesConfig(**options), "device_map": {"": place}}


QUANTIZATIONS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
