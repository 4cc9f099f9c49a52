"""GLUE: four source tasks and five targets (Wang et al. 2018), templates as in the paper's released code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from attempt_ray.tasks.spec import Task, Template, classification, number_answer, pieces


def _glue(name: str, columns: Mapping[str, str] | Sequence[str], **facts: Any) -> Task:
    facts = {"group": "GLUE", "metrics": ("accuracy",), "split_rule": "small"} | facts
    return classification(name, columns, prefix=name, hub_id="nyu-mll/glue", hub_config=name, **facts)


_STSB_COLUMNS = {"sentence1": "sentence1", "sentence2": "sentence2"}

GLUE_TASKS: tuple[Task, ...] = (
    _glue(
        "mnli",
        ("premise", "hypothesis"),
        words=("entailment", "neutral", "contradiction"),
        group="sources",
        split_rule="native",
        dev_split="validation_mismatched",
        test_split="validation_matched",
    ),
    _glue("sst2", ("sentence",), words=("negative", "positive"), group="sources", split_rule="large"),
    _glue(
        "qnli",
        ("question", "sentence"),
        words=("entailment", "not_entailment"),
        group="sources",
        split_rule="large",
    ),
    _glue(
        "qqp",
        ("question1", "question2"),
        words=("not_duplicate", "duplicate"),
        group="sources",
        metrics=("f1", "accuracy"),
        split_rule="large",
    ),
    _glue("wnli", ("sentence1", "sentence2"), words=("not_entailment", "entailment")),
    Task(
        name="stsb",
        prefix="stsb",
        hub_id="nyu-mll/glue",
        hub_config="stsb",
        fields=(*_STSB_COLUMNS, "label"),
        group="GLUE",
        kind="regression",
        metrics=("pearson", "spearman"),
        split_rule="small",
        render=Template(
            source=partial(pieces, columns=_STSB_COLUMNS),
            answers=partial(number_answer, column="label", bounds=(0.0, 5.0)),
        ),
    ),
    _glue(
        "mrpc",
        ("sentence1", "sentence2"),
        words=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        test_split="test",
    ),
    _glue("rte", ("sentence1", "sentence2"), words=("entailment", "not_entailment")),
    _glue("cola", ("sentence",), words=("unacceptable", "acceptable"), metrics=("matthews",)),
)
