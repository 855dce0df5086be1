"""Speak the encoder's pretraining data: parquet shards with FLAC audio and the time at which each word starts."""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import typer
from rich.progress import track
from ruamel.yaml import YAML

from steermoe.audio import io as waveform
from steermoe.audio import synthesis
from steermoe.corpora import grammar, synthetic

PART_ROWS = 500


def speak_part(job: tuple[str, int, int, dict[str, Any]]) -> pl.DataFrame:
    """Speak one part of `train` or `dev`, in a process of its own (see `steermoe.audio.synthesis`)."""
    split, number, count, settings = job
    rng = np.random.default_rng([settings["seed"], int(split == "train"), number])
    texts = grammar.sentences(rng, split)
    cast = synthetic.CASTS["pretrain" if split == "train" else "dev"]
    engine, rows = synthesis.Synthesizer(), []
    for _ in range(count):
        text = next(texts).text
        condition = "mild" if rng.random() < settings["mild_share"] else "clean"
        spoken, onsets, voice = synthetic.record(engine, rng, text, cast, condition)
        rows.append(
            {
                "audio": waveform.encode_flac(spoken, waveform.RATE),
                "transcript": text,
                "onsets": onsets,
                "speaker": voice,
                "seconds": len(spoken) / waveform.RATE,
            }
        )
    return pl.DataFrame(rows)


def main(params: Path, out: Path) -> None:
    """Speak what PARAMS says into OUT."""
    settings = YAML(typ="safe").load(params)["speech"]
    out.mkdir(parents=True, exist_ok=True)
    jobs = [("dev", 0, settings["dev_utterances"], settings)]
    for number, start in enumerate(range(0, settings["utterances"], PART_ROWS)):
        jobs.append(("train", number, min(PART_ROWS, settings["utterances"] - start), settings))
    with multiprocessing.get_context("spawn").Pool(maxtasksperchild=1) as pool:
        parts = pool.imap(speak_part, jobs, chunksize=1)
        for (split, number, *_), frame in zip(jobs, track(parts, "speak", total=len(jobs)), strict=True):
            frame.write_parquet(out / f"{split}-{number:05d}.parquet")


if __name__ == "__main__":
    typer.run(main)
