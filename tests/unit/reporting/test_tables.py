from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from attempt_ray.reporting.runs import read_runs
from attempt_ray.reporting.tables import ResultsTable, Spread, method_order, results_table

WriteRun = Callable[..., Path]


def _table(tmp_path: Path) -> ResultsTable:
    return results_table(read_runs(tmp_path / "runs").runs)


def test_methods_stand_in_the_order_of_the_paper_and_others_follow() -> None:
    labels = [
        "zebra",
        "attempt_mt",
        "attempt",
        "spot_similar",
        "spot",
        "adapter",
        "prompt_tuning",
        "finetune",
        "spot",
    ]
    expected = (
        "finetune",
        "adapter",
        "prompt_tuning",
        "spot",
        "spot_similar",
        "attempt",
        "attempt_mt",
        "zebra",
    )
    assert method_order(labels) == expected


def test_cells_are_mean_and_sample_deviation_over_seeds(write_run: WriteRun, tmp_path: Path) -> None:
    for seed, score in ((1, 70.0), (2, 74.0), (3, 78.0)):
        write_run("attempt", {"rte": score}, seed=seed)
    cell = _table(tmp_path).rows[0].cells["rte"]
    assert cell == Spread(mean=74.0, by_seed={1: 70.0, 2: 74.0, 3: 78.0})
    assert cell.std == pytest.approx(4.0)
    assert str(cell) == "74.0 \u00b1 4.0"


def test_one_seed_has_no_spread(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("attempt", {"rte": 70.0})
    assert str(_table(tmp_path).rows[0].cells["rte"]) == "70.0"


def test_a_multi_task_run_fills_one_cell_per_task(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("attempt_mt", {"rte": 70.0, "cb": 90.0}, parameters_per_task=115_584.0)
    row = _table(tmp_path).rows[0]
    assert {task: cell.mean for task, cell in row.cells.items()} == {"rte": 70.0, "cb": 90.0}
    assert row.parameters_per_task == (115_584.0,)


def test_means_compare_on_the_targets_that_every_method_has(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run("prompt_tuning", {"rte": 60.0 + seed}, seed=seed)
        write_run("attempt", {"rte": 70.0 + seed}, seed=seed)
        write_run("prompt_tuning", {"qa": 50.0}, seed=seed, train_rows=601)
        write_run("attempt", {"qa": 60.0}, seed=seed, train_rows=601)
    write_run("attempt", {"cb": 100.0})
    table = _table(tmp_path)
    assert table.tasks == ("cb", "rte", "qa")
    assert table.shared_tasks == ("rte", "qa")
    assert table.shared_small_tasks == ("rte",)
    attempt = next(row for row in table.rows if row.label == "attempt")
    mean = attempt.mean(table.shared_tasks)
    assert mean is not None
    assert mean.by_seed == {1: 65.5, 2: 66.0}
    assert mean.mean == pytest.approx(65.75)
    assert attempt.mean(["unknown"]) is None
    text = table.markdown()
    assert "55.8 \u00b1 0.4 (2 of 3 tasks)" in text
    assert "| ATTEMPT | 71.5 \u00b1 0.7 | +10.0 | 65.8 \u00b1 0.4 | +10.0 |" in text


def test_seeds_that_differ_by_task_leave_the_mean_without_spread(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("attempt", {"rte": 60.0}, seed=1)
    write_run("attempt", {"cb": 80.0}, seed=2)
    mean = _table(tmp_path).rows[0].mean(["rte", "cb"])
    assert mean == Spread(mean=70.0, by_seed={})
    assert mean.std is None


def test_markdown_gives_size_metric_parameters_and_steps(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("finetune", {"rte": 90.0}, parameters_per_task=222_882_048.0)
    write_run("prompt_tuning", {"rte": 60.0})
    write_run("attempt", {"rte": 70.0})
    text = _table(tmp_path).markdown()
    assert "| *test n (points each)* | 100 (1.00) |" in text
    assert "| full fine-tuning | 90.0 | 90.0 | 1 | 222,882,048 | 300 |" in text
    assert "| ATTEMPT | **70.0** | 70.0 | 1 | 2,560 | 300 |" in text
    assert "- attempt, finetune, prompt_tuning: 1 seed only on rte" in text


def test_the_dict_is_json_and_holds_every_seed(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("attempt", {"rte": 70.0}, seed=5)
    content = json.loads(json.dumps(_table(tmp_path).as_dict(), allow_nan=False))
    assert content["rows"][0]["scores"]["rte"] == {
        "mean": 70.0,
        "std": None,
        "seeds": 1,
        "by_seed": {"5": 70.0},
    }
    assert content["columns"][0]["small"] is True


def test_source_runs_stay_out(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("prompt_tuning", {"mnli": 90.0}, job="source")
    table = _table(tmp_path)
    assert table.rows == ()
    assert table.markdown() == "No target run has finished yet."
