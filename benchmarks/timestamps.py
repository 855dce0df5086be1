"""How far word and segment times are off, on synthesised speech whose word times are known.

    python benchmarks/timestamps.py [--sentences 200] [--model pretrained/adapters/mini/steermoe]

Sentences of unseen voices and texts, each with a second of silence behind it, are transcribed as one recording. Words
that were recognised (aligned by edit distance) count; the error is |estimated - synthesised| onset.
"""

import argparse
import bisect

import jiwer
import numpy as np

from steermoe import SteerMoE
from steermoe.asr.recognizer import Recognizer
from steermoe.asr.transcript import Segment
from steermoe.audio import synthesis
from steermoe.audio.io import RATE
from steermoe.corpora import grammar, synthetic


def speech(count: int) -> tuple[np.ndarray, list[tuple[float, float, str, list[float]]]]:
    """One recording, and of each sentence: begin and end of the speech, text, onsets of its words, in seconds."""
    rng, engine = np.random.default_rng(11), synthesis.Synthesizer()
    sentences = grammar.sentences(rng, "test")
    parts, known, place = [], [], 0.0
    for _ in range(count):
        text = next(sentences).text
        samples, onsets, _ = synthetic.record(engine, rng, text, synthetic.CASTS["clean"], "clean")
        loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max()) / RATE
        known.append((place + loud[0], place + loud[-1], text, [place + onset for onset in onsets]))
        parts += [samples.astype(np.float32), np.zeros(RATE, np.float32)]
        place += len(samples) / RATE + 1
    return np.concatenate(parts), known


def word_errors(segment: Segment, text: str, onsets: list[float]) -> list[float]:
    """Of the words of a segment that are right: estimated onset less the true one, seconds."""
    found = [word.word for word in segment.words]
    (alignment,) = jiwer.process_words(text, " ".join(found)).alignments
    return [
        segment.words[chunk.hyp_start_idx + i].start - onsets[chunk.ref_start_idx + i]
        for chunk in alignment
        if chunk.type == "equal"
        for i in range(chunk.ref_end_idx - chunk.ref_start_idx)
    ]


def described(name: str, errors: list[float]) -> str:
    """A line of the table."""
    sizes = np.abs(errors)
    middle, ninety = np.percentile(sizes, [50, 90])
    return (
        f"{name:<15} n {len(sizes):5d}   mean error {np.mean(errors):+.3f} s   median |error| {middle:.3f} s   "
        f"90 % below {ninety:.3f} s   within 0.2 s {100 * np.mean(sizes < 0.2):.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--model", default="pretrained/adapters/mini/steermoe")
    arguments = parser.parse_args()
    samples, known = speech(arguments.sentences)
    recognizer = Recognizer(SteerMoE.from_pretrained(arguments.model), words=True)
    transcript = recognizer.transcript(samples)
    begins = [begin - 0.5 for begin, *_ in known]
    words, starts, ends = [], [], []
    for segment in transcript.segments:
        begin, end, text, onsets = known[max(0, bisect.bisect_right(begins, segment.start) - 1)]
        words += word_errors(segment, text, onsets)
        starts.append(segment.start - begin)
        ends.append(segment.end - end)
    print(
        f"{len(known)} sentences, {len(samples) / RATE / 60:.1f} minutes, {len(transcript.segments)} segments"
    )
    print(described("segment starts", starts))
    print(described("segment ends", ends))
    print(described("word starts", words))


if __name__ == "__main__":
    main()
