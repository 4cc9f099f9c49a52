"""A trial: its runs, and what they have come to so far, taken together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from attempt_ray.config import Config
from attempt_ray.errors import AttemptError, DataError
from attempt_ray.orchestration.search import Outcome, Point, Search, Trial

RunsOf = Callable[[Point], Mapping[str, Config]]
"""The runs of a trial at a point, by keys that are unique within the trial."""


OnEnd = Callable[[int], None]
"""Called with the number of every trial that ended, when the study holds its end."""


def next_trial(search: Search, runs_of: RunsOf, on_end: OnEnd) -> tuple[Trial, Mapping[str, Config]] | None:
    """Return what to try now with its runs, None where there is nothing; a point without runs fails its trial.

    Raises:
        StorageError: The storage refused.
    """
    while (trial := search.next()) is not None:
        try:
            return trial, runs_of(trial.point)
        except AttemptError as error:
            search.fail(trial.number, str(error), again=False)
            on_end(trial.number)
    return None


@dataclass(frozen=True)
class Reached:
    """An evaluation that all runs of a trial have had."""

    step: int
    """Optimizer steps until then, the mean over runs."""
    value: float
    """Best dev score until then, the mean over runs."""
    last: bool
    """Whether no run has more steps to take."""


class Scores:
    """What the runs of one trial have scored on their dev rows, as far as they have said.

    Args:
        keys: The runs.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._means: dict[str, dict[int, float]] = {key: {} for key in keys}
        self._reports: dict[str, Mapping[str, Any]] = {}
        self._steps: dict[str, int] = dict.fromkeys(keys, 0)
        self._tokens: dict[str, list[int]] = {key: [] for key in keys}
        self._planned: dict[str, int] = {}
        self._at_end: set[str] = set()
        self._told = 0

    @property
    def done(self) -> bool:
        """Whether every run has ended."""
        return len(self._reports) == len(self._means)

    @property
    def steps(self) -> int:
        """Optimizer steps of all runs, as far as they have said."""
        return sum(self._steps.values())

    @property
    def tokens(self) -> int:
        """Tokens of all runs; of those that have not ended, as many as the steps that were heard of had in the mean."""
        known: int = sum(report["tokens"] for report in self._reports.values())
        running = [
            (steps, self._tokens[key]) for key, steps in self._steps.items() if key not in self._reports
        ]
        return known + round(sum(steps * fmean(tokens) for steps, tokens in running if tokens))

    def heard(self, key: str, facts: Mapping[str, Any]) -> list[Reached]:
        """Take what a run said of itself; return the evaluations that by it all runs have had."""
        kind, said = facts.get("kind"), facts.get("facts", {})
        if kind == "step":
            self._steps[key] = max(self._steps[key], facts["step"])
            self._tokens[key].append(facts.get("tokens", 0))
        elif kind == "plan":
            self._planned[key] = said["steps"]
        elif kind == "evaluated":
            self._means[key][said["step"]] = said["mean"]
        else:  # one that goes on or had ended tells again what an earlier process has told
            self._means[key].update(dict(said.get("means", ())))
            if kind == "finished":
                self._at_end.add(key)
        return self._new_points()

    def ended(self, key: str, report: Mapping[str, Any]) -> list[Reached]:
        """Take the report of a run; return the evaluations that by it all runs have had."""
        self._reports[key] = report
        self._at_end.add(key)
        self._steps[key] = report["steps"]
        return self._new_points()

    def outcome(self) -> Outcome:
        """Return what the trial came to, of the runs that have ended.

        Raises:
            DataError: None of them reported a dev score.
        """
        scores: dict[str, float] = {}
        for report in self._reports.values():
            for task, found in report["scores"].items():
                if "dev" in found:
                    name = f"{task}/s{report['seed']}"
                    scores[name] = found["dev"]["metrics"][report["headline"][task]]
        if not scores and self.done:
            raise DataError("the runs of the trial reported no dev score; give their tasks dev rows")
        by_seed: dict[str, list[float]] = {}
        for name, score in scores.items():
            by_seed.setdefault(name.rpartition("/")[2], []).append(score)
        means = [fmean(found) for found in by_seed.values()]
        return Outcome(
            scores=scores,
            spread=stdev(means) if len(means) > 1 else None,
            steps=self.steps,
            tokens=self.tokens,
            seconds=sum(report["seconds"] for report in self._reports.values()),
        )

    def _new_points(self) -> list[Reached]:
        points: list[Reached] = []
        while any(len(means) > self._told for means in self._means.values()):
            reached = {key: self._reached(key, self._told) for key in self._means}
            known = {key: found for key, found in reached.items() if found is not None}
            if len(known) < len(reached):
                break
            self._told += 1
            points.append(
                Reached(
                    step=round(fmean(step for step, _ in known.values())),
                    value=fmean(best for _, best in known.values()),
                    last=all(
                        key in self._at_end or step >= self._planned.get(key, math.inf)
                        for key, (step, _) in known.items()
                    ),
                )
            )
        return points

    def _reached(self, key: str, place: int) -> tuple[int, float] | None:
        """Return step and best score of a run after one evaluation more than `place`, or at its end."""
        means = sorted(self._means[key].items())
        if len(means) > place:
            return means[place][0], max(mean for _, mean in means[: place + 1])
        if key in self._at_end and means:
            return means[-1][0], max(mean for _, mean in means)
        return None
