"""Runs on an S3 server: what is there after each step of an upload is enough to go on, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.bank.places import open_storage
from attempt_ray.bank.storage import Storage
from attempt_ray.bank.store import Bank
from attempt_ray.config import Config
from attempt_ray.errors import ConfigError, StorageError
from attempt_ray.training import lease as lease_module
from attempt_ray.training.course import Event
from attempt_ray.training.mirror import open_run
from attempt_ray.training.run import execute

KILLS = int(os.environ.get("ATTEMPT_KILLS", "3"))
SCRIPT = Path(__file__).with_name("run_on_store.py")
MOST = 2**30

Execute = Callable[..., tuple[int, int]]


class EndedEarlyError(Exception):
    """Stands for whatever ends a process early."""


@pytest.fixture
def execute_in_child() -> Iterator[Execute]:
    """Return a function that executes a run in a process of its own: its exit code and changes of the store."""
    with subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[3])},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def execute(config: Config, *, die_before: int | None = None) -> tuple[int, int]:
            order = {"config": config.model_dump(mode="json"), "die_before": die_before}
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            _, code, changes = process.stdout.readline().split()
            return int(code), int(changes)

        yield execute
        process.stdin.close()


@pytest.fixture
def make_node(make_config, files, s3, source_bank, tmp_path) -> Callable[..., Config]:
    """Return a function that gives the same run on a node of its own, whose disk holds nothing of it."""

    def make(node: str, *, runs: str = s3, bank: str | None = None, **changes: Any) -> Config:
        cache = tmp_path / node / "cache"
        shutil.copytree(files / "cache", cache, dirs_exist_ok=True)
        if bank is None:
            bank = str(shutil.copytree(source_bank, tmp_path / node / "bank", dirs_exist_ok=True))
        steps = {"steps": 9, "eval_steps": 3, "checkpoint_steps": 2, "threads": 1}
        return make_config(
            tasks=["rte", "mrpc"],
            bank=bank,
            runs=runs,
            data={"cache_dir": str(cache)},
            training=steps,
            **changes,
        )

    return make


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are stale, and renewed, sooner; S3 tells times in whole seconds."""
    for name, value in {"STALE_SECONDS": 1.5, "RENEW_SECONDS": 0.3, "LOOK_SECONDS": 0.2}.items():
        monkeypatch.setattr(lease_module, name, value)


def the_run(storage: Storage) -> str:
    (run,) = [entry.name for entry in storage.entries("")]
    return run


def steps(storage: Storage) -> list[str]:
    return [entry.name for entry in storage.entries(f"{the_run(storage)}/checkpoints")]


def outcome(runs: str, bank: str) -> dict[str, Any]:
    """Everything that must be alike, but for the time taken; and what must not be left over."""
    storage, versions = open_storage(runs), Bank(bank)
    run = the_run(storage)
    report = json.loads(storage.read(f"{run}/report.json", limit=MOST))
    lines = storage.read(f"{run}/metrics.jsonl", limit=MOST).splitlines()
    history = [json.loads(line) for line in lines]
    for entry in (report, *history):
        entry.pop("seconds", None)
    return {
        "report": report,
        "history": history,
        "best": storage.read(f"{run}/best.safetensors", limit=MOST),
        "examples": storage.read(f"{run}/examples.jsonl", limit=MOST),
        "bank": {version.reference: versions.load(version.reference).sha256 for version in versions.list()},
        "checkpoints": [entry.name for entry in storage.entries(f"{run}/checkpoints")],
    }


def interrupt_after(step: int) -> Callable[[Any], None]:
    def on_progress(progress: Any) -> None:
        if not isinstance(progress, Event) and progress.step == step:
            raise EndedEarlyError

    return on_progress


