"""The frozen LLM on a vLLM server: encoder, steering and projector run here, and what the LLM reads is sent there.

The request is that of vLLM's `/v1/completions` with `prompt_embeds` (docs.vllm.ai, "Prompt Embedding Inputs";
`vllm serve ... --enable-prompt-embeds`): each prompt a tensor (tokens, H), saved by torch.save, in base64; the
server reads it with `weights_only`. What comes back is JSON. Tokens are asked for by `return_token_ids`.

Shapes: B batch, W width of the packed batch, H width of the LLM.
"""

import base64
import io
import json
from typing import Any

import requests
import torch
import urllib3
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from steermoe import config
from steermoe.config import Generation
from steermoe.models.generation import Watch, ended
from steermoe.models.llm import CausalLM, keep_stops, load_tokenizer
from steermoe.models.pretrained import load_frozen
from steermoe.server.batching import WholeBatchError

MOST_BYTES = 2**24  # of a reply
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 300.0


class RemoteError(RuntimeError):
    """The LLM's server does not answer, or not as it should."""


class NoAnswerError(RemoteError, WholeBatchError):
    """The LLM's server does not answer at all."""


def load_embeddings(section: config.Llm) -> tuple[CausalLM, Any]:
    """The LLM without its layers, which is what embedding a prompt takes, and its tokenizer.

    Of a checkpoint's tensors only those are read that belong to the model of zero layers: the table of embeddings,
    the last norm, and an output matrix where it is one of its own, which is dropped.

    Raises:
        ValueError: it cannot be loaded, its tokenizer has no end token, or only some of its layers are used, which
            no server would know.
    """
    if section.layers != "all":
        raise ValueError(
            f"llm.layers: found {section.layers}; a server runs all layers of its LLM, and this adapter was trained "
            "on the first ones: serve it without --llm-url"
        )
    settings = AutoConfig.from_pretrained(section.path)
    text = settings.get_text_config()
    text.num_hidden_layers = 0
    if getattr(text, "layer_types", None):
        text.layer_types = []
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # or all that is left out would be reported as unexpected
    try:
        llm = load_frozen(AutoModelForCausalLM, section.path, section.dtype, "llm", config=settings)
    finally:
        logging.set_verbosity(before)
    llm.set_output_embeddings(None)
    tokenizer = load_tokenizer(section.path)
    keep_stops(llm, tokenizer, section.path)
    return llm, tokenizer


class RemoteLlm:
    """Has answers written by a vLLM server.

    Args:
        url: of its API, `http://host:8000/v1`.
        name: of the LLM there; None: the only one that it has.
        stops: tokens that end an answer.
        key: of its API.

    Raises:
        RemoteError: the server does not answer, or has no such LLM.
    """

    def __init__(self, url: str, name: str | None, stops: list[int], key: str | None = None) -> None:
        self._url, self._stops = url.rstrip("/"), stops
        self._session = requests.Session()
        self._session.trust_env = False  # no proxies, no passwords of .netrc
        if key is not None:
            self._session.headers["Authorization"] = f"Bearer {key}"
        there = [row.get("id") for row in self._call("models").get("data", [])]
        if name is None and len(there) != 1:
            raise RemoteError(f"{url}: has the models {there}; say which by --llm-model")
        if name is not None and name not in there:
            raise RemoteError(f"{url}: has no model {name!r}; there are: {there}")
        self.name = name or str(there[0])

    def __call__(
        self,
        rows_BWH: torch.Tensor,
        valid_BW: torch.Tensor,
        generation: Generation,
        seed: int,
        watch: Watch,
    ) -> list[list[int]]:
        """Continuations of left-padded rows, ended as `generation.decode` ends them; `watch` is not asked.

        Raises:
            RemoteError: the server does not answer, or not as vLLM does.
        """
        greedy = generation.strategy == "greedy"
        # All of it, for what is left out vLLM takes from the model's generation_config.json.
        reply = self._call(
            "completions",
            {
                "model": self.name,
                "prompt_embeds": [encoded(row[valid]) for row, valid in zip(rows_BWH, valid_BW, strict=True)],
                "max_tokens": generation.max_new_tokens,
                "temperature": 0.0 if greedy else generation.temperature,
                "top_p": 1.0 if generation.top_p is None else generation.top_p,
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "seed": seed,
                "stop_token_ids": self._stops,
                "skip_special_tokens": False,
                "return_token_ids": True,
            },
        )
        return self._ids(reply, len(rows_BWH), generation)

    def _ids(self, reply: dict[str, Any], rows: int, generation: Generation) -> list[list[int]]:
        found: dict[Any, list[int]] = {}
        for choice in reply.get("choices", []):
            ids = choice.get("token_ids") if isinstance(choice, dict) else None
            if isinstance(ids, list) and all(isinstance(token, int) for token in ids):
                found[choice.get("index")] = ids
        if set(found) != set(range(rows)):
            raise RemoteError(
                f"{self._url}: its answer has no choices[].token_ids for each of {rows} prompts; expected vLLM "
                "with --enable-prompt-embeds and return_token_ids"
            )
        return [ended(found[row], set(self._stops), generation.max_repeats) for row in range(rows)]

    def _call(self, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            with self._session.request(
                "GET" if content is None else "POST", f"{self._url}/{path}", json=content, stream=True,
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS), allow_redirects=False,
            ) as response:  # fmt: skip
                text = response.raw.read(MOST_BYTES + 1, decode_content=True)
                if response.status_code != 200 or len(text) > MOST_BYTES:
                    said = text[:300].decode(errors="replace")
                    raise RemoteError(f"{self._url}/{path}: status {response.status_code}: {said}")
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
        ) as error:  # the latter: within the body
            raise NoAnswerError(f"{self._url}/{path}: no answer ({type(error).__name__})") from error
        try:
            reply = json.loads(text)
        except ValueError as error:
            raise RemoteError(f"{self._url}/{path}: no JSON") from error
        if not isinstance(reply, dict):
            raise RemoteError(f"{self._url}/{path}: found {type(reply).__name__}, expected a JSON object")
        return reply


def encoded(embeddings_WH: torch.Tensor) -> str:
    """A prompt as vLLM takes it: a tensor saved by torch.save, in base64."""
    file = io.BytesIO()
    torch.save(embeddings_WH.detach().cpu().clone(), file)  # a view would be saved with all that it views
    return base64.b64encode(file.getvalue()).decode()
