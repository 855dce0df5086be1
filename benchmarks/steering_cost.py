"""What steering itself costs: a training step with it against one with the same encoder backward and without it.

Both arms run the same frozen models (random weights) on the same batch in turns. In the unsteered arm the output of
layer 0 asks for a gradient, so that the backward pass goes through the same layers of the encoder there, too.

    python benchmarks/steering_cost.py --width 384 --layers 6 --experts 8
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe import config
from steermoe.models.encoders.encoder import layer_hidden
from steermoe.models.llm import load_tokenizer
from steermoe.models.steermoe import SteerMoE

ROOT = Path(__file__).parents[1]
BATCH, PROMPT, TARGET = 4, 12, 40


def frozen_models(folder: Path, width: int, layers: int, vocabulary: int) -> tuple[str, str]:
    """A Whisper-like encoder and a Qwen2-like LLM (512 x 8) with random weights."""
    encoder, llm = folder / "encoder", folder / "llm"
    sizes = WhisperConfig(
        d_model=width, encoder_layers=layers, encoder_attention_heads=width // 64, encoder_ffn_dim=4 * width
    )
    WhisperEncoder(sizes).save_pretrained(encoder)
    WhisperFeatureExtractor().save_pretrained(encoder)
    tokenizer = load_tokenizer(str(ROOT / "pretrained/llm"))
    tokenizer.save_pretrained(llm)
    decoder = AutoConfig.for_model(
        "qwen2", hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=vocabulary, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(decoder).save_pretrained(llm)
    return str(encoder), str(llm)


def model(name: str, paths: tuple[str, str], experts: int) -> SteerMoE:
    """An arm of params.yaml over other frozen models."""
    arm = config.load(ROOT / "params.yaml").arm(name)
    changed: dict[str, Any] = {
        "encoder": arm.encoder.model_copy(update={"path": paths[0]}),
        "llm": arm.llm.model_copy(update={"path": paths[1]}),
    }
    if arm.steering is not None:
        changed["steering"] = arm.steering.model_copy(update={"num_experts": experts})
    return SteerMoE.from_config(arm.model_copy(update=changed)).train()


def batch(seconds: float, channels: int) -> dict[str, torch.Tensor]:
    """Clips of one length, a prompt, a target."""

    def ids(length: int) -> torch.Tensor:
        return torch.randint(5, 500, (BATCH, length))

    def full(length: int) -> torch.Tensor:
        return torch.full((BATCH,), length)

    frames = int(100 * seconds)
    return {
        "features": torch.randn(BATCH, channels, frames), "feature_lengths": full(frames),
        "prefix_ids": ids(0), "prefix_lengths": full(0), "prompt_ids": ids(PROMPT), "prompt_lengths": full(PROMPT),
        "target_ids": ids(TARGET), "target_lengths": full(TARGET),
    }  # fmt: skip


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--repeats", type=int, default=30)
    chosen = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = frozen_models(Path(folder), chosen.width, chosen.layers, chosen.vocabulary)
        steered, plain = (model(name, paths, chosen.experts).to(device) for name in ("steermoe", "linear"))
    plain.encoder.layers[0].register_forward_hook(
        lambda layer, args, output: layer_hidden(output).requires_grad_()
    )
    inputs = {
        name: tensor.to(device)
        for name, tensor in batch(chosen.seconds, steered.encoder.features.channels).items()
    }
    arms = {"without": plain, "steering": steered}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(chosen.repeats + 3):
        for name, arm in arms.items():
            began = time.process_time() if device == "cpu" else time.perf_counter()
            arm(**inputs).loss.backward()
            if device == "cuda":
                torch.cuda.synchronize()
            took = (time.process_time() if device == "cpu" else time.perf_counter()) - began
            if repeat >= 3:
                seconds[name].append(took)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["steering"], seconds["without"], strict=True)]
    low, high = statistics.quantiles(ratios, n=10)[0], statistics.quantiles(ratios, n=10)[-1]
    clock = "CPU seconds" if device == "cpu" else "seconds"
    print(f"{platform.machine()}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"encoder {chosen.width} x {chosen.layers}, {chosen.experts} experts, {BATCH} clips of {chosen.seconds:g} s"
    )
    print(
        f"{clock} a step, median of {chosen.repeats}: "
        + ", ".join(f"{v:.4f} {k}" for k, v in medians.items())
    )
    print(
        f"steering costs {100 * (statistics.median(ratios) - 1):+.1f} % "
        f"(10 to 90 % of the pairs: {100 * (low - 1):+.1f} to {100 * (high - 1):+.1f})"
    )


if __name__ == "__main__":
    main()
