"""The corpora in their official layouts, with the rows that they must give."""

from typing import Any, NamedTuple

from steermoe.corpora import openaudiobench
from tests.corpora import official
from tests.corpora.official import seven_zipped, tarred, tone, zipped

REVISION = "70bb2e84b976b7e960aa89f1c648e09c59f894dd"
SPEECH = {
    f"{speaker}-{number:04d}": (f"PITCH {500 + 100 * i}", tone(500 + 100 * i, format="FLAC"))
    for i, (speaker, number) in enumerate((("84-121123", 0), ("84-121123", 1), ("1272-128104", 0)))
}
SPOKEN = [("1272", "PITCH 700", 700), ("84", "PITCH 500", 500), ("84", "PITCH 600", 600)]
CAPTIONS = [f"500, said {i}." for i in range(1, 6)]


def speakers(files: dict[str, bytes]) -> dict[str, bytes]:
    """AISHELL-1 as its archive holds it, without the archives of the speakers."""
    found = {name: data for name, data in files.items() if not name.endswith(".tar.gz")}
    for name, hertz in official.aishell1_utterances().items():
        split = official.AISHELL_SPEAKERS[name[6:11]]
        found[f"data_aishell/wav/{split}/{name[6:11]}/{name}.wav"] = tone(hertz)
    return found


class Case(NamedTuple):
    """A corpus in an official layout.

    Attributes:
        name: of the corpus.
        changes: of its section.
        unpacked: files, as a user has them unpacked.
        packed: the same, as they are published.
        rows: speaker, target and pitch of every row, in order.
        fields: what else all rows have.
    """

    name: str
    changes: dict[str, Any]
    unpacked: dict[str, bytes]
    packed: dict[str, bytes]
    rows: list[tuple[str, str, int]]
    fields: dict[str, Any]


def asked(split: str, protocol: str) -> dict[str, Any]:
    return {"test": [split], "protocol": {split: protocol}}


