"""Questions about recordings to answers, a batch at a time: by the model here, or with an LLM that runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from steermoe.audio.waveform import RATE
from steermoe.config import Generation
from steermoe.data.collator import collate
from steermoe.data.dataset import Item
from steermoe.data.prompts import PLACE, Turn, conversation, encode_texts, render, texts_around
from steermoe.models.answers import confidence
from steermoe.models.generation import Watch, cycle, decode
from steermoe.models.inputs import Inputs
from steermoe.models.llm import CausalLM, hidden_states, logits
from steermoe.models.tools import Answer, check_tools, read_answer

if TYPE_CHECKING:
    from steermoe.models.steermoe import SteerMoE
    from steermoe.serving.batching import Job

Continue = Callable[[torch.Tensor, torch.Tensor, Generation, int, Watch], list[list[int]]]
"""(rows_BWH, valid_BW, how to decode, seed, who looks on) -> ids of each row, without end token."""


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked about a recording.

    Attributes:
        samples: (N,) at 16 kHz.
        turns: the conversation about it, which has this one recording; None: write down what is said.
        prompt: the text behind the audio, instead of the configuration's; not with `turns`.
        tools: what may be called.
        generation, seed: how to decode.
        scored: tell the answer's confidence, which costs one more pass of the LLM.
    """

    samples: np.ndarray
    generation: Generation
    turns: tuple[Turn, ...] | None = None
    prompt: str | None = None
    tools: tuple[dict, ...] | None = None
    seed: int = 0
    scored: bool = False

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.samples) / RATE

    @property
    def together(self) -> str | None:
        """Those who decode alike share a batch; what is sampled depends on the batch, and is alone."""
        return self.generation.model_dump_json() if self.generation.strategy == "greedy" else None


@dataclass(frozen=True)
class Answered:
    """An answer, and how it came about.

    Attributes:
        answer: see there.
        prompt_tokens: all that the LLM read, audio included.
        tokens: all that it wrote.
        cut: it was not at its end.
        tooled: it might have called tools.
    """

    answer: Answer
    prompt_tokens: int
    tokens: int
    cut: bool
    tooled: bool


class Written:
    """The text of an answer, given away piece by piece while it is written.

    A character of several tokens is held back until it is whole, and a tail that repeats as often as it may,
    until it is clear that it goes on otherwise.

    Args:
        give: takes the pieces; None: nobody wants them.
        model: its tokenizer, and the tokens that end an answer.
        generation: how often a tail may repeat.
    """

    def __init__(self, give: Callable[[str], None] | None, model: SteerMoE, generation: Generation) -> None:
        self._give, self._tokenizer = give, model.tokenizer
        self._stops = set(model.llm.generation_config.eos_token_id)
        self._repeats = generation.max_repeats
        self._given = ""

    def show(self, ids: list[int]) -> None:
        """All ids so far, behind an end token whatever there is."""
        if self._give is None:
            return
        end = next((place for place, token in enumerate(ids) if token in self._stops), len(ids))
        if self._repeats is not None and cycle(ids[:end], self._repeats - 1):
            return
        text = self._tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
        if not text.endswith("\ufffd"):
            self.finish(text)

    def finish(self, text: str) -> None:
        """The whole text so far."""
        if self._give is not None and text != self._given and text.startswith(self._given):
            self._give(text[len(self._given) :])
            self._given = text


