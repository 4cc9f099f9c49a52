from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attempt_ray.reporting.attention import attention_table
from attempt_ray.reporting.figures import attention_heatmap, learning_curves, results_chart
from attempt_ray.reporting.runs import read_runs
from attempt_ray.reporting.tables import results_table

WriteRun = Callable[..., Path]
_PNG = b"\x89PNG\r\n\x1a\n"


def test_results_chart_draws_methods_it_does_not_know(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("prompt_tuning", {"rte": 60.0}, seed=1)
    write_run("my_method", {"rte": 65.0}, seed=1)
    write_run("my_method", {"rte": 66.0}, seed=2)
    png = results_chart(results_table(read_runs(tmp_path / "runs").runs))
    assert png is not None
    assert png.startswith(_PNG)


def test_heatmap_draws_missing_candidates(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("attempt", {"rte": 80.0}, weights={"mnli": 0.6, "target": 0.4})
    write_run("attempt_mt", {"cb": 80.0}, weights={"squad": 0.6, "target": 0.4})
    png = attention_heatmap(attention_table(read_runs(tmp_path / "runs").runs, parents={"rte": ("mnli",)}))
    assert png is not None
    assert png.startswith(_PNG)


def test_curves_draw_targets_and_sources(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("attempt", {"rte": 80.0}, seed=1)
    write_run("attempt", {"rte": 81.0}, seed=2)
    write_run("source", {"mnli": 90.0}, job="source")
    png = learning_curves(read_runs(tmp_path / "runs").runs)
    assert png is not None
    assert png.startswith(_PNG)


def test_curves_without_a_loss_are_drawn(write_run: WriteRun, tmp_path: Path) -> None:
    directory = write_run()
    (directory / "metrics.jsonl").write_text('{"step": 3, "dev/rte/accuracy": 5.0}\n')
    assert learning_curves(read_runs(tmp_path / "runs").runs) is not None


def test_nothing_to_draw_gives_no_figure(write_run: WriteRun, tmp_path: Path) -> None:
    directory = write_run("prompt_tuning", {"mnli": 90.0}, job="source")
    (directory / "metrics.jsonl").unlink()
    runs = read_runs(tmp_path / "runs").runs
    assert results_chart(results_table(runs)) is None
    assert attention_heatmap(attention_table(runs, parents={})) is None
    assert learning_curves(runs) is None


@pytest.mark.parametrize("module", ["report", "parameters"])
def test_matplotlib_is_imported_only_to_draw(module: str) -> None:
    code = f"import sys, attempt_ray.reporting.{module}; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
