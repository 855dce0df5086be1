"""Prompts by task and format: `[prefix ; audio ; suffix ; answer]`."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from steermoe.config import Prompts
from steermoe.data.tokens import control_ids, encode, plain

TASKS = ("transcribe", "answer", "caption", "summarize", "emotion")
PLACE = "AudioStandsHere"  # passes through any chat template unchanged
# Some templates contain the date, but a prompt must be the same every day.
TODAY = {"%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024"}
SAME_DAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f"|replace('{code}', '{text}')" for code, text in TODAY.items())
    + " }}{% endmacro %}{{ '' }}"
)


class Turn(NamedTuple):
    """A turn of a conversation: its role (system, user, assistant, tool), text and number of recordings.

    `calls` are the calls of tools in an assistant's turn, as OpenAI's `tool_calls` with arguments as an object.
    """

    role: str
    text: str
    recordings: int = 0
    calls: tuple[dict[str, Any], ...] = ()


class Prompt(NamedTuple):
    """Token ids before and after the audio."""

    prefix: list[int]
    suffix: list[int]


def render(prompts: Prompts, task: str, question: str) -> str:
    """Return the text between audio and answer; `question` is "" where the task asks none.

    Raises:
        ValueError: unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; one of: {', '.join(TASKS)}")
    return getattr(prompts, task).replace("{question}", question)


def prompt_texts(
    prompts: Prompts, tokenizer: Any, task: str, question: str, tools: Sequence[dict] | None = None
) -> tuple[str, str]:
    """Return the texts before and after the audio.

    Format `plain`: nothing, and the rendered template. Format `chat`: the tokenizer's chat template with the
    system turn (if there is one; some chat templates have their own) and a user's turn of audio and rendered
    template, ready for an answer (`add_generation_prompt`), split at the audio. Thinking is disabled.

    Args:
        prompts: format, system turn and templates.
        tokenizer: the LLM's.
        task: one of TASKS.
        question: as in `render`; control tokens in it stay plain text (see `steermoe.data.tokens`).
        tools: function definitions (JSON schema) that an answer may call.

    Raises:
        ValueError: unknown task; no chat template, one that fails or loses the audio's place; tools with
            format `plain`, or with a template that does not show them.
    """
    return texts_around(prompts, tokenizer, render(prompts, task, plain(tokenizer, question)), tools)


def texts_around(
    prompts: Prompts, tokenizer: Any, asked: str, tools: Sequence[dict] | None = None
) -> tuple[str, str]:
    """Return `prompt_texts` for a text of your own, `asked`, in place of the rendered template.

    Control tokens in `asked` are read as such, unless `steermoe.data.tokens.plain` has marked them.
    """
    if prompts.format == "plain":
        if tools is not None:
            raise ValueError(
                "found tools with prompts.format plain; a chat template tells an LLM of tools: use an adapter "
                "that was trained with prompts.format chat"
            )
        return "", asked
    turns = [] if prompts.system is None else [{"role": "system", "content": prompts.system}]
    turns.append({"role": "user", "content": PLACE + asked})
    text = _chat(tokenizer, turns, tools, answering=True)
    if PLACE not in text:
        raise ValueError(f"{tokenizer.name_or_path}: the chat template changes or drops the user's text")
    if tools is not None and text == _chat(tokenizer, turns, answering=True):
        raise ValueError(f"{tokenizer.name_or_path}: the chat template tells the LLM nothing of tools")
    prefix, _, suffix = text.partition(PLACE)
    return prefix, suffix


def encode_prompt(
    prompts: Prompts, tokenizer: Any, task: str, question: str, tools: Sequence[dict] | None = None
) -> Prompt:
    """Return the token ids of `prompt_texts`, each side encoded by itself."""
    return encode_texts(tokenizer, *prompt_texts(prompts, tokenizer, task, question, tools))


def encode_texts(tokenizer: Any, before: str, after: str) -> Prompt:
    """Return the token ids of the texts before and after the audio, each encoded by itself."""
    return Prompt(encode(tokenizer, before), encode(tokenizer, after))


