"""From rows of any tasks to answers: templates, token ids, prompts of the bank and the frozen backbone behind one class.

It knows no requests, no network and no Ray: `batcher` decides what it is given together.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attempt_ray.bank.names import Reference
from attempt_ray.bank.store import Bank
from attempt_ray.config import Config
from attempt_ray.data.encoding import encode_input, template_options
from attempt_ray.errors import AttemptError, BankError, DataError, unknown_name
from attempt_ray.model.answering import Answerer, Question, Reply
from attempt_ray.model.backbone import Backbone
from attempt_ray.tasks import Task, all_tasks


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is asked."""

    task: str
    """Task whose template, label words and limits apply."""
    prompt: str
    """Bank reference of the prompt's version, with its number: `target/rte@v3`."""
    fields: Mapping[str, Any] | None = None
    """Columns that the task's template reads."""
    text: str | None = None
    """The input as it is, in place of `fields`."""
    attention: bool = False
    """Whether the mixing weights are wanted."""
    max_new_tokens: int | None = None
    """Longest answer of an open task, in tokens, at most the deployment's; None is the deployment's."""
    stream: bool = False
    """Whether an open task's answer is wanted piece by piece."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a row."""

    task: str
    """The row's task."""
    prompt: str
    """The version that answered."""
    answer: str
    """The answer, as the backbone wrote it."""
    meaning: str | None = None
    """Label word of a closed task's answer; None where it is no label, and for open tasks."""
    probabilities: Mapping[str, float] | None = None
    """Probability of each label word of a closed task: the softmax over the labels' log probabilities as whole answers.
    They sum to 1 whatever probability the backbone gives to other answers. None for open tasks."""
    logprobs: Mapping[str, float] | None = None
    """Log probability in nats of each label word as a whole answer, end token included; None for open tasks."""
    attention: Mapping[str, float] | None = None
    """Mixing weights of the sources and of `target`; None where nothing is mixed, or they were not asked for."""
    truncated: bool
    """Whether the input was longer than the task's limit and lost its end, as in training."""
    input_tokens: int
    """Tokens of the input that were read, the prompt not counted."""
    output_tokens: int
    """Tokens of the answer, its end token included."""
    finished: bool = True
    """Whether the answer came to its end; False where the limit cut it off."""


@dataclass(frozen=True, kw_only=True)
class PreparedRow:
    """A row that has been checked and is ready for a batch."""

    row: Row
    """What was asked."""
    task: Task
    """Its task."""
    question: Question
    """Its token ids and what may be answered."""
    truncated: bool
    """Whether the input lost its end."""
    tokens: int
    """What it takes of a batch's budget: prompt where it is loaded, input with padding, and answer at its longest."""


