"""Prompts as the LLM reads them."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steermoe.config import Prompts
from steermoe.data.prompts import PLACE, TASKS, encode_prompt, end_of_turn, end_token, prompt_texts, render

PROMPTS = Prompts(
    format="plain",
    system=None,
    transcribe="write down: ",
    answer="the question is: {question}. answer: ",
    caption="what is it? ",
    summarize="in short: ",
    emotion="what is felt? ",
)
CHAT = PROMPTS.model_copy(update={"format": "chat"})
SYSTEM = CHAT.model_copy(update={"system": "the cat is red"})
TOOLS = [{"type": "function", "function": {"name": "lamp", "parameters": {"type": "object"}}}]
# The form of Llama 3's template: it tells the date, and ends a turn without a new line.
LLAMA = (
    "{{ '<|start|>' }}{% if strftime_now is defined %}{{ strftime_now('%d %B %Y') }}{% endif %}{{ date_string }}"
    "{% for turn in messages %}[{{ turn.role }}]{{ turn.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# The form of Gemma's: no system turn, and the token that ends a turn is not the tokenizer's end token.
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for turn in messages %}<|start|>{{ 'model' if turn.role == 'assistant' else turn.role }}\n"
    "{{ turn.content | trim }}<|eot|>\n{% endfor %}{% if add_generation_prompt %}<|start|>model\n{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_chat_dir: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tiny_chat_dir)


def with_template(tokenizer: Any, template: str) -> Any:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|eot|>"]})
    tokenizer.chat_template = template
    return tokenizer


def test_templates():
    assert render(PROMPTS, "transcribe", "") == "write down: "
    assert render(PROMPTS, "answer", "who {won}, 100 %?") == "the question is: who {won}, 100 %?. answer: "


def test_every_task_has_a_template():
    assert {"format", "system", *TASKS} == set(Prompts.model_fields)


def test_unknown_task():
    legal = "transcribe, answer, caption, summarize, emotion"
    with pytest.raises(ValueError, match=f"unknown task 'translate'; one of: {legal}"):
        render(PROMPTS, "translate", "")


def test_plain_is_the_text_alone(tokenizer: PreTrainedTokenizerFast):
    ids = tokenizer.encode("the question is: who?. answer: ", add_special_tokens=False)
    assert encode_prompt(PROMPTS, tokenizer, "answer", "who?") == ([], ids)
    assert end_token(PROMPTS, tokenizer) == tokenizer.eos_token_id


def test_chat_is_the_template_around_audio_and_text(tokenizer: PreTrainedTokenizerFast):
    assert prompt_texts(CHAT, tokenizer, "answer", "who?") == (
        "<|im_start|>user\n",
        "the question is: who?. answer:<|im_end|>\n<|im_start|>assistant\n",
    )
    prefix, suffix = prompt_texts(SYSTEM, tokenizer, "transcribe", "")
    assert prefix == "<|im_start|>system\nthe cat is red<|im_end|>\n<|im_start|>user\n"
    assert suffix == "write down:<|im_end|>\n<|im_start|>assistant\n"


def test_ids_of_both_sides_are_those_of_a_whole_conversation(tokenizer: PreTrainedTokenizerFast):
    turns = [
        {"role": "system", "content": "the cat is red"},
        {"role": "user", "content": f"{PLACE}write down: "},
    ]
    whole: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    prefix, suffix = encode_prompt(SYSTEM, tokenizer, "transcribe", "")
    assert prefix == whole[: len(prefix)] and suffix == whole[-len(suffix) :]
    between = whole[len(prefix) : -len(suffix)]
    assert tokenizer.decode(between) == PLACE
    assert prefix[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_a_target_ends_with_the_token_that_ends_a_turn(tokenizer: PreTrainedTokenizerFast):
    assert end_token(CHAT, tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_token(CHAT, tokenizer) != tokenizer.eos_token_id
    for template in (LLAMA, GEMMA):
        other = with_template(tokenizer, template)
        assert end_token(CHAT, other) == other.convert_tokens_to_ids("<|eot|>")
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id


def test_a_prompt_is_the_same_every_day(tokenizer: PreTrainedTokenizerFast):
    prefix, suffix = prompt_texts(CHAT, with_template(tokenizer, LLAMA), "transcribe", "")
    assert prefix == "<|start|>26 July 202426 Jul 2024[user]"
    assert suffix == "write down:<|eot|>[assistant]"


def test_tools_are_told_of(tokenizer: PreTrainedTokenizerFast):
    prefix, suffix = prompt_texts(CHAT, tokenizer, "transcribe", "", TOOLS)
    assert '"name": "lamp"' in prefix and suffix == prompt_texts(CHAT, tokenizer, "transcribe", "")[1]
    with pytest.raises(ValueError, match=r"found tools with prompts\.format plain"):
        prompt_texts(PROMPTS, tokenizer, "transcribe", "", TOOLS)
    with pytest.raises(ValueError, match="the chat template tells the LLM nothing of tools"):
        prompt_texts(CHAT, with_template(tokenizer, LLAMA), "transcribe", "", TOOLS)


def test_templates_that_do_not_serve(tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(
        ValueError, match=r"takes no turns system, user: System role .* \(prompts.system: null"
    ):
        prompt_texts(SYSTEM, with_template(tokenizer, GEMMA), "transcribe", "")
    tokenizer.chat_template = "{{ messages[0].content | lower }}"
    with pytest.raises(ValueError, match="changes or drops the user's text"):
        prompt_texts(CHAT, tokenizer, "transcribe", "")
    tokenizer.chat_template = None
    for call in (lambda: prompt_texts(CHAT, tokenizer, "transcribe", ""), lambda: end_token(CHAT, tokenizer)):
        with pytest.raises(ValueError, match=r"no chat template, which prompts\.format chat needs"):
            call()
