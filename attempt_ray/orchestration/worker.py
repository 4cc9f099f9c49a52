"""A worker of the pool: it leases runs as long as there are any and keeps its loaded backbone between them."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ray
import ray.train

from attempt_ray.config import Config, parse
from attempt_ray.errors import AttemptError, DroppedError, StoppedError
from attempt_ray.orchestration.study import describe_error, is_mendable, progress_facts

if TYPE_CHECKING:
    from attempt_ray.training.run import RunResult, Ticket

_POLL_SECONDS = 0.2
_BEAT_SECONDS = 0.5
_HUNG = 75
"""Exit code of a process that ended itself because it hung: sysexits.h's for what may succeed another time."""
_PROGRESS_SECONDS = 0.5
"""Least time between two step reports of one run, and between two looks for a run that could join."""


class Work(Protocol):
    """What a worker does with a run: `attempt_ray.training.run.execute`, by default."""

    def __call__(self, config: Config, *, on_progress: Callable[[Any], None] | None = None) -> Any:
        """Execute one run and return an object with `directory` and `report`."""


class Queue(Protocol):
    """The part of a queue that a worker speaks to."""

    def lease(self, rank: int, places: int = 1, company: str | None = None) -> dict[str, Any]:
        """Return runs to execute, or what to do without."""

    def progress(self, key: str, lease: str, facts: Mapping[str, Any]) -> None:
        """Note what a run says of itself."""

    def finish(self, key: str, lease: str, result: Mapping[str, Any]) -> None:
        """Note the result of a run."""

    def fail(self, key: str, lease: str, error: Mapping[str, Any], *, retry: bool) -> None:
        """Note that a run failed."""

    def give_back(self, key: str, lease: str) -> None:
        """Let a run wait again that was stopped in good order."""


def lease_runs(settings: dict[str, Any]) -> None:
    """Lease runs until the pool is closed; the train loop of every rank."""
    from attempt_ray.training.stopping import is_stop_asked

    rank = ray.train.get_context().get_world_rank()
    with _at_work(settings, rank, register=True) as (queue, held):
        while not is_stop_asked():
            order = queue.lease(rank, settings["places"])
            if order["do"] == "stop":
                break
            if order["do"] == "wait":
                time.sleep(_POLL_SECONDS)
                continue
            execute_order(
                order, rank=rank, places=settings["places"], work=settings["work"], queue=queue, held=held
            )


def execute_shared(settings: dict[str, Any]) -> None:
    """Execute one run on all workers of a trainer, each batch shared between them; the train loop of every rank."""
    from attempt_ray.training.parallel import Team
    from attempt_ray.training.run import execute

    run, team = settings["run"], Team.of_process_group()
    with _at_work(settings, team.rank) as (queue, held):
        held.add(run["key"], run["lease"])
        try:
            outcome: Any = execute(
                parse([run["config"]]),
                on_progress=_teller(run, queue, held) if team.leads else lambda _: held.hear(run["key"]),
                team=team,
            )
        except AttemptError as error:
            outcome = error
        # What is no AttemptError ends the process, and Ray Train starts all of them again.
        if team.leads:
            _note_end(outcome, run=run, queue=queue, held=held, retry=False)


@contextmanager
def _at_work(
    settings: Mapping[str, Any], rank: int, *, register: bool = False
) -> Iterator[tuple[Queue, Held]]:
    """Make a worker of this process: it beats while the block runs, and after SIGTERM it ends with the block."""
    from attempt_ray.training.stopping import SIGTERM_CODE, is_terminated

    settle_worker(settings)
    node = ray.get_runtime_context().get_node_id()
    actor = ray.get_actor(settings["pool"], namespace=settings["pool"])
    if register:
        ray.get(actor.register.remote(rank, node))
    held = Held()
    threading.Thread(target=_beat, args=(actor, rank, node, held), daemon=True).start()
    with ending_when_hung(held, settings["stall_seconds"]):
        yield _Remote(actor), held
    if is_terminated():
        os._exit(SIGTERM_CODE)


class Held:
    """The leases a worker holds, by key; read by its beating thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leases: dict[str, str] = {}
        self._unwanted: set[str] = set()
        self._heard = time.monotonic()

    def add(self, key: str, lease: str) -> None:
        """Note a lease."""
        with self._lock:
            self._leases[key] = lease
            self._heard = time.monotonic()

    def drop(self, key: str) -> None:
        """Forget a lease."""
        with self._lock:
            del self._leases[key]
            self._unwanted.discard(key)
            self._heard = time.monotonic()

    def hear(self, key: str) -> None:
        """Note that a run has said something.

        Raises:
            DroppedError: Nobody wants its result any longer.
        """
        with self._lock:
            self._heard = time.monotonic()
            if key in self._unwanted:
                raise DroppedError("its result is not wanted any longer")

    def drop_when_heard(self, keys: Iterable[str]) -> None:
        """Let these runs end when they next say something."""
        with self._lock:
            self._unwanted.update(key for key in keys if key in self._leases)

    def silent_seconds(self) -> float:
        """Return for how long no run has said anything; 0 where none is held."""
        with self._lock:
            return time.monotonic() - self._heard if self._leases else 0.0

    def all(self) -> dict[str, str]:
        """Return the leases by key."""
        with self._lock:
            return dict(self._leases)


def settle_worker(settings: Mapping[str, Any]) -> None:
    """Make this process's threads and directory those of a worker, and forget that it was asked to stop before."""
    import torch

    from attempt_ray.training.stopping import withdraw_stop

    torch.set_num_threads(settings["threads"])
    if Path(settings["directory"]).is_dir():
        os.chdir(settings["directory"])  # relative paths of a config mean the driver's directory
    withdraw_stop()


