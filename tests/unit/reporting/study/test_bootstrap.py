from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from attempt_ray.errors import DataError
from attempt_ray.reporting.study.bootstrap import Bootstrap, Scored
from attempt_ray.reporting.study.lines import Line

A, B = Line("attempt"), Line("prompt_tuning")


def of_rows(values, asked=b"", groups=()):
    """A run whose metric is the mean of what its rows score."""
    values = np.asarray(values, dtype=float)
    return Scored(
        points=100 * float(values.mean()),
        rows=len(values),
        resampled=lambda draws: 100 * draws @ values / draws.sum(axis=1),
        asked=asked,
        groups=groups,
    )


def of_nothing_but_seed(points):
    """A run whose metric is the same whatever rows are drawn."""
    return Scored(points=points, rows=5, resampled=lambda draws: np.full(len(draws), points))


def test_over_rows_it_is_scipys_paired_percentile_bootstrap():
    rng = np.random.default_rng(1)
    b = rng.random(120)
    a = b + 0.3 * rng.random(120) - 0.1
    found = Bootstrap({A: {"rte": {1: of_rows(a)}}, B: {"rte": {1: of_rows(b)}}}, resamples=20_000)
    difference = found.difference(A, B, ["rte"])
    expected = stats.bootstrap(
        (100.0 * a, 100.0 * b),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert difference.value == pytest.approx(100 * (a.mean() - b.mean()))
    assert (difference.low, difference.high) == pytest.approx(tuple(expected), abs=0.3)
    unpaired = stats.norm.interval(0.95, scale=100 * np.hypot(a.std(), b.std()) / 120**0.5)
    assert difference.high - difference.low < 0.8 * (unpaired[1] - unpaired[0])  # pairing counts


def test_rows_of_a_group_are_drawn_together():
    rng = np.random.default_rng(5)
    of_groups = rng.random(40)
    values = np.repeat(of_groups, 3) + 0.01 * rng.normal(size=120)
    groups = tuple(f"question {number}" for number in np.repeat(np.arange(40), 3))
    runs = {1: of_rows(values, groups=groups), 2: of_rows(values)}
    together, alone = (
        Bootstrap({A: {"multirc": {seed: run}}}, resamples=20_000).mean(A, ["multirc"])
        for seed, run in runs.items()
    )
    expected = stats.bootstrap(
        (100.0 * values.reshape(40, 3).mean(axis=1),),
        np.mean,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(6),
    ).confidence_interval
    assert (together.low, together.high) == pytest.approx(tuple(expected), abs=0.4)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
    both = Bootstrap({A: {"multirc": runs}}, resamples=20_000).mean(A, ["multirc"])
    assert (both.low, both.high) == pytest.approx((together.low, together.high), abs=1e-9)


def test_groups_of_one_row_are_rows():
    values = np.random.default_rng(7).random(50)
    names = tuple(str(number * 7919 % 50) for number in range(50))
    alone, named = (
        Bootstrap({A: {"multirc": {1: of_rows(values, groups=groups)}}}).mean(A, ["multirc"])
        for groups in ((), names)
    )
    assert alone == named


def test_a_recomputed_metric_is_resampled_like_scipys():
    rng = np.random.default_rng(3)
    gold = rng.normal(size=80)
    a, b = gold + rng.normal(size=80), gold + 2 * rng.normal(size=80)

    def r(x, y, axis=-1):
        x = x - x.mean(axis=axis, keepdims=True)
        y = y - y.mean(axis=axis, keepdims=True)
        return (x * y).sum(axis) / np.sqrt((x**2).sum(axis) * (y**2).sum(axis))

    def run(values):
        def compute(draws):
            picked = [np.repeat(np.arange(80), row.astype(int)) for row in draws]
            return np.array([100 * r(gold[rows], values[rows]) for rows in picked])

        return Scored(points=100 * r(gold, values), rows=80, resampled=compute)

    found = Bootstrap({A: {"stsb": {1: run(a)}}, B: {"stsb": {1: run(b)}}}, resamples=6_000)
    difference = found.difference(A, B, ["stsb"])
    expected = stats.bootstrap(
        (gold, a, b),
        lambda g, x, y, axis: 100 * (r(g, x, axis) - r(g, y, axis)),
        paired=True,
        method="percentile",
        n_resamples=6_000,
        vectorized=True,
        rng=np.random.default_rng(4),
    ).confidence_interval
    assert (difference.low, difference.high) == pytest.approx(tuple(expected), abs=1.0)


def test_over_seeds_it_is_scipys_bootstrap_of_the_seeds_differences():
    a, b = [70.13, 74.71, 78.29, 71.97, 75.83, 80.41], [69.57, 70.11, 71.43, 74.19, 70.61, 72.37]
    scores = {
        line: {"rte": {seed: of_nothing_but_seed(value) for seed, value in enumerate(values)}}
        for line, values in ((A, a), (B, b))
    }
    difference = Bootstrap(scores, resamples=20_000).difference(A, B, ["rte"])
    expected = stats.bootstrap(
        (np.subtract(a, b),), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(5)
    ).confidence_interval
    assert difference.value == pytest.approx(np.mean(a) - np.mean(b))
    assert (difference.low, difference.high) == pytest.approx(tuple(expected), abs=0.15)


def test_a_seeds_luck_is_one_over_all_tasks_and_its_rows_are_not():
    # The seed moves both tasks together, so a mean over tasks is no surer than one task.
    scores = {
        A: {
            task: {seed: of_nothing_but_seed(value) for seed, value in enumerate((60.0, 70.0, 80.0))}
            for task in ("rte", "cb")
        }
    }
    found = Bootstrap(scores)
    one, both = found.mean(A, ["rte"]), found.mean(A, ["rte", "cb"])
    assert (one.low, one.high) == (both.low, both.high)
    # Rows of different tasks are different rows, so two tasks are surer than one.
    rng = np.random.default_rng(6)
    rows = {A: {task: {1: of_rows(rng.random(100) < 0.5)} for task in ("rte", "cb")}}
    found = Bootstrap(rows)
    one, both = found.mean(A, ["rte"]), found.mean(A, ["rte", "cb"])
    assert (both.high - both.low) == pytest.approx((one.high - one.low) / 2**0.5, rel=0.12)


@pytest.mark.parametrize("seeds", [1, 8])
def test_intervals_cover_the_truth_about_as_often_as_they_say(seeds):
    rng = np.random.default_rng(7)
    rows, covered, studies = 100, 0, 200
    for _ in range(studies):
        easy = rng.normal(size=rows)
        luck = rng.normal(scale=0.15, size=(2, seeds)) if seeds > 1 else np.zeros((2, 1))
        runs = [
            {
                seed: of_rows(easy + skill + luck[line, seed] + rng.normal(size=rows) > 0)
                for seed in range(seeds)
            }
            for line, skill in enumerate((0.5, 0.2))
        ]
        found = Bootstrap({A: {"rte": runs[0]}, B: {"rte": runs[1]}}, resamples=300).difference(A, B, ["rte"])
        scale = np.sqrt(2 + (0.15**2 if seeds > 1 else 0))
        truth = 100 * (stats.norm.cdf(0.5 / scale) - stats.norm.cdf(0.2 / scale))
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / studies <= 0.99


def test_seeds_are_those_that_both_have_on_all_tasks():
    def runs(*seeds):
        return {seed: of_nothing_but_seed(50.0 + seed) for seed in seeds}

    found = Bootstrap({A: {"rte": runs(1, 2, 3), "cb": runs(2, 3)}, B: {"rte": runs(2, 4), "cb": runs(1, 2)}})
    assert found.difference(A, B, ["rte", "cb"]).seeds == (2,)
    assert found.mean(A, ["rte", "cb"]).seeds == (2, 3)
    assert found.mean(A, ["rte", "cb"]).value == 52.5
    assert found.difference(A, B, ["wic"]) is None
    assert found.difference(A, A, ["rte"]) is None


def test_without_answers_there_is_a_difference_and_no_interval():
    plain = Scored(points=60.0, rows=5, resampled=None)
    difference = Bootstrap({A: {"rte": {1: of_nothing_but_seed(70.0)}}, B: {"rte": {1: plain}}}).difference(
        A, B, ["rte"]
    )
    assert (difference.value, difference.low, difference.high, difference.decided) == (10.0, None, None, None)


def test_runs_on_another_test_set_have_no_interval():
    rows = np.ones(5)
    scores = {
        A: {"rte": {1: of_rows(rows, b"x"), 2: of_rows(rows, b"x")}},
        B: {"rte": {1: of_rows(rows, b"y")}},
    }
    found = Bootstrap(scores)
    assert found.difference(A, B, ["rte"]).decided is None
    assert found.mean(A, ["rte"]).low == 100.0


def test_equal_studies_give_equal_intervals_whatever_else_is_in_them():
    rng = np.random.default_rng(8)
    rte = {1: of_rows(rng.random(50) < 0.5)}
    alone = Bootstrap({A: {"rte": rte}}).mean(A, ["rte"])
    beside = Bootstrap({B: {"cb": {1: of_rows(np.ones(9))}, "rte": rte}, A: {"rte": rte}}).mean(A, ["rte"])
    assert alone == beside


def test_no_resample_and_no_level_are_refused():
    with pytest.raises(DataError, match="0 resamples"):
        Bootstrap({}, resamples=0)
    with pytest.raises(DataError, match=r"level 1\.0"):
        Bootstrap({}, level=1.0)
