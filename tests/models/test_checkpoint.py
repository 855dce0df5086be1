"""Adapters on disk and on the hub: saved, loaded, damaged, tampered with, and of older versions."""

import base64
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import logging as bars

from steermoe.cli import main as cli
from steermoe.models import checkpoint, pretrained
from steermoe.models.pretrained import digest, frozen_weights, load_frozen
from steermoe.models.steermoe import SteerMoE

from .conftest import MakeBatch, stirred

METHODS = ("steering", "linear", "lora")
WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.0)}
Files = dict[str, dict[str, bytes]]


@pytest.fixture(scope="module", params=METHODS)
def model(request: pytest.FixtureRequest, tiny_variant: Callable[..., Any]) -> SteerMoE:
    return stirred(SteerMoE.from_config(tiny_variant(request.param)))


@pytest.fixture
def saved(model: SteerMoE, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def linear(tiny_variant: Callable[..., Any], tmp_path: Path) -> Path:
    """A saved adapter of method linear."""
    SteerMoE.from_config(tiny_variant("linear")).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def describe(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change config.json."""
    description = json.loads((folder / "config.json").read_text())
    change(description)
    (folder / "config.json").write_text(json.dumps(description))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the weights, and the checksum with them."""
    weights = load_file(folder / "adapter.safetensors")
    change(weights)
    adapter = checkpoint.read(folder)
    checkpoint.write(folder, checkpoint.Adapter(adapter.variant, adapter.frozen, weights))


# saving and loading


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_to_the_byte(
    model: SteerMoE, saved: Path, make_batch: MakeBatch, greedy: Any, tmp_path: Path
) -> None:
    again = SteerMoE.from_pretrained(saved)
    assert torch.equal(again(**make_batch()).loss, model(**make_batch()).loss)
    assert again.generate(make_batch(), greedy(5)) == model.generate(make_batch(), greedy(5))
    assert again.config == model.config and not again.training
    weights = load_file(saved / "adapter.safetensors")
    assert set(weights) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in weights if name.startswith("encoder."))
    again.save_pretrained(tmp_path / "again")
    assert sorted(path.name for path in saved.iterdir()) == ["adapter.safetensors", "config.json"]
    for path in saved.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_an_adapter_stores_how_it_is_used(tiny_variant: Any, greedy: Any, tmp_path: Path) -> None:
    beams = greedy(7, strategy="beam", num_beams=2)
    SteerMoE.from_config(tiny_variant("linear"), beams, "english").save_pretrained(tmp_path)
    again = SteerMoE.from_pretrained(tmp_path)
    assert (again.generation, again.normalizer) == (beams, "english")
    describe(tmp_path, lambda d: [d.pop("generation"), d.pop("normalizer")])
    older = SteerMoE.from_pretrained(tmp_path)
    assert older.generation.max_new_tokens == 200 and older.normalizer is None
    describe(tmp_path, lambda d: d.update(generation={"max_new_tokens": 0}))
    with pytest.raises(
        ValueError, match=r"config\.json: not the description of an adapter: .*max_new_tokens"
    ):
        checkpoint.read(tmp_path)


@torch.no_grad()
def test_an_adapter_stores_its_numbers_of_layers(
    tiny_variant: Any, make_batch: MakeBatch, greedy: Any, tmp_path: Path
) -> None:
    small = SteerMoE.from_config(tiny_variant("steering", {"encoder.layers": 2, "llm.layers": 1}))
    whole = SteerMoE.from_config(tiny_variant("steering"))
    assert (len(small.encoder.layers), len(whole.encoder.layers)) == (2, 3)
    assert all(small.frozen_hashes()[part] != digest for part, digest in whole.frozen_hashes().items())
    small.save_pretrained(tmp_path)
    again = SteerMoE.from_pretrained(tmp_path)
    assert again.config == small.config and again.frozen_hashes() == small.frozen_hashes()
    assert again.generate(make_batch(), greedy(6)) == small.generate(make_batch(), greedy(6))


def test_another_dtype_is_a_warning_and_another_device_is_not(
    linear: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = SteerMoE.from_pretrained(linear, dtype=torch.bfloat16, device_map="cpu")
    assert {p.dtype for p in half.llm.parameters()} == {torch.bfloat16}
    assert "encoder is loaded as bfloat16/none, the adapter was trained with float32/none" in caplog.text
    caplog.clear()
    small = SteerMoE.from_pretrained(linear, quantization="int8", device_map="auto")
    assert "llm is loaded as float32/int8" in caplog.text and "encoder" not in caplog.text
    assert small.config.llm.quantization == "int8"
    with pytest.raises(ValueError, match="dtype: found float8; legal: float32, bfloat16"):
        SteerMoE.from_pretrained(linear, dtype="float8")
    with pytest.raises(ValueError, match="found revision 'main' of a folder"):
        SteerMoE.from_pretrained(linear, revision="main")


# damage


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_a_tampered_hash_is_an_error(saved: Path, part: str) -> None:
    describe(saved, lambda description: description["frozen"].update({part: "0" * 64}))
    with pytest.raises(
        ValueError, match=rf"trained against another {part}: .* from_pretrained\(\.\.\., {part}="
    ):
        SteerMoE.from_pretrained(saved)


def test_other_frozen_weights_are_an_error_and_moved_ones_are_not(
    linear: Path, tiny_encoder_dir: Path, tiny_llm_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_encoder_dir, tmp_path / "encoder")
    shutil.copytree(tiny_llm_dir, tmp_path / "llm")
    moved = SteerMoE.from_pretrained(linear, encoder=tmp_path / "encoder", llm=str(tmp_path / "llm"))
    assert moved.config.encoder.path == str(tmp_path / "encoder")
    encoder = WhisperEncoder.from_pretrained(tiny_encoder_dir)
    with torch.no_grad():
        dict(encoder.named_parameters())["layers.1.fc1.bias"][3] += 1e-4
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(
        ValueError, match=rf"trained against another encoder: the weights in '{tmp_path}/encoder'"
    ):
        SteerMoE.from_pretrained(linear, encoder=tmp_path / "encoder")
    with pytest.raises(ValueError, match="the adapter has no video tower: leave it out"):
        SteerMoE.from_pretrained(linear, video="somewhere")


def test_damaged_and_unsuitable_weights_are_errors(linear: Path) -> None:
    path = linear / "adapter.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"adapter\.safetensors: found SHA-256 .*damaged"):
        SteerMoE.from_pretrained(linear)
    path.write_bytes(whole)
    rewrite(linear, lambda w: w.update({"projection.linear.bias": torch.zeros(7)}))
    with pytest.raises(
        ValueError, match=r"projection\.linear\.bias: found shape \(7,\), the model needs \(32,\)"
    ):
        SteerMoE.from_pretrained(linear)
    rewrite(linear, lambda w: w.update({"projection.linear.gain": w.pop("projection.linear.bias")}))
    missing = r"projection\.linear\.bias is missing; projection\.linear\.gain is not part of this model"
    with pytest.raises(ValueError, match=missing):
        SteerMoE.from_pretrained(linear)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no adapter: config\.json and adapter\.safetensors missing"),
        ("{", "not the description of an adapter"),
        ('{"model_type": "whisper"}', r"found keys \['model_type'\], expected"),
        (
            '{"format": 1, "arm": {}, "frozen": {}, "weights": ""}',
            "version 0.2.0 converts an adapter of version 0.1",
        ),
        ("[]", "not the description of an adapter"),
        ('{"format": 99, "variant": {}, "frozen": {}, "weights": ""}', "found format 99, this version reads"),
    ],
)
def test_other_files_are_not_taken_for_an_adapter(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
        save_file({"x": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match=message):
        checkpoint.read(tmp_path)


def test_a_missing_key_is_named_with_what_to_do(linear: Path) -> None:
    describe(linear, lambda description: description["variant"]["prompts"].pop("summarize"))
    with pytest.raises(
        ValueError, match=r"config\.json: .*prompts\.summarize: missing; .*add what is missing"
    ):
        SteerMoE.from_pretrained(linear)


def test_a_failed_write_leaves_the_old_files(linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in linear.iterdir()}

    def full(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        rewrite(linear, lambda weights: weights.clear())
    assert {path.name: path.read_bytes() for path in linear.iterdir()} == before


# hashes of frozen weights


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"b": WEIGHTS["b"], "a": WEIGHTS["a"].T.contiguous().T}, True),
        ({"a": WEIGHTS["a"].clone().index_fill_(1, torch.tensor(0), 1e-30), "b": WEIGHTS["b"]}, False),
        ({"a": WEIGHTS["a"].view(3, 2), "b": WEIGHTS["b"]}, False),
        ({"a": WEIGHTS["a"].bfloat16(), "b": WEIGHTS["b"]}, False),
        ({"c": WEIGHTS["a"], "b": WEIGHTS["b"]}, False),
        ({"a": WEIGHTS["a"]}, False),
    ],
    ids=["order and layout", "value", "shape", "dtype", "name", "number"],
)
def test_the_digest_depends_on_all_but_order_and_layout(other: dict[str, torch.Tensor], same: bool) -> None:
    assert (digest(other) == digest(WEIGHTS)) is same