@contextmanager
def ending_when_hung(held: Held, seconds: float) -> Iterator[None]:
    """End this process, showing where it hangs, when within the block its runs say nothing for so many seconds."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(min(_BEAT_SECONDS, seconds / 4)):
            if held.silent_seconds() > seconds:
                sys.stderr.write(
                    f"no step and no evaluation for {seconds:g} s (cluster.stall_seconds): ending\n"
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(_HUNG)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _beat(actor: Any, rank: int, node: str, held: Held) -> None:
    """Tell the queue what this worker holds, and heed what it answers."""
    from attempt_ray.training.stopping import ask_to_stop

    while True:
        try:
            answer = ray.get(actor.beat.remote(rank, held.all(), node))
            held.drop_when_heard(answer["unwanted"])
            if answer["stop"]:
                ask_to_stop()
        except ray.exceptions.RayError:
            pass  # the queue is being started again, or the pool is over
        time.sleep(_BEAT_SECONDS)


class _Remote:
    """A queue actor as seen from a worker: progress is sent and forgotten, all else is waited for."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def lease(self, rank: int, places: int = 1, company: str | None = None) -> dict[str, Any]:
        order: dict[str, Any] = ray.get(self._actor.lease.remote(rank, places, company))
        return order

    def progress(self, key: str, lease: str, facts: Mapping[str, Any]) -> None:
        self._actor.progress.remote(key, lease, facts)

    def finish(self, key: str, lease: str, result: Mapping[str, Any]) -> None:
        ray.get(self._actor.finish.remote(key, lease, result))

    def fail(self, key: str, lease: str, error: Mapping[str, Any], *, retry: bool) -> None:
        ray.get(self._actor.fail.remote(key, lease, error, retry=retry))

    def give_back(self, key: str, lease: str) -> None:
        ray.get(self._actor.give_back.remote(key, lease))


def execute_order(
    order: Mapping[str, Any],
    *,
    rank: int,
    places: int,
    work: Work | None,
    queue: Queue,
    held: Held | None = None,
) -> None:
    """Execute leased runs, and those that may join them later, and note what came of each."""
    held = held or Held()
    if work is not None:
        for run in order["runs"]:
            _execute_work(run, work=work, queue=queue, held=held)
        return
    from attempt_ray.training.run import execute_stream

    looked: float | None = None

    def take(free: int) -> Sequence[Ticket]:
        nonlocal looked
        runs: Sequence[Mapping[str, Any]] = ()
        if looked is None:
            looked, runs = time.monotonic(), order["runs"]
        elif order["company"] is not None and time.monotonic() - looked >= _PROGRESS_SECONDS:
            looked = time.monotonic()
            # Without a run under way the stream ends here, and the next order may be of another company.
            runs = queue.lease(rank, free, order["company"]).get("runs", ()) if held.all() else ()
        tickets = [_ticket(run, queue=queue, held=held) for run in runs]
        return [ticket for ticket in tickets if ticket is not None]

    execute_stream(take, most=places)


def _ticket(run: Mapping[str, Any], *, queue: Queue, held: Held) -> Ticket | None:
    from attempt_ray.training.run import Ticket

    held.add(run["key"], run["lease"])
    try:
        config = parse([run["config"]])
    except AttemptError as error:
        _note_end(error, run=run, queue=queue, held=held)
        return None
    return Ticket(
        config=config,
        on_progress=_teller(run, queue, held),
        on_end=partial(_note_end, run=run, queue=queue, held=held),
    )


def _execute_work(run: Mapping[str, Any], *, work: Work, queue: Queue, held: Held) -> None:
    held.add(run["key"], run["lease"])
    try:
        outcome = work(parse([run["config"]]), on_progress=_teller(run, queue, held))
    except Exception as error:  # noqa: BLE001 - any failure belongs to the run, not to the pool
        outcome = error
    _note_end(outcome, run=run, queue=queue, held=held)


def _note_end(
    outcome: RunResult | Exception,
    *,
    run: Mapping[str, Any],
    queue: Queue,
    held: Held,
    retry: bool = True,
) -> None:
    key, lease = run["key"], run["lease"]
    held.drop(key)
    if isinstance(outcome, DroppedError):
        return
    if isinstance(outcome, StoppedError):
        queue.give_back(key, lease)
    elif isinstance(outcome, Exception):
        queue.fail(key, lease, describe_error(outcome), retry=retry and is_mendable(outcome))
    else:
        queue.finish(key, lease, {"directory": str(outcome.directory), "report": dict(outcome.report)})


def _teller(run: Mapping[str, Any], queue: Queue, held: Held) -> Callable[[Any], None]:
    last = 0.0

    def on_progress(progress: Any) -> None:
        nonlocal last
        held.hear(run["key"])
        facts = progress_facts(progress)
        step = facts["kind"] == "step"
        if not step or time.monotonic() - last >= _PROGRESS_SECONDS:
            last = time.monotonic() if step else last
            queue.progress(run["key"], run["lease"], facts)

    return on_progress
