"""Write a profile for a folder of recordings, and put it selected."""

import io
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
Name = Annotated[str, typer.Argument(help="of the new profile: configs/NAME.yaml")]
Folder = Annotated[Path, typer.Argument(help="folder of recordings; it is only read")]

NAME = r"[a-z0-9][a-z0-9_-]*"
SPLITS = ("train", "dev", "test")
WHISPER_SECONDS = 30.0  # of every published Whisper
POSITIONS = 50  # of a Whisper encoder, a second
EPOCHS, FEWEST_STEPS = 20, 100
FEW = {"train": 600.0, "dev": 60.0, "test": 60.0}  # seconds, below which a comparison says little
SHIPPED = "pretrained/"


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
    """Look through FOLDER, write configs/NAME.yaml for it, and put that selected profile; `make repro` runs it.

    Texts are in a .txt beside each recording, or in a table. Splits are the folders `train`, `dev` and `test`, or a
    column; else the recordings are shared out. Nothing is written into FOLDER, and no other profile is changed.
    """
    from steermoe import config
    from steermoe.atomic_io import write_text
    from steermoe.corpora.places import EMBEDDED

    file = params.parent / "configs" / f"{name}.yaml"
    if not re.fullmatch(NAME, name):
        raise ValueError(f"NAME: found {name!r}, legal: small letters, digits, - and _")
    if file.exists():
        raise ValueError(f"{file} is there already; edit it, delete it, or choose another name")
    section = _section(folder, table, language)
    tree = _read(params.parent / "configs" / f"{base}.yaml")
    for part, path in (("encoder", encoder), ("llm", llm)):
        if path is not None:
            tree[part].update(path=path, revision=None)
    with TemporaryDirectory() as embedded:
        listed = _listed(section, Path(embedded) / EMBEDDED)
        lengths = {split: _lengths((folder, Path(embedded)), entries) for split, entries in listed.items()}
    most = max_seconds or _most_seconds(tree)
    _report(lengths, listed, most, tree)
    _scale(tree, section, lengths, most)
    _room_for_texts(tree, listed, _read(params)["generation"]["max_new_tokens"])
    write_text(file, _text(tree))
    try:
        config.switch_profile(params, name)
    except config.ConfigError:
        file.unlink()
        raise
    print(f"{file} is written and selected; look at it, then `make repro` trains and compares")


def _section(folder: Path, table: str | None, language: str) -> dict[str, Any]:
    """`corpora.folder`, all splits in use."""
    from steermoe.atomic_io import project_root

    path, root = folder.resolve(), project_root().resolve()
    if not path.is_dir():
        raise ValueError(f"FOLDER: {folder} is no folder")
    inside = path.is_relative_to(root)
    return {split: [split] for split in SPLITS} | {
        "seed": 1,
        "limit": None,
        "path": path.relative_to(root).as_posix() if inside else str(path),
        "language": language,
        "table": table,
    }


def _listed(section: dict[str, Any], embedded: Path) -> dict[str, Any]:
    """The rows of every split, as the corpus reads them; recordings within a table are written to `embedded`."""
    from pydantic import ValidationError

    from steermoe import config
    from steermoe.config.problems import located
    from steermoe.corpora import folder

    try:
        settings = config.Folder(**section)
    except ValidationError as error:
        lines = [f"{path}{line}" for path, line in located(error, config.Folder.model_json_schema())]
        raise config.ConfigError(lines) from error
    found, left_out = folder.listed(settings, embedded)
    for line in left_out:
        print(f"left out: {line}")
    return found


def _lengths(folders: Sequence[Path], entries: list[Any]) -> dict[str, float]:
    """Seconds of each recording; all of it is decoded, so what cannot be is named now."""
    from steermoe.audio import waveform

    found = {}
    for audio in dict.fromkeys(entry.audio for entry in entries):
        place = next(folder / audio for folder in folders if (folder / audio).is_file())
        try:
            found[audio] = len(waveform.load(place)) / waveform.RATE
        except ValueError as error:
            raise ValueError(f"{error}; take it out of the folder, or convert it") from error
    return found


def _most_seconds(tree: Any) -> float:
    """The longest recording that the encoder takes."""
    import json

    path = Path(tree["encoder"]["path"]) / "config.json"
    if tree["encoder"]["name"] == "whisper" and path.is_file():
        positions = json.loads(path.read_text(encoding="utf-8")).get("max_source_positions")
        if positions:
            return positions / POSITIONS
    return WHISPER_SECONDS


