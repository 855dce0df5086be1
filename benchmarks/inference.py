"""Real-time factors of transcribing, one by one and in batches; latency of a first token and of streaming.

    python benchmarks/inference.py [--minutes 5] [--model pretrained/adapters/mini/steermoe]

The real-time factor is the time taken divided by the length of the audio, silence included. The load of the machine
is printed with the figures: on a busy one they are upper bounds.
"""

import argparse
import os
import statistics
import time
from functools import partial

import numpy as np
import torch

from steermoe import SteerMoE
from steermoe.asr.recognizer import Recognizer
from steermoe.audio import synthesis
from steermoe.audio.io import RATE
from steermoe.audio.vad import VoiceActivity
from steermoe.corpora import grammar, synthetic
from steermoe.data.dataset import Item, collate
from steermoe.data.prompts import encode_texts, texts_around
from steermoe.models.continuous_batching import DecodeSlots
from steermoe.models.generation import GREEDY
from steermoe.models.inference import prompts_of


def sentences(minutes: float) -> list[np.ndarray]:
    """Sentences with 0.8 s of silence behind each, together so long."""
    rng, engine = np.random.default_rng(13), synthesis.Synthesizer()
    texts, found, seconds = grammar.sentences(rng, "test"), [], 0.0
    while seconds < 60 * minutes:
        cast = synthetic.CASTS["clean"]
        samples, _, _ = synthetic.record(engine, rng, next(texts).text, cast, "clean")
        found.append(np.pad(samples, (0, int(0.8 * RATE))).astype(np.float32))
        seconds += len(found[-1]) / RATE
    return found


def paced(samples: np.ndarray, block: int = RATE // 10):
    """Blocks of 0.1 s in real time, each with the moment at which it was due."""
    begin = time.monotonic()
    for first in range(0, len(samples), block):
        due = begin + min(first + block, len(samples)) / RATE
        time.sleep(max(0.0, due - time.monotonic()))
        yield due, samples[first : first + block]


def first_token(model: SteerMoE, samples: np.ndarray) -> float:
    """Seconds from a waveform to the first token of its transcript."""
    begin = time.perf_counter()
    texts = texts_around(model.config.prompts, model.tokenizer, model.config.prompts.transcribe, None)
    ids = encode_texts(model.tokenizer, *texts)
    item: Item = {
        "features": model.features(samples), "prefix_ids": ids.prefix, "prompt_ids": ids.suffix,
        "target_ids": [], "index": 0,
    }  # fmt: skip
    with torch.no_grad():
        slots = DecodeSlots(model.llm, GREEDY)
        slots.read(
            prompts_of(partial(model.read_prompt, ctc_weight=0.0), collate([item]).to(model.device), [0])
        )
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5, help="of audio for the real-time factors")
    parser.add_argument("--streamed", type=float, default=1, help="minutes of audio streamed in real time")
    parser.add_argument("--model", default="pretrained/adapters/mini/steermoe")
    arguments = parser.parse_args()
    recognizer = Recognizer(SteerMoE.from_pretrained(arguments.model))
    pieces = sentences(arguments.minutes)
    samples = np.concatenate(pieces)
    seconds = len(samples) / RATE
    recognizer.transcript(pieces[0])
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the start"
    )

    begin = time.perf_counter()
    VoiceActivity()(samples[: len(samples) // 512 * 512])
    print(f"voice activity alone        {(time.perf_counter() - begin) / seconds:.4f} of real time")

    begin = time.perf_counter()
    for piece in pieces:
        recognizer.transcript(piece)
    taken = time.perf_counter() - begin
    print(f"one sentence at a time      {taken / seconds:.4f} of real time, {taken / len(pieces):.3f} s each")

    late = sorted(first_token(recognizer.model, piece) for piece in pieces)
    print(
        f"first token of a sentence   {statistics.median(late):.3f} s median, {late[int(0.95 * len(late))]:.3f} s p95"
    )

    for name, given in (("sentences in batches", pieces), ("one long recording", [samples])):
        begin = time.perf_counter()
        list(recognizer.recordings(given))
        print(f"{name:<28}{(time.perf_counter() - begin) / seconds:.4f} of real time")

    live = recognizer.stream(paced(samples[: int(60 * arguments.streamed * RATE)]))
    events = list(live)
    for kind in ("partial", "final"):
        late = sorted(event.latency for event in events if event.kind == kind)
        if late:
            print(
                f"streamed, {kind:<8} n {len(late):4d}   median {statistics.median(late):.3f} s   "
                f"95 % below {late[int(0.95 * (len(late) - 1))]:.3f} s   longest {late[-1]:.3f} s"
            )
    print(
        f"a final result waits {recognizer.silence:g} s of silence; load {os.getloadavg()[0]:.1f} at the end"
    )


if __name__ == "__main__":
    main()
