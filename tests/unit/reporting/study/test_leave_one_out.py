from __future__ import annotations

import pytest
from scipy.stats import spearmanr

from attempt_ray.reporting.study.bootstrap import Bootstrap, Estimate
from attempt_ray.reporting.study.cells import join, read_study_file, scored
from attempt_ray.reporting.study.leave_one_out import Removal, grid, leave_one_out, rank_correlation


def removal(drop: float, weight: float, source: str = "mnli") -> Removal:
    estimate = Estimate(value=drop, low=None, high=None, tasks=("rte",), seeds=(1,))
    return Removal(task="rte", source=source, drop=estimate, weight=weight)


def test_the_rank_correlation_is_scipys_ties_included() -> None:
    drops, weights = [3.0, 1.0, 1.0, -2.0, 5.0, 0.5], [0.3, 0.1, 0.2, 0.1, 0.25, 0.05]
    found = rank_correlation([removal(*pair) for pair in zip(drops, weights, strict=True)])
    assert found.rho == pytest.approx(spearmanr(drops, weights).statistic)
    assert found.n == 6
    assert str(found).endswith("(n = 6)")


@pytest.mark.parametrize(
    ("drops", "weights"),
    [
        ([1.0, 1.0, 1.0], [0.1, 0.2, 0.3]),
        ([1.0, 2.0, 3.0], [0.2, 0.2, 0.2]),
        ([1.0, 2.0], [0.1, 0.2]),
        ([], []),
    ],
)
def test_constants_and_pairs_too_few_have_none(drops: list[float], weights: list[float]) -> None:
    found = rank_correlation([removal(*pair) for pair in zip(drops, weights, strict=True)])
    assert found.rho is None
    assert str(found) == f"undefined (n = {len(drops)})"


def test_drops_are_of_the_seeds_that_both_have_and_weights_those_of_the_same_runs(study) -> None:
    weights = {"mnli": 0.5, "qqp": 0.2, "squad": 0.1, "target": 0.2}
    for seed in (1, 2):
        study.add("attempt", 0.9, seed=seed, weights=weights)
        study.add("attempt", 0.6, seed=seed, ablation="without_qqp")
    study.add("attempt", 0.5, seed=2, ablation="without_mnli")
    study.add("attempt", 0.7, seed=2, ablation="without_gone")
    study.add("attempt", 0.7, seed=2, ablation="without_squad", status="failed")
    joined = join(read_study_file(study.write()), study.runs)
    found = leave_one_out(joined, Bootstrap(scored(joined)[0]))
    assert [(each.source, each.drop.seeds) for each in found.removals] == [("mnli", (2,)), ("qqp", (1, 2))]
    whole = next(iter(joined.runs[line]["rte"] for line in joined.runs if line.ablation is None))
    assert found.removals[0].weight == whole[2].report.attention["rte"].mean[0]
    assert found.removals[0].drop.value > 0
    assert found.removals[0].drop.low is not None
    table = grid(found, level=0.95)
    assert table is not None
    assert table.header == ("target", "", "mnli", "qqp", "rank correlation")
    assert table.rows[0].entries[-1].text == "undefined (n = 2)"


def test_no_removal_no_table(study) -> None:
    study.add("attempt", 0.9, weights={"mnli": 0.5, "target": 0.5})
    joined = join(read_study_file(study.write()), study.runs)
    found = leave_one_out(joined, Bootstrap(scored(joined)[0]))
    assert found.removals == ()
    assert grid(found, level=0.95) is None
