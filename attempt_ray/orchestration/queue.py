"""The queue of a pool: which run is waiting, which worker holds it, and what came of it.

A plain class without Ray, so that it can be read and tested by itself; `pool` makes one actor of it. All its values
are JSON-like, and every change of state is an event that the driver collects with `drain`.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["waiting", "leased", "finished", "failed"]
Facts = Mapping[str, Any]


@dataclass
class _Entry:
    """One run on its way through the pool."""

    config: Facts
    order: int
    state: State = "waiting"
    rank: int | None = None
    lease: int = 0
    attempts: int = 0
    charged: int = 0
    progress: dict[str, Any] = field(default_factory=dict)


class LeaseQueue:
    """Leases runs to workers in the order of the study, and sets aside those that keep failing.

    A worker that dies loses its lease, and its run is charged with one attempt. The runs of its neighbours, which
    Ray Train restarts together with it, wait again without being charged.

    Args:
        attempts: Times a run may fail before it is set aside.
    """

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._entries: dict[str, _Entry] = {}
        self._waiting: list[tuple[int, str]] = []
        self._events: list[dict[str, Any]] = []
        self._leases = 0
        self._seen: set[int] = set()
        self._present: set[int] = set()
        self._closed = False

    def submit(self, key: str, config: Facts, order: int) -> None:
        """Add a run, its key a new one; of those that wait, the one of the lowest `order` is leased first."""
        if key in self._entries:
            raise ValueError(f"run '{key}' was submitted before; give every run its own key")
        self._entries[key] = _Entry(config=config, order=order)
        self._wait(key)

    def register(self, rank: int) -> None:
        """Welcome a worker; what an earlier worker of this rank held waits again."""
        self._seen.add(rank)
        self._present.add(rank)
        self._release(rank)

    def workers(self) -> int:
        """Return how many ranks have ever registered."""
        return len(self._seen)

    def lease(self, rank: int) -> dict[str, Any]:
        """Return `{"do": "run", "key", "lease", "config"}`, `wait`, or `stop` once closed."""
        if rank not in self._present:
            return {"do": "wait"}
        if not self._waiting:
            return {"do": "stop" if self._closed else "wait"}
        _, key = heapq.heappop(self._waiting)
        entry = self._entries[key]
        self._leases += 1
        entry.state, entry.rank, entry.lease = "leased", rank, self._leases
        entry.attempts += 1
        self._event("started", key, rank=rank, attempt=entry.attempts)
        return {"do": "run", "key": key, "lease": entry.lease, "config": entry.config}

    def progress(self, key: str, lease: int, facts: Facts) -> None:
        """Note what a run said of itself; steps that nobody has collected yet are overtaken by later ones."""
        entry = self._held(key, lease)
        if entry is None:
            return
        if facts.get("kind") == "step":
            if not entry.progress:
                self._events.append({"event": "progress", "key": key, "facts": entry.progress})
            entry.progress.clear()
            entry.progress.update(facts)
        else:
            self._event("progress", key, facts=dict(facts))

    def finish(self, key: str, lease: int, result: Facts) -> None:
        """Note the result of a run."""
        if (entry := self._held(key, lease)) is not None:
            entry.state = "finished"
            self._event("finished", key, result=dict(result), attempts=entry.attempts)

    def fail(self, key: str, lease: int, error: Facts, *, retry: bool) -> None:
        """Note that a run failed; it waits again while `retry` holds and attempts are left.

        Args:
            key: The run.
            lease: The lease it failed under.
            error: `type`, `message` and `traceback`.
            retry: False for errors that another attempt cannot mend.
        """
        if (entry := self._held(key, lease)) is not None:
            self._charge(key, entry, error, retry=retry)

    def crash(self, deaths: Mapping[int, str]) -> None:
        """Note that the workers of some ranks died, each with its reason.

        Ray Train is about to end the others too, so nobody is leased a run before having registered again.
        """
        self._present.clear()
        for key, entry in self._entries.items():
            if entry.state == "leased" and entry.rank is not None and entry.rank in deaths:
                error = {
                    "type": "WorkerDied",
                    "message": f"its worker died: {deaths[entry.rank]}",
                    "traceback": "",
                }
                self._charge(key, entry, error, retry=True)

    def close(self) -> None:
        """Let the workers go once nothing waits."""
        self._closed = True

    def drain(self) -> list[dict[str, Any]]:
        """Return the events since the last call, oldest first."""
        events = [
            {**event, "facts": dict(event["facts"])} if "facts" in event else event for event in self._events
        ]
        self._events.clear()
        for entry in self._entries.values():
            entry.progress = {}
        return events

    def _held(self, key: str, lease: int) -> _Entry | None:
        """Return the entry while the lease is the current one: a worker that was given up may still speak."""
        entry = self._entries[key]
        return entry if entry.state == "leased" and entry.lease == lease else None

    def _charge(self, key: str, entry: _Entry, error: Facts, *, retry: bool) -> None:
        entry.charged += 1
        entry.rank = None
        if retry and entry.charged < self._attempts:
            self._wait(key)
            self._event("retried", key, error=dict(error), attempts=entry.attempts)
        else:
            entry.state = "failed"
            self._event("failed", key, error=dict(error), attempts=entry.attempts)

    def _release(self, rank: int) -> None:
        for key, entry in self._entries.items():
            if entry.state == "leased" and entry.rank == rank:
                entry.rank = None
                self._wait(key)

    def _wait(self, key: str) -> None:
        entry = self._entries[key]
        entry.state = "waiting"
        heapq.heappush(self._waiting, (entry.order, key))

    def _event(self, event: str, key: str, **facts: Any) -> None:
        self._events.append({"event": event, "key": key, **facts})
