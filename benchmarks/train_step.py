"""A training step beside the naive way: CPU seconds, and the memory at its peak.

    python -m benchmarks.train_step [--shape 384x6] [--vocabulary 32000 152064] [--seconds 10 30] [--repeats 3]
        [--precision float32 bfloat16]

Both ways run the same frozen models (random weights) with the same trained parameters on the same clips. The naive
way is what a first program does: every clip is padded to the encoder's whole window and every text to 448 tokens,
logits are computed at every position, and the router of all layers is evaluated at every layer. It attends to its
padding, as such a program does; told not to, it must give our loss and our gradients, which is asserted first, in
float32. In bfloat16 (the precision of both profiles) frozen weights are of that type and the step is under autocast,
here and there.

Seconds are of CPU time, of one thread, the ways in turns. Memory is what a step adds to the process
at its peak (Linux: VmHWM), apart from the timing. The floor is the matrix products that cannot be avoided
(steermoe/analysis/parameters.py) at the speed that a large product reaches in the same run.
"""

import argparse
import ctypes
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

from benchmarks.shapes import PROMPT, TARGET, batch, frozen_models, machine, model, spread, table
from steermoe.analysis.parameters import encoder_shape, llm_shape, operations
from steermoe.models.attention import ShortAttention
from steermoe.models.encoders.encoder import layer_hidden, valid_frames
from steermoe.models.steermoe import SteerMoE

SHAPES = {"64x2": (64, 2, 64, 2), "384x6": (384, 6, 512, 8), "1280x8": (1280, 8, 512, 8)}  # encoder, LLM
CLIPS, TEXT, CHANNELS = 4, 448, 80
GOALS = {(10.0, 152_064): 18.0, (10.0, 32_000): 8.0, (30.0, 152_064): 1.6, (30.0, 32_000): 1.6}
MEMORY = 0.2  # of the naive way's
Step = Callable[[], torch.Tensor]


@contextmanager
def router_of_all_layers(assembly: SteerMoE) -> Iterator[None]:
    """Steering as first written: all logits of all layers at every layer, and the slice taken afterwards."""
    steering = assembly.steering
    assert steering is not None
    whole: Any = steering.router.get_submodule("linear")

    def steer(index: int, layer: Any, args: Any, output: Any) -> Any:
        hidden_BSD = layer_hidden(output)
        gates_BSN = whole(hidden_BSD)[..., steering.rows[index]].softmax(-1)
        added_BSD = gates_BSN @ steering.vectors[steering.rows[index]]
        steered_BSD = hidden_BSD + steering.scales[index] * added_BSD
        return (steered_BSD, *output[1:]) if isinstance(output, tuple) else steered_BSD

    layers = assembly.encoder.layers
    hooks = [layer.register_forward_hook(partial(steer, index)) for index, layer in enumerate(layers)]
    with steering.disabled():
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def naive_loss(assembly: SteerMoE, clips: dict[str, torch.Tensor], masked: bool) -> torch.Tensor:
    """The loss of the naive way; `masked`: its padding is computed, but nothing attends to it."""
    encoder, llm = assembly.encoder, assembly.llm
    assert encoder.max_frames is not None
    window = 2 * encoder.max_frames
    features_BMT = pad(clips["features"], (0, window - clips["features"].shape[2]))
    lengths_B = clips["feature_lengths"] if masked else torch.full_like(clips["feature_lengths"], window)
    with router_of_all_layers(assembly):
        hidden_BSD, attended_B = encoder.stem(features_BMT, lengths_B)
        context = encoder.context(hidden_BSD, attended_B)
        for layer in encoder.layers:
            hidden_BSD = layer_hidden(layer(hidden_BSD, *context))
        hidden_BSD = encoder.finish(hidden_BSD)
    pooled_BAD, audio_B = assembly.downsample(hidden_BSD, encoder.output_lengths(lengths_B))
    none = pooled_BAD.new_zeros(len(audio_B), 0, 1)
    audio_BAH = assembly.projection(pooled_BAD, none, audio_B * 0)

    ids_BT = torch.zeros(len(audio_B), TEXT, dtype=torch.long)
    labels_BT = torch.full_like(ids_BT, -100)
    text_B = clips["prompt_lengths"] + clips["target_lengths"]
    for row, (prompt, end) in enumerate(zip(clips["prompt_lengths"], text_B, strict=True)):
        ids_BT[row, :prompt] = clips["prompt_ids"][row, :prompt]
        labels_BT[row, prompt:end] = ids_BT[row, prompt:end] = clips["target_ids"][row, : end - prompt]
    read_BWH = torch.cat([audio_BAH, llm.get_input_embeddings()(ids_BT)], 1)
    labels_BW = pad(labels_BT, (audio_BAH.shape[1], 0), value=-100)
    options: dict[str, Any] = {"attention_mask": torch.ones_like(labels_BW)}
    if masked:
        valid = [valid_frames(n, width) for n, width in ((audio_B, audio_BAH.shape[1]), (text_B, TEXT))]
        mask_BW = torch.cat(valid, 1).long()
        options = {"attention_mask": mask_BW, "position_ids": (mask_BW.cumsum(1) - 1).clamp(min=0)}
    return llm(inputs_embeds=read_BWH, labels=labels_BW, use_cache=False, **options).loss