def test_frozen_weights_are_those_not_trained_each_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    module.requires_grad_(False)
    module[1].weight = module[0].weight
    module[0].bias.requires_grad_(True)
    statistics = {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert set(frozen_weights(module)) == {"0.weight", "2.weight", "2.bias"} | statistics


@pytest.mark.parametrize("shown", [True, False])
def test_only_large_models_show_their_progress(
    tiny_llm_dir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    if shown:
        monkeypatch.setattr(pretrained, "QUIET_BYTES", 10)
    load_frozen(AutoModelForCausalLM, str(tiny_llm_dir), "float32", "llm")
    assert ("Loading weights" in capfd.readouterr().err) == shown and bars.is_progress_bar_enabled()


# the hub: its real client against a server of our own


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as it takes to make a repository, commit to it and download it again."""

    repositories: dict[str, dict[str, bytes]]
    COMMIT = "a" * 40

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            name = f"{json.loads(body)['organization']}/{json.loads(body)['name']}"
            self.repositories[name] = {}
            self._json({"url": f"{self.server_url}/{name}"})
        elif self.path == "/api/validate-yaml":  # of a card
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            self._json({"files": [{"path": file["path"], **regular} for file in json.loads(body)["files"]]})
        elif "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                file = line["value"]
                if line["key"] == "file":
                    self.repositories[name][file["path"]] = base64.b64decode(file["content"])
            url = f"{self.server_url}/{name}/commit/{self.COMMIT}"
            self._json({"success": True, "commitUrl": url, "commitOid": self.COMMIT})

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            *owner, kind, _ = self.path.removeprefix("/api/models/").split("/")
            name = "/".join(owner)
            if name not in self.repositories:
                return self._missing()
            files = self.repositories[name]
            if kind == "tree":
                sizes = {path: len(content) for path, content in files.items()}
                self._json(
                    [{"type": "file", "path": p, "size": n, "oid": "0" * 40} for p, n in sizes.items()]
                )
            else:
                self._json({"id": name, "sha": self.COMMIT, "siblings": [{"rfilename": p} for p in files]})
        else:
            name, _, file = self.path.strip("/").partition("/resolve/")
            content = self.repositories.get(name, {}).get(file.partition("/")[2])
            if content is None:
                return self._missing()
            self._send(content)

    do_HEAD = do_GET

    @property
    def server_url(self) -> str:
        assert isinstance(self.server, ThreadingHTTPServer)
        return f"http://127.0.0.1:{self.server.server_port}"

    def _missing(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, content: Any) -> None:
        self._send(json.dumps(content).encode())

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("X-Repo-Commit", self.COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Files]:
    """A hub of our own, which huggingface_hub takes for the real one; yields its files by repository."""
    handler = type("Handler", (_Hub,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield handler.repositories
    server.shutdown()
    server.server_close()
    thread.join()


def test_through_the_hub_and_back(tiny_variant: Any, hub: Files, tmp_path: Path) -> None:
    model = SteerMoE.from_config(tiny_variant("steering"))
    model.save_pretrained(tmp_path)
    assert model.push_to_hub("someone/adapter").endswith("/someone/adapter")
    names = ("adapter.safetensors", "config.json")
    assert hub["someone/adapter"] == {name: (tmp_path / name).read_bytes() for name in names}
    with pytest.raises(ValueError, match="someone/adapter: neither a folder nor a repository"):
        SteerMoE.from_pretrained("someone/adapter", local_files_only=True)
    again = SteerMoE.from_pretrained("someone/adapter")
    for name, tensor in model.trainable_state_dict().items():
        assert torch.equal(again.trainable_state_dict()[name], tensor)
    cached = SteerMoE.from_pretrained("someone/adapter", local_files_only=True)
    assert cached.config == again.config
    for wrong in ("someone/else", Path("models/mini/nowhere")):
        with pytest.raises(ValueError, match=f"{wrong}: neither a folder nor a repository"):
            checkpoint.read(wrong)


def test_a_merged_adapter_brings_its_frozen_models(
    tiny_variant: Any, hub: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, from base models that are gone afterwards."""
    for part in ("encoder", "llm"):
        shutil.copytree(getattr(tiny_variant("linear"), part).path, tmp_path / "base" / part)
    monkeypatch.chdir(tmp_path)
    variant = tiny_variant("steering+lora", {"encoder.path": "base/encoder", "llm.path": "base/llm"})
    model = SteerMoE.from_config(variant)
    model.save_pretrained("adapter")
    assert cli.main(["export", "hub", "someone/whole", "--model", "adapter", "--merged"]) == 0
    card = " ".join(hub["someone/whole"]["README.md"].decode().split())
    assert "`base/encoder`" in card and "`steering+lora`" in card
    shutil.rmtree("base")
    again = SteerMoE.from_pretrained("someone/whole")
    assert again.config.method == "steering" and again.frozen_hashes()["llm"] == model.frozen_hashes()["llm"]
    trained = model.trainable_state_dict()
    for name, tensor in again.trainable_state_dict().items():
        assert torch.equal(trained[name], tensor)