LIBRI, AISHELL, AISHELL2 = official.librispeech("dev-clean", SPEECH), official.aishell1(), official.aishell2()
FLEURS, MLS = official.fleurs("de_de", "test"), official.mls("german", "opus")
AQA_TABLE = {"clotho_aqa_test.csv": official.clothoaqa()}
AQA_SOUNDS = {f"audio_files/{name}.wav": tone(hertz, rate=44_100) for name, hertz in (("a", 500), ("b", 600))}
SOUND = {"evaluation/500.wav": tone(500, rate=44_100)}
CAPTION_TABLE = {"clotho_captions_evaluation.csv": official.clotho(["500"])}
MMAU, MMAU_SOUND = {"mmau-test-mini.json": official.mmau()}, {"test-mini-audios/3fe64f3d.wav": tone(500)}
PRO = {
    "test.parquet": official.mmaupro([{"answer": "Dog"}, {"id": "q2", "choices": [], "answer": "It barks."}])
}
PROMPTS = official.prompts({"greeting": "...Goodbye.", "digits/1": "one", "beep": "[beep]"})
PROMPTS_PACKED = {"asterisk-core-sounds-en-g722-1.6.1.tar.gz": tarred(PROMPTS)}
OPEN = {
    name: data
    for number, (subset, answer) in enumerate((("web_questions", "Jaxon; Jazmyn"), ("reasoning_qa", "北京")))
    for name, data in official.openaudiobench(subset, answer, tone(500 + 100 * number, format="MP3")).items()
}
CASES = {
    "librispeech": Case(
        "librispeech", {"test": ["dev-clean"]}, LIBRI, {"dev-clean.tar.gz": tarred(LIBRI)},
        SPOKEN, {"language": "en", "task": "transcribe", "prompt": ""},
    ),
    "minilibrispeech": Case(
        "minilibrispeech", {"test": ["dev-clean-2"]}, official.librispeech("dev-clean-2", SPEECH),
        {"dev-clean-2.tar.gz": tarred(official.librispeech("dev-clean-2", SPEECH))}, SPOKEN, {"language": "en"},
    ),
    "aishell1": Case(
        "aishell1", {"test": ["dev"]}, speakers(AISHELL), {"data_aishell.tgz": tarred(AISHELL)},
        [("S0724", f"音高{hertz}TV", hertz) for hertz in (800, 900, 1000)], {"language": "zh"},
    ),
    "aishell2": Case(
        "aishell2", {"train": ["train"], "test": ["ios-test"]}, AISHELL2, AISHELL2,
        [("C0001", "厨房用品", 700), ("T0011", "换一首歌", 500), ("T0012", "打开TV", 600)], {"language": "zh"},
    ),
    "fleurs": Case(
        "fleurs", {"test": ["de_de-test"], "revision": REVISION, "text": "raw"},
        {"data/de_de/test.tsv": FLEURS["data/de_de/test.tsv"]}
        | {f"data/de_de/audio/test/{name}.wav": tone(hertz) for name, hertz in (("11", 500), ("12", 600))},
        FLEURS, [("unknown", 'Er sagte: "Ja, Straße 500!"', 500), ("unknown", "Zweite 600.", 600)],
        {"language": "de"},
    ),
    "mls": Case(
        "mls", {"dev": ["german-dev"], "test": ["german-test"], "encoding": "opus"}, MLS,
        {"mls_german_opus.tar.gz": tarred(MLS)},
        [("10536", f"tonhöhe {hertz}", hertz) for hertz in (500, 600)] * 2, {"language": "de"},
    ),
    "clothoaqa": Case(
        "clothoaqa", asked("test", "raw"), AQA_SOUNDS | AQA_TABLE,
        {"audio_files.zip": zipped(AQA_SOUNDS), **AQA_TABLE},
        [("none", answer, pitch) for answer, pitch in
         (("yes", 500), ("no", 500), ("bell", 500), ("church bell", 600), ("street", 600))],
        {"language": "en", "task": "answer"},
    ),
    "clotho": Case(
        "clotho", {"test": ["evaluation"], "captions": {"evaluation": "each"}}, SOUND | CAPTION_TABLE,
        {"clotho_audio_evaluation.7z": seven_zipped(SOUND), **CAPTION_TABLE},
        [("none", caption, 500) for caption in CAPTIONS], {"task": "caption", "answers": CAPTIONS, "transcript": ""},
    ),
    "mmau": Case(
        "mmau", {"answer": "letter"}, MMAU | MMAU_SOUND,
        {"test-mini-audios.tar.gz": tarred(MMAU_SOUND), **MMAU}, [("none", "B", 500)],
        {"prompt": "Who speaks?\n(A) Man\n(B) Woman\n(C) Child", "choices": ["A", "B", "C"],
         "source_id": "mmau-test-mini-3fe64f3d"},
    ),
    "mmaupro": Case(
        "mmaupro", {"answer": "text", "revision": REVISION}, PRO | {"data/a.wav": tone(500)},
        PRO | {"data.zip": zipped({"data/a.wav": tone(500)})},
        [("none", "Dog", 500), ("none", "It barks.", 500)], {"task": "answer", "language": "en"},
    ),
    "prompts": Case(
        "prompts", {"test": ["en-train"]}, {f"en/{name}": data for name, data in PROMPTS.items()}, PROMPTS_PACKED,
        [("Allison Smith", "Goodbye.", 500), ("Allison Smith", "one", 600)], {"language": "en", "task": "transcribe"},
    ),
    "openaudiobench": Case(
        "openaudiobench", {"test": ["web_questions", "reasoning_qa"], "revision": REVISION}, OPEN, OPEN,
        [("unknown", "Jaxon", 500), ("unknown", "北京", 600)],
        {"transcript": "Who, or what?", "prompt": openaudiobench.QUESTION},
    ),
}  # fmt: skip
