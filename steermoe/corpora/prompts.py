"""Recorded telephone prompts of the Asterisk project: people speaking English, Spanish, French, Italian and Russian.

An archive a language, `asterisk-core-sounds-<language>-g722-1.6.1.tar.gz`, has recordings `<name>.g722` (some in
folders) and the transcripts, core-sounds-<language>.txt, with lines `<name>: text`. Debian has the same files in two
packages a language. Without a mirror they are downloaded from Debian where apt can, else from the project. A mirror is
a folder with archives (unpacked: in a folder `<language>`) or packages (unpacked: `usr/share/...`), one archive, or a
URL.

Splits are named by language (`en-train`). They divide the texts by a hash, without case and punctuation: no text is in
two splits, nor two texts of a language that share RUN words in a row. Left out and listed are lines that are no plain
transcript, by the rules of `fault_of`, and what has no recording or no transcript.
"""

import gzip
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from steermoe.atomic_io import project_root
from steermoe.config.corpora import TelephonePrompts
from steermoe.corpora import debian, download
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.download import Places, Source, UnavailableError, is_url, locate
from steermoe.corpora.manifest import Entry, parts, report_left_out, rows, write_manifest
from steermoe.corpora.reader import card
from steermoe.corpora.splits import SHARES

__all__ = ["CARD", "SPLITS", "fault_of", "fetch", "parts", "rows", "share"]

SPLITS = TelephonePrompts.SPLITS
VERSION = "1.6.1"
URL = "https://downloads.asterisk.org/pub/telephony/sounds/releases"
SUFFIX = ".g722"
BYTES_PER_SECOND = 8000
MOST_LETTERS = 18.5  # letters and digits a second; what has more is not all of its text
LONGEST = 30.0  # seconds: Whisper's window
RUN = 6  # words
_LINE = re.compile(r"([^\s:;]+):(?:\s+(.*))?")
_NOTE = re.compile(r"[][(){}<>]")
_SIGN = re.compile(r"[*#@$=+]")
_LOST = re.compile(r"\?\s*[a-zà-öø-ÿ]")
_ANOTHER = re.compile(r"\b[a-z]\w*[-/][\w/-]*:")
_EDGE = r"""(?:\.\.+|…|["\s])*"""  # of a text that goes on in another recording


class Recorded(NamedTuple):
    """What there is in a language: who speaks, Debian's folder, and the files.

    `archive` is bytes and SHA-256 of the archive, as Debian's source package lists it; `packages` the SHA-256 of
    Debian's packages of recordings and transcripts.
    """

    speaker: str
    folder: str
    archive: tuple[int, str]
    packages: tuple[str, str]


RECORDED = {
    "en": Recorded(
        "Allison Smith",
        "en_US_f_Allison",
        (10_756_090, "59891033e764d9dffc5ccdd78e845a1c8ea6bed0b434128bb0199c63ef591770"),
        (
            "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
            "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
        ),
    ),
    "es": Recorded(
        "Allison Smith",
        "es_MX_f_Allison",
        (13_175_419, "3c474f73cc4f65478b3cf05ab0c5da19c8ce408699f61491f6aafba450cb540a"),
        (
            "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8",
            "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74",
        ),
    ),
    "fr": Recorded(
        "June Wallack",
        "fr_CA_f_June",
        (10_975_670, "7ff3ca96bbb295a6458e6eb1ff92690d9a5d0db0b4ddfa2c488237e4d251efbe"),
        (
            "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0",
            "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056",
        ),
    ),
    "it": Recorded(
        "Carlo Flora",
        "it_IT_m_Carlo",
        (10_191_350, "44a7fd7b067ff7f71df7fec31f9a8c960e13d35ca30c31878913c4020bfc00b6"),
        (
            "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016",
            "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b",
        ),
    ),
    "ru": Recorded(
        "a voice of ivrvoice.ru",
        "ru_RU_f_IvrvoiceRU",
        (10_635_740, "fde2a071b811a081219138693d6813d122d91c2c3423936274b110b97645b61b"),
        (
            "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b",
            "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab",
        ),
    ),
}
CARD = card("prompts")


def fetch(settings: TelephonePrompts, dest: Path) -> None:
    """Put the files of the languages in use into `dest` and write the manifest.

    Raises:
        UnavailableError, ArchiveError, SpaceError: as `download.fetch`; ArchiveError also where a language has no
            table of transcripts, or one that is not as expected.
    """
    used: dict[str, list[str]] = {}
    for split in settings.used:
        language, _, part = split.partition("-")
        used.setdefault(language, []).append(part)
    _bring(list(used), settings, dest)
    places, left_out = locate(dest), list[str]()
    for language, wanted in used.items():
        entries = list(_entries(places, language, left_out))
        split_of = share((_words(entry.transcript) for entry in entries), settings.seed)
        for part in wanted:
            chosen = (entry for entry in entries if split_of[_words(entry.transcript)] == part)
            write_manifest(dest, f"{language}-{part}", chosen)
    report_left_out("prompts", left_out, dest)


def _archive(language: str) -> Source:
    size, digest = RECORDED[language].archive
    name = f"asterisk-core-sounds-{language}-g722-{VERSION}.tar.gz"
    return Source(name, language, f"{URL}/{name}", bytes=size, checksum=f"sha256:{digest}")


