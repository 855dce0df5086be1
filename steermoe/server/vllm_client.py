"""The frozen LLM on a vLLM server: encoder, steering and projector run here, and their output is sent there.

The request is vLLM's `/v1/completions` with `prompt_embeds` (docs.vllm.ai, "Prompt Embedding Inputs"; `vllm serve ...
--enable-prompt-embeds`). The tokens of the answer are requested by `return_token_ids`.

Shapes: W tokens of a prompt, H width of the LLM.
"""

import base64
import io
from typing import Any

import requests
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from steermoe import config
from steermoe.config import Generation
from steermoe.models.generation import ended
from steermoe.models.llm import CausalLM, keep_stops, load_tokenizer
from steermoe.models.pretrained import load_frozen

TIMEOUTS = (5.0, 300.0)  # seconds to connect, and to wait for an answer


class RemoteError(RuntimeError):
    """The LLM's server does not answer, or not as expected."""


def load_embeddings(section: config.Llm) -> tuple[CausalLM, Any]:
    """Load the LLM without its layers, to embed prompts, and its tokenizer.

    Raises:
        ValueError: it cannot be loaded, its tokenizer has no end token, or the adapter uses only some of its layers.
    """
    if section.layers != "all":
        raise ValueError(
            f"llm.layers: found {section.layers}; a server runs all layers of its LLM, but this adapter was trained "
            "on the first ones; serve it without --llm-url"
        )
    settings = AutoConfig.from_pretrained(section.path)
    text = settings.get_text_config()
    text.num_hidden_layers = 0
    if getattr(text, "layer_types", None):
        text.layer_types = []
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # otherwise the layers are reported as unexpected
    try:
        llm = load_frozen(AutoModelForCausalLM, section.path, section.dtype, "llm", config=settings)
    finally:
        logging.set_verbosity(before)
    llm.set_output_embeddings(None)
    tokenizer = load_tokenizer(section.path)
    keep_stops(llm, tokenizer, section.path)
    return llm, tokenizer


class RemoteLlm:
    """Decodes on a vLLM server.

    Args:
        url: its API, `http://host:8000/v1`.
        name: the LLM's name there; None: the only one.
        stops: tokens that end an answer.
        key: the API key of the server.

    Raises:
        RemoteError: the server does not answer, or has no such LLM.
    """

    def __init__(self, url: str, name: str | None, stops: list[int], key: str | None = None) -> None:
        self._url, self._stops = url.rstrip("/"), stops
        self._session = requests.Session()
        self._session.trust_env = False  # no proxies, no passwords from .netrc
        if key is not None:
            self._session.headers["Authorization"] = f"Bearer {key}"
        names = [row.get("id") for row in self._call("GET", "models").get("data", [])]
        if name is None and len(names) != 1:
            raise RemoteError(f"{url}: found the models {names}; choose one with --llm-model")
        if name is not None and name not in names:
            raise RemoteError(f"{url}: no model {name!r}; available: {names}")
        self.name = name or str(names[0])

    def __call__(self, rows: list[torch.Tensor], generation: Generation, seed: int) -> list[list[int]]:
        """Return the continuations of prompts (W, H), ended as `generation.decode` ends them.

        Raises:
            RemoteError: the server does not answer, or not as vLLM does.
        """
        greedy = generation.strategy == "greedy"
        # All settings, because vLLM takes missing ones from the model's generation_config.json.
        content = {
            "model": self.name, "prompt_embeds": [encoded(row_WH) for row_WH in rows],
            "max_tokens": generation.max_new_tokens, "temperature": 0.0 if greedy else generation.temperature,
            "top_p": 1.0 if generation.top_p is None else generation.top_p,
            "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": seed, "stop_token_ids": self._stops,
            "skip_special_tokens": False, "return_token_ids": True,
        }  # fmt: skip
        choices: Any = self._call("POST", "completions", content).get("choices")
        try:
            found = {choice["index"]: [int(token) for token in choice["token_ids"]] for choice in choices}
            ids = [found[row] for row in range(len(rows))]
        except (TypeError, KeyError, ValueError) as error:
            raise RemoteError(
                f"{self._url}: no choices[].token_ids for each of {len(rows)} prompts; expected vLLM with "
                "--enable-prompt-embeds and return_token_ids"
            ) from error
        return [ended(row, set(self._stops), generation.max_repeats) for row in ids]

    def _call(self, method: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        url = f"{self._url}/{path}"
        try:
            response = self._session.request(
                method, url, json=content, timeout=TIMEOUTS, allow_redirects=False
            )
            if response.status_code != 200:
                raise RemoteError(f"{url}: status {response.status_code}: {response.text[:300]}")
            reply = response.json()
        except requests.JSONDecodeError as error:
            raise RemoteError(f"{url}: the answer is not JSON") from error
        except requests.RequestException as error:
            raise RemoteError(f"{url}: no answer ({type(error).__name__})") from error
        if not isinstance(reply, dict):
            raise RemoteError(f"{url}: found {type(reply).__name__}, expected a JSON object")
        return reply


def encoded(embeddings_WH: torch.Tensor) -> str:
    """Encode a prompt as vLLM expects it: a tensor saved by torch.save, in base64."""
    file = io.BytesIO()
    torch.save(embeddings_WH.detach().cpu().clone(), file)  # of a view, all it refers to would be saved
    return base64.b64encode(file.getvalue()).decode()