def our_loss(assembly: SteerMoE, clips: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of our way."""
    with ShortAttention():
        loss = assembly(**clips).loss
    assert loss is not None
    return loss


def gradients(assembly: SteerMoE, step: Step) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a step and the gradient of every trained parameter."""
    assembly.zero_grad()
    loss = step()
    loss.backward()
    found = {n: p.grad.clone() for n, p in assembly.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


def assert_equal(assembly: SteerMoE, ours: Step, naive: Step, tolerance: float = 1e-3) -> None:
    """The two ways have one loss and one gradient.

    Raises:
        AssertionError: they do not; it names the parameter.
    """
    (our_loss, our_gradients), (loss, other) = (gradients(assembly, step) for step in (ours, naive))
    assert abs(our_loss - loss) <= tolerance * abs(loss), f"loss {our_loss} here, {loss} the naive way"
    assert our_gradients.keys() == other.keys() == assembly.trainable_state_dict().keys()
    for name, gradient in our_gradients.items():
        apart = float((gradient - other[name]).norm() / other[name].norm())
        assert apart <= tolerance, f"gradients of {name} are apart by {apart:.1e} of their norm"


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def taken(assembly: SteerMoE, step: Step, dtype: torch.dtype = torch.float32) -> float:
    """CPU seconds of a step."""
    assembly.zero_grad()
    gc.collect()
    began = time.process_time()
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        loss = step()
    loss.backward()
    return time.process_time() - began


def peak(assembly: SteerMoE, step: Step, dtype: torch.dtype) -> int:
    """Bytes that a step adds to the process at its peak."""
    assembly.zero_grad()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what glibc kept of the step before would be there already
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    taken(assembly, step, dtype)
    return max(2**20, _status("VmHWM") - before)


def product_rate(dtype: torch.dtype) -> float:
    """Operations a CPU second of a large matrix product: the best of some."""
    a, b = torch.randn(2, 1536, 1536).to(dtype)
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        a @ b
        best = min(best, time.process_time() - began)
    return 2 * 1536**3 / best


def unavoidable(assembly: SteerMoE, seconds: float) -> dict[str, float]:
    """Operations on one clip of the batch."""
    variant = assembly.config
    encoder = encoder_shape(variant.encoder.path, depth=variant.encoder.layers)
    llm = llm_shape(variant.llm.path, depth=variant.llm.layers)
    counts = {part: sum(p.numel() for p in ps) for part, ps in assembly.parameter_groups().items()}
    return operations(variant, encoder, llm, counts, seconds, PROMPT, TARGET)


def compare(
    shape: str, vocabulary: int, seconds: float, precision: str, repeats: int, check: bool
) -> tuple[list[str], bool]:
    """A row of the table, and whether the goals are met, where there are any."""
    width, layers, llm_width, llm_layers = SHAPES[shape]
    with tempfile.TemporaryDirectory() as folder:
        paths = frozen_models(Path(folder), width, layers, vocabulary, llm_width, llm_layers)
        clips = batch([seconds] * CLIPS, CHANNELS)
        if check:
            exact = model("steermoe", paths)
            assert_equal(
                exact, partial(our_loss, exact, clips), partial(naive_loss, exact, clips, masked=True)
            )
        assembly = model("steermoe", paths, dtype=precision)
        dtype = getattr(torch, precision)
        floor = CLIPS * sum(unavoidable(assembly, seconds).values()) / product_rate(dtype)
    ours, naive = partial(our_loss, assembly, clips), partial(naive_loss, assembly, clips, masked=False)
    steps: dict[str, Step] = {"ours": ours, "naive": naive}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    taken(assembly, ours, dtype)  # the first step chooses its kernels
    peaks = {name: peak(assembly, step, dtype) / 2**20 for name, step in steps.items()}
    for turn in range(-1, repeats):
        for name, step in steps.items():
            took = taken(assembly, step, dtype)
            cpu[name] += [took] * (turn >= 0)
    ratios = [a / b for a, b in zip(cpu["naive"], cpu["ours"], strict=True)]
    ours_s = statistics.median(cpu["ours"])
    goal = GOALS.get((seconds, vocabulary), 0.0) if shape != "64x2" else 0.0
    share = peaks["ours"] / peaks["naive"]
    met = statistics.median(ratios) >= goal and (seconds != 10 or not goal or share <= MEMORY)
    row = [
        f"{shape}, {vocabulary // 1000}k, {seconds:g} s, {precision}", spread(cpu["naive"]), spread(cpu["ours"]),
        spread(ratios), f"{goal:g}" if goal else "-", f"{peaks['naive']:.0f}", f"{peaks['ours']:.0f}",
        f"{1 / share:.1f}", f"{100 * floor / ours_s:.0f} %",
    ]  # fmt: skip
    return row, met


def main() -> None:
    """Print a table in Markdown; exit with 1 where a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=["384x6"], help="of encoder and LLM")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 152_064])
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 30.0])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), nargs="+", default=["float32"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--unchecked", action="store_true", help="time only; do not compare the gradients")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(machine())
    print(f"{CLIPS} clips, {PROMPT} prompt and {TARGET} target tokens each; median [least, most]\n")
    rows, met = [], True
    for sizes in product(chosen.shape, chosen.vocabulary, chosen.seconds, chosen.precision):
        row, good = compare(*sizes, chosen.repeats, not chosen.unchecked)
        rows.append(row)
        met &= good
    head = [
        "encoder, vocabulary, clip, precision",
        "naive, CPU s",
        "ours, CPU s",
        "times",
        "goal",
        "naive, MiB",
        "ours, MiB",
    ]
    print(table([*head, "times", "floor / ours"], rows))
    print("\nloss and gradients " + ("were not compared" if chosen.unchecked else "are equal"))
    sys.exit(not met)


if __name__ == "__main__":
    main()