def _packages(language: str) -> list[Source]:
    """Return Debian's packages of recordings and transcripts."""
    recordings = f"usr/share/asterisk/sounds/{RECORDED[language].folder}"
    texts = f"usr/share/doc/asterisk-core-sounds-{language}"
    names = (f"asterisk-core-sounds-{language}-g722", f"asterisk-core-sounds-{language}")
    return [
        Source(f"{name}_{VERSION}-1_all.deb", holds, inside=(holds,), checksum=f"sha256:{digest}")
        for name, holds, digest in zip(names, (recordings, texts), RECORDED[language].packages, strict=True)
    ]


def _bring(languages: list[str], settings: TelephonePrompts, dest: Path) -> None:
    """Put archives, or packages of Debian, into `dest`: what the mirror has; without one what can be downloaded."""
    archives = [_archive(language) for language in languages]
    packages = [package for language in languages for package in _packages(language)]
    refused = ""
    if settings.mirror is None:
        missing = [package for package in packages if not (dest / "data" / package.holds).exists()]
        folder = dest / download.WORK / "debian"
        try:
            debian.download(missing, folder)
        except UnavailableError as error:
            refused = f"{error}; "
        else:
            local = settings.model_copy(update={"mirror": str(folder.resolve())})
            download.fetch("prompts", missing, local, dest)
            return
    elif not is_url(settings.mirror):
        folder = project_root() / settings.mirror
        if any((folder / path).exists() for package in packages for path in (package.holds, package.path)):
            download.fetch("prompts", packages, settings, dest)
            return
    try:
        download.fetch("prompts", archives, settings, dest)
    except UnavailableError as error:
        raise UnavailableError(f"{refused}{error}") from error


def _entries(places: Places, language: str, left_out: list[str]) -> Iterator[Entry]:
    """Yield the prompts of a language, in the order of the table; what is left out is added to the list."""
    table, folder = f"{language}/core-sounds-{language}.txt", language
    if not places(table).exists():
        folder, texts = (package.holds for package in _packages(language))
        table = f"{texts}/core-sounds-{language}.txt.gz"
    known: dict[str, str] = {}
    for name, text in _transcripts(places(table)):
        different = known.get(name, text) != text
        known[name] = "" if different else text
        if different:
            left_out.append(f"{language}/{name}: two transcripts, the second is {text!r}")
    root = places(folder)
    recorded = {path.relative_to(root).as_posix().removesuffix(SUFFIX) for path in root.rglob(f"*{SUFFIX}")}
    left_out += [f"{language}/{name}: no transcript" for name in sorted(recorded - known.keys())]
    for name, text in known.items():
        audio = f"{folder}/{name}{SUFFIX}"
        fault = fault_of(text, places(audio).stat().st_size / BYTES_PER_SECOND if name in recorded else None)
        if fault:
            left_out.append(f"{language}/{name}: {fault}")
        else:
            plain = re.sub(rf"^{_EDGE}|{_EDGE}$", "", text)
            yield Entry(name, audio, language, RECORDED[language].speaker, plain)


def _transcripts(table: Path) -> Iterator[tuple[str, str]]:
    """Yield names and texts of a table, which may be compressed; lines that begin with ; are comments."""
    try:
        data = table.read_bytes()
        lines = (gzip.decompress(data) if table.suffix == ".gz" else data).decode("utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise ArchiveError(f"{table}: no such file, expected the transcripts") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{table}: damaged, or not UTF-8 ({error})") from error
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith(";"):
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise ArchiveError(f"{table}, line {number}: found {line[:80]!r}, expected `name: text`")
            yield match[1], match[2] or ""


def fault_of(text: str, seconds: float | None) -> str:
    """Return why a line is no transcript of its recording, which is so long; "" where it is one.

    It has no words; notes in brackets (`[sound of monkeys screaming]`); signs that are said as words (`press *`);
    question marks in the place of letters (`sar? esattamente`); the lines of further recordings; no recording, or one
    that is too long; or more text than can be said in the time.
    """
    letters = sum(map(str.isalnum, text))
    if not letters:
        return "no transcript"
    if _NOTE.search(text):
        return f"not speech alone: {text}"
    if _SIGN.search(text):
        return f"signs that are said in words: {text}"
    if _LOST.search(text):
        return f"question marks in the place of letters: {text}"
    if _ANOTHER.search(text):
        return f"texts of several recordings: {text}"
    if seconds is None:
        return "no recording"
    if seconds > LONGEST:
        return f"{seconds:.2f} s, more than {LONGEST:g}"
    if letters > MOST_LETTERS * seconds:
        return f"too much text for {seconds:.2f} s: {text}"
    return ""


def _words(text: str) -> str:
    """Return the text without case and punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def share(texts: Iterable[str], seed: int) -> dict[str, str]:
    """Return the split of each text, by a hash: the same for texts that share RUN words in a row."""
    group = {text: text for text in texts}

    def first(text: str) -> str:
        while group[text] != text:
            text = group[text]
        return text

    has: dict[tuple[str, ...], str] = {}
    for text in group:
        words = text.split()
        for start in range(len(words) - RUN + 1):
            one, other = first(has.setdefault(tuple(words[start : start + RUN]), text)), first(text)
            group[max(one, other)] = min(one, other)
    return {text: _split_of(first(text), seed) for text in group}


def _split_of(text: str, seed: int) -> str:
    digest = hashlib.blake2b(f"{seed} {text}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    for split, part in SHARES.items():
        if place < part:
            return split
        place -= part
    return "train"
