"""SuperGLUE (Wang et al. 2019): ReCoRD as a source, the others as targets, templates as in the paper's released code.

The text handling follows T5's preprocessors (Raffel et al. 2020, appendix D), which the authors' code follows too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    classification,
    id_of,
    text,
    texts,
)

NO_ANSWER = "<unk>"
"""What a ReCoRD query without an answer expects, as in T5."""

MULTIRC_SOURCE_TOKENS = 348
"""Longest MultiRC input, in tokens (paper, appendix)."""


def _superglue(
    name: str, columns: Mapping[str, str] | Sequence[str], *, config: str = "", **facts: Any
) -> Task:
    config = config or name
    facts = {"group": "SuperGLUE", "metrics": ("accuracy",), "split_rule": "small"} | facts
    return classification(
        name, columns, prefix=f"superglue-{config}", hub_id="aps/super_glue", hub_config=config, **facts
    )


def _without_markup(html: str) -> str:
    return re.sub(r"</?b>", "", html.replace("<br>", " ")).strip()


def _multirc_source(row: Row, _options: TemplateOptions) -> str:
    return " ".join(
        f"{piece}: {_without_markup(text(row, piece))}" for piece in ("question", "answer", "paragraph")
    )


def _record_source(row: Row, _options: TemplateOptions) -> str:
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", text(row, "passage")).replace(
        "\n@highlight\n", ". "
    )
    entities = ", ".join(texts(row, "entities"))
    return f"record query: {text(row, 'query')} entities: {entities} passage: {passage}"


def _record_answers(row: Row, _options: TemplateOptions) -> tuple[str, ...]:
    return texts(row, "answers") or (NO_ANSWER,)


def _span(sentence: str, row: Row, number: int) -> tuple[int, int]:
    """Return where span `number` starts and ends, in characters.

    Its index counts words; where the word there is another one, as in a row of the released data, the nearest
    occurrence is taken.
    """
    words = text(row, f"span{number}_text")
    index = cell(row, f"span{number}_index")
    if not isinstance(index, int) or not words:
        raise DataError(
            f"span {number} is {words!r} at word {index!r}; wanted a text and the index of its first word"
        )
    starts = [match.start() for match in re.finditer(r"\S+", sentence)]
    found = [
        (abs(position - index), start)
        for position, start in enumerate(starts)
        if sentence.startswith(words, start) and not sentence[start + len(words) :][:1].isalnum()
    ]
    if not found:
        raise DataError(f"span {number} {words!r} is not in the text {sentence!r}; correct span{number}_text")
    start = min(found)[1]
    return start, start + len(words)


def _wsc_source(row: Row, _options: TemplateOptions) -> str:
    """Return the text with span 1 as `* x *` and span 2 as `# y #`, nested where one lies inside the other."""
    sentence = text(row, "text")
    insertions: list[tuple[int, int, int, str]] = []
    for number, mark in ((1, "*"), (2, "#")):
        start, end = _span(sentence, row, number)
        # At one position closing marks precede opening ones; the longer span opens first and closes last.
        insertions += [(start, 1, -end, f"{mark} "), (end, 0, -start, f" {mark}")]
    for position, _, _, mark in sorted(insertions, reverse=True):
        sentence = sentence[:position] + mark + sentence[position:]
    return f"text: {sentence}"


SUPERGLUE_TASKS: tuple[Task, ...] = (
    Task(
        name="record",
        prefix="superglue-record",
        hub_id="aps/super_glue",
        hub_config="record",
        fields=("query", "entities", "passage", "answers", "idx"),
        group="sources",
        kind="qa",
        metrics=("squad_f1", "squad_em"),
        split_rule="large",
        max_source_tokens=QA_SOURCE_TOKENS,
        max_target_tokens=OPEN_TARGET_TOKENS,
        render=Template(
            source=_record_source, answers=_record_answers, group=partial(id_of, name="query"), expand=True
        ),
    ),
    _superglue(
        "multirc",
        ("question", "answer", "paragraph"),
        words=("no", "yes"),
        group="MultiRC",
        metrics=("f1", "group_em"),
        max_source_tokens=MULTIRC_SOURCE_TOKENS,
        source=_multirc_source,
        row_group=partial(id_of, name="question"),
        more_fields=("idx",),
    ),
    _superglue("boolq", ("question", "passage"), words=("no", "yes")),
    _superglue("wic", ("sentence1", "sentence2", "word"), words=("different", "same")),
    _superglue(
        "wsc",
        ("text", "span1_text", "span1_index", "span2_text", "span2_index"),
        config="wsc.fixed",
        words=("no", "yes"),
        source=_wsc_source,
    ),
    _superglue(
        "cb",
        ("premise", "hypothesis"),
        words=("entailment", "contradiction", "neutral"),
        metrics=("accuracy", "macro_f1"),
    ),
    # The question field, cause or effect, is left out as in the authors' code.
    _superglue("copa", ("premise", "choice1", "choice2"), words=("choice1", "choice2")),
    _superglue(
        "superglue-rte", ("premise", "hypothesis"), config="rte", words=("entailment", "not_entailment")
    ),
)
