"""The real client of the hub against a server of our own."""

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

from steermoe.cli import main as cli
from steermoe.models import checkpoint as adapter
from steermoe.models.steermoe import SteerMoE


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
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, dict[str, bytes]]]:
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


def test_through_the_hub_and_back(
    tiny_variant: Callable[..., Any], hub: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    model = SteerMoE.from_config(tiny_variant("steering"))
    model.save_pretrained(tmp_path)
    address = model.push_to_hub("someone/adapter")
    assert address.endswith("/someone/adapter")
    assert hub["someone/adapter"] == {
        name: (tmp_path / name).read_bytes() for name in ("adapter.safetensors", "config.json")
    }
    again = SteerMoE.from_pretrained("someone/adapter")
    for name, tensor in model.trainable_state_dict().items():
        assert torch.equal(again.trainable_state_dict()[name], tensor)


@pytest.mark.parametrize("before", [False, True], ids=["merged on the way", "merged before"])
def test_a_merged_adapter_brings_its_frozen_models(
    before: bool,
    tiny_variant: Callable[..., Any],
    hub: dict[str, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command, from base models that are gone afterwards."""
    for part in ("encoder", "llm"):
        path = getattr(tiny_variant("linear"), part).path
        shutil.copytree(path, tmp_path / "base" / part)
    monkeypatch.chdir(tmp_path)
    variant = tiny_variant("steering+lora", {"encoder.path": "base/encoder", "llm.path": "base/llm"})
    model = SteerMoE.from_config(variant)
    model.save_pretrained("adapter")
    if before:
        assert cli.main(["export", "merged", "--model", "adapter", "--out", "merged"]) == 0
        assert cli.main(["export", "hub", "someone/whole", "--model", "merged", "--merged"]) == 2
        assert "merged: is merged already" in capsys.readouterr().err
    given = ["merged"] if before else ["adapter", "--merged"]
    assert cli.main(["export", "hub", "someone/whole", "--model", *given]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("/someone/whole")
    assert cli.main(["export", "hub", "someone/whole", "--model", *given, "--folder", "shown"]) == 0
    shown = {p.relative_to("shown").as_posix(): p for p in Path("shown").rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in shown.items()} == hub["someone/whole"]
    card = " ".join(hub["someone/whole"]["README.md"].decode().split())
    assert "self-contained: in `encoder/` the speech encoder `base/encoder`" in card
    assert "trained as `steering+lora`; the low-rank adapters are folded" in card
    monkeypatch.chdir(tmp_path / "adapter")  # from where the base models have another path
    assert cli.main(["export", "hub", "someone/bare", "--model", str(tmp_path / "adapter")]) == 0
    bare = hub["someone/bare"]
    assert set(bare) == {"README.md", "adapter.safetensors", "config.json"}
    assert bare["config.json"] == Path("config.json").read_bytes()
    assert b"Neither frozen model is part of it" in bare["README.md"]
    monkeypatch.chdir(tmp_path)
    shutil.rmtree("base")
    again = SteerMoE.from_pretrained("someone/whole")
    assert again.config.method == "steering" and again.frozen_hashes()["llm"] == model.frozen_hashes()["llm"]
    trained = model.trainable_state_dict()
    for name, tensor in again.trainable_state_dict().items():
        assert torch.equal(trained[name], tensor)


def test_a_repository_that_is_not_there_is_an_error(hub: dict[str, dict[str, bytes]]) -> None:
    with pytest.raises(ValueError, match="someone/else: neither a folder nor a repository"):
        adapter.read("someone/else")
    with pytest.raises(ValueError, match="models/mini/nowhere: neither a folder nor a repository"):
        adapter.read(Path("models/mini/nowhere"))
