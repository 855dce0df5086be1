"""Training at full size: Whisper-large-v3 and Qwen2.5-7B by their shapes, random weights in bfloat16, on one GPU.

    python -m benchmarks.full_size [--max-batch-seconds 51 160 320 640] [--minutes 7] [--compile] [--attention sdpa]
    python -m benchmarks.full_size --tiny            # a few layers on the CPU: does the script work?

Clips are as long as LibriSpeech's train-clean-100 (mean 12.69 s; its quantiles, roughly), in batches of so many audio
seconds, padding included, as training makes them. Reported: audio hours per hour; the share of the floor, which are
the matrix products that cannot be avoided (steermoe/analysis/parameters.py) at the rate of a large product in the same
run; memory; and where the time goes. Times of the parts are taken as the gradient passes by, without stopping the
device;
steering's are the difference to the same step without it, the same layers back-propagated. Larger batches are left
out once memory or the minutes are used up.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from benchmarks.shapes import ROOT, batch, machine, table, variant
from steermoe.analysis import parameters
from steermoe.config import VariantConfig
from steermoe.data.batching import bucketed_batches
from steermoe.models.encoders.encoder import layer_hidden
from steermoe.models.llm import decoder_layers, load_tokenizer
from steermoe.models.pretrained import DTYPES
from steermoe.models.steermoe import SteerMoE
from steermoe.training.optim import adamw

MEAN = 12.69  # seconds
QUANTILES = (
    (0.0, 1.5),
    (0.05, 4.0),
    (0.1, 6.0),
    (0.25, 11.2),
    (0.5, 13.8),
    (0.75, 15.2),
    (0.95, 16.2),
    (1.0, 24.0),
)
TOKENS_A_SECOND, PROMPT = 3.5, 12
BATCHES = 8  # of a measurement
PARTS = (
    "data",
    "encoder forward",
    "projector",
    "LLM forward",
    "head",
    "LLM backward",
    "encoder backward",
    "optimizer",
)
GOAL = 0.6  # of the unpadded floor
TINY = {
    "encoder": {"d_model": 64, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 128},
    "llm": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": 1000},
}  # fmt: skip


def lengths(clips: int, seed: int = 0) -> list[float]:
    """Seconds of so many clips."""
    shares, seconds = zip(*QUANTILES, strict=True)
    drawn = np.interp(np.random.default_rng(seed).uniform(size=clips), shares, seconds)
    return [float(each) for each in drawn * MEAN / drawn.mean()]


def random_model(
    encoder: PreTrainedConfig, llm: PreTrainedConfig, device: str, attention: str
) -> tuple[SteerMoE, VariantConfig]:
    """The assembly over frozen models that are made on the device: 17 GB go over no disk."""

    def load(kind: Any, path: str, dtype: str, setting: str, **_: Any) -> Any:
        sizes = AutoConfig.from_pretrained(path, attn_implementation=attention)
        with torch.device(device):
            make = AutoModelForCausalLM.from_config if setting == "llm" else kind._from_config
            return make(sizes, dtype=DTYPES[dtype]).requires_grad_(False).eval()

    with tempfile.TemporaryDirectory() as folder:
        paths = f"{folder}/encoder", f"{folder}/llm"
        encoder.save_pretrained(paths[0])
        llm.save_pretrained(paths[1])
        load_tokenizer(str(ROOT / "pretrained/llm")).save_pretrained(paths[1])
        chosen = variant("steermoe", paths)
        frozen = {
            part: getattr(chosen, part).model_copy(update={"dtype": "bfloat16"})
            for part in ("encoder", "llm")
        }
        chosen = chosen.model_copy(update=frozen)
        with (
            patch("steermoe.models.encoders.whisper.load_frozen", load),
            patch("steermoe.models.llm.load_frozen", load),
        ):
            return SteerMoE.from_config(chosen).to(device).train(), chosen


class Clock:
    """Marks on the device's own time line."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """The part `name` ends here."""
        now: Any = time.perf_counter()
        if self.cuda:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self.marks.append((name, now))

    def parts(self) -> dict[str, float]:
        """Seconds of each part since the one before it; forgets them."""
        if self.cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (_, before), (name, now) in zip(self.marks, self.marks[1:], strict=False):
            took = before.elapsed_time(now) / 1000 if self.cuda else now - before
            found[name] = found.get(name, 0.0) + took
        self.marks.clear()
        return found


