"""Write a profile for a folder of recordings, and select it."""

import io
import json
import re
import statistics
from collections.abc import Sequence
from math import ceil, inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from pipeline.options import Params

Table = Annotated[str | None, typer.Option(help="table in the folder; default: .txt files")]
Language = Annotated[str, typer.Option(help="a BCP 47 tag such as en or zh-CN")]
Base = Annotated[str, typer.Option(help="the profile that models and training are taken from")]
Encoder = Annotated[str | None, typer.Option(help="folder or hub id of another Whisper encoder")]
Llm = Annotated[str | None, typer.Option(help="folder or hub id of another LLM")]
Seconds = Annotated[
    float | None, typer.Option(help="longest recording that the encoder takes; default: as it says")
]
Name = Annotated[str, typer.Argument(help="name of the new profile: configs/NAME.yaml")]
Folder = Annotated[Path, typer.Argument(help="folder of recordings; it is only read")]

SPLITS = ("train", "dev", "test")
WHISPER_SECONDS, WHISPER_POSITIONS = 30.0, 50  # of every published Whisper; encoder positions per second
EPOCHS, FEWEST_STEPS = 20, 100
FEW = {"train": 600.0, "dev": 60.0, "test": 60.0}  # seconds below which a comparison says little


def main(
    name: Name,
    folder: Folder,
    table: Table = None,
    language: Language = "und",
    base: Base = "mini",
    encoder: Encoder = None,
    llm: Llm = None,
    max_seconds: Seconds = None,
    params: Params = Path("params.yaml"),
) -> None:
    """Write configs/NAME.yaml for the recordings in FOLDER, and select that profile; `make repro` runs it.

    Texts are in a .txt file next to each recording, or in a table. Splits are the folders `train`, `dev` and `test`,
    or a column of the table; else the recordings are shared out. Nothing is written into FOLDER.
    """
    from steermoe import config
    from steermoe.atomic_io import write_text
    from steermoe.corpora.download import EMBEDDED

    file = params.parent / "configs" / f"{name}.yaml"
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"NAME: found {name!r}, legal: small letters, digits, - and _")
    if file.exists():
        raise ValueError(f"{file} is there already; edit it, delete it, or choose another name")
    section = _section(folder, table, language)
    profile = _read(params.parent / "configs" / f"{base}.yaml")
    for part, path in (("encoder", encoder), ("llm", llm)):
        if path is not None:
            profile[part].update(path=path, revision=None)
    with TemporaryDirectory() as embedded:
        listed = _listed(section, Path(embedded) / EMBEDDED)
        lengths = {split: _lengths((folder, Path(embedded)), entries) for split, entries in listed.items()}
    longest = max_seconds or _longest(profile["encoder"])
    _report(lengths, listed, longest, profile)
    _fit(profile, section, lengths, longest)
    _fit_texts(profile, listed, _read(params)["generation"]["max_new_tokens"])
    write_text(file, _text(profile))
    try:
        config.switch_profile(params, name)
    except config.ConfigError:
        file.unlink()
        raise
    print(f"{file} is written and selected; look at it, then `make repro` trains and compares")


def _section(folder: Path, table: str | None, language: str) -> dict[str, Any]:
    """Return `corpora.folder` with all splits; a path in the project is relative to it."""
    from steermoe.atomic_io import project_root

    path, root = folder.resolve(), project_root().resolve()
    if not path.is_dir():
        raise ValueError(f"FOLDER: {folder} is not a folder")
    inside = path.is_relative_to(root)
    place = path.relative_to(root).as_posix() if inside else str(path)
    settings = {"seed": 1, "limit": None, "path": place, "language": language, "table": table}
    return {split: [split] for split in SPLITS} | settings


def _listed(section: dict[str, Any], embedded: Path) -> dict[str, Any]:
    """Return the rows of every split, as the corpus reads them; write recordings within a table to `embedded`."""
    from pydantic import ValidationError

    from steermoe import config
    from steermoe.config.corpora import Folder as Section
    from steermoe.config.errors import located
    from steermoe.corpora import folder

    try:
        settings = Section(**section)
    except ValidationError as error:
        lines = [f"{path}{line}" for path, line in located(error, Section)]
        raise config.ConfigError(lines) from error
    found, left_out = folder.list_entries(settings, embedded)
    for line in left_out:
        print(f"left out: {line}")
    return found


def _lengths(folders: Sequence[Path], entries: list[Any]) -> dict[str, float]:
    """Return the seconds of each recording; all of it is decoded, so that unreadable ones are reported now."""
    from steermoe.audio import io as waveform

    found = {}
    for audio in dict.fromkeys(entry.audio for entry in entries):
        place = next(folder / audio for folder in folders if (folder / audio).is_file())
        try:
            found[audio] = len(waveform.load(place)) / waveform.RATE
        except ValueError as error:
            raise ValueError(f"{error}; take it out of the folder, or convert it") from error
    return found


