"""Every corpus from an archive of its official layout to figures, by the stages in one process on a copied repository.

The archives are small and hold tones; their checksums stand in the copied readers in place of the official ones.
Base models are tiny, with random weights: what is seen here is that every row arrives, and is scored as its task is.
"""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ruamel.yaml import YAML

from steermoe.corpora import aishell, clotho, librispeech, multilingual
from tests.corpora import official
from tests.corpora.official import tone
from tests.pipeline.conftest import copy_repository, run

VARIANT, PROFILE = "steermoe", "corpora"
LOWEST = "0" * 40
SECTIONS: dict[str, dict[str, Any]] = {
    "librispeech": {"train": ["train-clean-100"], "dev": ["dev-clean"], "test": ["test-clean"]},
    "minilibrispeech": {"train": ["train-clean-5"], "test": ["dev-clean-2"]},
    "aishell1": {"train": ["train"], "dev": ["dev"], "test": ["test"]},
    "aishell2": {"train": ["train"], "test": ["ios-test"]},
    "fleurs": {"test": ["de_de-test"], "revision": LOWEST, "text": "raw"},
    "mls": {"dev": ["german-dev"], "test": ["german-test"], "encoding": "opus"},
    "folder": {"train": ["train"], "test": ["test"], "table": "t.csv", "language": "fr"},
    "clothoaqa": {"train": ["train"], "test": ["test"], "protocol": {"train": "clean", "test": "raw"}},
    "clotho": {
        "train": ["development"],
        "test": ["evaluation"],
        "captions": {"development": "each", "evaluation": "first"},
    },
    "mmau": {"test": ["test-mini"], "answer": "letter"},
    "mmaupro": {"test": ["test"], "answer": "text", "revision": LOWEST},
    "openaudiobench": {"test": ["reasoning_qa"], "revision": LOWEST},
}
# Rows of every split in the shards, and what is scored in the last of them: task, and metrics beside others.
EXPECTED: dict[str, tuple[dict[str, int], str, set[str]]] = {
    "librispeech": ({"train-clean-100": 3, "dev-clean": 4, "test-clean": 4}, "transcribe", {"wer", "cer"}),
    "minilibrispeech": ({"train-clean-5": 4, "dev-clean-2": 4}, "transcribe", {"wer", "cer"}),
    "aishell1": ({"train": 3, "dev": 3, "test": 3}, "transcribe", {"cer"}),
    "aishell2": ({"train": 1, "ios-test": 2}, "transcribe", {"cer"}),
    "fleurs": ({"de_de-test": 2}, "transcribe", {"wer", "cer"}),
    "mls": ({"german-dev": 2, "german-test": 2}, "transcribe", {"wer", "cer"}),
    "folder": ({"train": 1, "test": 1}, "transcribe", {"wer", "cer"}),
    "clothoaqa": (
        {"train": 4, "test": 5},
        "answer",
        {"accuracy", "token_f1", "raw_accuracy", "clean_accuracy", "unanimous_accuracy", "binary_accuracy"},
    ),
    "clotho": ({"development": 10, "evaluation": 2}, "caption", {"rouge_l"}),
    "mmau": ({"test-mini": 1}, "answer", {"accuracy", "choice_accuracy"}),
    "mmaupro": ({"test": 2}, "answer", {"accuracy", "choice_accuracy"}),
    "openaudiobench": ({"reasoning_qa": 1}, "answer", {"accuracy"}),
}
LANGUAGES = {
    "aishell1": "zh",
    "aishell2": "zh",
    "fleurs": "de",
    "mls": "de",
    "folder": "fr",
    "openaudiobench": "zh",
}

pytestmark = pytest.mark.slow


