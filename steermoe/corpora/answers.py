"""What an LLM answers to written questions, greedily: the references of questions that are spoken to it.

Answers are kept in a folder, a file for each few questions, so that an interrupted run goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from steermoe.atomic_io import write_text
from steermoe.config import Llm, Prompts
from steermoe.data.prompts import Turn, conversation, end_token
from steermoe.data.tokens import encode
from steermoe.hub import hashes, located

INSTRUCTION = "Answer in one short sentence."  # after every question
MAX_TOKENS = 24
BATCH = 32  # questions answered together; another number may change an answer in its last bits


class Answerer:
    """The frozen LLM as it answers texts, a batch at a time.

    Args:
        section: the LLM, whole and not quantised.

    Raises:
        ValueError: it cannot be found.
    """

    def __init__(self, section: Llm) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

        path = located(section, "llm").path
        self.tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(path)
        self.prompts = _prompts(self.tokenizer)
        llm: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, section.dtype))
        own = llm.generation_config.eos_token_id
        stops = {self.tokenizer.eos_token_id, end_token(self.prompts, self.tokenizer)}
        self.stops = stops | (set(own) if isinstance(own, list) else {own}) - {None}
        llm.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=sorted(self.stops),
            pad_token_id=self.tokenizer.eos_token_id,
            max_new_tokens=MAX_TOKENS,
        )
        self.llm = llm.eval()

    def __call__(self, questions: Sequence[str]) -> list[str]:
        """Return the answer to each question; "" where it has not ended after MAX_TOKENS."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [torch.tensor(encode(self.tokenizer, self._written(question))) for question in questions]
        ids = pad_sequence(rows, batch_first=True, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        with torch.inference_mode():
            generated = self.llm.generate(input_ids=ids, attention_mask=mask)[:, ids.shape[1] :].tolist()
        return [self._text(answer) for answer in generated]

    def _written(self, question: str) -> str:
        turn = Turn("user", f"{question} {INSTRUCTION}")
        (text,) = conversation(self.prompts, self.tokenizer, [turn])
        return text

    def _text(self, ids: list[int]) -> str:
        end = next((place for place, token in enumerate(ids) if token in self.stops), None)
        return "" if end is None else self.tokenizer.decode(ids[:end], skip_special_tokens=True).strip()


def _prompts(tokenizer: Any) -> Prompts:
    """Return how a text is put to an LLM: in its chat template, or as it is where it has none."""
    return Prompts(
        format="plain" if tokenizer.chat_template is None else "chat",
        system=None,
        **dict.fromkeys(("transcribe", "caption", "summarize", "emotion"), " "),
        answer="{question}",
    )


def answers(section: Llm, questions: Sequence[str], folder: Path) -> Iterator[str]:
    """Yield the answer to each question, in order; "" where it has not ended after MAX_TOKENS.

    The LLM is loaded when the first answer is needed that `folder` lacks, so take no more than you need.

    Args:
        section: the LLM.
        questions: what is asked.
        folder: of answers given earlier.
    """
    files = hashes(Path(located(section, "llm").path))
    answerer: Answerer | None = None
    for start in range(0, len(questions), BATCH):
        batch = list(questions[start : start + BATCH])
        key = json.dumps([files, section.dtype, INSTRUCTION, MAX_TOKENS, batch], sort_keys=True)
        path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        if not path.exists():
            answerer = answerer or Answerer(section)
            folder.mkdir(parents=True, exist_ok=True)
            given = dict(zip(batch, answerer(batch), strict=True))
            write_text(path, json.dumps(given, indent=1, ensure_ascii=False) + "\n")
        yield from json.loads(path.read_text(encoding="utf-8")).values()