def test_a_run_killed_between_any_two_uploads_ends_on_another_node_like_an_undisturbed_one(
    execute_in_child, make_node, s3, tmp_path
):
    alone = make_node("alone", runs=str(tmp_path / "alone" / "runs"))
    assert execute_in_child(alone) == (0, 0)
    expected = outcome(alone.runs, alone.bank)
    whole = make_node("whole")
    code, changes = execute_in_child(whole)
    assert code == 0
    assert outcome(whole.runs, whole.bank) == expected
    kills = min(KILLS, changes)
    for point in [(2 * kill + 1) * changes // (2 * kills) for kill in range(kills)]:
        runs = s3.replace("/attempt", f"/killed-{point}")
        killed = make_node(f"killed-{point}", runs=runs)
        assert execute_in_child(killed, die_before=point) == (-signal.SIGKILL, 0)
        # The bank is shared by the nodes; the disk of the first one is gone.
        other = make_node(f"other-{point}", runs=runs, bank=killed.bank)
        assert execute_in_child(other)[0] == 0
        assert outcome(runs, killed.bank) == expected, f"killed before change {point}"
        assert open_storage(runs).entries(f"{the_run(open_storage(runs))}/.lease") == []


def test_the_store_holds_what_a_directory_holds_and_the_scratch_directory_is_emptied(make_node, s3):
    config = make_node("a")
    result = execute(config)
    storage = open_storage(s3)
    run = the_run(storage)
    assert result.directory == storage.place(run)
    names = [entry.name for entry in storage.entries(run) if entry.kind == "file"]
    assert names == [
        "best.safetensors",
        "config.json",
        "examples.jsonl",
        "metrics.jsonl",
        "report.json",
        "state.json",
    ]
    assert json.loads(storage.read(f"{run}/report.json", limit=MOST)) == result.report
    left = [path.name for path in (Path(config.data.cache_dir) / "runs").rglob("*") if path.is_file()]
    assert left == [".lease"]
    events: list[Any] = []
    assert execute(make_node("b", bank=config.bank), on_progress=events.append) == result
    assert [event.kind for event in events] == ["finished"]


def test_two_checkpoints_are_kept_and_a_half_uploaded_one_is_removed(make_node, s3):
    with pytest.raises(EndedEarlyError):
        execute(make_node("a"), on_progress=interrupt_after(7))
    storage = open_storage(s3)
    assert steps(storage) == ["step-00000004", "step-00000006"]
    storage.remove(f"{the_run(storage)}/checkpoints/step-00000006/manifest.json")
    events: list[Any] = []

    def watch(event: Any) -> None:
        events.append(event)
        if len(events) == 2:
            assert steps(storage) == ["step-00000004"]

    execute(make_node("b"), on_progress=watch)
    assert [event.facts.get("step") for event in events[:2]] == [None, 4]


@pytest.mark.parametrize(
    ("file", "damage"),
    [("state.safetensors", "flipped"), ("best.safetensors", "torn"), ("manifest.json", "flipped")],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(make_node, s3, tmp_path, file, damage):
    with pytest.raises(EndedEarlyError):
        execute(make_node("a"), on_progress=interrupt_after(7))
    storage = open_storage(s3)
    path = f"{the_run(storage)}/checkpoints/step-00000006/{file}"
    data = bytearray(storage.read(path, limit=MOST))
    data[len(data) // 2] ^= 1
    storage.replace(path, bytes(data) if damage == "flipped" else bytes(data[: len(data) // 2]))
    events: list[Any] = []
    resumed = make_node("b")
    execute(resumed, on_progress=lambda event: isinstance(event, Event) and events.append(event))
    assert [event.kind for event in events[:3]] == ["plan", "damaged", "resumed"]
    assert events[2].facts["step"] == 4
    assert f"{storage.place(path)}: expected" in events[1].message
    alone = make_node("alone", runs=str(tmp_path / "alone" / "runs"))
    execute(alone)
    assert outcome(s3, resumed.bank) == outcome(alone.runs, alone.bank)


def test_a_finished_run_whose_kept_states_are_gone_from_the_bank_is_published_from_the_store(make_node, s3):
    first = make_node("a")
    reference = execute(first).report["bank"]["rte"]
    second = make_node("b")
    execute(second)
    assert Bank(second.bank).load(reference).sha256 == Bank(first.bank).load(reference).sha256


def test_what_a_process_killed_after_its_report_left_is_removed(make_node, s3, hasty):
    config = make_node("a")
    result, storage = execute(config), open_storage(s3)
    run = the_run(storage)
    storage.replace(f"{run}/checkpoints/step-00000009/state.safetensors", b"")
    storage.replace(f"{run}/.lease/dead", b'{"holder": "dead", "lock": ""}')
    assert execute(make_node("b", bank=config.bank)) == result
    assert storage.entries(f"{run}/checkpoints") == storage.entries(f"{run}/.lease") == []


def test_a_second_process_is_refused_and_told_who_holds_the_run(make_node, hasty):
    config = make_node("a")
    with open_run(config, "run").leased(config):
        with pytest.raises(ConfigError, match=rf"executed by process {os.getpid()} on .*; wait for it"):
            with open_run(make_node("b"), "run").leased(config):
                pass
    with open_run(make_node("b"), "run").leased(config):
        pass


def test_a_run_that_was_taken_over_writes_no_more(make_node, s3, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 3600)  # no renewal of its own between the lines below
    config = make_node("a")
    run = open_run(config, "run")
    with run.leased(config):
        storage = open_storage(s3)
        (own,) = storage.entries("run/.lease")
        storage.remove(f"run/.lease/{own.name}")
        storage.replace("run/.lease/other", b'{"holder": "process 7 on elsewhere", "lock": ""}')
        run._lease.renew()
        with pytest.raises(ConfigError, match="taken over by process 7 on elsewhere"):
            run.write_report({"schema": 1})
    assert [entry.name for entry in storage.entries("run")] == [".lease", "config.json"]
    assert [entry.name for entry in storage.entries("run/.lease")] == ["other"]


def test_a_store_that_is_down_ends_a_run_in_one_line(make_node, unused_port):
    runs = f"s3://bucket/attempt?endpoint_override=127.0.0.1:{unused_port}&scheme=http&region=us-east-1"
    with pytest.raises(
        StorageError, match=r"^cannot .*; check that the store can be reached and its credentials$"
    ):
        execute(make_node("a", runs=runs))


def test_what_is_no_place_is_refused(make_node):
    with pytest.raises(ConfigError, match=r"'nope' URI.*wanted a directory, or a URI"):
        execute(make_node("a", runs="nope://x"))


def test_a_file_uri_is_a_directory(make_node, tmp_path):
    config = make_node("a", runs=f"file://{tmp_path}/runs")
    assert execute(config).directory.parent == tmp_path / "runs"
