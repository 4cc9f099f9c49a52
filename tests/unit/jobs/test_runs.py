from __future__ import annotations

import fcntl
import io
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.errors import DataError
from attempt_ray.reporting.states import read_state
from jobs import runs as module
from jobs.runs import find_run, follow_run, run_rows, run_text

REPORT = {
    "schema": 1,
    "job": "target",
    "method": "prompt_tuning",
    "label": "prompt_tuning",
    "tasks": ["rte"],
    "seed": 1,
    "digest": "0123456789ab",
    "steps": 40,
    "planned_steps": 40,
    "warmup_steps": 4,
    "backbone": {"name": "nano", "weights_sha256": "ab"},
    "trainable_parameters": 10,
    "parameters_per_task": 10,
    "train_rows": {"rte": 9},
    "seconds": 61.0,
    "tokens": 4000,
    "scores": {"rte": {"test": {"n": 50, "metrics": {"accuracy": 71.25}}}},
    "headline": {"rte": "accuracy"},
    "bank": {"rte": "target/rte@v1"},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 40 steps that stands after step 20."""
    directory = tmp_path / "runs" / "target-prompt_tuning-rte-s1-0123456789ab"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"method": "prompt_tuning", "tasks": ["rte"]}))
    (directory / "state.json").write_text('{"schema": 1, "steps": 40}')
    write_steps(directory, 20)
    return directory


def write_steps(directory: Path, steps: int) -> None:
    lines: list[dict[str, Any]] = [
        {"step": number, "loss": 0.5, "tokens": 100 * number, "seconds": number / 4}
        for number in range(1, steps + 1)
    ]
    lines.append({"step": 10, "dev/mean": 61.0})
    whole = directory / "metrics.jsonl.new"
    whole.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    whole.replace(directory / "metrics.jsonl")


def test_a_running_run_reads_at_a_glance(run: Path) -> None:
    state = replace(read_state(run), state="running", process="77", idle_seconds=0.4, checkpoint=(16, 130.0))
    assert run_text(state).splitlines() == [
        "target-prompt_tuning-rte-s1-0123456789ab",
        "  state       running in process 77, wrote 0 s ago",
        "  progress    [##########          ] 20/40 steps, 4.0/s, 0:05 left",
        "  loss        0.5000",
        "  dev         61.00 at step 10; the best so far",
        "  trained     0:05, 2,000 tokens",
        "  checkpoint  step 16, 2 min ago",
        f"  metrics     {run}/metrics.jsonl",
    ]


def test_a_finished_run_tells_its_result(run: Path) -> None:
    (run / "report.json").write_text(json.dumps(REPORT))
    text = run_text(read_state(run))
    assert "  state       finished 0 s ago\n" in text
    assert "  result      rte accuracy 71.2 (test, n=50) in 1:01\n" in text
    assert "  bank        target/rte@v1\n" in text


def test_a_run_that_stopped_early_or_scores_says_so(run: Path) -> None:
    (run / "report.json").write_text(json.dumps({**REPORT, "steps": 30}))
    assert "] 30/40 steps, stopped early\n" in run_text(read_state(run))
    (run / "report.json").unlink()
    write_steps(run, 40)
    assert "] 40/40 steps, scoring\n" in run_text(replace(read_state(run), state="running"))


def test_a_long_reason_is_wrapped(run: Path) -> None:
    state = replace(
        read_state(run), state="failed", reason="NonFiniteError: " + "loss is NaN after a step; " * 9
    )
    lines = run_text(state).splitlines()
    assert lines[2].startswith("  reason      NonFiniteError: loss is NaN")
    assert lines[3].startswith(" " * 14)
    assert max(map(len, lines[:-1])) <= 80


def test_the_table_has_a_state_for_every_run(run: Path) -> None:
    finished, broken = run.with_name("target-x-1"), run.with_name("target-x-2")
    for directory in (finished, broken):
        directory.mkdir()
    (finished / "report.json").write_text(json.dumps(REPORT))
    (broken / "config.json").write_text("torn")
    rows = {row[0]: row[1:] for row in run_rows(str(run.parent))}
    assert rows[run.name] == ["interrupted", "prompt_tuning", "20/40", "61.0 (dev)"]
    assert rows[finished.name] == ["finished", "prompt_tuning", "40", "71.2"]
    assert rows[broken.name][0] == "broken"
    assert "config.json is not a JSON object" in rows[broken.name][3]


def test_a_run_is_found_by_a_part_of_its_name(run: Path) -> None:
    other = run.with_name("target-prompt_tuning-rte-s2-ba9876543210")
    other.mkdir()
    (other / "config.json").write_text("{}")
    assert find_run(run.parent, "456789ab") == run
    assert find_run(run.parent, run.name) == run
    assert find_run(Path("nowhere"), str(other)) == other
    with pytest.raises(DataError, match="2 runs have 'rte' in their names"):
        find_run(run.parent, "rte")
    with pytest.raises(DataError, match="no run 'mrpc'"):
        find_run(run.parent, "mrpc")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_followed_run_is_shown_until_it_ends(
    run: Path, monkeypatch: pytest.MonkeyPatch, *, as_json: bool
) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "_PLAIN_SECONDS", 0.0)
    out = io.StringIO()
    with (run / ".lease").open("w") as lease:
        fcntl.flock(lease, fcntl.LOCK_EX)
        outcome: list[bool] = []
        following = threading.Thread(
            target=lambda: outcome.append(follow_run(run, as_json=as_json, stream=out))
        )
        following.start()
        while not out.getvalue():
            time.sleep(0.01)
        write_steps(run, 30)
        while out.getvalue().count("\n") < 2:
            time.sleep(0.01)
        (run / "report.json").write_text(json.dumps(REPORT))
    following.join()
    assert outcome == [True]
    lines = out.getvalue().splitlines()
    if as_json:
        told = [json.loads(line) for line in lines]
        assert [state["step"] for state in told] == [20, 30, 40]
        assert told[-1]["report"] == REPORT
    else:
        assert lines[:2] == [
            "20/40 steps  4.0 steps/s  ETA 0:05  loss 0.500  dev 61.0",
            "30/40 steps  4.0 steps/s  ETA 0:02  loss 0.500  dev 61.0",
        ]
        assert lines[2] == run.name


def test_a_run_that_nobody_takes_up_is_given_up(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.0)
    out = io.StringIO()
    assert follow_run(run, stream=out) is False
    waiting, name, state = out.getvalue().splitlines()[:3]
    assert waiting == "interrupted; waiting up to 0 s for a process that goes on with it"
    assert (name, state[:25]) == (run.name, "  state       interrupted")


def test_a_followed_run_that_fails_is_over_at_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    looked = module._looks(run)
    with (run / ".lease").open("w") as lease:
        fcntl.flock(lease, fcntl.LOCK_EX)
        assert next(looked).state == "running"
    ended = {"how": "failed", "error": "NonFiniteError: loss is NaN"}
    (run / "state.json").write_text(json.dumps({"schema": 1, "steps": 40, "ended": ended}))
    assert [state.state for state in looked] == ["failed"]
