"""A worker of the pool: it leases one run after the other and keeps its loaded backbone between them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train

from attempt_ray.config import Config, parse
from attempt_ray.errors import AttemptError
from attempt_ray.orchestration.study import describe_error, progress_facts

_POLL_SECONDS = 0.2
_PROGRESS_SECONDS = 0.5
"""Least time between two step reports of one run."""


class Work(Protocol):
    """What a worker does with a run: `attempt_ray.training.run.execute`, by default."""

    def __call__(self, config: Config, *, on_progress: Callable[[Any], None] | None = None) -> Any:
        """Execute one run and return an object with `directory` and `report`."""


def lease_runs(settings: dict[str, Any]) -> None:
    """Lease runs until the pool is closed; the train loop of every rank."""
    import torch

    torch.set_num_threads(settings["threads"])
    if Path(settings["directory"]).is_dir():
        os.chdir(settings["directory"])  # relative paths of a config mean the driver's directory
    rank = ray.train.get_context().get_world_rank()
    actor = ray.get_actor(settings["pool"], namespace=settings["pool"])
    queue = _Remote(actor)
    ray.get(actor.register.remote(rank))
    executed = 0
    while True:
        lease = ray.get(actor.lease.remote(rank))
        if lease["do"] == "stop":
            break
        if lease["do"] == "wait":
            time.sleep(_POLL_SECONDS)
            continue
        execute_lease(lease, work=settings["work"], queue=queue)
        executed += 1
    # A report is a barrier over all ranks: one each, at the very end.
    ray.train.report({"executed": executed})


class Notes(Protocol):
    """The part of a queue that a worker speaks to."""

    def progress(self, key: str, lease: int, facts: Mapping[str, Any]) -> None:
        """Note what a run says of itself."""

    def finish(self, key: str, lease: int, result: Mapping[str, Any]) -> None:
        """Note the result of a run."""

    def fail(self, key: str, lease: int, error: Mapping[str, Any], *, retry: bool) -> None:
        """Note that a run failed."""


class _Remote:
    """A queue actor as seen from a worker: progress is sent and forgotten, results are waited for."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def progress(self, key: str, lease: int, facts: Mapping[str, Any]) -> None:
        self._actor.progress.remote(key, lease, facts)

    def finish(self, key: str, lease: int, result: Mapping[str, Any]) -> None:
        ray.get(self._actor.finish.remote(key, lease, result))

    def fail(self, key: str, lease: int, error: Mapping[str, Any], *, retry: bool) -> None:
        ray.get(self._actor.fail.remote(key, lease, error, retry=retry))


def execute_lease(lease: Mapping[str, Any], *, work: Work | None, queue: Notes) -> None:
    """Execute a leased run and note what came of it."""
    key, number = lease["key"], lease["lease"]
    try:
        if work is None:
            from attempt_ray.training.run import execute

            work = execute
        config = parse([lease["config"]])
        last = 0.0

        def on_progress(progress: Any) -> None:
            nonlocal last
            facts = progress_facts(progress)
            step = facts["kind"] == "step"
            if not step or time.monotonic() - last >= _PROGRESS_SECONDS:
                last = time.monotonic() if step else last
                queue.progress(key, number, facts)

        result = work(config, on_progress=on_progress)
        queue.finish(key, number, {"directory": str(result.directory), "report": dict(result.report)})
    except Exception as error:  # noqa: BLE001 - any failure belongs to the run, not to the pool
        queue.fail(key, number, describe_error(error), retry=not isinstance(error, AttemptError))
