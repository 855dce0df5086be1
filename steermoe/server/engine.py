"""Questions about recordings to answers, many at a time: by the model here, or with an LLM that runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from steermoe.audio.augment import levelled
from steermoe.audio.io import RATE
from steermoe.config import Generation
from steermoe.data.dataset import Batch, Item, collate
from steermoe.data.prompts import PLACE, Turn, conversation, encode_texts, render, texts_around
from steermoe.models.continuous_batching import DecodeSlots, Prompt, continues
from steermoe.models.generation import Watch, cycle, decode, log_likelihoods
from steermoe.models.inference import confidence, nothing_heard, prompts_of, rated, unanswerable
from steermoe.models.tools import Answer, check_tools, read_answer

if TYPE_CHECKING:
    from steermoe.models.steermoe import SteerMoE
    from steermoe.server.batching import Job, Join

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
        scored: tell the answer's confidence; not where the LLM runs elsewhere.
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
        job: what is given of it is remembered there, and not given again if it has to be answered anew.
        model: its tokenizer, and the tokens that end an answer.
    """

    def __init__(self, job: Job, model: SteerMoE) -> None:
        self.job, self._tokenizer = job, model.tokenizer
        self._stops = set(model.llm.generation_config.eos_token_id)
        self._repeats = job.asked.generation.max_repeats

    def show(self, ids: list[int]) -> None:
        """All ids so far, behind an end token whatever there is."""
        if self.job.written is None:
            return
        end = next((place for place, token in enumerate(ids) if token in self._stops), len(ids))
        if self._repeats is not None and cycle(ids[:end], self._repeats - 1):
            return
        text = self._tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
        if not text.endswith("\ufffd"):
            self.finish(text)

    def finish(self, text: str) -> None:
        """The whole text so far."""
        given, written = self.job.given, self.job.written
        if written is not None and text != given and text.startswith(given):
            written(text[len(given) :])
            self.job.given = text


class Engine:
    """Answers batches of jobs.

    Attributes:
        window: seconds of audio that the encoder takes at once; None: no limit.

    Args:
        model: encoder, steering and projector are used; its LLM too, if nobody else continues.
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
        self._continue = goes_on
        encoder = model.encoder
        self.window = None if encoder.max_frames is None else encoder.max_frames / encoder.frames_per_second
        tokenizer = model.tokenizer
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._marks = sorted({*tokenizer.all_special_tokens, *added, PLACE})

    def check_text(self, text: str) -> None:
        """Raises ValueError where a text has a token in it that ends a turn, or some such, or is no Unicode."""
        text.encode()  # half a surrogate pair, as JSON may have it
        if found := next((mark for mark in self._marks if mark in text), None):
            raise ValueError(f"found {found!r}, which has a meaning of its own to the LLM; leave it out")

    def check(self, question: Question) -> None:
        """Raises ValueError where the LLM cannot be asked so: wrong tools, or a system turn that it has not."""
        if question.tools is not None:
            check_tools(question.tools)
        self._texts(question)

    def unheard(self, question: Question) -> Answered | None:
        """The answer where a recording has nothing in it that a question could be about; None: it has."""
        asked = any(turn.text for turn in question.turns or () if turn.role == "user")
        if not unanswerable(self.model, question.samples, asked):
            return None
        return Answered(nothing_heard(), 0, 0, False, question.tools is not None)

    @torch.no_grad()
    def answer(self, jobs: Sequence[Job], join: Join) -> Iterator[tuple[Job, Answered | Exception]]:
        """The answers to jobs that decode alike, whose `asked` are questions, and to those that join them.

        Each answer is there as soon as it ends, and the next job takes its place (`models.continuous`). Elsewhere,
        and where answers are sampled or searched for, the jobs are a batch, and nobody joins.

        Yields:
            a job, and its answer, or why there is none: ValueError, the recording is too short or too long.
        """
        generation = jobs[0].asked.generation
        if self._continue is not None or not continues(self.model.llm, generation):
            yield from self._batch(jobs, generation)
            return
        slots = DecodeSlots(self.model.llm, generation, scored=True)
        at_work: dict[Job, tuple[Written, int]] = {}
        while jobs or slots.live:
            read: list[Prompt] = []
            for job, prompt in self._prompts(jobs):
                if isinstance(prompt, Exception):
                    yield job, prompt
                    continue
                read.append(prompt)
                at_work[job] = Written(job, self.model), len(prompt.embeddings)
            if read:
                slots.read(read)
            else:
                slots.step()
            for row in slots.rows:
                if row.key in at_work:  # else it has ended, and its place was not taken yet
                    at_work[row.key][0].show(row.ids)
            slots.drop({job for job in at_work if job.given_up.is_set()})
            for job, ids, scores in slots.take():
                written, before = at_work.pop(job)
                yield job, self._answered(written, before, ids, scores)
            jobs = join(slots.live)

    def _batch(
        self, jobs: Sequence[Job], generation: Generation
    ) -> Iterator[tuple[Job, Answered | Exception]]:
        """The answers to jobs, all at the end."""
        inputs = self._inputs(jobs)
        rows_BWH, valid_BW = self.model.embed_prompt(inputs)
        rows = [Written(job, self.model) for job in jobs]

        def watch(ids: list[list[int]]) -> list[bool]:
            for row, found in zip(rows, ids, strict=True):
                row.show(found)
            return [job.given_up.is_set() for job in jobs]

        goes_on = self._continue or self._here
        ids = goes_on(rows_BWH, valid_BW, generation, jobs[0].asked.seed, watch)
        scores: list[list[float]] = [[] for _ in jobs]
        if self._continue is None and any(job.asked.scored for job in jobs):
            scores = log_likelihoods(self.model.llm, rows_BWH, valid_BW, ids)
        for row, before, own, each in zip(rows, valid_BW.sum(1).tolist(), ids, scores, strict=True):
            yield row.job, self._answered(row, before, own, each)

    def _inputs(self, jobs: Sequence[Job]) -> Batch:
        items: list[Item] = []
        for row, job in enumerate(jobs):
            prompt = encode_texts(self.model.tokenizer, *self._texts(job.asked))
            items.append(
                {
                    "features": self.model.features(levelled(job.asked.samples)), "prefix_ids": prompt.prefix,
                    "prompt_ids": prompt.suffix, "target_ids": [], "index": row,
                }
            )  # fmt: skip
        return collate(items).to(self.model.device)

    def _prompts(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Prompt | Exception]]:
        """What the LLM reads of each job; where one spoils it for all, they are read one by one."""
        if not jobs:
            return
        try:
            yield from zip(jobs, prompts_of(self.model.embed_prompt, self._inputs(jobs), jobs), strict=True)
        except (ValueError, RuntimeError) as error:
            if len(jobs) == 1:
                yield jobs[0], error
                return
            for job in jobs:
                yield from self._prompts([job])

    def _answered(self, row: Written, before: int, ids: list[int], scores: list[float]) -> Answered:
        question = row.job.asked
        answer = read_answer(ids, self.model.tokenizer, question.tools, self._texts(question)[1])
        answer = rated(answer, confidence(scores) if question.scored else None)
        row.finish(answer.text)
        cut = len(ids) >= question.generation.max_new_tokens
        return Answered(answer, before, len(ids), cut, question.tools is not None)

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