def packed(folder: Path, files: dict[str, bytes | str]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def speech(spoiled: bool) -> dict[str, tuple[str, bytes]]:
    """Four utterances of two speakers; the last one's file may be damaged."""
    names = [f"{speaker}-{number:04d}" for speaker in ("84-121123", "1272-128104") for number in range(2)]
    files = {name: (f"PITCH {i}", tone(500 + 100 * i, format="FLAC")) for i, name in enumerate(names)}
    if spoiled:
        files[names[-1]] = ("PITCH LOST", files[names[-1]][1][:2000])
    return files


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a corpus with what its official place has."""
    root = tmp_path_factory.mktemp("mirrors")
    for split in ("train-clean-100", "dev-clean", "test-clean"):
        files = official.librispeech(split, speech(spoiled=split.startswith("train")))
        packed(root / "librispeech", {f"{split}.tar.gz": official.tarred(files)})
    for split in ("train-clean-5", "dev-clean-2"):
        files = official.librispeech(split, speech(spoiled=False))
        packed(root / "minilibrispeech", {f"{split}.tar.gz": official.tarred(files)})
    packed(root / "aishell1", {"data_aishell.tgz": official.tarred(official.aishell1())})
    packed(root / "aishell2", {**official.aishell2()})
    packed(root / "fleurs", {**official.fleurs("de_de", "test")})
    packed(root / "mls", {"mls_german_opus.tar.gz": official.tarred(official.mls("german", "opus"))})
    columns, rows = ["path", "text", "split"], [["a.wav", "un", "train"], ["b.mp3", "deux", "test"]]
    packed(root / "folder", {"t.csv": official.table(columns, rows)})
    packed(root / "folder", {"a.wav": tone(500, rate=44_100), "b.mp3": tone(600, format="MP3")})
    sounds = {f"audio_files/{name}.wav": tone(500, rate=44_100) for name in "ab"}
    packed(root / "clothoaqa", {"audio_files.zip": official.zipped(sounds)})
    for split in ("train", "test"):
        packed(root / "clothoaqa", {f"clotho_aqa_{split}.csv": official.clothoaqa()})
    for split in ("development", "evaluation"):
        sounds = {f"{split}/{hertz}.wav": tone(hertz, rate=44_100) for hertz in (500, 600)}
        packed(root / "clotho", {f"clotho_audio_{split}.7z": official.seven_zipped(sounds)})
        packed(root / "clotho", {f"clotho_captions_{split}.csv": official.clotho(["500", "600"])})
    sounds = {"test-mini-audios/3fe64f3d.wav": tone(500)}
    packed(root / "mmau", {"mmau-test-mini.json": official.mmau()})
    packed(root / "mmau", {"test-mini-audios.tar.gz": official.tarred(sounds)})
    asked = [{"answer": "Dog"}, {"id": "q2", "choices": [], "answer": "It barks."}]
    packed(root / "mmaupro", {"test.parquet": official.mmaupro(asked)})
    packed(root / "mmaupro", {"data.zip": official.zipped({"data/a.wav": tone(500)})})
    spoken = official.openaudiobench("reasoning_qa", "他住在北京", tone(500, format="MP3"))
    packed(root / "openaudiobench", {**spoken})
    return root


def official_checksums() -> dict[str, str]:
    """Paths in `mirrors`, and the MD5 sums that the readers have for them."""
    corpus_of = {12: "librispeech", 31: "minilibrispeech"}
    archives = librispeech.ARCHIVES.items()
    found = {f"{corpus_of[number]}/{split}.tar.gz": md5 for split, (number, _, md5) in archives}
    found |= {f"mls/{name}.tar.gz": md5 for name, md5 in multilingual.MLS_MD5.items()}
    found["aishell1/data_aishell.tgz"] = str(aishell.ARCHIVE.checksum).removeprefix("md5:")
    for split, (_, sounds, captions) in clotho.FILES.items():
        found[f"clotho/clotho_audio_{split}.7z"] = sounds
        found[f"clotho/clotho_captions_{split}.csv"] = captions
    return found


def stand_in(readers: Path, mirrors: Path) -> None:
    """Put the checksums of the small archives where the copied readers have the official ones."""
    ours = {
        theirs: hashlib.md5((mirrors / path).read_bytes()).hexdigest()
        for path, theirs in official_checksums().items()
        if (mirrors / path).exists()
    }
    assert len(ours) == 3 + 2 + 1 + 1 + 4
    for reader in readers.glob("*.py"):
        text = reader.read_text()
        for old, new in ours.items():
            text = text.replace(old, new)
        reader.write_text(text)


def section(name: str, mirrors: Path) -> dict[str, Any]:
    place = {"path": str(mirrors / name)} if name == "folder" else {"mirror": str(mirrors / name)}
    if name not in ("folder", "aishell2"):
        place |= {"required": True}
    return {"train": [], "dev": [], "test": [], "seed": 3, "limit": None, **place, **SECTIONS[name]}


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, mirrors: Path, tiny_encoder_dir: Path, tiny_llm_dir: Path
) -> Path:
    """A copy of the repository whose profile has every corpus, tiny base models, and one variant of two steps."""
    root = tmp_path_factory.mktemp("project")
    copy_repository(root)
    for part, folder in (("encoder", tiny_encoder_dir), ("llm", tiny_llm_dir)):
        shutil.rmtree(root / "pretrained" / part)
        shutil.copytree(folder, root / "pretrained" / part)
    stand_in(root / "steermoe" / "corpora", mirrors)
    yaml = YAML()
    profile = yaml.load(root / "configs" / "mini.yaml")
    profile["corpora"] = {name: section(name, mirrors) for name in SECTIONS}
    profile["preprocessing"] |= {"max_seconds": 4.0, "max_rejected": 0.2}
    profile["training"] |= {"max_steps": 2, "warmup_steps": 1, "eval_steps": 2, "max_batch_seconds": 4.0}
    profile["training"] |= {"max_seconds": 4.0, "precision": "float32"}
    yaml.dump(profile, root / "configs" / f"{PROFILE}.yaml")
    params = yaml.load(root / "params.yaml")
    params |= {"profile": PROFILE, "corpora": list(SECTIONS), "compare": [VARIANT], "reference": VARIANT}
    params["generation"]["max_new_tokens"], params["evaluation"]["bootstrap_samples"] = 4, 100
    yaml.dump(params, root / "params.yaml")
    return root


STAGES = """
from pathlib import Path
from pipeline.__main__ import command

data, models, reports = (Path(name) / "PROFILE" for name in ("data", "models", "reports"))
corpora = NAMES
command("base")(data / "base")
for name in corpora:
    command("download")(name, data / "raw" / name)
    command("preprocess")(name, data / "raw" / name, data / "shards" / name, workers=1)
command("configure")(data / "variants", data / "inputs", data / "base", data / "shards")
model = models / "VARIANT"
histories = [reports / "history" / "VARIANT.csv", reports / "timing" / "VARIANT.json"]
command("train")(data / "variants" / "VARIANT.json", data / "shards", model, *histories)
for name in corpora:
    command("eval")(name, model, data / "shards" / name, reports / "evaluations" / "VARIANT" / name)
command("baseline")("clothoaqa", data / "shards/clothoaqa", reports / "evaluations/baseline/clothoaqa")
"""


def test_every_corpus_from_its_archive_to_figures(project: Path) -> None:
    code = (
        STAGES.replace("PROFILE", PROFILE).replace("VARIANT", VARIANT).replace("NAMES", str(list(SECTIONS)))
    )
    output = run(project, "python", "-c", code)
    assert "librispeech train-clean-100: 3 rows, 0.0 minutes; 0 dropped as too long; 1 left out" in output
    assert "fleurs de_de-test: 2 rows" in output and "fleurs de_de-train" not in output
    for name, (rows, task, metrics) in EXPECTED.items():
        shards = pl.read_parquet(project / f"data/{PROFILE}/shards/{name}/*.parquet")
        assert Counter(shards["split"]) == rows, name
        assert shards["language"].unique().to_list() == [LANGUAGES.get(name, "en")], name
        found = json.loads(
            (project / f"reports/{PROFILE}/evaluations/{VARIANT}/{name}/metrics.json").read_text()
        )
        split = SECTIONS[name]["test"][-1]
        scores = found["own"][split]
        assert list(scores) == [task], name
        assert scores[task]["n"] == rows[split] and metrics <= scores[task].keys(), name
        assert found["protocol"]["normalizer"] == "folded", name


def test_the_damaged_recording_is_listed_and_nothing_else(project: Path) -> None:
    listed = {
        name: (project / f"data/{PROFILE}/shards/{name}/left_out.jsonl").read_text().splitlines()
        for name in SECTIONS
    }
    (line,) = listed.pop("librispeech")
    lost = json.loads(line)
    assert lost["source_id"] == "librispeech-train-clean-100-1272-128104-0001"
    assert lost["kind"] == "rejected" and "1272-128104-0001.flac" in lost["reason"]
    assert not any(listed.values())


def test_training_reads_every_task_in_every_language(project: Path) -> None:
    config = json.loads((project / f"models/{PROFILE}/{VARIANT}/config.json").read_text())
    assert config["variant"]["train_splits"] == {
        name: values.get("train", []) for name, values in SECTIONS.items()
    }
    history = pl.read_csv(project / f"reports/{PROFILE}/history/{VARIANT}.csv")
    assert history["step"].max() == 2 and history["dev_loss"].drop_nulls().is_finite().all()


def test_questions_have_their_baselines(project: Path) -> None:
    folder = project / f"reports/{PROFILE}/evaluations/baseline/clothoaqa"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "cascade", "constant", "text-only",
    ]  # fmt: skip
    scores = json.loads((folder / "constant" / "metrics.json").read_text())["own"]["test"]["answer"]
    assert scores["raw_accuracy"]["n"] == 5 and 0 <= scores["raw_accuracy"]["value"] <= 4 / 15
