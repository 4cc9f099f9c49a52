"""A study on Ray Train: a pool of workers that lease whole runs, or a trainer of its own for each run.

For a pool, one TorchTrainer is started for all the runs of a study, so that a frozen backbone is loaded once per worker.
Its workers are not in lock-step: each leases runs, executes them, sends back their reports and leases the next.
Isolated runs have one TorchTrainer each, one after the other, and its workers share every batch. Runs may need others,
and a run's config may be computed from what those found. What resumes after a crash is decided by the run directories
alone, never by Ray's snapshot.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train

from attempt_ray.config import ClusterConfig, Config
from attempt_ray.errors import ClusterError
from attempt_ray.orchestration.cluster import connected, draining_nodes
from attempt_ray.orchestration.desk import Desk, company_of
from attempt_ray.orchestration.queue import LeaseQueue
from attempt_ray.orchestration.study import Job, OnEvent, PoolEvent, PoolResult, Study
from attempt_ray.orchestration.trainer import Fit, new_trainer, threads_of
from attempt_ray.orchestration.worker import Work, execute_order, execute_shared, lease_runs
from attempt_ray.training.stopping import heed_stop, is_stop_asked, stopped

__all__ = ["Job", "PoolEvent", "PoolResult", "run_jobs", "run_pool"]

_POLL_SECONDS = 0.2
_START_SECONDS = 300.0
"""Longest wait for the first worker of a cluster that has the resources."""
_CLOSE_SECONDS = 60.0
"""Longest wait for the workers to leave after the last run."""
_LEAVE_SECONDS = 4.5
"""Longest wait for the workers to keep what their runs have reached when the pool is asked to stop."""
_DRAIN_SECONDS = 1.0
"""Time between two looks for nodes that are about to be taken away."""
_DRIVER = -1
"""The rank under which a driver leases the runs of isolated trainers."""
_IDLE_DEATHS = 4
"""Deaths of workers that held no run, survived before the pool gives up."""


def run_pool(
    configs: Sequence[Config],
    *,
    cluster: ClusterConfig,
    on_event: OnEvent | None = None,
    in_process: bool = False,
) -> list[PoolResult]:
    """Execute independent runs and return what came of each, in the order of `configs`.

    Raises:
        ClusterError: The cluster cannot be reached or can never give what is asked.
    """
    jobs = [Job(key=f"{number}", config=config) for number, config in enumerate(configs)]
    return run_jobs(jobs, cluster=cluster, on_event=on_event, in_process=in_process)


def run_jobs(
    jobs: Sequence[Job],
    *,
    cluster: ClusterConfig,
    on_event: OnEvent | None = None,
    work: Work | None = None,
    in_process: bool = False,
) -> list[PoolResult]:
    """Execute the runs of a study, each once the runs it needs have finished, and return what came of each.

    A failing run is tried `cluster.attempts` times and then set aside with its reason; the runs that need it are
    skipped, all others go on. An AttemptError is not tried again: another attempt cannot mend it.

    Args:
        jobs: The runs, in the order in which idle workers shall take them. Keys are unique; `needs` name other jobs.
        cluster: Where, how many workers, and how often a run is tried.
        on_event: Called in this thread with everything that happens to a run.
        work: What a worker does with a run; None is `attempt_ray.training.run.execute`.
        in_process: Execute one run after the other in this process, without Ray.

    Raises:
        ClusterError: The cluster cannot be reached, can never give what is asked, or lost its workers for good.
        StoppedError: This process was asked to stop; the runs keep what they have reached.
    """
    study = Study(jobs, on_event or _nobody)
    if in_process:
        _run_here(study, cluster, work=work)
    elif jobs:
        with connected(cluster) as scratch:
            if cluster.mode == "isolated":
                _run_isolated(study, cluster, scratch=scratch)
            else:
                _run_pool(study, cluster, work=work, scratch=scratch)
    return study.results()


def _nobody(event: PoolEvent) -> None:
    """Watch nothing."""


def _run_here(study: Study, cluster: ClusterConfig, *, work: Work | None) -> None:
    queue = LeaseQueue(cluster.attempts)
    notes = _Local(queue, study)
    queue.register(0)
    while True:
        for key, config, place in study.ready():
            queue.submit(key, config.model_dump(mode="json"), place, company_of(config))
        if study.done():
            return
        while (order := queue.lease(0, cluster.runs_at_once))["do"] == "run":
            execute_order(order, rank=0, places=cluster.runs_at_once, work=work, queue=notes)
            heed_stop()


class _Local:
    """A queue in this process: whatever is noted reaches the study at once."""

    def __init__(self, queue: LeaseQueue, study: Study) -> None:
        self._queue = queue
        self._study = study

    def lease(self, rank: int, places: int = 1, company: str | None = None) -> dict[str, Any]:
        return self._queue.lease(rank, places, company)

    def progress(self, key: str, lease: str, facts: Mapping[str, Any]) -> None:
        self._queue.progress(key, lease, facts)
        self._study.take(self._queue.drain())

    def finish(self, key: str, lease: str, result: Mapping[str, Any]) -> None:
        self._queue.finish(key, lease, result)
        self._study.take(self._queue.drain())

    def fail(self, key: str, lease: str, error: Mapping[str, Any], *, retry: bool) -> None:
        self._queue.fail(key, lease, error, retry=retry)
        self._study.take(self._queue.drain())

    def give_back(self, key: str, lease: str) -> None:
        self._queue.give_back(key, lease)


def _run_pool(study: Study, cluster: ClusterConfig, *, work: Work | None, scratch: Path) -> None:
    with standing_pool(cluster, work=work, scratch=scratch) as pool:
        desk = Desk(pool.queue, study)
        while True:
            if is_stop_asked():
                leave(pool.queue)
                raise stopped()
            desk.submit_what_is_ready()
            problem = pool.problem()  # before the last look at the queue, which then misses nothing
            study.take(ray.get(pool.queue.drain.remote()))
            if study.done():
                return
            if problem is not None:
                raise ClusterError(f"{problem}; run the same command again")
            time.sleep(_POLL_SECONDS)


@dataclass(eq=False)
class Pool:
    """Workers that lease runs from a queue."""

    name: str
    """Name and namespace of the queue's actor."""
    queue: Any
    """The actor."""
    workers: Fit
    _deadline: float = field(default_factory=lambda: time.monotonic() + _START_SECONDS)
    _looked: float = 0.0

    def problem(self) -> str | None:
        """Return why its runs will not go on, None where they do; nodes that are being taken away are vacated."""
        if not self.workers.is_alive():
            return f"the pool lost its workers for good: {self.workers.reason() or 'they left too early'}"
        if time.monotonic() > self._deadline and not ray.get(self.queue.workers.remote()):
            return (
                f"no worker started within {_START_SECONDS:.0f} s; free the cluster or lower cluster.workers"
            )
        if time.monotonic() - self._looked >= _DRAIN_SECONDS:
            self._looked = time.monotonic()
            self.queue.vacate.remote(draining_nodes())
        return None


