"""The rows of a training: which are trained on, which choose the best checkpoint, and whether they can be used."""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import torch

from steermoe.atomic_io import write_text
from steermoe.audio import io as waveform
from steermoe.config import VariantConfig
from steermoe.data.filters import skipped_reason, target_tokens
from steermoe.data.shards import read_rows, shards_of
from steermoe.data.tokens import token_texts
from steermoe.distributed import world
from steermoe.hub import sha256
from steermoe.models.ctc import is_word
from steermoe.models.encoders.encoder import Encoder
from steermoe.models.steermoe import SteerMoE

DIVERGED = "diverged.json"  # report in the folder of checkpoints


class DivergedError(RuntimeError):
    """Raised when the loss or a gradient is not finite."""


@dataclass(frozen=True)
class TrainingData:
    """Rows that are trained on and rows that choose the best checkpoint.

    Attributes:
        train, dev: the rows, with a column `corpus`.
        dropped: number of training rows longer than training.max_seconds.
        digest: of the shards.
    """

    train: pl.DataFrame
    dev: pl.DataFrame
    dropped: int
    digest: str

    def describe(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return corpus, split, source_id, seconds and target of training rows, given by number."""
        return (
            self.train[list(indices)].select("corpus", "split", "source_id", "seconds", "target").to_dicts()
        )


def report_divergence(
    run: Path, step: int, what: Mapping[str, float], rows: Sequence[Mapping[str, Any]]
) -> Path:
    """Write the rows of the step that diverged, and which numbers did; return the file."""
    path = run / DIVERGED
    found = {name: str(value) for name, value in what.items()}  # JSON has no NaN
    content = {"step": step, "found": found, "rows": list(rows)}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def read_data(variant: VariantConfig, shards: Sequence[Path]) -> TrainingData:
    """Return the rows of `variant`'s splits, without the training rows over `training.max_seconds`.

    Raises:
        ValueError: a corpus has no folder, or there is nothing to train on or to choose a checkpoint by.
    """
    folders = {folder.name: folder for folder in shards}
    train, train_files = _rows(folders, variant.train_splits)
    dev, dev_files = _rows(folders, variant.dev_splits)
    for rows, splits in ((train, variant.train_splits), (dev, variant.dev_splits)):
        if rows.is_empty():
            raise ValueError(
                f"{variant.name}: no rows in {splits} of {[str(p) for p in shards]}; run preprocess, and if it was "
                "run, see which rows it left out (left_out.jsonl beside the shards)"
            )
    limit = variant.training.max_seconds
    kept = train.filter(pl.col("seconds") <= limit)
    dropped = len(train) - len(kept)
    if kept.is_empty():
        raise ValueError(
            f"{variant.name}: training.max_seconds: found {limit:g}; all {dropped} training rows are longer, the "
            f"shortest is {_named(train)}; raise training.max_seconds, or cut the recordings into shorter ones"
        )
    if dropped and not world().rank:
        print(
            f"{variant.name}: {dropped} of {len(train)} training rows are longer than training.max_seconds "
            f"({limit:g}): dropped"
        )
    return TrainingData(kept, dev, dropped, digest(train_files + dev_files))


def digest(files: Iterable[Path]) -> str:
    """Return a SHA-256 over contents, names and folders' names of files, whatever their order and place."""
    names = hashlib.sha256()
    for path in sorted(files, key=lambda p: p.parts[-2:]):
        status = path.stat()
        content = _content(path, status.st_size, status.st_mtime_ns)
        names.update(f"{'/'.join(path.parts[-2:])} {content}\n".encode())
    return names.hexdigest()


@cache
def _content(path: Path, size: int, modified: int) -> str:
    """Return the SHA-256 of a file, which is read once while its size and time stay the same."""
    return sha256(path)


def check_rows(
    variant: VariantConfig, data: TrainingData, model: SteerMoE, max_new_tokens: int | None
) -> None:
    """Refuse rows that cannot be trained on, and report targets that no answer can reach.

    Raises:
        ValueError: as `check_lengths`.
    """
    check_lengths(variant, data, model.encoder)
    warn_of_long_targets(variant.name, data.train, model.tokenizer, max_new_tokens)


def check_lengths(variant: VariantConfig, data: TrainingData, encoder: Encoder) -> None:
    """Check that the encoder takes every row, and that `training.max_batch_seconds` can hold one.

    Raises:
        ValueError: a row is too long or too short for the encoder, or no row fits into a batch.
    """
    longest = encoder.max_seconds
    cures = {
        "training": f"set training.max_seconds to at most {longest}, or cut the recordings into shorter ones",
        "dev": f"set preprocessing.max_seconds to at most {longest} and run preprocess again",
    }
    for (use, cure), rows in zip(cures.items(), (data.train, data.dev), strict=True):
        over = rows.filter(pl.col("seconds") > longest) if longest is not None else rows.clear()
        if longest is not None and len(over):
            raise ValueError(
                f"{variant.name}: the encoder takes at most {longest:g} s; {len(over)} of {len(rows)} {use} rows are "
                f"longer, the longest is {_named(over, longest=True)}; {cure}"
            )
        shortest = waveform.load(rows["audio"][int(rows["seconds"].to_numpy().argmin())])
        frames = torch.tensor(encoder.features(shortest).shape[1])
        if int(encoder.output_lengths(frames)) < 1:
            raise ValueError(
                f"{variant.name}: a {use} row is too short for a single frame of the encoder: {_named(rows)}; "
                "remove it from the corpus, or pad it with silence"
            )
    budget = variant.training.max_batch_seconds
    least = max(encoder.window_seconds, float(data.train["seconds"].to_numpy().min()))
    if budget < least:
        reason = f"the shortest training row is {_named(data.train)}"
        if encoder.window_seconds:
            reason = f"with encoder.window full every row costs {encoder.window_seconds:g} s"
        raise ValueError(
            f"{variant.name}: training.max_batch_seconds: found {budget:g}, which no batch can keep to: {reason}; "
            f"legal: at least {least:g}"
        )


def warn_of_long_targets(name: str, rows: pl.DataFrame, tokenizer: Any, most: int | None) -> None:
    """Report on standard error how many targets are longer than an answer of `most` tokens, and the longest."""
    if most is None or world().rank:
        return
    tokens = target_tokens(tokenizer, rows["target"].to_list())
    if beyond := sum(count > most for count in tokens):
        longest = max(range(len(tokens)), key=tokens.__getitem__)
        print(
            f"{name}: {beyond} of {len(rows)} training rows have a target that generation.max_new_tokens "
            f"({most}) would cut; the longest is {rows['source_id'][longest]!r} of {tokens[longest]} tokens, end "
            "token included. Raise the limit, or leave such rows out by preprocessing.max_tokens",
            file=sys.stderr,
        )


def spoken_tokens(data: TrainingData, tokenizer: Any, spelling: bool = False) -> torch.Tensor:
    """Return the ids of the tokens that occur in the training targets, without repetition.

    With `spelling` also of all words and parts of words that are written in letters of these tokens.

    Raises:
        ValueError: a row is no transcription: CTC would align the audio with words that are not said.
    """
    others = data.train.filter(pl.col("task") != "transcribe")
    if len(others):
        raise ValueError(
            f"training.ctc: found {len(others)} training rows whose target is not what is said, such as "
            f"{_named(others)}; legal: transcriptions; leave the others out by selection.train"
        )
    ids = tokenizer(data.train["target"].to_list(), add_special_tokens=False)["input_ids"]
    found = {token for row in ids for token in row}
    if spelling:
        texts = token_texts(tokenizer, len(tokenizer))
        letters = set("".join(texts[token] for token in found if is_word(texts[token])).lower())
        found |= {n for n, text in enumerate(texts) if is_word(text) and letters.issuperset(text.lower())}
    return torch.tensor(sorted(found))


def _named(rows: pl.DataFrame, longest: bool = False) -> str:
    """Return the shortest row, or the longest, as `corpus/split/id (2.31 s)`."""
    seconds = rows["seconds"].to_numpy()
    place = int(seconds.argmax() if longest else seconds.argmin())
    corpus, split, name = (rows[column][place] for column in ("corpus", "split", "source_id"))
    return f"{corpus}/{split}/{name} ({seconds[place]:.2f} s)"


def _rows(
    folders: Mapping[str, Path], splits: Mapping[str, Sequence[str]]
) -> tuple[pl.DataFrame, list[Path]]:
    frames, files = [], []
    for corpus, names in splits.items():
        if not names:
            continue
        if corpus not in folders:
            raise ValueError(f"no shards of corpus {corpus!r}; given are {sorted(folders)}")
        folder = folders[corpus]
        frames.append(read_rows(folder, names).with_columns(pl.lit(corpus).alias("corpus")))
        if skipped_reason(folder) is None:
            files += [path for split in names for path in shards_of(folder, split)]
    # Where corpora with and without videos are joined, rows of the latter have null videos.
    return (pl.concat(frames, how="diagonal") if frames else pl.DataFrame()), files
