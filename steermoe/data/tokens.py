"""Texts to token ids: a control token in what people wrote is plain text; only templates write control tokens.

Control tokens are those that a tokenizer calls special (`<|endoftext|>`, `<|im_end|>`). `plain` marks them in a text
that goes into a prompt, with marks that chat templates let through; `encode` takes the marks out.
"""

import re
from functools import lru_cache
from typing import Any

_MARKS = re.compile("[\U000f0000\U000f0001]")  # private characters, those of `mark_control_tokens`


def target_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text that is to be written; none of them is a control token.

    Raises:
        ValueError: the text has a control token which this tokenizer cannot write in other tokens.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    special = control_ids(tokenizer)
    if special.isdisjoint(ids):
        return ids
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    if found := special.intersection(ids):
        token = tokenizer.convert_ids_to_tokens(min(found))
        raise ValueError(
            f"found the control token {token!r} in a text, {text[:80]!r}; take it out of the text"
        )
    return ids


def plain(tokenizer: Any, text: str) -> str:
    """The text with its control tokens marked as plain text, for `encode`."""
    from transformers.utils.chat_template_utils import (
        mark_control_tokens,
    )  # here, for it takes long to import

    return mark_control_tokens(text, _controls(tokenizer, len(tokenizer))[1])


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a prompt: control tokens are read as such, those that `plain` has marked as plain text.

    Raises:
        ValueError: a marked control token cannot be written in other tokens of this tokenizer.
    """
    if _MARKS.search(text):
        from transformers.utils.chat_template_utils import encode_marked_chat

        return encode_marked_chat(tokenizer, text)
    return tokenizer.encode(text, add_special_tokens=False)


def unmarked(text: str) -> str:
    """The text without the marks of `plain`."""
    return _MARKS.sub("", text)


def control_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of a tokenizer's control tokens."""
    return _controls(tokenizer, len(tokenizer))[0]


@lru_cache(maxsize=8)
def _controls(tokenizer: Any, size: int) -> tuple[frozenset[int], re.Pattern[str]]:
    """Ids, and what finds them in a text; `size` of the tokenizer changes where tokens are added."""
    ids = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    ids |= set(tokenizer.all_special_ids)
    ids -= {tokenizer.unk_token_id} - {tokenizer.eos_token_id}  # it stands for any text that has no token
    names = sorted(tokenizer.convert_ids_to_tokens(sorted(ids)), key=len, reverse=True)
    return frozenset(ids), re.compile("|".join(map(re.escape, names)) or "(?!)")
