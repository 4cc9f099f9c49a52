"""Extractive question answering: SQuAD as a source, four data sets of MRQA 2019 as targets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import partial
from typing import Any

from attempt_ray.errors import DataError
from attempt_ray.tasks.spec import (
    OPEN_TARGET_TOKENS,
    QA_SOURCE_TOKENS,
    Row,
    Task,
    Template,
    TemplateOptions,
    cell,
    text,
)


def space_punctuation(passage: str) -> str:
    """Set every character apart that is no letter, digit, accent or underscore, and squeeze spaces (T5, appendix D).

    Inputs and answers get the same treatment, so that an answer is a literal piece of its passage.
    """
    spaced = re.sub(r"[^\w\s]", _apart, passage)
    return " ".join(spaced.split())


def _apart(match: re.Match[str]) -> str:
    character = match[0]
    return character if unicodedata.category(character).startswith("M") else f" {character} "


def squad_source(row: Row, _options: TemplateOptions) -> str:
    """Return `question: ... context: ...` with punctuation set apart."""
    question, context = (space_punctuation(text(row, name)) for name in ("question", "context"))
    return f"question: {question} context: {context}"


def gold_answers(row: Row, options: TemplateOptions, *, column: str, spaced: bool = True) -> tuple[str, ...]:
    """Return the distinct gold answers in order, or the first alone with `options.single_gold`.

    Args:
        row: The row. Its answers are a text, a list of texts (MRQA) or a mapping with such a list under `text` (SQuAD).
        options: Template options.
        column: Column of the answers.
        spaced: Set punctuation apart, as in the passage.

    Raises:
        DataError: There is no answer in any of these forms.
    """
    value = cell(row, column)
    listed = value.get("text") if isinstance(value, Mapping) else value
    listed = [listed] if isinstance(listed, str) else listed
    if not isinstance(listed, list | tuple) or not all(isinstance(answer, str) for answer in listed):
        raise DataError(
            f"field '{column}' holds {value!r}; wanted a text, a list of texts, or {{'text': [...]}}"
        )
    cleaned = (space_punctuation(answer) if spaced else answer.strip() for answer in listed)
    golds = tuple(dict.fromkeys(answer for answer in cleaned if answer))
    if not golds:
        raise DataError(f"field '{column}' holds no answer; drop the row, every question needs one")
    return golds[:1] if options.single_gold else golds


def _reading(name: str, hub_id: str, **facts: Any) -> Task:
    facts = {"group": "MRQA"} | facts
    return Task(
        name=name,
        prefix="squad",
        hub_id=hub_id,
        fields=("question", "context", "answers"),
        kind="qa",
        metrics=("squad_f1", "squad_em"),
        split_rule="large",
        max_source_tokens=QA_SOURCE_TOKENS,
        max_target_tokens=OPEN_TARGET_TOKENS,
        render=Template(source=squad_source, answers=partial(gold_answers, column="answers")),
        **facts,
    )


QA_TASKS: tuple[Task, ...] = (
    _reading("squad", "rajpurkar/squad", hub_config="plain_text", group="sources"),
    _reading("nq", "lucadiliello/naturalquestionsshortqa"),
    _reading("hotpotqa", "lucadiliello/hotpotqa"),
    _reading("searchqa", "lucadiliello/searchqa"),
    _reading("newsqa", "lucadiliello/newsqa"),
)
