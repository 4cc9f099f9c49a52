"""Executing runs: one, several on one frozen backbone at once, or a stream of them as others end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from attempt_ray.config import Config
from attempt_ray.errors import ConfigError, StoppedError
from attempt_ray.training.course import (
    Course,
    Event,
    Learn,
    OnProgress,
    RunResult,
    course,
    keep_start,
    train_and_select,
)
from attempt_ray.training.loop import Progress, Training, take_step
from attempt_ray.training.parallel import ALONE, Team
from attempt_ray.training.stopping import is_stop_asked, stopped

__all__ = [
    "Event",
    "OnProgress",
    "RunResult",
    "Ticket",
    "execute",
    "execute_stream",
    "execute_together",
    "mixture_without_training",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ticket:
    """A run for `execute_stream`."""

    config: Config
    on_progress: OnProgress
    """Called after every optimizer step of the run and on each of its events."""
    on_end: Callable[[RunResult | Exception], None]
    """Called once, with its result or the error that ended it."""


def execute(config: Config, *, on_progress: OnProgress | None = None, team: Team = ALONE) -> RunResult:
    """Execute a run to its end and return its report; a finished one is not executed again.

    A run that was interrupted goes on from its newest whole checkpoint and ends exactly as if it had never stopped, on
    the same machine and number of threads. A finished run is published again where the bank of the config does not
    hold what it learned.

    Args:
        config: The run.
        on_progress: Called after every optimizer step and on every event, in this thread.
        team: Processes that share the run and all call this at once, with one config. Its first does all the writing.

    Raises:
        ConfigError: The config cannot be run, or another process executes the same run.
        BackboneError: The backbone cannot be loaded, a prompt was made for another one, or its weights moved.
        BankError: The bank does not hold what the config names, or refuses what the run learned.
        DataError: Rows are missing or cannot be used.
        NonFiniteError: Training met NaN or infinity; the last good state is kept in the run's directory.
        StorageError: The disk or store refused.
        StoppedError: The process was asked to stop; the state is kept in the run's directory.
    """
    return _alone(config, on_progress, learn=train_and_select, rows="all", team=team)


def execute_together(
    configs: Sequence[Config], *, on_progress: Sequence[OnProgress] | None = None
) -> list[RunResult | Exception]:
    """Execute runs on one frozen backbone at once, their steps in shared forward passes.

    Each run is what `execute` makes of it: its own directory, checkpoints, evaluations, end and errors. A run that
    ends leaves the others to go on, and so does one that fails.

    Args:
        configs: The runs. They agree on `Config.common`, and none changes the backbone, unless it is the only one.
        on_progress: For each run, what to call after each of its steps and on each of its events.

    Returns:
        The result of every run, or the error that ended it, in order.

    Raises:
        ConfigError: The runs cannot share a backbone; nothing was done.
    """
    if not configs:
        raise ConfigError("got no run to execute; give at least one config")
    for config in configs[1:]:
        _check_common(configs[0], config)
    outcomes: dict[int, RunResult | Exception] = {}
    tickets = [
        Ticket(config=config, on_progress=tell, on_end=partial(outcomes.__setitem__, place))
        for place, (config, tell) in enumerate(
            zip(configs, on_progress or [_silent] * len(configs), strict=True)
        )
    ]
    execute_stream(_all_at_once(tickets), most=len(tickets))
    return [outcomes[place] for place in range(len(configs))]


def execute_stream(take: Callable[[int], Sequence[Ticket]], *, most: int) -> None:
    """Execute runs on one frozen backbone as they come, the places of those that end being taken by others.

    Args:
        take: Called between steps with the number of free places, it returns the runs that shall take them; all agree
            on `Config.common`. The stream ends when it returns none while no run is under way.
        most: Places: runs that are under way at once.
    """
    _drive(take, most=most, learn=train_and_select, rows="all")


def mixture_without_training(config: Config, *, on_progress: OnProgress | None = None) -> RunResult:
    """Use a prior on tasks that have no training data: a run of no step.

    The target prompts are what training would start from, a source prompt by default, and G is the prior. Neither
    training nor dev rows are read, and the outcome is scored on the test rows, reported under the label
    `attempt_prior` and published like any other.

    Args:
        config: A target run of ATTEMPT; `attention.prior` names the prior, unless the weights are constant.
        on_progress: Called on every event.

    Raises:
        ConfigError: The config is not such a run.
        AttemptError: As `execute`.
    """
    if config.job != "target" or config.method != "attempt":
        raise ConfigError(
            f"a mixture without training got job '{config.job}' and method '{config.method}'; set job=target and "
            "method=attempt"
        )
    if config.attention.weights == "learned" and config.attention.prior is None:
        raise ConfigError("a mixture without training needs a G; name one in attention.prior")
    return _alone(config, on_progress, learn=keep_start, rows="test")


def _silent(_: Progress | Event) -> None:
    """Watch without a word."""


def _alone(
    config: Config,
    on_progress: OnProgress | None,
    *,
    learn: Learn,
    rows: Literal["all", "test"],
    team: Team = ALONE,
) -> RunResult:
    outcomes: list[RunResult | Exception] = []
    ticket = Ticket(config=config, on_progress=on_progress or _silent, on_end=outcomes.append)
    _drive(_all_at_once([ticket]), most=1, learn=learn, rows=rows, team=team)
    (outcome,) = outcomes
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _all_at_once(tickets: Sequence[Ticket]) -> Callable[[int], Sequence[Ticket]]:
    left = [tickets]
    return lambda _places: left.pop() if left else ()


def _check_common(first: Config, config: Config) -> None:
    common, other = first.common(), config.common()
    if common is None or other is None:
        alone = first.method if common is None else config.method
        raise ConfigError(
            f"method '{alone}' changes the backbone, which no other run can then share; run it apart"
        )
    for name, wanted in common.items():
        if other[name] != wanted:
            raise ConfigError(
                f"runs that share a backbone got {name} {wanted} and {other[name]}; make them agree or run them apart"
            )


@dataclass(eq=False)
class _UnderWay:
    """A run that has been started, and the step that it asks for."""

    ticket: Ticket
    course: Course
    asks: Training | None = None

    def advance(self, told: Progress | Exception | None) -> None:
        """Let the run go on, having told it what became of the step it asked for."""
        self.asks = None
        try:
            match told:
                case None:
                    self.asks = next(self.course)
                case StoppedError():
                    self.asks = self.course.throw(told)
                case _:
                    self.asks = self.course.send(told)
        except StopIteration as end:
            self.ticket.on_end(end.value)
        except Exception as error:  # noqa: BLE001 - any failure belongs to the run, not to those beside it
            self.ticket.on_end(error)


def _drive(
    take: Callable[[int], Sequence[Ticket]],
    *,
    most: int,
    learn: Learn,
    rows: Literal["all", "test"],
    team: Team = ALONE,
) -> None:
    """Take runs to their ends, the steps that they ask for at one time in one forward pass."""
    under_way: list[_UnderWay] = []

    def close() -> None:
        for run in under_way:
            run.course.close()

    with ExitStack() as stack:
        stack.callback(close)
        settled = False
        while True:
            fresh = take(most - len(under_way)) if len(under_way) < most else ()
            for ticket in fresh:
                if not settled:
                    stack.enter_context(_torch_settings(ticket.config))
                    settled = True
                started = course(ticket.config, learn, rows=rows, on_progress=ticket.on_progress, team=team)
                run = _UnderWay(ticket, started)
                under_way.append(run)
                run.advance(None)
            under_way = [run for run in under_way if run.asks is not None]
            if not (under_way or fresh):
                return
            trainings = [run.asks for run in under_way if run.asks is not None]
            told: Sequence[Progress | Exception] = ()
            if trainings:
                stop = team.any(is_stop_asked())
                told = [stopped()] * len(trainings) if stop else take_step(trainings)
            for run, outcome in zip(under_way, told, strict=True):
                run.advance(outcome)
            under_way = [run for run in under_way if run.asks is not None]


@contextmanager
def _torch_settings(config: Config) -> Iterator[None]:
    """Set what bit-identical results need, for the time of a run."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    if torch.device(config.device).type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # wanted by deterministic cuBLAS
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
