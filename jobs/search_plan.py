"""What a search consists of: its tasks and space, and the runs behind every trial. Pure functions of the config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from attempt_ray.bank.names import check_name
from attempt_ray.config import Config
from attempt_ray.errors import ConfigError
from attempt_ray.orchestration.search import Point
from attempt_ray.orchestration.study import Job
from attempt_ray.reporting.costs import forward_flops
from attempt_ray.reporting.parameters import backbone_shape
from attempt_ray.tasks import Task
from jobs import plan
from jobs.estimate import Estimate, estimate
from tune_spaces import SPACES
from tune_spaces.space import Knob, Space, Value, check_space, load_space

_OF_GROUP = {
    "GLUE": "glue",
    "SuperGLUE": "superglue",
    "MultiRC": "multirc",
    "MRQA": "mrqa",
    "Others": "others",
}
_SEARCHED = ("data", "prompt", "attention", "training", "evaluation", "study.prior")
"""What a trial may set."""
_SHARED = ("training.dropout", "training.threads")
"""Of these, what runs must agree on to share a forward pass."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """A search, told from its config alone."""

    config: Config
    """With the search's name settled."""
    space: Space
    tasks: dict[str, Task]

    @property
    def name(self) -> str:
        """Name of the study."""
        return str(self.config.search.study)

    @property
    def runs_per_trial(self) -> int:
        """Runs of every trial."""
        search = self.config.search
        return len(search.seeds) * (1 if search.method == "attempt_mt" else len(self.tasks))

    def facts(self) -> dict[str, Any]:
        """Return what decides the trials, as the study keeps it."""
        search = self.config.search
        return {
            "space": self.space.model_dump(mode="json"),
            "space_digest": self.space.digest(),
            "config_digest": _digest(self.config),
            "tasks": list(self.tasks),
            "method": search.method,
            "seeds": list(search.seeds),
            "objectives": list(search.objectives),
            "sampler": search.sampler,
            "startup_trials": search.startup_trials,
            "pruner": search.pruner,
        }

    def runs_of(self, point: Point) -> dict[str, Config]:
        """Return the runs of a trial.

        Raises:
            ConfigError: The config cannot be used at this point.
        """
        runs = self._runs(point, seeds=self.config.search.seeds)
        place = f"{self.config.runs.rstrip('/')}/search-{self.name}"
        return {key: run.updated(trial=True, runs=place) for key, run in runs.items()}

    def final_jobs(self, point: Point) -> list[Job]:
        """Return the runs that the found settings are tested by.

        Raises:
            ConfigError: The config cannot be used at this point.
        """
        runs = self._runs(point, seeds=self.config.search.final_seeds)
        return [Job(key=f"final/{key}", config=run) for key, run in runs.items()]

    def costs(self, point: Point) -> list[float]:
        """Return what the objectives beside `dev` come to at a point: the mean over its runs.

        Raises:
            ConfigError: The backbone's shape is not known here.
        """
        shape = backbone_shape(self.config.backbone.name)
        runs = self._runs(point, seeds=self.config.search.seeds[:1]).values()
        found = {
            "parameters": fmean(2 * shape.width * run.attention.bottleneck + 2 * shape.width for run in runs),
            "flops": fmean(
                forward_flops(
                    shape,
                    tokens=run.prompt.length + (run.data.max_source_tokens or task.max_source_tokens),
                    targets=task.max_target_tokens,
                )
                for run in runs
                for task in (self.tasks[name] for name in run.tasks)
            ),
        }
        return [found[name] for name in self.config.search.objectives[1:]]

    def corners(self) -> Sequence[Point]:
        """Return points that stand for all: the known ones, and for each knob one at each end of its domain."""
        knobs = self.space.knobs
        ends = [
            self.space.draw(partial(_corner, knob.key, end)) for knob in knobs for end in knob.domain.ends()
        ]
        return [*self.space.known, *ends]

    def cost(self) -> Estimate:
        """Return what all trials take at most, at the longest budget of the space.

        Raises:
            ConfigError: A task is unknown.
        """
        return estimate(self.trial_jobs(), self.config, workers=self.config.cluster.workers)

    def trial_jobs(self) -> list[Job]:
        """Return the runs of as many trials as there shall be, each at the longest budget of the space."""
        runs = self._runs(_longest(self.space), seeds=self.config.search.seeds)
        return [
            Job(key=f"{number}/{key}", config=run)
            for number in range(self.config.search.trials)
            for key, run in runs.items()
        ]

    def _runs(self, point: Point, *, seeds: Sequence[int]) -> dict[str, Config]:
        config, names = self.space.apply(self.config, point), tuple(self.tasks)
        together = [names] if self.config.search.method == "attempt_mt" else [(name,) for name in names]
        return {
            f"{'+'.join(tasks)}/s{seed}": plan.target_config(
                config, label=self.config.search.method, tasks=tasks, seed=seed
            )
            for tasks in together
            for seed in seeds
        }