class Engine:
    """One frozen backbone and a bank of prompts: answers for rows of any tasks in one batch.

    `prepare` may be called from any thread; `run` and `answer` from one at a time.
    """

    def __init__(self, backbone: Backbone, bank: Bank, config: Config) -> None:
        """Start with no prompt loaded.

        Args:
            backbone: The frozen language model.
            bank: Where prompts are.
            config: Template choices and tasks (`data`), decoding (`evaluation`) and sizes (`serving`).

        Raises:
            ConfigError: A task file cannot be used.
        """
        self.tasks: Mapping[str, Task] = all_tasks(config.data.user_tasks)
        self._backbone = backbone
        self._data, self._evaluation = config.data, config.evaluation
        self._options = template_options(config.data)
        self._answerer = Answerer(
            backbone, bank, prompt_bytes=config.serving.prompt_bytes, pass_tokens=config.serving.pass_tokens
        )

    @property
    def loaded_prompts(self) -> int:
        """Versions on the device: prompts and Gs."""
        return len(self._answerer.table)

    @property
    def loaded_bytes(self) -> int:
        """Bytes that they take."""
        return self._answerer.table.used_bytes

    def label_words(self, task: Task) -> tuple[str, ...]:
        """Return the words that probabilities of a closed task are given by; none for open tasks."""
        return task.labels.get("words", ()) or task.labels.get(self._options.label_words, ())

    def has(self, prompt: str) -> bool:
        """Return whether a version is on the device."""
        return prompt in self._answerer.table

    def load(self, prompt: str) -> tuple[str, ...]:
        """Load a version and all that it is mixed with, ahead of the first row that asks for it.

        Returns:
            Names of its mixing weights: its sources, and `target` where that takes part; none where nothing is mixed.

        Raises:
            BankError: It is not in the bank, not whole, not finite, or a G.
            BackboneError: It was made for another backbone.
            StorageError: The disk or store refused.
            ConfigError: It exceeds `serving.prompt_bytes`.
        """
        return self._answerer.table.load(_pinned(prompt)).candidates

    def prepare(self, row: Row) -> PreparedRow:
        """Render and tokenise a row.

        Raises:
            DataError: There is no such task, a field is missing or not text, or there are both fields and text or neither.
            BankError: The prompt is not named with its number.
            BackboneError: The tokenizer does not end texts.
        """
        task = self.tasks.get(row.task)
        if task is None:
            raise DataError(unknown_name("task", row.task, self.tasks))
        encoded = encode_input(
            self._text(task, row),
            self._backbone.tokenizer,
            max_source_tokens=self._data.max_source_tokens or task.max_source_tokens,
        )
        labels = task.labels.get(self._options.label_words, ())
        longest = min(self._evaluation.max_new_tokens, task.max_target_tokens)
        if row.max_new_tokens is not None:
            if row.max_new_tokens < 1:
                raise DataError(f"max_new_tokens: got {row.max_new_tokens}; wanted 1 or more")
            longest = min(longest, row.max_new_tokens)
        question = Question(
            prompt=_pinned(row.prompt),
            ids=encoded.ids,
            labels=labels,
            decode=self._evaluation.decode,
            max_new_tokens=longest,
            pieces=row.stream,
        )
        return PreparedRow(
            row=row,
            task=task,
            question=question,
            truncated=encoded.truncated,
            tokens=self._answerer.tokens(question),
        )

    def run(
        self, rows: Sequence[PreparedRow]
    ) -> Generator[tuple[int, str | Answer | AttemptError], None, None]:
        """Yield (index of the row, what came of it), each as soon as it is known.

        A text is a piece of an answer that is under way, and the pieces of an answer, joined, are its text; anything else
        is the last of its row. A prompt that cannot be used is the error of its own rows alone.
        """
        for index, found in self._answerer.run([row.question for row in rows]):
            yield index, _answer(rows[index], found) if isinstance(found, Reply) else found

    def answer(self, rows: Sequence[Row]) -> list[Answer | AttemptError]:
        """Return what came of every row, in order; the error of one does not disturb the others."""
        outcomes: dict[int, Answer | AttemptError] = {}
        prepared: dict[int, PreparedRow] = {}
        for index, row in enumerate(rows):
            try:
                prepared[index] = self.prepare(row)
            except AttemptError as error:
                outcomes[index] = error
        places = list(prepared)
        for index, found in self.run(list(prepared.values())):
            if not isinstance(found, str):
                outcomes[places[index]] = found
        return [outcomes[index] for index in range(len(rows))]

    def stream(self, row: Row) -> Iterator[str]:
        """Yield the pieces of one row's answer; a closed task's comes in one.

        Raises:
            AttemptError: The row or its prompt cannot be used.
        """
        told = False
        for _, found in self.run([self.prepare(row)]):
            if isinstance(found, AttemptError):
                raise found
            if isinstance(found, str):
                told = True
                yield found
            elif not told:
                yield found.answer

    def _text(self, task: Task, row: Row) -> str:
        if (row.fields is None) == (row.text is None):
            got = "neither" if row.fields is None else "both"
            raise DataError(f"a row of '{task.name}' got {got} of fields and text; give one of them")
        if row.text is not None:
            return row.text
        return task.source_text(row.fields or {}, self._options)


def _pinned(prompt: str) -> str:
    reference = Reference.parse(prompt)
    if reference.number is None:
        raise BankError(
            f"got the prompt '{prompt}'; wanted a version with its number, such as {prompt.partition('@')[0]}@v1"
        )
    return f"{reference.kind}/{reference.name}@v{reference.number}"


def _answer(prepared: PreparedRow, reply: Reply) -> Answer:
    words: tuple[str, ...] = ()
    if prepared.question.labels:
        words = prepared.task.labels.get("words", prepared.question.labels)
    shares = torch.tensor(reply.logprobs, dtype=torch.float64).softmax(dim=-1).tolist() if words else []
    return Answer(
        task=prepared.task.name,
        prompt=prepared.question.prompt,
        answer=reply.text,
        meaning=words[reply.label] if words and reply.label is not None else None,
        probabilities=dict(zip(words, shares, strict=True)) if words else None,
        logprobs=dict(zip(words, reply.logprobs, strict=True)) if words else None,
        attention=reply.weights if prepared.row.attention else None,
        truncated=prepared.truncated,
        input_tokens=len(prepared.question.ids),
        output_tokens=reply.tokens,
        finished=reply.finished,
    )
