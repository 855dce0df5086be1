"""What every shard must hold, checked by pandera when it is written and when it is read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandera.polars as pa
import polars as pl

from steermoe.audio import io as waveform
from steermoe.config import LANGUAGE_TAG
from steermoe.data import video
from steermoe.data.rows import AUDIO, GROUP_BYTES, ROW_GROUP, SCHEMA, VIDEO, WITH_VIDEO, ShardError

TASKS = (
    "transcribe",
    "answer",
    "caption",
)  # of rows: those that a metric measures; there are prompts for more
SHOWN = 10  # violations in a message
TOLERANCE = 1e-3  # seconds between a row's length and its audio's


class Utterance(pa.DataFrameModel):
    """A row: one utterance and what is asked about it."""

    source_id: str = pa.Field(
        unique=True, str_length={"min_value": 1}, description="text that no other row has"
    )
    split: str = pa.Field(str_matches=r"^[a-z0-9_-]+$", description="lower-case letters, digits, - and _")
    speaker: str = pa.Field(str_length={"min_value": 1}, description="text")
    language: str = pa.Field(
        str_matches=LANGUAGE_TAG,
        description="a BCP 47 tag such as en, zh or und (unknown)",
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
        """No other columns."""

        strict = True

    # The part of a name before the colon is the column that a violation is reported for.
    @pa.dataframe_check(name="prompt: present exactly for answer")
    @classmethod
    def _prompt_is_asked(cls, data: pa.PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select((pl.col("task") == "answer") == (pl.col("prompt") != ""))

    @pa.dataframe_check(name="target: the transcript for transcribe")
    @classmethod
    def _target_is_said(cls, data: pa.PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(
            (pl.col("task") != "transcribe") | (pl.col("target") == pl.col("transcript"))
        )

    @pa.dataframe_check(name="answers: the target among them")
    @classmethod
    def _answers_fit(cls, data: pa.PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(_none_or_target("answers", "answer", "caption"))

    @pa.dataframe_check(name="choices: the target among them")
    @classmethod
    def _choices_fit(cls, data: pa.PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(_none_or_target("choices", "answer"))


class SeenUtterance(Utterance):
    """A row of a corpus with videos."""

    video: pl.Binary = pa.Field(description="an animated PNG of at least one frame")


def _none_or_target(column: str, *tasks: str) -> pl.Expr:
    found = pl.col(column)
    return (found.list.len() == 0) | (pl.col("task").is_in(tasks) & found.list.contains(pl.col("target")))


# pandera reports a failing row as JSON, which polars cannot make of binary columns: it panics, past `except`.
# So the recordings are taken out and looked at by themselves.
_SCALARS = Utterance.to_schema().remove_columns([AUDIO])
_ALLOWED = {name: column.description or "" for name, column in SeenUtterance.to_schema().columns.items()}


@dataclass(frozen=True, order=True)
class Violation:
    """A value that must not be there. Rows are counted from 0."""

    row: int
    column: str
    value: str

    def __str__(self) -> str:
        allowed = _ALLOWED[self.column]
        return f"  row {self.row}, column {self.column}: found {self.value:.80}, allowed: {allowed}"


def validate_shard(path: Path, audio: str = "header") -> None:
    """Check a shard against `Utterance` or, with videos, `SeenUtterance`.

    Of its audio and video no more than a few recordings are in memory.

    Args:
        path: its name begins with `<split>-` (see `shards.shard_name`); its rows must be of that split.
        audio: how closely audio and video are looked at: `decode` (all of it), `header`, or `skip`.

    Raises:
        ShardError: names file, row, column, what was found and what is allowed, for the first violations.
    """
    has_video = _validate_columns(path)
    scalars = pl.read_parquet(path, columns=[name for name in SCHEMA if name != AUDIO])
    violations = _scalar_violations(scalars)
    split = path.name.rpartition("-")[0]
    for row in scalars.with_row_index().filter(pl.col("split") != split)["index"]:
        violations.append(Violation(row, "split", f"{scalars['split'][row]!r} in a shard of {split!r}"))
    if audio != "skip":
        for start, count in _stretches(scalars):
            violations += _audio_violations(path, scalars, start, count, audio == "decode")
            if has_video:
                violations += _video_violations(path, start, count, audio == "decode")
    if violations:
        lines = [str(violation) for violation in sorted(set(violations))]
        more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        advice = "correct the corpus reader, or its source, and write the shard anew (stage preprocess)"
        raise ShardError("\n".join([f"{path}: not a shard of utterances; {advice}", *lines[:SHOWN], *more]))


def _validate_columns(path: Path) -> bool:
    """Whether the shard has videos."""
    try:
        found = pl.read_parquet_schema(path)
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
    return VIDEO in found


def _scalar_violations(scalars: pl.DataFrame) -> list[Violation]:
    try:
        _SCALARS.validate(scalars, lazy=True)
    except pa.errors.SchemaErrors as errors:
        violations = []
        for case in errors.failure_cases.iter_rows(named=True):
            column = case["column"] if case["schema_context"] == "Column" else case["check"].partition(":")[0]
            assert case["index"] is not None, f"not a violation in a row: {case}"
            value = scalars[column][case["index"]]
            found = value.to_list() if isinstance(value, pl.Series) else value
            violations.append(Violation(case["index"], column, repr(found)))
        return violations
    return []


def _stretches(scalars: pl.DataFrame) -> Iterator[tuple[int, int]]:
    """First row and length of stretches of the rows: no more than ROW_GROUP rows, nor, of several, GROUP_BYTES.

    A recording is taken to have 16 bits a sample; FLAC is smaller.
    """
    start, held = 0, 0.0
    for row, size in enumerate((scalars["seconds"] * scalars["sample_rate"] * 2).fill_null(0.0)):
        if row > start and (row - start == ROW_GROUP or held + size > GROUP_BYTES):
            yield start, row - start
            start, held = row, 0.0
        held += size
    if start < len(scalars):
        yield start, len(scalars) - start


def _audio_violations(
    path: Path, scalars: pl.DataFrame, start: int, count: int, decode: bool
) -> list[Violation]:
    violations = []
    batch = pl.scan_parquet(path).select("audio").slice(start, count).collect()["audio"]
    rates, lengths = scalars["sample_rate"], scalars["seconds"]
    for row, data in enumerate(batch, start):
        found = audio_fault(data, rates[row], lengths[row], decode)
        if found:
            violations.append(Violation(row, "audio", found))
    return violations


def _video_violations(path: Path, start: int, count: int, decode: bool) -> list[Violation]:
    batch = pl.scan_parquet(path).select(VIDEO).slice(start, count).collect()[VIDEO]
    faults = ((row, video_fault(data, decode)) for row, data in enumerate(batch, start))
    return [Violation(row, VIDEO, found) for row, found in faults if found]


def video_fault(data: bytes | None, decode: bool) -> str | None:
    """What is wrong with a row's video, by its header or, with `decode`, all of it; None where nothing is."""
    if data is None:
        return "null"
    try:
        video.load(data) if decode else video.shape(data)
    except video.VideoError as error:
        return str(error).removeprefix("video: ")
    return None


def audio_fault(data: bytes | None, rate: int | None, seconds: float | None, decode: bool) -> str | None:
    """What is wrong with a row's audio, by its header or, with `decode`, all of it; None where nothing is."""
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
