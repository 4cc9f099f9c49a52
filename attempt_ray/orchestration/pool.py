"""A pool of Ray Train workers that lease whole runs, so that a frozen backbone is loaded once per worker.

One TorchTrainer is started for all the runs of a study. Its workers are not in lock-step: each leases a run, executes
it, sends back its report and leases the next. Runs may need others, and a run's config may be computed from what
those found. What resumes after a crash is decided by the run directories alone, never by Ray's snapshot.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from attempt_ray.config import ClusterConfig, Config
from attempt_ray.errors import ClusterError
from attempt_ray.orchestration.cluster import check_shared, connected, draining_nodes
from attempt_ray.orchestration.queue import LeaseQueue
from attempt_ray.orchestration.study import Job, OnEvent, PoolEvent, PoolResult, Study
from attempt_ray.orchestration.worker import Work, execute_order, lease_runs, leave_on_sigterm
from attempt_ray.training.stopping import stop_asked

__all__ = ["Job", "PoolEvent", "PoolResult", "run_jobs", "run_pool"]

_POLL_SECONDS = 0.2
_START_SECONDS = 300.0
"""Longest wait for the first worker of a cluster that has the resources."""
_CLOSE_SECONDS = 60.0
"""Longest wait for the workers to leave after the last run."""
_LEAVE_SECONDS = 4.5
"""Longest wait for the workers to keep what their runs have reached when the pool is asked to stop."""
_BEATS_SECONDS = 1.5
"""Within this time every worker tells a new queue what it holds."""
_DRAIN_SECONDS = 1.0
"""Time between two looks for nodes that are about to be taken away."""
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
            _run_on_ray(study, cluster, work=work, scratch=scratch)
    return study.results()


def _nobody(event: PoolEvent) -> None:
    """Watch nothing."""


def _run_here(study: Study, cluster: ClusterConfig, *, work: Work | None) -> None:
    queue = LeaseQueue(cluster.attempts)
    notes = _Local(queue, study)
    queue.register(0)
    while True:
        for key, config, place in study.ready():
            queue.submit(key, config.model_dump(mode="json"), place, _company(config))
        if study.done():
            return
        while (order := queue.lease(0, cluster.runs_at_once))["do"] == "run":
            execute_order(order, rank=0, places=cluster.runs_at_once, work=work, queue=notes)
            if (error := stop_asked()) is not None:
                raise error


def _company(config: Config) -> str | None:
    """Return what runs that share a worker agree on."""
    common = config.common()
    return None if common is None else repr(common)


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


def _run_on_ray(study: Study, cluster: ClusterConfig, *, work: Work | None, scratch: Path) -> None:
    name = f"attempt-pool-{uuid.uuid4().hex[:8]}"
    # The queue lives outside the driver, but holds nothing that the driver and the workers could not tell it again.
    queue = (
        ray.remote(LeaseQueue)
        .options(name=name, namespace=name, num_cpus=0, max_restarts=-1, max_task_retries=-1)
        .remote(cluster.attempts, cluster.workers)
    )
    workers = _Workers(_trainer(name, cluster, work=work, scratch=scratch))
    generation = ray.get(queue.generation.remote())
    checked: set[str] = set()
    deadline, looked = time.monotonic() + _START_SECONDS, 0.0
    workers.start()

    def submit(key: str, config: Config, order: int) -> None:
        ray.get(queue.submit.remote(key, config.model_dump(mode="json"), order, _company(config)))

    try:
        while True:
            if (error := stop_asked()) is not None:
                _leave(queue)
                raise error
            if (found := ray.get(queue.generation.remote())) != generation:
                time.sleep(_BEATS_SECONDS)  # until all workers have told what they hold
                for job in study.unfinished():
                    submit(*job)
                generation = found
            for key, config, order in study.ready():
                _check_places({config.runs, config.bank} - checked)
                checked |= {config.runs, config.bank}
                submit(key, config, order)
            left = not workers.is_alive()  # before the last look at the queue, which then misses nothing
            study.take(ray.get(queue.drain.remote()))
            if study.done():
                break
            if left:
                raise ClusterError(
                    f"the pool lost its workers for good: {workers.reason()}; run the same command again"
                )
            if time.monotonic() > deadline and not ray.get(queue.workers.remote()):
                raise ClusterError(
                    f"no worker started within {_START_SECONDS:.0f} s; free the cluster or lower cluster.workers"
                )
            if time.monotonic() - looked >= _DRAIN_SECONDS:
                looked = time.monotonic()
                queue.vacate.remote(draining_nodes())
            time.sleep(_POLL_SECONDS)
        ray.get(queue.close.remote())
        workers.join(_CLOSE_SECONDS)
    finally:
        ray.kill(queue)


def _check_places(places: Iterable[str]) -> None:
    """Refuse directories that some node does not see; an object store is the same everywhere."""
    for place in places:
        if "://" not in place:
            check_shared(Path(place).expanduser())


def _leave(queue: Any) -> None:
    """Let all workers keep what their runs have reached."""
    ray.get(queue.stop.remote())
    deadline = time.monotonic() + _LEAVE_SECONDS
    while time.monotonic() < deadline and ray.get(queue.held.remote()):
        time.sleep(_POLL_SECONDS / 4)


class _Workers(threading.Thread):
    """The trainer, in a thread of its own: its `fit` returns when the last worker has left."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="attempt-pool", daemon=True)
        self._trainer = trainer
        self._error: BaseException | None = None

    def run(self) -> None:
        """Fit, keeping the error for the driver's thread."""
        try:
            self._trainer.fit()
        except BaseException as error:  # noqa: BLE001 - the driver's thread tells of it
            self._error = error

    def reason(self) -> str:
        """Return one line on why the workers left."""
        return " ".join(str(self._error or "they left too early").split())[:300]


def _trainer(name: str, cluster: ClusterConfig, *, work: Work | None, scratch: Path) -> TorchTrainer:
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    return TorchTrainer(
        lease_runs,
        train_loop_config={
            "pool": name,
            "work": work,
            "threads": max(1, int(cluster.cpus_per_worker)),
            "places": cluster.runs_at_once,
            "directory": str(Path.cwd()),
        },
        torch_config=_LeavingConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(scratch / "train"),
            failure_config=ray.train.FailureConfig(
                max_failures=_IDLE_DEATHS + 4 * cluster.attempts * cluster.workers
            ),
            callbacks=[_Deaths(name)],
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),
        ),
    )


class _LeavingBackend(TorchConfig(backend="gloo").backend_cls):  # type: ignore[misc]
    """Torch's backend, whose workers leave in good order on SIGTERM."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up the workers; what a worker group executes runs in each worker's main thread, which gets signals."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(leave_on_sigterm)


class _LeavingConfig(TorchConfig):  # type: ignore[misc]
    """Names the backend above."""

    @property
    def backend_cls(self) -> type:
        """Return the backend's class."""
        return _LeavingBackend


class _Deaths(ray.train.UserCallback):  # type: ignore[misc]
    """Tells the queue which ranks died, so that their runs are charged and not those of their neighbours."""

    def __init__(self, pool: str) -> None:
        self._pool = pool

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:  # noqa: ARG002
        """Pass on the ranks and reasons; called in Ray Train's controller."""
        queue = ray.get_actor(self._pool, namespace=self._pool)
        deaths = {rank: " ".join(str(error).split())[:300] for rank, error in worker_exceptions.items()}
        ray.get(queue.crash.remote(deaths))
