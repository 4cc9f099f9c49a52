"""What a pool of workers adds to the runs' own time: start-up once, and little for each run more.

Run by `make bench`. Source prompts of the embedded tasks are trained one after the other in this process, one thread,
then in two such processes side by side without Ray, then by a pool of two workers with a processor each: 12 runs, then
24. All runs of a study are new. A study is timed from its first run's first step to its last run's end.

- `start_seconds`: from the call to the first step: Ray, the trainer, the workers' imports and their backbones.
- `alone_seconds`, `side_by_side_seconds`: 24 runs in one process, and 12 in each of two.
- `makespan_over_half_of_own`: the pool's time over half of what its runs say they took.
- `makespan_over_half_of_alone`: the same over half of `alone_seconds`.
- `makespan_over_side_by_side`: the same over two processes, whose processors share memory and caches as the pool's do.
- `overhead_seconds_per_run`: what each of the second 12 runs added in a worker, less what it says it took.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from common import machine, write

from attempt_ray.config import Config, load
from attempt_ray.orchestration.pool import Job, PoolEvent, run_jobs

WORKERS = 2
SOURCES = ("mnli", "sst2", "qnli", "qqp", "squad", "record")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--preset", type=Path, default=Path("attempt_ray/presets/embedded.yaml"))
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        # Rows are generated and encoded once, before anything is timed.
        timed(options, Path(root), "warm", count=len(SOURCES), in_process=True, steps=1)
        alone = timed(options, Path(root), "alone", count=24, in_process=True)
        side = side_by_side(options, Path(root))
        half = timed(options, Path(root), "half", count=12)
        whole = timed(options, Path(root), "whole", count=24)
    result = {
        "what": "embedded source prompts, nano, 32 rows a step, two workers with a processor each",
        "steps": options.steps,
        "machine": machine(),
        "start_seconds": round(whole.start, 1),
        "alone_seconds": round(alone.span, 1),
        "side_by_side_seconds": round(side, 1),
        "makespan_seconds": round(whole.span, 1),
        "own_seconds": round(whole.own, 1),
        "makespan_over_half_of_own": round(whole.span / (whole.own / WORKERS), 3),
        "makespan_over_half_of_alone": round(whole.span / (alone.span / WORKERS), 3),
        "makespan_over_side_by_side": round(whole.span / side, 3),
        "overhead_seconds_per_run": round(
            ((whole.span - half.span) * WORKERS - (whole.own - half.own)) / 12, 3
        ),
    }
    write(result, options.out)
    print(json.dumps(result, indent=1))


@dataclass(frozen=True)
class Timed:
    """Seconds of a study."""

    start: float
    span: float
    own: float


def timed(
    options: argparse.Namespace,
    root: Path,
    name: str,
    *,
    count: int,
    in_process: bool = False,
    steps: int | None = None,
    first: int = 0,
) -> Timed:
    """Return the times of a study of `count` runs."""
    torch.set_num_threads(1)
    config = load([options.preset]).updated(
        bank=str(root / name / "bank"),
        runs=str(root / name / "runs"),
        data={"cache_dir": str(root / "cache")},
        training={"steps": steps or options.steps, "eval_steps": steps or options.steps},
        cluster={"workers": WORKERS, "cpus_per_worker": 1.0},
    )
    called = time.monotonic()
    plans: list[float] = []

    def on_event(event: PoolEvent) -> None:
        if event.kind == "progress" and event.facts.get("kind") == "plan":
            plans.append(time.monotonic())

    jobs = [Job(key=f"{number}", config=source(config, first + number)) for number in range(count)]
    results = run_jobs(jobs, cluster=config.cluster, on_event=on_event, in_process=in_process)
    assert {result.status for result in results} == {"finished"}
    ends = [Path(result.directory, "report.json").stat().st_mtime for result in results]
    ended = time.monotonic() - (time.time() - max(ends))
    own = sum(result.report["seconds"] for result in results)
    return Timed(start=plans[0] - called, span=ended - plans[0], own=own)


def side_by_side(options: argparse.Namespace, root: Path) -> float:
    """Return the time of the longer of two processes with half of the runs each."""
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as processes:
        calls = [
            processes.submit(
                timed,
                options,
                root,
                f"side{number}",
                count=24 // WORKERS,
                in_process=True,
                first=number * 24 // WORKERS,
            )
            for number in range(WORKERS)
        ]
        return max(call.result().span for call in calls)


def source(config: Config, number: int) -> Any:
    """Return the run of a source, a seed for every round through the sources."""
    return config.updated(
        job="source",
        method="prompt_tuning",
        tasks=(SOURCES[number % len(SOURCES)],),
        seed=1 + number // len(SOURCES),
    )


if __name__ == "__main__":
    main()