def _report(lengths: dict[str, dict[str, float]], listed: dict[str, Any], most: float, tree: Any) -> None:
    """Print what there is; refuse what cannot be evaluated.

    Raises:
        ValueError: recordings of dev or test are longer than `most`, or nothing shorter is left of train.
    """
    for split, of in lengths.items():
        seconds = list(of.values())
        print(
            f"{split}: {len(listed[split])} rows, {len(of)} recordings, {sum(seconds) / 60:.1f} minutes; seconds: "
            f"{min(seconds):.1f} to {max(seconds):.1f}, median {statistics.median(seconds):.1f}"
        )
    too_long = {split: [name for name, s in of.items() if s > most] for split, of in lengths.items()}
    held_out = [*too_long["dev"], *too_long["test"]]
    if held_out or len(too_long["train"]) == len(lengths["train"]):
        names = held_out or too_long["train"]
        raise ValueError(
            f"{len(names)} recordings are longer than {most:g} s, the most that the encoder {tree['encoder']['path']} "
            f"takes: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}; cut them into shorter ones with their "
            "texts, or name a larger encoder and LLM by --encoder and --llm"
        )
    if too_long["train"]:
        print(
            f"WARNING: {len(too_long['train'])} recordings of train are longer than {most:g} s, and are left out"
        )
    for split, least in FEW.items():
        total = sum(lengths[split].values())
        if total < least:
            print(f"WARNING: {split} has {total:.0f} s; below {least / 60:.0f} min figures are mostly chance")
    shipped = [part for part in ("encoder", "llm") if str(tree[part]["path"]).startswith(SHIPPED)]
    if shipped:
        print(
            f"WARNING: the {' and the '.join(shipped)} of the mini profile know some 150 words of synthetic "
            "speech. They show that everything runs, and cannot learn a person's speech: for that, set encoder.path "
            "and llm.path (or --encoder, --llm) to real models, such as openai/whisper-small and "
            "Qwen/Qwen2.5-0.5B-Instruct"
        )


def _scale(tree: Any, section: dict[str, Any], lengths: dict[str, dict[str, float]], most: float) -> None:
    """Make the profile of another corpus the folder's: its data, and a training that fits their size."""
    seconds = [seconds for seconds in lengths["train"].values() if seconds <= most]
    longest = max(*seconds, *lengths["dev"].values(), *lengths["test"].values())
    training = tree["training"]
    window = most if tree["encoder"]["window"] == "full" else 0.0  # which every row costs then
    costs = [max(window, length) for length in seconds]
    batch = max(ceil(max(window, longest)), min(training["max_batch_seconds"], ceil(sum(costs) / 4)))
    steps = min(training["max_steps"] or inf, max(FEWEST_STEPS, EPOCHS * ceil(sum(costs) / batch)))
    training.update(max_steps=steps, epochs=None, max_batch_seconds=batch, max_seconds=float(most))
    training.update(
        warmup_steps=steps // 10, eval_steps=max(1, steps // 6), distillation=None, init_from=None
    )
    tree["preprocessing"].update(max_seconds=float(most), unreadable={})
    tree["selection"].update(train=None, dev=None)
    tree.update(corpora={"folder": section}, variants={})
    tree.yaml_set_start_comment(
        f"Recordings in {section['path']}; see docs/own-data.md. An empty value is null.\n\n"
    )


def _room_for_texts(tree: Any, listed: dict[str, Any], max_new_tokens: int) -> None:
    """Raise the limits of tokens where texts are longer; of an LLM that is not here, they stay as they are."""
    from tokenizers import Tokenizer

    file = Path(tree["llm"]["path"]) / "tokenizer.json"
    if not file.is_file():
        return
    tokenizer = Tokenizer.from_file(str(file))
    texts = [entry.target for entries in listed.values() for entry in entries]
    longest = (
        max(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts) + 1
    )  # and its end
    preprocessing = tree["preprocessing"]
    if preprocessing["max_tokens"] is not None:
        preprocessing["max_tokens"] = max(longest, preprocessing["max_tokens"])
    key = "generation.max_new_tokens"
    if longest > tree["overrides"].get(key, max_new_tokens):
        tree["overrides"][key] = longest


def _read(file: Path) -> Any:
    from ruamel.yaml import YAML

    if not file.is_file():
        profiles = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise ValueError(f"{file}: no such file; profiles: {profiles}")
    return YAML().load(file.read_text(encoding="utf-8"))


def _text(tree: Any) -> str:
    """In the form of `dvc exp run -S`."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    text = io.StringIO()
    yaml.dump(tree, text)
    return text.getvalue()