def watch(assembly: SteerMoE, clock: Clock) -> None:
    """Have the passing of features and gradients marked."""

    def heard(module: Any, args: Any, output: Any) -> None:
        clock.mark("encoder forward")
        output[0].register_hook(lambda gradient: clock.mark("LLM backward"))

    def read(module: Any, args: Any, output: Any) -> None:
        clock.mark("LLM forward")
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda gradient: clock.mark("head"))

    assembly.encoder.register_forward_hook(heard)
    assembly.llm.base_model.register_forward_pre_hook(lambda *_: clock.mark("projector"))
    assembly.llm.base_model.register_forward_hook(read)


def make_step(assembly: SteerMoE, clock: Clock, device: str) -> Callable[[dict[str, torch.Tensor]], None]:
    training = assembly.config.training
    optimizer = adamw(assembly.parameter_groups(), training.learning_rates, training.weight_decay)

    def step(clips: dict[str, torch.Tensor]) -> None:
        clock.mark("")
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in clips.items()}
        clock.mark("data")
        with torch.autocast(device, torch.bfloat16):
            loss = assembly(**moved).loss
        clock.mark("head")
        assert loss is not None
        loss.backward()
        clock.mark("encoder backward")
        torch.nn.utils.clip_grad_norm_(assembly.parameters(), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        clock.mark("optimizer")

    return step


def without_steering(assembly: SteerMoE, step: Callable[[], None]) -> None:
    """A step whose gradient goes through the same layers of the encoder, and nothing is steered."""
    steering = assembly.steering
    assert steering is not None
    hook = assembly.encoder.layers[0].register_forward_hook(
        lambda layer, args, output: layer_hidden(output).requires_grad_()
    )
    with steering.disabled():
        step()
    hook.remove()


def product_rate(device: str) -> float:
    """Operations a second of a large bfloat16 product."""
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        clock = Clock(device)
        clock.mark("")
        for _ in range(4):
            a @ b
        clock.mark("product")
        best = min(best, clock.parts()["product"] / 4)
    return 2 * size**3 / best


def measure(
    assembly: SteerMoE,
    seconds: Sequence[float],
    max_batch_seconds: float,
    floor: Callable[[float], float],
    device: str,
) -> tuple[list[str], dict[str, float]]:
    """A row of the table, and the shares of the parts, by batches of so many seconds."""
    clock = Clock(device)
    hooks_before = [dict(m._forward_hooks) for m in (assembly.encoder, assembly.llm.base_model)]
    watch(assembly, clock)
    step = make_step(assembly, clock, device)
    plans = [plan for plan in bucketed_batches(seconds, max_batch_seconds, seed=0, epoch=0) if plan][:BATCHES]
    batches = []
    for plan in plans:
        clips = [seconds[row] for row in plan]
        target = max(1, round(TOKENS_A_SECOND * max(clips)))
        made = batch(clips, assembly.features.channels, PROMPT, target)
        made["target_lengths"] = torch.tensor([max(1, round(TOKENS_A_SECOND * each)) for each in clips])
        behind = torch.arange(target) >= made["target_lengths"][:, None]
        made["target_ids"] = made["target_ids"].masked_fill(behind, -100)
        if device == "cuda":
            made = {name: tensor.pin_memory() for name, tensor in made.items()}
        batches.append(made)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for made in batches[:3]:
        step(made)
    clock.parts()
    parts: dict[str, list[float]] = {}
    plain, totals = [], []
    for made in batches:
        step(made)
        found = clock.parts()
        totals.append(sum(found.values()))
        for name, took in found.items():
            parts.setdefault(name, []).append(took)
        without_steering(assembly, lambda made=made: step(made))
        plain.append(sum(clock.parts().values()))
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    heard = sum(seconds[row] for plan in plans for row in plan)
    least = sum(floor(seconds[row]) for plan in plans for row in plan)
    took = sum(totals)
    shares = {name: sum(parts.get(name, [0.0])) / took for name in PARTS}
    shares["steering, of these"] = 1 - sum(plain) / took
    for module, before in zip((assembly.encoder, assembly.llm.base_model), hooks_before, strict=True):
        module._forward_hooks.clear()
        module._forward_hooks.update(before)
    assembly.llm.base_model._forward_pre_hooks.clear()
    row = [
        f"{max_batch_seconds:g} s", f"{statistics.mean(map(len, plans)):.1f}", f"{statistics.median(totals):.3f}",
        f"{heard / took:.0f}", f"{100 * least / took:.0f} %", f"{memory:.1f}",
    ]  # fmt: skip
    return row, shares


def options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a few small layers, on the CPU if need be")
    parser.add_argument("--max-batch-seconds", type=float, nargs="+", default=[51, 160, 320, 640])
    parser.add_argument(
        "--minutes", type=float, default=7.0, help="begin no further batch size after so many"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile of every layer's forward")
    parser.add_argument("--attention", choices=["sdpa", "eager", "flash_attention_2"], default="sdpa")
    chosen = parser.parse_args()
    if not torch.cuda.is_available() and not chosen.tiny:
        parser.error(
            "full size needs a CUDA device of 24 GB or more, and there is none; --tiny runs anywhere"
        )
    return chosen


def configurations(tiny: bool) -> tuple[Any, Any]:
    """Return the configurations of encoder and LLM."""
    encoder, llm = parameters.ENCODERS["whisper-large-v3"], parameters.LLMS["qwen2.5-7b-instruct"]
    if tiny:
        encoder, llm = (
            type(sizes)(
                **{**sizes.to_dict(), **TINY[part], "layer_types": None}
                if part == "llm"
                else {**sizes.to_dict(), **TINY[part]}
            )
            for part, sizes in (("encoder", encoder), ("llm", llm))
        )
    return encoder, llm


def main() -> None:
    """Print tables in Markdown."""
    chosen = options()
    began = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, llm = configurations(chosen.tiny)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_pretrained(f"{folder}/encoder")
        llm.save_pretrained(f"{folder}/llm")
        shapes = parameters.encoder_shape(f"{folder}/encoder"), parameters.llm_shape(f"{folder}/llm")
    assembly, settings = random_model(encoder, llm, device, chosen.attention)
    if chosen.compile:
        for layer in [*assembly.encoder.layers, *decoder_layers(assembly.llm)]:
            layer.forward = torch.compile(layer.forward, dynamic=True)
    rate = product_rate(device)
    trained = {part: sum(p.numel() for p in ps) for part, ps in assembly.parameter_groups().items()}

    def floor(seconds: float) -> float:
        target = round(TOKENS_A_SECOND * seconds)
        return sum(parameters.operations(settings, *shapes, trained, seconds, PROMPT, target).values()) / rate

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}; {machine()}; product {rate / 1e12:.2f} TFLOP/s; attention {chosen.attention}")
    print(
        f"frozen {sum(p.numel() for p in assembly.parameters() if not p.requires_grad) / 1e9:.3f} billion\n"
    )
    rows, columns = [], []
    for max_batch_seconds in chosen.max_batch_seconds:
        if (time.perf_counter() - began) / 60 > chosen.minutes:
            print(f"{max_batch_seconds:g} s and more: no time left")
            break
        try:
            seconds = lengths(max(64, round(BATCHES * 2 * max_batch_seconds / MEAN)))
            row, shares = measure(assembly, seconds, max_batch_seconds, floor, device)
        except torch.cuda.OutOfMemoryError:
            print(f"{max_batch_seconds:g} s and more: no memory left")
            break
        rows.append(row)
        columns.append(shares)
    head = ["batch", "clips", "s / step", "audio h / h", f"share of floor (goal {GOAL:.0%})", "GiB"]
    print(table(head, rows), "\n")
    names = [*PARTS, "steering, of these"]
    print(table(["share of the step", *(row[0] for row in rows)], [
        [name, *(f"{100 * shares[name]:.1f} %" for shares in columns)] for name in names
    ]))  # fmt: skip
    print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes in all")


if __name__ == "__main__":
    main()
