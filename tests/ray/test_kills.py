"""SIGKILL of any part of a pool: no run is lost, and what is learned is what an undisturbed study learns, bit for bit.

`make kills` sets how many of each, and is for a machine with nothing else to do: what has to be gone within seconds is
timed. `make test` leaves them out: there, a worker's death is tried in `test_pool`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue

import pytest

from attempt_ray.config import Config
from tests.ray.killing import learned, titled

KILLS = int(os.environ.get("ATTEMPT_RAY_KILLS", "1"))
SEED = int(os.environ.get("ATTEMPT_KILLS_SEED", "0"))
SCRIPT = Path(__file__).with_name("killing.py")
SEEDS = list(range(1, 7))
CHECKPOINT_STEPS = 10

on_demand = pytest.mark.skipif("ATTEMPT_RAY_KILLS" not in os.environ, reason="minutes each: make kills")
pytestmark = [pytest.mark.ray, on_demand, pytest.mark.timeout(240 + 120 * KILLS)]


class Told:
    """What a study in a process of its own tells, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[list[str]] = []
        self._queue: Queue[str | None] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)
        self._queue.put(None)

    def until(self, wanted: Callable[[list[str]], bool], *, seconds: float = 240) -> bool:
        """Read on until a line is as wanted; False where the process ends before."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise AssertionError(
                    f"nothing as wanted in {seconds} s; the last: {self.lines[-5:]}"
                ) from None
            if line is None:
                return False
            self.lines.append(line.split())
            if wanted(self.lines[-1]):
                return True

    def results(self) -> dict[str, list[str]]:
        """Read to the end; return what came of every run."""
        self.until(lambda _: False)
        assert self.process.wait(60) == 0
        return {line[1]: line[2:] for line in self.lines if line[:1] == ["result"]}


@contextmanager
def study(config: Config, *, in_process: bool = False, nodes: int = 0) -> Iterator[Told]:
    """Start a study: in one process, on a private cluster, or on one of several nodes."""
    page = config.model_dump(mode="json")
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    if nodes:  # what a private cluster does for its one token, several nodes would do each for itself
        environment["RAY_AUTH_MODE"] = "disabled"
    with subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        given = {"page": page, "seeds": SEEDS, "in_process": in_process, "nodes": nodes}
        process.stdin.write(json.dumps(given))
        process.stdin.close()
        try:
            yield Told(process)
        finally:
            process.kill()


@pytest.fixture
def make_pool(make_study: Callable[..., Config], tmp_path: Path) -> Callable[[str], Config]:
    def make(name: str) -> Config:
        return make_study(
            bank=str(tmp_path / name / "bank"),
            runs=str(tmp_path / name / "runs"),
            training={"steps": 200, "eval_steps": 50, "checkpoint_steps": CHECKPOINT_STEPS, "threads": 1},
            cluster={"workers": 2, "cpus_per_worker": 0.5, "runs_per_worker": 2, "attempts": 3},
        )

    return make


@pytest.fixture(scope="module")
def known() -> dict[str, bytes]:
    """What an undisturbed study learned; the first test that asks fills it."""
    return {}


@pytest.fixture
def expected(make_pool: Callable[[str], Config], known: dict[str, bytes]) -> dict[str, bytes]:
    if not known:
        config = make_pool("undisturbed")
        with study(config, in_process=True) as told:
            assert {result[0] for result in told.results().values()} == {"finished"}
        known |= learned(config)
        assert len(known) == len(SEEDS)
    return known


def mid_run(told: Told, rng: random.Random) -> None:
    """Wait until some run is at some step in the middle."""
    step = rng.randrange(20, 150)
    assert told.until(
        lambda line: (
            line[:1] == ["progress"] and line[-1].isdigit() and len(line) > 2 and int(line[2]) >= step
        )
    )
    time.sleep(rng.random() * 0.3)


@pytest.mark.parametrize("part", ["RayTrainWorker", "LeaseQueue"])
def test_a_killed_worker_or_queue_loses_nothing(
    make_pool: Callable[[str], Config], expected: dict[str, bytes], part: str
) -> None:
    rng = random.Random(f"{SEED}{part}")
    for number in range(KILLS):
        config = make_pool(f"{part}{number}")
        with study(config) as told:
            mid_run(told, rng)
            os.kill(rng.choice(titled(told.process.pid, part)), signal.SIGKILL)
            results = told.results()
        assert {result[0] for result in results.values()} == {"finished"}
        assert learned(config) == expected


def test_a_killed_driver_loses_nothing(
    make_pool: Callable[[str], Config], expected: dict[str, bytes]
) -> None:
    rng = random.Random(f"{SEED}driver")
    for number in range(KILLS):
        config = make_pool(f"driver{number}")
        with study(config) as told:
            mid_run(told, rng)
            told.process.kill()
        with study(config) as told:
            assert {result[0] for result in told.results().values()} == {"finished"}
        assert learned(config) == expected


def test_a_killed_node_loses_nothing(make_pool: Callable[[str], Config], expected: dict[str, bytes]) -> None:
    rng = random.Random(f"{SEED}raylet")
    for number in range(KILLS):
        config = make_pool(f"raylet{number}").updated(cluster={"min_workers": 1, "cpus_per_worker": 1.0})
        with study(config, nodes=2) as told:
            mid_run(told, rng)
            _head, *others = titled(told.process.pid, "raylet/raylet")
            os.kill(rng.choice(others), signal.SIGKILL)
            results = told.results()
        assert {result[0] for result in results.values()} == {"finished"}
        assert learned(config) == expected


def test_a_node_that_is_about_to_be_taken_away_is_left_in_good_order(
    make_pool: Callable[[str], Config], expected: dict[str, bytes]
) -> None:
    config = make_pool("drained").updated(
        cluster={"min_workers": 1, "cpus_per_worker": 1.0}, training={"checkpoint_steps": 1000}
    )
    with study(config, nodes=2) as told:
        assert told.until(lambda line: line[:1] == ["node"])
        _, node, address = told.lines[-1]
        mid_run(told, random.Random(SEED))
        drain = [
            "drain-node",
            f"--address={address}",
            f"--node-id={node}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
        ]
        drain += ["--reason-message=spot", "--deadline-remaining-seconds=120"]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *drain], check=True, capture_output=True)
        assert told.until(lambda line: line[:1] == ["progress"] and line[2:] == ["resumed"])
        results = told.results()
    assert {result[0] for result in results.values()} == {"finished"}
    assert learned(config) == expected


@pytest.mark.parametrize("whom", ["driver", "worker"])
def test_sigterm_keeps_what_runs_have_reached_within_five_seconds(
    make_pool: Callable[[str], Config], expected: dict[str, bytes], whom: str
) -> None:
    config = make_pool(whom)
    config = config.updated(training={"checkpoint_steps": 1000})
    with study(config) as told:
        mid_run(told, random.Random(SEED))
        worker = titled(told.process.pid, "RayTrainWorker")[0]
        target = told.process.pid if whom == "driver" else worker
        asked = time.monotonic()
        os.kill(target, signal.SIGTERM)
        while Path(f"/proc/{worker}").exists() and time.monotonic() - asked < 30:
            time.sleep(0.05)
        assert time.monotonic() - asked < 6
        assert list(Path(config.runs).glob("*/checkpoints/step-*"))
        if whom == "worker":
            assert {result[0] for result in told.results().values()} == {"finished"}
    if whom == "driver":
        with study(config) as told:
            assert {result[0] for result in told.results().values()} == {"finished"}
    assert learned(config) == expected
