"""A search in this process: the runs of several trials on one frozen backbone, their steps in shared forward passes."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from attempt_ray.errors import DataError, DroppedError, StoppedError
from attempt_ray.orchestration.search import Search, Trial
from attempt_ray.orchestration.study import describe_error, is_mendable, progress_facts
from attempt_ray.orchestration.trial import OnEnd, Reached, RunsOf, Scores, next_trial
from attempt_ray.training.loop import Progress
from attempt_ray.training.run import Event, RunResult, Ticket, execute_stream
from attempt_ray.training.stopping import heed_stop, is_stop_asked


def search_here(search: Search, runs_of: RunsOf, *, trials_at_once: int, packed: bool, on_end: OnEnd) -> None:
    """Try what the search asks for until it asks for no more.

    Args:
        search: The search.
        runs_of: The runs of a trial.
        trials_at_once: Trials under way at once.
        packed: Whether the runs of all trials can share a backbone; else those of one trial do, one trial at a time.
        on_end: Called for every trial that ended.

    Raises:
        StorageError: The study's storage refused.
        StoppedError: This process was asked to stop; the runs keep what they have reached.
    """
    trials = _Trials(search, runs_of, at_once=trials_at_once if packed else 1, packed=packed, on_end=on_end)
    try:
        while trials.begin():
            execute_stream(trials.take, most=sys.maxsize)  # as many as those trials have
            if is_stop_asked():
                break
    finally:
        search.release()
    heed_stop()


@dataclass(eq=False)
class _Live:
    """A trial under way."""

    trial: Trial
    scores: Scores
    left: int
    """Runs that have not ended."""
    pruned: bool = False
    error: Exception | None = None
    """What ended the first of its runs that failed."""

    @property
    def unwanted(self) -> bool:
        """Whether its other runs need not be taken to their ends."""
        return self.pruned or self.error is not None


class _Trials:
    """The trials under way, as the runs that a stream takes."""

    def __init__(self, search: Search, runs_of: RunsOf, *, at_once: int, packed: bool, on_end: OnEnd) -> None:
        self._search = search
        self._runs_of = runs_of
        self._at_once = at_once
        self._packed = packed
        self._on_end = on_end
        self._waiting: deque[tuple[_Live, str, Ticket]] = deque()

    def take(self, free: int) -> Sequence[Ticket]:
        """Return runs for the free places, of new trials where those under way have none left."""
        if is_stop_asked():
            return ()
        tickets: list[Ticket] = []
        while len(tickets) < free and (self._waiting or (self._packed and self.begin())):
            live, key, ticket = self._waiting.popleft()
            if live.unwanted:
                self._ended(live, key, DroppedError("its trial was given up"))
            else:
                tickets.append(ticket)
        return tickets

    def begin(self) -> bool:
        """Begin another trial, where there may be one more; return whether runs wait now."""
        if len(self._search.under_way) >= self._at_once:
            return False
        found = next_trial(self._search, self._runs_of, self._on_end)
        if found is None:
            return False
        trial, runs = found
        live = _Live(trial, Scores(list(runs)), left=len(runs))
        for key, config in runs.items():
            ticket = Ticket(
                config=config,
                on_progress=partial(self._heard, live, key),
                on_end=partial(self._ended, live, key),
            )
            self._waiting.append((live, key, ticket))
        return True

    def _heard(self, live: _Live, key: str, progress: Progress | Event) -> None:
        self._judge(live, live.scores.heard(key, progress_facts(progress)))
        if live.unwanted:
            raise DroppedError("its trial was given up")

    def _judge(self, live: _Live, points: Sequence[Reached]) -> None:
        for point in points:
            if not live.pruned:
                verdict = self._search.report(live.trial.number, point.step, point.value)
                live.pruned = verdict and not point.last

    def _ended(self, live: _Live, key: str, outcome: RunResult | Exception) -> None:
        live.left -= 1
        if isinstance(outcome, RunResult):
            self._judge(live, live.scores.ended(key, outcome.report))
        elif not isinstance(outcome, DroppedError):
            live.error = live.error or outcome
        if not live.left:
            self._settle(live)
            self._on_end(live.trial.number)

    def _settle(self, live: _Live) -> None:
        number, steps = live.trial.number, live.scores.steps
        if isinstance(live.error, StoppedError):
            self._search.fail(number, "the search was stopped", again=True, charged=False, steps=steps)
        elif live.error is not None:
            reason = describe_error(live.error)["message"]
            self._search.fail(number, reason, again=is_mendable(live.error), steps=steps)
        elif live.pruned:
            self._search.prune(number, live.scores.outcome())
        else:
            try:
                outcome = live.scores.outcome()
            except DataError as error:
                self._search.fail(number, str(error), again=False, steps=steps)
            else:
                self._search.finish(number, outcome)