def _longest(encoder: Any) -> float:
    """Return the seconds of the longest recording that the encoder takes."""
    path = Path(encoder["path"]) / "config.json"
    positions = json.loads(path.read_text()).get("max_source_positions") if path.is_file() else None
    return positions / WHISPER_POSITIONS if positions and encoder["name"] == "whisper" else WHISPER_SECONDS


def _report(
    lengths: dict[str, dict[str, float]], listed: dict[str, Any], longest: float, profile: Any
) -> None:
    """Print what there is; raise ValueError where held-out recordings are too long, or all of train."""
    for split, of in lengths.items():
        seconds = list(of.values())
        print(
            f"{split}: {len(listed[split])} rows, {len(of)} recordings, {sum(seconds) / 60:.1f} minutes; seconds: "
            f"{min(seconds):.1f} to {max(seconds):.1f}, median {statistics.median(seconds):.1f}"
        )
        if sum(seconds) < FEW[split]:
            print(
                f"WARNING: {split} has {sum(seconds):.0f} s; figures are mostly chance below {FEW[split]:.0f}"
            )
    too_long = {split: [name for name, s in of.items() if s > longest] for split, of in lengths.items()}
    names = [*too_long["dev"], *too_long["test"]]
    if len(too_long["train"]) == len(lengths["train"]):
        names = names or too_long["train"]
    if names:
        raise ValueError(
            f"{len(names)} recordings are longer than {longest:g} s, the most that the encoder takes: "
            f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}; cut them and their texts, or name a larger "
            "encoder and LLM by --encoder and --llm"
        )
    if too_long["train"]:
        print(
            f"WARNING: {len(too_long['train'])} recordings of train are left out: longer than {longest:g} s"
        )
    if any(str(profile[part]["path"]).startswith("pretrained/") for part in ("encoder", "llm")):
        print(
            "WARNING: the models of the mini profile know some 150 words of synthetic speech. They show that all runs "
            "and cannot learn a person's speech: name real models by --encoder and --llm, such as "
            "openai/whisper-small and Qwen/Qwen2.5-0.5B-Instruct"
        )


def _fit(profile: Any, section: dict[str, Any], lengths: dict[str, dict[str, float]], longest: float) -> None:
    """Put the folder's data into a profile, and a training that fits their size."""
    seconds = [seconds for seconds in lengths["train"].values() if seconds <= longest]
    most = max(*seconds, *lengths["dev"].values(), *lengths["test"].values())
    training = profile["training"]
    window = longest if profile["encoder"]["window"] == "full" else 0.0  # which every row costs then
    costs = [max(window, length) for length in seconds]
    batch = max(ceil(max(window, most)), min(training["max_batch_seconds"], ceil(sum(costs) / 4)))
    steps = min(training["max_steps"] or inf, max(FEWEST_STEPS, EPOCHS * ceil(sum(costs) / batch)))
    training.update(max_steps=steps, epochs=None, max_batch_seconds=batch, max_seconds=float(longest))
    training.update(
        warmup_steps=steps // 10, eval_steps=max(1, steps // 6), distillation=None, init_from=None
    )
    profile["preprocessing"].update(max_seconds=float(longest), unreadable={})
    profile["selection"].update(train=None, dev=None)
    profile.update(corpora={"folder": section}, variants={})
    profile.yaml_set_start_comment(
        f"Recordings in {section['path']}; see docs/own-data.md. An empty value is null.\n\n"
    )


def _fit_texts(profile: Any, listed: dict[str, Any], max_new_tokens: int) -> None:
    """Raise the limits of tokens where texts are longer; with an LLM that is not on this machine, keep them."""
    from tokenizers import Tokenizer

    file = Path(profile["llm"]["path"]) / "tokenizer.json"
    if not file.is_file():
        return
    tokenizer = Tokenizer.from_file(str(file))
    texts = [entry.target for entries in listed.values() for entry in entries]
    tokens = 1 + max(
        len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts
    )  # and its end
    preprocessing, key = profile["preprocessing"], "generation.max_new_tokens"
    if preprocessing["max_tokens"] is not None:
        preprocessing["max_tokens"] = max(tokens, preprocessing["max_tokens"])
    if tokens > profile["overrides"].get(key, max_new_tokens):
        profile["overrides"][key] = tokens


def _read(file: Path) -> Any:
    from ruamel.yaml import YAML

    if not file.is_file():
        profiles = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise ValueError(f"{file}: no such file; profiles: {profiles}")
    return YAML().load(file.read_text(encoding="utf-8"))


def _text(profile: Any) -> str:
    """Return YAML in the form of `dvc exp run -S`."""
    from ruamel.yaml import YAML

    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style = False
    yaml.dump(profile, text)
    return text.getvalue()
