"""The queue of a pool: which run is waiting, which worker holds it, and what came of it.

A plain class without Ray, so that it can be read and tested by itself; `pool` makes one actor of it. All its values
are JSON-like, and every change of state is an event that the driver collects with `drain`.

The queue holds nothing that cannot be had again: after its actor died, Ray starts it anew, empty and with another
`generation`; the workers tell what they hold, and the driver submits again what it has no result of.
"""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["waiting", "leased", "finished", "failed"]
Facts = Mapping[str, Any]


@dataclass
class _Entry:
    """One run on its way through the pool."""

    config: Facts
    order: int
    company: str | None
    """What runs must agree on to be leased to one worker at once; None for a run that wants a worker to itself."""
    state: State = "waiting"
    rank: int | None = None
    lease: str = ""
    attempts: int = 0
    charged: int = 0
    progress: dict[str, Any] = field(default_factory=dict)


class LeaseQueue:
    """Leases runs to workers in the order of the study, and sets aside those that keep failing.

    A worker that dies loses its leases. The run it held is charged with one attempt; where it held several, none is
    charged, and each gets a worker to itself next time, so that the one that kills is found. The runs of its
    neighbours, which Ray Train restarts together with it, wait again without being charged.

    Args:
        attempts: Times a run may fail before it is set aside.
        workers: Workers that share the runs.
    """

    def __init__(self, attempts: int, workers: int = 1) -> None:
        self._attempts = attempts
        self._workers = workers
        self._generation = secrets.token_hex(4)
        self._entries: dict[str, _Entry] = {}
        self._waiting: list[tuple[int, str]] = []
        self._events: list[dict[str, Any]] = []
        self._leases = 0
        self._seen: set[int] = set()
        self._present: dict[int, str] = {}
        self._held_before: dict[str, tuple[int, str]] = {}
        self._vacated: frozenset[str] = frozenset()
        self._dropped: set[str] = set()
        self._leaving: dict[str, tuple[int, Facts]] = {}
        self._closed = False
        self._stopped = False

    def generation(self) -> str:
        """Return what tells this queue from one that stood here before."""
        return self._generation

    def submit(self, key: str, config: Facts, order: int, company: str | None = None) -> None:
        """Add a run; of those that wait, the one of the lowest `order` is leased first.

        A run that a worker told to hold stays with it. Submitted again, as by a driver that cannot know whether a dying
        queue had heard it, a run stays what it was.
        """
        if key in self._entries:
            if self._entries[key].config != config:
                raise ValueError(f"run '{key}' was submitted with another config; give every run its own key")
            return
        entry = _Entry(config=config, order=order, company=company)
        self._entries[key] = entry
        if (holder := self._held_before.pop(key, None)) is not None:
            entry.state, entry.attempts = "leased", 1
            entry.rank, entry.lease = holder
        else:
            self._wait(key)

    def register(self, rank: int, node: str = "") -> None:
        """Welcome a worker of a node; what an earlier worker of this rank held waits again."""
        self._seen.add(rank)
        self._present[rank] = node
        self._release(rank)

    def workers(self) -> int:
        """Return how many ranks have ever registered."""
        return len(self._seen)

    def beat(self, rank: int, held: Mapping[str, str], node: str = "") -> dict[str, Any]:
        """Note that a worker lives and what it holds, lease by key.

        Returns:
            `stop`: whether it shall leave its runs; `unwanted`: the keys it holds that were dropped.
        """
        if rank not in self._seen:  # a queue that stood here before knew it
            self._seen.add(rank)
            self._present[rank] = node
            for key, lease in held.items():
                if key not in self._entries:
                    self._held_before[key] = (rank, lease)
        elif node and rank in self._present:
            self._present[rank] = node
        for key in [key for key, (holder, _) in self._leaving.items() if holder == rank and key not in held]:
            del self._leaving[key]
        unwanted = [
            key for key, lease in held.items() if key in self._dropped and not self._current(key, lease)
        ]
        return {"stop": self._shall_stop(rank), "unwanted": unwanted}

    def lease(self, rank: int, places: int = 1, company: str | None = None) -> dict[str, Any]:
        """Return `{"do": "run", "runs": [{"key", "lease", "config"}, ...]}`, `wait`, or `stop`.

        A worker gets at most its share of the runs that wait, and after a run that must wait for another company or an
        idle worker none that came later, so that nothing is overtaken for ever.

        Args:
            rank: The worker.
            places: Runs it can take.
            company: That of the runs it has under way; None for an idle worker.
        """
        if self._shall_stop(rank):
            return {"do": "stop"}
        if rank not in self._present:
            return {"do": "wait"}
        if not self._waiting:
            return {"do": "stop" if self._closed else "wait"}
        holders = [entry.rank for entry in self._entries.values() if entry.state == "leased"]
        held = holders.count(rank)
        share = -(-(len(self._waiting) + len(holders)) // self._workers) - held
        runs: list[dict[str, Any]] = []
        while self._waiting and len(runs) < min(places, max(share, 0 if held else 1)):
            entry = self._entries[self._waiting[0][1]]
            if any(config == entry.config for _, config in self._leaving.values()):
                break
            if held + len(runs) and (entry.company is None or entry.company != company):
                break
            runs.append(self._leased(rank))
            company = entry.company
            if company is None:
                break
        return {"do": "run", "runs": runs, "company": company} if runs else {"do": "wait"}

    def progress(self, key: str, lease: str, facts: Facts) -> None:
        """Note what a run said of itself; steps that nobody has collected yet are overtaken by later ones."""
        if (entry := self._current(key, lease)) is None:
            return
        if facts.get("kind") == "step":
            if not entry.progress:
                self._events.append({"event": "progress", "key": key, "facts": entry.progress})
            entry.progress.clear()
            entry.progress.update(facts)
        else:
            self._event("progress", key, facts=dict(facts))

    def finish(self, key: str, lease: str, result: Facts) -> None:
        """Note the result of a run."""
        if (entry := self._ended(key, lease)) is not None:
            entry.state = "finished"
            self._event("finished", key, result=dict(result), attempts=entry.attempts)

    def fail(self, key: str, lease: str, error: Facts, *, retry: bool) -> None:
        """Note that a run failed; it waits again while `retry` holds and attempts are left.

        Args:
            key: The run.
            lease: The lease it failed under.
            error: `type`, `message` and `traceback`.
            retry: False for errors that another attempt cannot mend.
        """
        if (entry := self._ended(key, lease)) is not None:
            self._charge(key, entry, error, retry=retry)

    def give_back(self, key: str, lease: str) -> None:
        """Let a run wait again that its worker stopped in good order."""
        if (entry := self._ended(key, lease)) is not None:
            entry.rank = None
            entry.attempts -= 1
            self._wait(key)

    def drop(self, keys: Iterable[str]) -> None:
        """Forget runs whose results nobody wants any longer; who holds one is told with its next beat.

        Until a worker has let go of it, the same run is leased to nobody: it could not write its directory.
        """
        for key in keys:
            if (entry := self._entries.pop(key, None)) is not None:
                self._dropped.add(key)
                if entry.state == "leased" and entry.rank is not None:
                    self._leaving[key] = (entry.rank, entry.config)
        self._waiting = [(order, key) for order, key in self._waiting if key in self._entries]
        heapq.heapify(self._waiting)
        self._events = [event for event in self._events if event["key"] in self._entries]

    def crash(self, deaths: Mapping[int, str]) -> None:
        """Note that the workers of some ranks died, each with its reason.

        Ray Train is about to end the others too, so nobody is leased a run before having registered again.
        """
        self._present.clear()
        for rank, reason in deaths.items():
            held = {
                key: entry
                for key, entry in self._entries.items()
                if entry.state == "leased" and entry.rank == rank
            }
            for key, entry in held.items():
                error = {"type": "WorkerDied", "message": f"its worker died: {reason}", "traceback": ""}
                if len(held) == 1:
                    self._charge(key, entry, error, retry=True)
                else:
                    entry.company = entry.rank = None
                    self._wait(key)
                    self._event("retried", key, error=error, attempts=entry.attempts)

    def vacate(self, nodes: Iterable[str]) -> None:
        """Ask the workers of these nodes, and of no others, to stop: the nodes are about to be taken away."""
        self._vacated = frozenset(nodes)

    def stop(self) -> None:
        """Ask all workers to keep what their runs have reached and to leave."""
        self._stopped = True

    def close(self) -> None:
        """Let the workers go once nothing waits."""
        self._closed = True

    def drain(self, keys: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """Return the events since the last call, oldest first; of some runs, or of all."""
        wanted = set(self._entries if keys is None else keys)
        events = [
            {**event, "facts": dict(event["facts"])} if "facts" in event else event
            for event in self._events
            if event["key"] in wanted
        ]
        self._events = [event for event in self._events if event["key"] not in wanted]
        for key in wanted & set(self._entries):
            self._entries[key].progress = {}
        return events

    def held(self) -> int:
        """Return how many runs are leased."""
        return sum(entry.state == "leased" for entry in self._entries.values())

    def _shall_stop(self, rank: int) -> bool:
        return self._stopped or self._present.get(rank, "") in self._vacated

    def _leased(self, rank: int) -> dict[str, Any]:
        _, key = heapq.heappop(self._waiting)
        entry = self._entries[key]
        self._leases += 1
        entry.state, entry.rank, entry.lease = "leased", rank, f"{self._generation}-{self._leases}"
        entry.attempts += 1
        self._event("started", key, rank=rank, attempt=entry.attempts)
        return {"key": key, "lease": entry.lease, "config": entry.config}

    def _ended(self, key: str, lease: str) -> _Entry | None:
        """Return the entry of a run that its worker ended; None where the lease is not the current one."""
        self._held_before.pop(key, None)
        self._leaving.pop(key, None)
        return self._current(key, lease)

    def _current(self, key: str, lease: str) -> _Entry | None:
        """Return the entry of a run that is held under this lease.

        A worker that was given up may still speak.
        """
        entry = self._entries.get(key)
        return entry if entry is not None and entry.state == "leased" and entry.lease == lease else None

    def _charge(self, key: str, entry: _Entry, error: Facts, *, retry: bool) -> None:
        entry.charged += 1
        entry.rank = entry.company = None
        if retry and entry.charged < self._attempts:
            self._wait(key)
            self._event("retried", key, error=dict(error), attempts=entry.attempts)
        else:
            entry.state = "failed"
            self._event("failed", key, error=dict(error), attempts=entry.attempts)

    def _release(self, rank: int) -> None:
        self._leaving = {key: left for key, left in self._leaving.items() if left[0] != rank}
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