class Engine:
    """Answers batches of jobs.

    Attributes:
        window: seconds of audio that the encoder takes at once; None: no limit.

    Args:
        model: encoder, steering and bridge are used; its LLM too, if nobody else continues.
        goes_on: writes the answers; default: the model's LLM.

    Raises:
        ValueError: the adapter has a part in the LLM, and somebody else writes.
    """

    def __init__(self, model: SteerMoE, goes_on: Continue | None = None) -> None:
        if goes_on is not None and model.config.llm_lora is not None:
            raise ValueError(
                "the adapter has LoRA in the LLM, which an LLM that runs elsewhere does not have"
            )
        self.model = model
        self._continue = goes_on or self._here
        encoder = model.encoder
        self.window = None if encoder.max_frames is None else encoder.max_frames / encoder.frames_per_second
        tokenizer = model.tokenizer
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._marks = sorted({*tokenizer.all_special_tokens, *added, PLACE})

    def check_text(self, text: str) -> None:
        """Raises ValueError where a text has a token in it that ends a turn, or some such."""
        if found := next((mark for mark in self._marks if mark in text), None):
            raise ValueError(f"found {found!r}, which has a meaning of its own to the LLM; leave it out")

    def check(self, question: Question) -> None:
        """Raises ValueError where the LLM cannot be asked so: wrong tools, or a system turn that it has not."""
        if question.tools is not None:
            check_tools(question.tools)
        self._texts(question)

    def answer(self, jobs: Sequence[Job]) -> tuple[list[Answered], int]:
        """The answers to jobs that decode alike, whose `asked` are questions, and the tokens written.

        Raises:
            ValueError: a recording is too short or too long for the encoder.
        """
        asked: list[Question] = [job.asked for job in jobs]  # pyright: ignore[reportAssignmentType]
        generation = asked[0].generation
        items: list[Item] = []
        for row, question in enumerate(asked):
            prompt = encode_texts(self.model.tokenizer, *self._texts(question))
            items.append(
                {
                    "features": self.model.features(question.samples), "prefix_ids": prompt.prefix,
                    "prompt_ids": prompt.suffix, "target_ids": [], "index": row,
                }
            )  # fmt: skip
        inputs = Inputs.of(collate(items), self.model.device)
        rows_BWH, valid_BW = self.model.embed_prompt(inputs)
        rows = [Written(job.written, self.model, generation) for job in jobs]

        def watch(ids: list[list[int]]) -> list[bool]:
            for row, found in zip(rows, ids, strict=True):
                row.show(found)
            return [job.given_up.is_set() for job in jobs]

        ids = self._continue(rows_BWH, valid_BW, generation, asked[0].seed, watch)
        scores: list[float | None] = [None] * len(asked)
        if self._continue == self._here and (places := [row for row, one in enumerate(asked) if one.scored]):
            found = confidences(
                self.model.llm, rows_BWH[places], valid_BW[places], [ids[row] for row in places]
            )
            for row, score in zip(places, found, strict=True):
                scores[row] = score
        answered = []
        for question, row, own, before, score in zip(
            asked, rows, ids, valid_BW.sum(1).tolist(), scores, strict=True
        ):
            answer = read_answer(own, self.model.tokenizer, question.tools, self._texts(question)[1])
            answer = replace(answer, confidence=score)
            row.finish(answer.text)
            cut = len(own) >= generation.max_new_tokens
            answered.append(Answered(answer, before, len(own), cut, question.tools is not None))
        return answered, sum(len(own) for own in ids)

    def _here(
        self,
        rows_BWH: torch.Tensor,
        valid_BW: torch.Tensor,
        generation: Generation,
        seed: int,
        watch: Watch,
    ) -> list[list[int]]:
        return decode(self.model.llm, rows_BWH, valid_BW, generation, seed, watch=watch)

    def _texts(self, question: Question) -> tuple[str, str]:
        """What the LLM reads before and behind the audio."""
        prompts, tokenizer = self.model.config.prompts, self.model.tokenizer
        if question.turns is not None:
            before, behind = conversation(prompts, tokenizer, question.turns, question.tools)
            return before, behind
        asked = render(prompts, "transcribe", "") if question.prompt is None else question.prompt
        return texts_around(prompts, tokenizer, asked, question.tools)


@torch.no_grad()
def confidences(
    llm: CausalLM, rows_BWH: torch.Tensor, valid_BW: torch.Tensor, ids: Sequence[list[int]]
) -> list[float | None]:
    """The confidence of each answer, of one more pass over prompts and answers; None of an empty one."""
    table = llm.get_input_embeddings()
    answers = [torch.tensor(row, dtype=torch.int64, device=rows_BWH.device) for row in ids]
    whole = [
        torch.cat([row_WH[valid], table(answer[:-1])])
        for row_WH, valid, answer in zip(rows_BWH, valid_BW, answers, strict=True)
    ]
    hidden_BWH = hidden_states(llm, pad_sequence(whole, batch_first=True))
    found = []
    for hidden_WH, before, answer in zip(hidden_BWH, valid_BW.sum(1).tolist(), answers, strict=True):
        scores = logits(llm, hidden_WH[before - 1 : before - 1 + len(answer)]).float().log_softmax(-1)
        found.append(confidence(scores.gather(-1, answer[:, None])[:, 0].tolist()))
    return found
