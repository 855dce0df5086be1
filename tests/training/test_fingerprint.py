"""A training is found again by what decides its result."""

import json
from pathlib import Path

from steermoe import config
from steermoe.atomic_io import Staging
from steermoe.training.fingerprint import digest, fingerprint, training_key

PARAMS = Path(__file__).parents[2] / "params.yaml"
HASHES = {"encoder": "e", "llm": "l"}


def test_everything_that_decides_the_result_is_in_the_fingerprint():
    loaded = config.load(PARAMS)
    variant = loaded.variant("steermoe")
    same = config.VariantConfig.from_json(variant.to_json())
    base = fingerprint(training_key(variant, "data", HASHES))
    assert base == fingerprint(training_key(same, "data", dict(reversed(HASHES.items()))))
    others = [
        training_key(loaded.variant("steermoe-2"), "data", HASHES),
        training_key(variant, "other data", HASHES),
        training_key(variant, "data", HASHES | {"llm": "other"}),
    ]
    others += [training_key(variant, "data", HASHES, {"init_from": {"adapter.safetensors": d}}) for d in "ab"]
    assert len({base, *map(fingerprint, others)}) == 6


def test_the_work_folder_bears_the_fingerprint(tmp_path):
    key = training_key(config.load(PARAMS).variant("lora"), "data", HASHES)
    with Staging(tmp_path / "out", key, tmp_path) as staging:
        assert staging.scratch.parent.name == fingerprint(key)
        assert json.loads((staging.scratch.parent / "key.json").read_text()) == key


def test_a_digest_tells_contents_names_and_corpora_but_not_places(tmp_path):
    def shards(root: str, corpus: str = "c", name: str = "train-00000.parquet", content: str = "x") -> str:
        folder = tmp_path / root / corpus
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        (folder / "train-00001.parquet").write_text("y")
        return digest(folder.glob("*.parquet"))

    base = shards("a")
    assert shards("b") == base
    others = [shards("c", corpus="d"), shards("e", name="dev-00000.parquet"), shards("f", content="z")]
    assert len({base, *others}) == 4
