"""The schema of shards: what every row must hold, checked by pandera when shards are written and read."""

from dataclasses import dataclass
from pathlib import Path

import pandera.polars as pa
import polars as pl
import pyarrow
import pyarrow.parquet as pq

from steermoe.audio import io as waveform
from steermoe.config.corpora import LANGUAGE_TAG
from steermoe.data import video

TASKS = ("transcribe", "answer", "caption")  # tasks of rows; there are prompts for further ones
AUDIO, VIDEO = "audio", video.COLUMN
BATCH = 16  # recordings in memory
MAX_SHOWN = 10  # violations in a message
TOLERANCE = 1e-3  # seconds between `seconds` and the length of the audio


class ShardError(ValueError):
    """Rows or a shard do not fit the schema of utterances."""


class Utterance(pa.DataFrameModel):
    """A row: one utterance and the task on it."""

    source_id: str = pa.Field(
        unique=True, str_length={"min_value": 1}, description="text that no other row has"
    )
    split: str = pa.Field(str_matches=r"^[a-z0-9_-]+$", description="lower-case letters, digits, - and _")
    speaker: str = pa.Field(str_length={"min_value": 1}, description="text")
    language: str = pa.Field(
        str_matches=LANGUAGE_TAG, description="a BCP 47 tag such as en, zh or und (unknown)"
    )
    task: str = pa.Field(isin=TASKS, description=" or ".join(TASKS))
    prompt: str = pa.Field(description="the question where the task is answer, else empty")
    transcript: str = pa.Field(description="what is said; for transcribe not empty")
    target: str = pa.Field(str_length={"min_value": 1}, description="text; for transcribe the transcript")
    answers: pl.List = pa.Field(
        dtype_kwargs={"inner": pl.String()},
        description="for answer and caption: all that people gave, the target among them, or nothing; else nothing",
    )
    choices: pl.List = pa.Field(
        dtype_kwargs={"inner": pl.String()},
        description="for answer: the options, A first, the target among them, or nothing; else nothing",
    )
    audio: pl.Binary = pa.Field(description="a mono FLAC file, of the row's sample_rate and seconds")
    sample_rate: int = pa.Field(eq=waveform.RATE, description=str(waveform.RATE))
    seconds: float = pa.Field(
        gt=0, le=waveform.MAX_SECONDS, description=f"over 0, to {waveform.MAX_SECONDS:g}"
    )

    class Config(pa.DataFrameModel.Config):
        """Allow no other columns."""

        strict = True

    # The part of a name before the colon is the column that a violation is reported for.
    @pa.dataframe_check(name="prompt: present exactly for answer")
    @classmethod
    def _check_prompt(cls, data: pa.PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select((pl.col("task") == "answer") == (pl.col("prompt") != ""))

    @pa.dataframe_check(name="target: the transcript for transcribe")
    @classmethod
    def _check_target(cls, data: pa.PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(
            (pl.col("task") != "transcribe") | (pl.col("target") == pl.col("transcript"))
        )

    @pa.dataframe_check(name="answers: the target among them")
    @classmethod
    def _check_answers(cls, data: pa.PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(_empty_or_with_target("answers", "answer", "caption"))

    @pa.dataframe_check(name="choices: the target among them")
    @classmethod
    def _check_choices(cls, data: pa.PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(_empty_or_with_target("choices", "answer"))


class VideoUtterance(Utterance):
    """A row of a corpus with videos."""

    video: pl.Binary = pa.Field(description="an animated PNG of at least one frame")


def _empty_or_with_target(column: str, *tasks: str) -> pl.Expr:
    found = pl.col(column)
    return (found.list.len() == 0) | (pl.col("task").is_in(tasks) & found.list.contains(pl.col("target")))


def _types(model: type[pa.DataFrameModel]) -> pl.Schema:
    return pl.Schema({name: column.dtype.type for name, column in model.to_schema().columns.items()})


SCHEMA, WITH_VIDEO = _types(Utterance), _types(VideoUtterance)
# pandera reports failing rows as JSON, which polars cannot write of binary columns: recordings are checked apart.
_SCALARS = Utterance.to_schema().remove_columns([AUDIO])
_ALLOWED = {name: column.description for name, column in VideoUtterance.to_schema().columns.items()}


@dataclass(frozen=True, order=True)
class Violation:
    """A value that the schema does not allow. Rows count from 0."""

    row: int
    column: str
    value: str

    def __str__(self) -> str:
        return f"  row {self.row}, column {self.column}: found {self.value:.80}, allowed: {_ALLOWED[self.column]}"


def validate_shard(path: Path, audio: str = "header") -> None:
    """Check a shard against `Utterance` or, where it has videos, `VideoUtterance`.

    Args:
        path: its name begins with `<split>-` (see `shards.shard_name`); its rows must be of that split.
        audio: how audio and video are checked: `decode` (all of it), `header`, or `skip`.

    Raises:
        ShardError: names file, row, column, the value and what is allowed, for the first violations.
    """
    found = _read_schema(path)
    scalars = pl.read_parquet(path, columns=[name for name in SCHEMA if name != AUDIO])
    violations = _scalar_violations(scalars)
    split = path.name.rpartition("-")[0]
    for row in scalars.with_row_index().filter(pl.col("split") != split)["index"]:
        violations.append(Violation(row, "split", f"{scalars['split'][row]!r} in a shard of {split!r}"))
    if audio != "skip":
        recorded = [name for name in (AUDIO, VIDEO) if name in found]
        violations += _recording_violations(path, recorded, decode=audio == "decode")
    if violations:
        lines = [str(violation) for violation in sorted(set(violations))]
        more = [f"  and {len(lines) - MAX_SHOWN} more"] if len(lines) > MAX_SHOWN else []
        advice = "correct the corpus reader, or its source, and write the shard anew (stage preprocess)"
        raise ShardError(
            "\n".join([f"{path}: not a shard of utterances; {advice}", *lines[:MAX_SHOWN], *more])
        )


def _read_schema(path: Path) -> pl.Schema:
    """Return the columns of a shard; ShardError where they are not those of utterances."""
    try:
        found = pl.Schema(pl.read_parquet_schema(path))
    except pl.exceptions.PolarsError as error:
        raise ShardError(
            f"{path}: not a parquet file, or damaged ({error}); write it anew (stage preprocess)"
        ) from error
    expected = WITH_VIDEO if VIDEO in found else SCHEMA
    for column in [*expected, *found]:
        if found.get(column) != expected.get(column):
            raise ShardError(
                f"{path}: column {column}: found {found.get(column, 'nothing')}, expected "
                f"{expected.get(column, 'no such column')}; write the shard anew (stage preprocess)"
            )
    return found


def _scalar_violations(scalars: pl.DataFrame) -> list[Violation]:
    try:
        _SCALARS.validate(scalars, lazy=True)
    except pa.errors.SchemaErrors as errors:
        violations = []
        for case in errors.failure_cases.iter_rows(named=True):
            column = case["column"] if case["schema_context"] == "Column" else case["check"].partition(":")[0]
            value = scalars[column][case["index"]]
            found = value.to_list() if isinstance(value, pl.Series) else value
            violations.append(Violation(case["index"], column, repr(found)))
        return violations
    return []


def _recording_violations(path: Path, columns: list[str], decode: bool) -> list[Violation]:
    """Check audio and video of a shard, a few recordings in memory at a time."""
    violations = []
    with pq.ParquetFile(path, memory_map=True) as file:
        batches = file.iter_batches(BATCH, columns=[*columns, "sample_rate", "seconds"])
        try:
            for row, record in enumerate(record for batch in batches for record in batch.to_pylist()):
                faults = {AUDIO: audio_fault(record[AUDIO], record["sample_rate"], record["seconds"], decode)}
                if VIDEO in columns:
                    faults[VIDEO] = video_fault(record[VIDEO], decode)
                violations += [Violation(row, name, fault) for name, fault in faults.items() if fault]
        except (OSError, pyarrow.ArrowException) as error:
            raise ShardError(f"{path}: damaged ({error}); write it anew (stage preprocess)") from error
    return violations


def video_fault(data: bytes | None, decode: bool) -> str | None:
    """Return what is wrong with a video, by its header or, with `decode`, all of it; None for a good one."""
    if data is None:
        return "null"
    try:
        video.load(data) if decode else video.shape(data)
    except video.VideoError as error:
        return str(error).removeprefix("video: ")
    return None


def audio_fault(data: bytes | None, rate: int | None, seconds: float | None, decode: bool) -> str | None:
    """Return what is wrong with a recording, by its header or, with `decode`, all of it; None for a good one."""
    if data is None:
        return "null"
    try:
        header = waveform.flac_header(data)
        if decode:
            waveform.load(data)
    except waveform.AudioError as error:
        return str(error)
    if header.channels != 1:
        return f"{header.channels} channels"
    if rate is not None and header.rate != rate:
        return f"{header.rate} Hz where sample_rate is {rate}"
    if seconds is not None and abs(header.seconds - seconds) > TOLERANCE:
        return f"{header.seconds:g} s where seconds is {seconds:g}"
    return None
