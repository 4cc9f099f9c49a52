"""Kill -9 at random points, run again: the end is as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from attempt_ray.bank.store import Bank
from attempt_ray.config import Config

KILLS = int(os.environ.get("ATTEMPT_KILLS", "3"))
SEED = int(os.environ.get("ATTEMPT_KILLS_SEED", "0"))
STEPS = 24
SCRIPT = Path(__file__).with_name("run_in_children.py")


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    root = str(SCRIPT.parents[3])
    with subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def start(server: subprocess.Popen[str], config: Config) -> int:
    """Begin a run in a child; return its process id."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(config.model_dump(mode="json")) + "\n")
    server.stdin.flush()
    word, number = server.stdout.readline().split()
    assert word == "pid"
    return int(number)


def watch(server: subprocess.Popen[str], *, until: Callable[[int], bool]) -> int | None:
    """Read what the child tells until `until` is true of the count of lines; return its exit code if it ended first."""
    assert server.stdout is not None
    lines = 0
    while not until(lines):
        line = server.stdout.readline()
        if line.startswith("end"):
            return int(line.split()[1])
        lines += 1
    return None


def finish(server: subprocess.Popen[str]) -> int:
    code = watch(server, until=lambda _: False)
    assert code is not None
    return code


def one_more_process(server: subprocess.Popen[str], config: Config, *, rng: random.Random, kill: bool) -> int:
    """Execute the run in a process that may be killed on the way; return its exit code."""
    child = start(server, config)
    if kill:
        lines = rng.randrange(STEPS // 2)
        code = watch(server, until=lambda seen: seen >= lines)
        if code is not None:
            return code
        time.sleep(rng.random() * 0.03)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    code = finish(server)
    assert code == 0 or (kill and code == -signal.SIGKILL)
    return code


def outcome(config: Config) -> dict[str, object]:
    """Everything that must be alike: prompts, G, kept states, history and report, but for the time taken."""
    (directory,) = [path for path in Path(config.runs).iterdir() if path.is_dir()]
    report = json.loads((directory / "report.json").read_bytes())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for entry in (report, *lines):
        entry.pop("seconds", None)
    bank = Bank(config.bank)
    return {
        "report": report,
        "history": lines,
        "best": (directory / "best.safetensors").read_bytes(),
        "bank": {version.reference: bank.load(version.reference).sha256 for version in bank.list()},
        "problems": bank.verify(),
        "left over": [str(path) for path in directory.rglob("*") if ".tmp-" in path.name],
        "checkpoints": list((directory / "checkpoints").iterdir()),
    }


def test_killed_runs_end_like_undisturbed_ones(server, make_config, source_bank, tmp_path):
    rng = random.Random(SEED)

    def config(name: str) -> Config:
        bank = shutil.copytree(source_bank, tmp_path / name / "bank")
        return make_config(
            tasks=["rte", "mrpc"],
            bank=str(bank),
            runs=str(tmp_path / name / "runs"),
            training={"steps": STEPS, "eval_steps": 4, "checkpoint_steps": 3},
        )

    undisturbed = config("undisturbed")
    start(server, undisturbed)
    assert finish(server) == 0
    expected = outcome(undisturbed)
    assert expected["problems"] == expected["left over"] == expected["checkpoints"] == []
    kills = lives = 0
    while kills < KILLS:
        lives += 1
        life = config(f"life-{lives}")
        while one_more_process(server, life, rng=rng, kill=kills < KILLS) != 0:
            kills += 1
        assert outcome(life) == expected