@contextmanager
def standing_pool(cluster: ClusterConfig, *, work: Work | None, scratch: Path) -> Iterator[Pool]:
    """Start workers on the connected cluster; at the end of the block let them go."""
    name = f"attempt-pool-{uuid.uuid4().hex[:8]}"
    queue = new_queue(name, cluster)
    workers = Fit(
        new_trainer(
            lease_runs,
            {"pool": name, "work": work, "places": cluster.runs_at_once, **worker_settings(cluster)},
            name=name,
            cluster=cluster,
            scratch=scratch,
            callbacks=[_Deaths(name)],
            most_failures=_IDLE_DEATHS + 4 * cluster.attempts * cluster.workers,
        )
    )
    workers.start()
    try:
        yield Pool(name, queue, workers)
        ray.get(queue.close.remote())
        workers.join(_CLOSE_SECONDS)
    finally:
        ray.kill(queue)


def worker_settings(cluster: ClusterConfig) -> dict[str, Any]:
    """Return what every worker is told of its surroundings."""
    return {
        "threads": threads_of(cluster),
        "directory": str(Path.cwd()),
        "stall_seconds": cluster.stall_seconds,
    }


def new_queue(name: str, cluster: ClusterConfig) -> Any:
    """Return the actor that stands between a driver and its workers; it is found by its name.

    It holds nothing that the driver and the workers could not tell it again after it died.
    """
    options = {"name": name, "namespace": name, "num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(LeaseQueue).options(**options).remote(cluster.attempts, cluster.workers)


def leave(queue: Any) -> None:
    """Let all workers keep what their runs have reached."""
    ray.get(queue.stop.remote())
    deadline = time.monotonic() + _LEAVE_SECONDS
    while time.monotonic() < deadline and ray.get(queue.held.remote()):
        time.sleep(_POLL_SECONDS / 4)


def _run_isolated(study: Study, cluster: ClusterConfig, *, scratch: Path) -> None:
    """Give each run, one after the other, a trainer of its own, whose workers share every batch."""
    name = f"attempt-isolated-{uuid.uuid4().hex[:8]}"
    queue = new_queue(name, cluster)
    desk = Desk(queue, study)
    try:
        while True:
            desk.submit_what_is_ready()
            if study.done():
                return
            ray.get(queue.register.remote(_DRIVER))
            order = ray.get(queue.lease.remote(_DRIVER))
            if order["do"] != "run":  # the queue has died in this moment
                continue
            (run,) = order["runs"]
            fit = Fit(
                new_trainer(
                    execute_shared,
                    {"pool": name, "run": run, **worker_settings(cluster)},
                    name=f"{name}-{run['lease']}",
                    cluster=cluster,
                    scratch=scratch,
                    most_failures=cluster.attempts - 1,
                )
            )
            fit.start()
            while fit.is_alive():
                if is_stop_asked():
                    leave(queue)
                    raise stopped()
                study.take(ray.get(queue.drain.remote()))
                fit.join(_POLL_SECONDS)
            if (reason := fit.reason()) is not None:  # a run that ended otherwise has told so itself
                error_of_run = {
                    "type": "WorkerDied",
                    "message": f"its workers died: {reason}",
                    "traceback": "",
                }
                ray.get(queue.fail.remote(run["key"], run["lease"], error_of_run, retry=False))
            study.take(ray.get(queue.drain.remote()))
    finally:
        ray.kill(queue)


class _Deaths(ray.train.UserCallback):  # type: ignore[misc]
    """Tells the queue which ranks died, so that their runs are charged and not those of their neighbours."""

    def __init__(self, pool: str) -> None:
        self._pool = pool

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:  # noqa: ARG002
        """Pass on the ranks and reasons; called in Ray Train's controller."""
        queue = ray.get_actor(self._pool, namespace=self._pool)
        deaths = {rank: " ".join(str(error).split())[:300] for rank, error in worker_exceptions.items()}
        ray.get(queue.crash.remote(deaths))
