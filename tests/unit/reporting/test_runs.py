from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from attempt_ray.bank.places import open_storage
from attempt_ray.errors import DataError
from attempt_ray.reporting.runs import Point, fetched, read_run, read_runs

WriteRun = Callable[..., Path]


def test_a_finished_run_is_read_with_its_history(write_run: WriteRun) -> None:
    run = read_run(write_run("attempt", {"rte": 81.5}))
    assert run.test_score("rte") == 81.5
    assert run.test_rows("rte") == 100
    assert run.history[-1] == Point(
        step=30, values={"loss": 2 / 30, "dev/mean": 70.0, "dev/rte/accuracy": 70.0}
    )
    assert run.curve("dev/mean") == ((30,), (70.0,))


def test_a_resumed_history_keeps_the_later_line_and_counts_torn_ones(write_run: WriteRun) -> None:
    directory = write_run()
    lines = (
        '{"step": 1, "loss": 3.0}\n{"step": 2, "lo\n{"step": 1, "loss": 2.5, "lr": NaN}\n\n{"loss": 1}\n7\n'
    )
    (directory / "metrics.jsonl").write_text(lines)
    run = read_run(directory)
    assert run.history == (Point(step=1, values={"loss": 2.5}),)
    assert run.unreadable_lines == 3


def test_a_run_without_a_history_is_read(write_run: WriteRun) -> None:
    directory = write_run()
    (directory / "metrics.jsonl").unlink()
    assert read_run(directory).history == ()


def test_broken_and_unfinished_directories_are_set_aside(write_run: WriteRun, tmp_path: Path) -> None:
    kept = write_run("attempt", seed=1)
    (write_run("attempt", seed=2) / "report.json").write_text("{")
    (write_run("attempt", seed=3) / "report.json").unlink()
    write_run("attempt", seed=4, schema=2)
    write_run("attempt", seed=5, headline={})
    write_run("attempt", seed=6, scores={})
    (tmp_path / "runs" / ".hidden").mkdir()
    report = tmp_path / "runs" / "report"
    report.mkdir()
    (report / "report.md").write_text("# Report")
    found = read_runs(tmp_path / "runs")
    assert [run.directory for run in found.runs] == [kept]
    reasons = {item.directory.name.split("-s")[1][0]: item.reason for item in found.set_aside}
    assert "not JSON; run it again" in reasons["2"]
    assert "has not finished, start it again" in reasons["3"]
    assert "schema" in reasons["4"]
    assert "headline metric" in reasons["5"]
    assert "tasks: tuple should have at least 1 item" in reasons["6"]
    assert len(reasons) == 5


def test_scores_that_are_not_finite_are_refused(write_run: WriteRun) -> None:
    directory = write_run()
    report = json.loads((directory / "report.json").read_text())
    report["scores"]["rte"]["test"]["metrics"]["accuracy"] = float("nan")
    (directory / "report.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match="finite number"):
        read_run(directory)


def test_weights_that_do_not_fit_their_candidates_are_refused(write_run: WriteRun) -> None:
    directory = write_run(weights={"mnli": 0.4, "target": 0.6})
    text = (directory / "report.json").read_text().replace('"mean": [0.4, 0.6]', '"mean": [0.4]')
    (directory / "report.json").write_text(text)
    with pytest.raises(DataError, match="one weight per candidate"):
        read_run(directory)


def test_runs_are_chosen_by_digest(write_run: WriteRun, tmp_path: Path) -> None:
    first, _ = write_run(seed=1), write_run(seed=2)
    found = read_runs(tmp_path / "runs", digests=[first.name[-12:]])
    assert [run.directory for run in found.runs] == [first]


@pytest.mark.parametrize("prepared", ["missing", "empty", "unfinished"])
def test_nothing_to_report_names_the_fix(tmp_path: Path, prepared: str) -> None:
    root = tmp_path / "runs"
    if prepared != "missing":
        root.mkdir()
    if prepared == "unfinished":
        (root / "target-attempt-rte-s1-0").mkdir()
    with pytest.raises(DataError, match=r"jobs\.run_pipeline"):
        read_runs(root)


def test_runs_on_a_store_are_read_like_those_on_a_disk(write_run, s3):
    storage = open_storage(s3)
    for path in (write_run(), write_run("spot")):
        for file in path.iterdir():
            storage.replace(f"{path.name}/{file.name}", file.read_bytes())
        storage.replace(f"{path.name}/checkpoints/step-00000001/state.safetensors", b"large")
    storage.replace("unfinished/metrics.jsonl", b"")
    storage.replace("earlier/report.md", b"")
    storage.replace(".hidden/report.json", b"")
    with fetched(str(path.parent)) as root:
        local = read_runs(root)
        assert root == path.parent
    with fetched(s3) as root:
        found = read_runs(root)
        assert [run.report for run in found.runs] == [run.report for run in local.runs]
        assert [run.history for run in found.runs] == [run.history for run in local.runs]
        assert [item.directory.name for item in found.set_aside] == ["unfinished"]
        assert not list(root.rglob("checkpoints"))
        entry = next(entry for entry in storage.entries(path.name) if entry.name == "report.json")
        assert {run.directory.name: run.finished for run in found.runs}[path.name] == entry.modified
    assert not root.exists()