def plan_search(config: Config) -> SearchPlan:
    """Return the search of a config, having checked everything that can be told without rows.

    Raises:
        ConfigError: A task, space or key is unknown, or the space does not fit the config.
    """
    names = config.tasks or config.study.targets
    if not names:
        raise ConfigError("a search needs tasks; name at least one, such as --set tasks=[rte]")
    known = plan.check(config.updated(study={"targets": names, "groups": ()}))
    tasks = {name: known[name] for name in dict.fromkeys(names)}
    space = load_space(config.search.space or _space_of(config, tasks), SPACES)
    _check_keys(space, packed=config.search.packed)
    check_space(space, config)
    config = config.updated(job="target", tasks=(), study={"targets": tuple(tasks), "groups": ()})
    name = config.search.study or f"{space.name}-{_digest(config, space=space.digest())}"
    check_name(name)
    return SearchPlan(config=config.updated(search={"study": name}), space=space, tasks=tasks)


def _space_of(config: Config, tasks: dict[str, Task]) -> str:
    if config.data.origin == "embedded":
        return "embedded"
    groups = {task.group for task in tasks.values()}
    if len(groups) > 1 or not groups <= set(_OF_GROUP):
        raise ConfigError(
            f"the tasks are of {', '.join(sorted(groups))}, which share no search space; name one in search.space, or "
            "tasks of one group"
        )
    return _OF_GROUP[groups.pop()]


def _check_keys(space: Space, *, packed: bool) -> None:
    """Refuse knobs that no trial may set: what it is scored by must stay what it is."""
    keys = [*space.fixed, *(key for knob in space.knobs for key in _set_by(knob))]
    for key in keys:
        if not any(key == part or key.startswith(f"{part}.") for part in _SEARCHED):
            raise ConfigError(
                f"space '{space.name}' sets '{key}'; a search sets keys of {', '.join(_SEARCHED)} alone"
            )
        if packed and key in _SHARED:
            raise ConfigError(
                f"space '{space.name}' sets '{key}', on which trials must agree to share a backbone; take it out, or set "
                "search.packed=false"
            )


def _set_by(knob: Knob) -> list[str]:
    return [key for value in knob.domain.ends() for key in knob.settings(value)]


def _corner(key: str, end: Value, knob: Knob) -> Value:
    return end if knob.key == key else knob.domain.ends()[0]


def _longest(space: Space) -> Point:
    """Return a point with the longest budget."""

    def pick(knob: Knob) -> Value:
        ends = knob.domain.ends()
        return max(ends) if knob.key == "training.steps" else ends[0]  # type: ignore[type-var]

    return space.draw(pick)


def _digest(config: Config, **facts: str) -> str:
    """Return what names a search: all that decides its trials, but not its budget and places."""
    search = config.search.model_dump(
        mode="json",
        include={
            "method",
            "seeds",
            "objectives",
            "sampler",
            "startup_trials",
            "pruner",
            "reduction_factor",
            "first_rung",
            "seed",
        },
    )
    page = config.model_dump(mode="json", exclude={"bank", "runs", "cluster", "search", "serving"})
    text = json.dumps({"config": page, "search": search, **facts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
