from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from attempt_ray.errors import DataError
from attempt_ray.reporting.report import write_report

WriteRun = Callable[..., Path]


def test_a_report_holds_tables_figures_and_what_was_set_aside(write_run: WriteRun, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    write_run("attempt", {"rte": 80.0}, weights={"mnli": 0.5, "qqp": 0.2, "target": 0.3})
    write_run("prompt_tuning", {"rte": 70.0})
    (root / "target-attempt-cb-s1-0").mkdir()
    summary = write_report(root, root / "report", parents={"rte": ("mnli",)})
    assert {path.name for path in summary.files} == {
        "report.md",
        "report.json",
        "results.png",
        "attention.png",
        "curves.png",
    }
    assert all(path.stat().st_size > 100 for path in summary.files)
    assert (summary.runs, summary.set_aside) == (2, 1)
    assert summary.small_means == {"prompt_tuning": 70.0, "attempt": 80.0}
    assert summary.parent_agreement == {"attempt": 1.0}
    text = (root / "report" / "report.md").read_text()
    assert "target-attempt-cb-s1-0: no report.json" in text
    assert "![Mean mixing weights of every target](attention.png)" in text
    content = json.loads((root / "report" / "report.json").read_text())
    assert len(content["runs"]) == 2
    json.dumps(summary.as_dict(), allow_nan=False)


def test_a_report_is_the_same_when_written_again_and_drops_stale_figures(
    write_run: WriteRun, tmp_path: Path
) -> None:
    write_run("prompt_tuning", {"rte": 70.0})
    out = tmp_path / "report"
    out.mkdir()
    (out / "attention.png").write_bytes(b"old")
    write_report(tmp_path / "runs", out, parents={})
    assert not (out / "attention.png").exists()
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    write_report(tmp_path / "runs", out, parents={})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_without_runs_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(DataError):
        write_report(tmp_path / "runs", tmp_path / "report", parents={})
    assert not (tmp_path / "report").exists()
