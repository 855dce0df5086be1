"""What the LLM is asked, per task, and in which format: `[prefix ; audio ; suffix ; answer]`."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from steermoe.config import Prompts
from steermoe.data.tokens import control_ids, encode, plain

TASKS = ("transcribe", "answer", "caption", "summarize", "emotion")
PLACE = "AudioStandsHere"  # goes through any chat template as it is
# Some templates tell the date: a prompt must be the same every day.
TODAY = {"%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024"}
SAME_DAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f"|replace('{code}', '{text}')" for code, text in TODAY.items())
    + " }}{% endmacro %}{{ '' }}"
)


class Turn(NamedTuple):
    """A turn of a conversation: who speaks (system, user, assistant, tool), what is written, and how many recordings.

    `calls` are the calls of tools in an assistant's turn, as OpenAI's `tool_calls` with arguments as an object.
    """

    role: str
    text: str
    recordings: int = 0
    calls: tuple[dict[str, Any], ...] = ()


class Prompt(NamedTuple):
    """Token ids before and behind the audio."""

    prefix: list[int]
    suffix: list[int]


def render(prompts: Prompts, task: str, question: str) -> str:
    """The text between audio and answer.

    Args:
        prompts: a template a task.
        task: one of TASKS.
        question: replaces `{question}` in the template; "" where the task asks none.

    Raises:
        ValueError: unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; one of: {', '.join(TASKS)}")
    return getattr(prompts, task).replace("{question}", question)


def prompt_texts(
    prompts: Prompts, tokenizer: Any, task: str, question: str, tools: Sequence[dict] | None = None
) -> tuple[str, str]:
    """The texts before and behind the audio.

    Format `plain`: nothing, and the rendered template. Format `chat`: the tokenizer's chat template with the
    system turn (where there is one; some chat templates have one of their own) and a user's turn of audio and
    rendered template, opened for an answer (`add_generation_prompt`); split where the audio stands. A model
    that could think first is told not to.

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
    """`prompt_texts` of what is asked in words of one's own; `asked` stands where the rendered template does.

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
    """Token ids of `prompt_texts`, each side encoded by itself."""
    return encode_texts(tokenizer, *prompt_texts(prompts, tokenizer, task, question, tools))


def encode_texts(tokenizer: Any, before: str, behind: str) -> Prompt:
    """Token ids of the texts before and behind the audio, each encoded by itself."""
    return Prompt(encode(tokenizer, before), encode(tokenizer, behind))


def conversation(
    prompts: Prompts, tokenizer: Any, turns: Sequence[Turn], tools: Sequence[dict] | None = None
) -> list[str]:
    """The texts before, between and behind the recordings of a conversation, ready for an answer.

    In a user's turn the recordings stand before the text, as in training. Without a text they are to be written
    down (`prompts.transcribe`); once there was a recording, a text is a question (`prompts.answer`); before that, it
    stands as it is. Format `plain` joins turns by line breaks, without a word on who speaks; format `chat` is
    the chat template, with `prompts.system` unless the conversation begins with a system turn. Control tokens in
    the turns' texts are marked as plain text (see `steermoe.data.tokens`).

    Raises:
        ValueError: as `prompt_texts`; or a system turn with format `plain`.
    """
    rendered: list[dict[str, Any]] = []
    heard = False
    for turn in turns:
        heard = heard or turn.recordings > 0
        text = plain(tokenizer, turn.text)
        if turn.role == "user" and heard:
            task = "answer" if text else "transcribe"
            text = PLACE * turn.recordings + render(prompts, task, text)
        rendered.append({"role": turn.role, "content": text})
        if turn.calls:
            rendered[-1]["tool_calls"] = json.loads(
                plain(tokenizer, json.dumps(turn.calls, ensure_ascii=False))
            )
    if prompts.format == "plain":
        if tools is not None:
            texts_around(prompts, tokenizer, "", tools)  # says why not
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
    """The id that ends a target: `end_of_turn` with format `chat`, else the tokenizer's end-of-text token.

    Raises:
        ValueError: the tokenizer has no end-of-text token, or no chat template.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-text token (eos_token)")
    return tokenizer.eos_token_id if prompts.format == "plain" else end_of_turn(tokenizer)


def end_of_turn(tokenizer: Any) -> int:
    """The id that ends an assistant's turn in the tokenizer's chat template.

    It is the first special token that the template writes behind an answer (`<|im_end|>` of ChatML,
    `<|eot_id|>` of Llama 3, `<end_of_turn>` of Gemma); the tokenizer's end-of-text token where there is none.

    Raises:
        ValueError: there is no chat template, or it fails.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PLACE}]
    behind = encode(tokenizer, _chat(tokenizer, turns).rpartition(PLACE)[2])
    special = control_ids(tokenizer)
    return next((token for token in behind if token in special), tokenizer.eos_token_id)


def _chat(
    tokenizer: Any, turns: list[dict[str, Any]], tools: Sequence[dict] | None = None, answering: bool = False
) -> str:
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, which prompts.format chat needs; "
            "use an instruction-tuned LLM or prompts.format plain"
        )
    # Through JSON, so that the names of parameters are marked, too.
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
