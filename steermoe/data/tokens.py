"""Texts to token ids: control tokens in people's texts are plain text; only templates write control tokens.

Control tokens are those that a tokenizer calls special (`<|endoftext|>`, `<|im_end|>`). `plain` marks them in a text
of a prompt, with marks that chat templates keep; `encode` removes the marks.
"""

import re
from functools import lru_cache
from typing import Any

_MARKS = re.compile("[\U000f0000\U000f0001]")  # private characters, those of `mark_control_tokens`


def target_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a target text; none of them is a control token.

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


def token_texts(tokenizer: Any, size: int) -> list[str]:
    """Return the texts of the first `size` tokens; of bytes that are no character, something that is no word."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    texts = [token.replace("\u0120", " ").replace("\u2581", " ") for token in tokens]  # marks of a space
    return texts + [""] * (size - len(texts))


def plain(tokenizer: Any, text: str) -> str:
    """Return the text with its control tokens marked as plain text, for `encode`."""
    from transformers.utils.chat_template_utils import mark_control_tokens  # here, as it is slow to import

    return mark_control_tokens(text, _controls(tokenizer, len(tokenizer))[1])


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a prompt, in which control tokens are special unless `plain` has marked them.

    Raises:
        ValueError: a marked control token cannot be written in other tokens of this tokenizer.
    """
    if _MARKS.search(text):
        from transformers.utils.chat_template_utils import encode_marked_chat

        return encode_marked_chat(tokenizer, text)
    return tokenizer.encode(text, add_special_tokens=False)


def unmarked(text: str) -> str:
    """Return the text without the marks of `plain`."""
    return _MARKS.sub("", text)


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of a tokenizer's control tokens."""
    return _controls(tokenizer, len(tokenizer))[0]


@lru_cache(maxsize=8)
def _controls(tokenizer: Any, size: int) -> tuple[frozenset[int], re.Pattern[str]]:
    """Return the ids and a pattern that finds them; `size` invalidates the cache when tokens are added."""
    ids = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    ids |= set(tokenizer.all_special_ids)
    ids -= {tokenizer.unk_token_id} - {tokenizer.eos_token_id}  # it stands for any text that has no token
    names = sorted(tokenizer.convert_ids_to_tokens(sorted(ids)), key=len, reverse=True)
    return frozenset(ids), re.compile("|".join(map(re.escape, names)) or "(?!)")
