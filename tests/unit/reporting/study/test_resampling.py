from __future__ import annotations

import random

import numpy as np
import pytest

from attempt_ray.errors import DataError
from attempt_ray.reporting.examples import Answered
from attempt_ray.reporting.study.resampling import resampled
from attempt_ray.tasks import Example
from attempt_ray.tasks.metrics import METRICS, Answers

KINDS = {
    "accuracy": ("0", "1", "2"),
    "f1": ("0", "1"),
    "macro_f1": ("0", "1", "2"),
    "matthews": ("0", "1"),
    "pearson": (),
    "spearman": (),
    "squad_f1": (),
    "squad_em": (),
}


def answered(answers: list[str], golds: list[tuple[str, ...]]) -> Answered:
    return Answered(inputs=("",) * len(answers), answers=tuple(answers), golds=tuple(golds), weights=None)


def make(metric: str, rng: random.Random, rows: int) -> Answered:
    labels = KINDS[metric]
    if labels:
        golds = [(rng.choice(labels),) for _ in range(rows)]
        return answered([rng.choice([*labels, gold[0], "what"]) + " " for gold in golds], golds)
    if metric in ("pearson", "spearman"):
        values = [rng.randrange(6) for _ in range(rows)]
        return answered(
            [rng.choice([str(value + rng.random()), str(value), "none"]) for value in values],
            [(f"{value:.1f}",) for value in values],
        )
    words = ["the red hall", "red hall", "hall", "a green town", "town", ""]
    return answered(
        [rng.choice(words) for _ in range(rows)], [tuple(rng.sample(words[:5], 2)) for _ in range(rows)]
    )


@pytest.mark.parametrize("metric", KINDS)
@pytest.mark.parametrize("rows", [2, 7, 60])
def test_the_metric_on_drawn_rows_is_that_of_the_task(metric: str, rows: int) -> None:
    rng = random.Random(rows)
    given = make(metric, rng, rows)
    draws = np.random.default_rng(rows).multinomial(rows, np.full(rows, 1 / rows), size=60).astype(float)
    draws[0] = 1
    found = resampled(metric, given, labels=KINDS[metric])(draws)
    for drawn, value in zip(draws, found, strict=True):
        picked = np.repeat(np.arange(rows), drawn.astype(int))
        answers = Answers(
            predictions=tuple(given.answers[row].strip() for row in picked),
            examples=tuple(
                Example(source="", target=given.golds[row][0], golds=given.golds[row]) for row in picked
            ),
            labels=KINDS[metric],
        )
        assert value == pytest.approx(100 * METRICS[metric].fraction(answers), abs=1e-9)


@pytest.mark.parametrize("metric", ["f1", "macro_f1", "matthews"])
def test_one_answer_to_all_is_no_division_by_zero(metric: str) -> None:
    given = answered(["0"] * 4, [("0",)] * 4)
    value = resampled(metric, given, labels=("0", "1"))(np.ones((1, 4)))[0]
    assert value == {"f1": 0.0, "macro_f1": 100.0, "matthews": 0.0}[metric]


def test_constant_numbers_have_no_correlation_however_large() -> None:
    given = answered(["4321.1"] * 5, [(f"{value}.0",) for value in range(5)])
    assert resampled("pearson", given, labels=())(np.ones((1, 5)))[0] == 0.0


def test_groups_and_unknown_labels_are_refused() -> None:
    with pytest.raises(DataError, match="'group_em' is not one of single rows"):
        resampled("group_em", answered(["0"], [("0",)]), labels=("0", "1"))
    with pytest.raises(DataError, match="gold answer 'yes' is none of the labels 0, 1"):
        resampled("accuracy", answered(["0"], [("yes",)]), labels=("0", "1"))
