"""A task's metric on resampled test rows, for thousands of resamples at once.

A resample is told by how often it draws each row. Means over rows, counts of a confusion matrix and moments are sums
over rows, so a matrix of draws times a matrix of rows gives them for all resamples; the metric follows from the sums.
Each equals the metric of `attempt_ray.tasks.metrics` on the drawn rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from attempt_ray.errors import DataError
from attempt_ray.reporting.examples import Answered
from attempt_ray.tasks import Example
from attempt_ray.tasks.metrics import (
    METRICS,
    Answers,
    class_ids,
    numbers,
    wrong_where_invalid,
)

Array = NDArray[np.float64]
Resampled = Callable[[Array], Array]
"""From draws [resamples, rows] to the metric in points [resamples]."""

_MEANS = ("accuracy", "squad_f1", "squad_em")
"""Metrics that are means of what each row scores by itself."""


def resampled(metric: str, answered: Answered, *, labels: Sequence[str]) -> Resampled:
    """Return a function from draws to the metric of one run's answers.

    Args:
        metric: Name in `METRICS`.
        answered: The answers.
        labels: Text of each class in order of class id; empty for open tasks.

    Raises:
        DataError: The metric cannot be resampled by rows, or a gold answer is none of the labels.
    """
    answers = Answers(
        predictions=tuple(answer.strip() for answer in answered.answers),
        examples=tuple(Example(source="", target=golds[0], golds=golds) for golds in answered.golds),
        labels=tuple(labels),
    )
    if labels and (strange := {example.target for example in answers.examples} - set(labels)):
        raise DataError(f"gold answer '{min(strange)}' is none of the labels {', '.join(labels)}")
    if metric in _MEANS:
        return _mean(metric, answers)
    try:
        make = {
            "f1": _f1,
            "macro_f1": _macro_f1,
            "matthews": _matthews,
            "pearson": _pearson,
            "spearman": _spearman,
        }[metric]
    except KeyError:
        raise DataError(f"metric '{metric}' is not one of single rows, so they cannot be resampled") from None
    return make(answers)


def _mean(metric: str, answers: Answers) -> Resampled:
    each_N = np.array(
        [
            METRICS[metric].fraction(
                Answers(predictions=(prediction,), examples=(example,), labels=answers.labels)
            )
            for prediction, example in zip(answers.predictions, answers.examples, strict=True)
        ]
    )
    return lambda draws_BN: 100.0 * (draws_BN @ each_N) / draws_BN.sum(axis=1)


def _f1(answers: Answers) -> Resampled:
    golds_N, found_N = map(np.array, wrong_where_invalid(answers))
    hit_N, claimed_N, true_N = (golds_N == 1) & (found_N == 1), found_N == 1, golds_N == 1

    def compute(draws_BN: Array) -> Array:
        return 100.0 * _ratio(2 * draws_BN @ hit_N, draws_BN @ claimed_N + draws_BN @ true_N)

    return compute


def _macro_f1(answers: Answers) -> Resampled:
    classes_C = np.arange(len(answers.labels))
    golds_NC, found_NC = (np.array(ids)[:, None] == classes_C for ids in class_ids(answers))
    hit_NC = golds_NC & found_NC

    def compute(draws_BN: Array) -> Array:
        there_BC = draws_BN @ golds_NC + draws_BN @ found_NC
        f1_BC = _ratio(2 * draws_BN @ hit_NC, there_BC)
        return np.asarray(100.0 * f1_BC.sum(axis=1) / (there_BC > 0).sum(axis=1))

    return compute


def _matthews(answers: Answers) -> Resampled:
    classes_C = np.arange(len(answers.labels))
    golds_N, found_N = map(np.array, wrong_where_invalid(answers))
    golds_NC, found_NC = golds_N[:, None] == classes_C, found_N[:, None] == classes_C
    right_N = golds_N == found_N

    def compute(draws_BN: Array) -> Array:
        n_B = draws_BN.sum(axis=1)
        gold_BC, found_BC = draws_BN @ golds_NC, draws_BN @ found_NC
        covariance_B = n_B * (draws_BN @ right_N) - (gold_BC * found_BC).sum(axis=1)
        spread_B = (n_B**2 - (gold_BC**2).sum(axis=1)) * (n_B**2 - (found_BC**2).sum(axis=1))
        return 100.0 * _ratio(covariance_B, np.sqrt(spread_B))

    return compute


def _pearson(answers: Answers) -> Resampled:
    golds_N, found_N = map(np.array, numbers(answers))
    return lambda draws_BN: 100.0 * _correlation(draws_BN, golds_N, found_N)


def _spearman(answers: Answers) -> Resampled:
    golds_N, found_N = map(np.array, numbers(answers))

    def compute(draws_BN: Array) -> Array:
        return 100.0 * _correlation(draws_BN, _midranks(draws_BN, golds_N), _midranks(draws_BN, found_N))

    return compute


def _midranks(draws_BN: Array, values_N: Array) -> Array:
    """Return the rank of each row's value among the drawn rows, ties sharing the mean of theirs."""
    distinct_U, place_N = np.unique(values_N, return_inverse=True)
    count_BU = draws_BN @ (place_N[:, None] == np.arange(len(distinct_U)))
    rank_BU = np.cumsum(count_BU, axis=1) - (count_BU - 1) / 2
    return np.asarray(rank_BU[:, place_N])


def _correlation(draws_BN: Array, x: Array, y: Array) -> Array:
    """Return Pearson's r of drawn rows, 0 where a side is constant; `x` and `y` are [N] or [B, N]."""
    n_B1 = draws_BN.sum(axis=1, keepdims=True)
    x_BN = x - (draws_BN * x).sum(axis=1, keepdims=True) / n_B1
    y_BN = y - (draws_BN * y).sum(axis=1, keepdims=True) / n_B1
    xx_B, yy_B = (draws_BN * x_BN**2).sum(axis=1), (draws_BN * y_BN**2).sum(axis=1)
    # What is left of a constant side is rounding.
    tiny_x, tiny_y = (
        1e-20 * draws_BN.shape[1] * max(1.0, float(np.max(np.abs(side)))) ** 2 for side in (x, y)
    )
    xy_B = (draws_BN * x_BN * y_BN).sum(axis=1)
    return np.where((xx_B > tiny_x) & (yy_B > tiny_y), _ratio(xy_B, np.sqrt(xx_B * yy_B)), 0.0)


def _ratio(above: Array, below: Array) -> Array:
    """Return the quotient, 0 where there is nothing to divide by."""
    return np.asarray(np.divide(above, below, out=np.zeros_like(below, dtype=float), where=below > 0))