def conversation(
    prompts: Prompts, tokenizer: Any, turns: Sequence[Turn], tools: Sequence[dict] | None = None
) -> list[str]:
    """Return the texts before, between and after the recordings of a conversation, ready for an answer.

    In a user's turn the recordings come before the text, as in training. Without a text they are transcribed
    (`prompts.transcribe`); after a recording, a text is a question (`prompts.answer`); before, it is used as it is.
    Format `plain` joins turns by line breaks, without their roles; format `chat` is the chat template, with
    `prompts.system` unless the conversation begins with a system turn. Control tokens in the turns' texts are marked
    as plain text (see `steermoe.data.tokens`).

    Raises:
        ValueError: as `prompt_texts`; or a system turn with format `plain`.
    """
    rendered: list[dict[str, Any]] = []
    has_audio = False
    for turn in turns:
        has_audio = has_audio or turn.recordings > 0
        text = plain(tokenizer, turn.text)
        if turn.role == "user" and has_audio:
            task = "answer" if text else "transcribe"
            text = PLACE * turn.recordings + render(prompts, task, text)
        rendered.append({"role": turn.role, "content": text})
        if turn.calls:
            rendered[-1]["tool_calls"] = json.loads(
                plain(tokenizer, json.dumps(turn.calls, ensure_ascii=False))
            )
    if prompts.format == "plain":
        if tools is not None:
            texts_around(prompts, tokenizer, "", tools)  # raises the error
        if any(turn.role == "system" for turn in turns):
            raise ValueError("messages: found a system turn with prompts.format plain, which has none")
        if any(turn.calls or turn.role == "tool" for turn in turns):
            raise ValueError("messages: found calls of tools with prompts.format plain, which has none")
        written = "\n".join(turn["content"] for turn in rendered)
    else:
        if prompts.system is not None and turns[0].role != "system":
            rendered.insert(0, {"role": "system", "content": prompts.system})
        written = _chat(tokenizer, rendered, tools, answering=True)
    pieces: list[str] = str(written).split(PLACE)
    if len(pieces) != 1 + sum(turn.recordings for turn in turns):
        raise ValueError(
            f"messages: the chat template changes or drops the user's text, or a text has {PLACE!r} in it"
        )
    return pieces


def end_token(prompts: Prompts, tokenizer: Any) -> int:
    """Return the id that ends a target: `end_of_turn` with format `chat`, else the tokenizer's end-of-text token.

    Raises:
        ValueError: the tokenizer has no end-of-text token, or no chat template.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-text token (eos_token)")
    return tokenizer.eos_token_id if prompts.format == "plain" else end_of_turn(tokenizer)


def end_of_turn(tokenizer: Any) -> int:
    """Return the id that ends an assistant's turn in the tokenizer's chat template.

    It is the first special token that the template writes after an answer (`<|im_end|>` of ChatML,
    `<|eot_id|>` of Llama 3, `<end_of_turn>` of Gemma); the tokenizer's end-of-text token where there is none.

    Raises:
        ValueError: there is no chat template, or it fails.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PLACE}]
    after = encode(tokenizer, _chat(tokenizer, turns).rpartition(PLACE)[2])
    special = control_ids(tokenizer)
    return next((token for token in after if token in special), tokenizer.eos_token_id)


def _chat(
    tokenizer: Any, turns: list[dict[str, Any]], tools: Sequence[dict] | None = None, answering: bool = False
) -> str:
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, which prompts.format chat needs; "
            "use an instruction-tuned LLM or prompts.format plain"
        )
    # As JSON, so that the names of parameters are marked, too.
    shown = (
        None if tools is None else json.loads(plain(tokenizer, json.dumps(list(tools), ensure_ascii=False)))
    )
    try:
        return tokenizer.apply_chat_template(
            turns,
            tools=shown,
            chat_template=SAME_DAY + tokenizer.get_chat_template(tools=shown),
            add_generation_prompt=answering,
            tokenize=False,
            enable_thinking=False,
            date_string=" ".join(TODAY[code] for code in ("%d", "%b", "%Y")),
        )
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise ValueError(
            f"{tokenizer.name_or_path}: the chat template takes no turns {roles}: {error} (prompts.system: null "
            "leaves the system turn out)"
        ) from error
