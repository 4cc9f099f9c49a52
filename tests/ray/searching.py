"""A search of short trials, in a process of its own, that tests kill; and a work that stands in for training.

Run as a script with the search as JSON on stdin; what it prints on stderr of trials that ended is what `attempt tune`
prints, and the study holds it by then.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from attempt_ray.config import Config, parse
from attempt_ray.errors import NonFiniteError
from attempt_ray.orchestration.search import Search
from attempt_ray.orchestration.search_here import search_here
from attempt_ray.orchestration.study_storage import held, open_study_storage
from jobs.search_plan import SearchPlan, plan_search
from jobs.tune import storage_place


def opened(config: Config) -> tuple[SearchPlan, Search]:
    """Open the search of a config."""
    plan = plan_search(config)
    search = Search.open(
        open_study_storage(storage_place(plan.config)),
        plan.config.search,
        plan.space,
        name=plan.name,
        facts=plan.facts(),
        costs=plan.costs,
    )
    return plan, search


def by_hash(share: float, faults: Sequence[str]) -> Callable[[float], str | None]:
    """Return a function from a rate to what befalls it: a share of all, by the hash of the rate."""

    def fault_at(rate: float) -> str | None:
        drawn = hashlib.sha256(f"{rate}".encode()).digest()
        return faults[drawn[1] % len(faults)] if faults and drawn[0] < 256 * share else None

    return fault_at


def quality(rate: float) -> float:
    """Return the score of a rate: the nearer to 0.1, the higher."""
    return 90.0 - 20 * abs(math.log10(rate / 0.1))


def toy(
    directory: Path,
    *,
    fault_at: Callable[[float], str | None] = lambda _: None,
    seconds: float = 0.0,
    always: bool = False,
) -> Any:
    """Return a work that takes no training, whose score is the rate's; closures travel to the workers by value.

    Args:
        directory: Where it notes which runs it has begun.
        fault_at: What befalls a rate: `raises`, `hangs`, `dies`, `diverges` or nothing.
        seconds: How long a run takes.
        always: Whether faults befall every attempt, not the first alone.
    """

    @dataclass(frozen=True)
    class Said:
        kind: str
        facts: Mapping[str, Any]
        step: int = 0

    @dataclass(frozen=True)
    class Done:
        directory: str
        report: Mapping[str, Any]

    score_of = quality  # by value, too

    def befall(fault: str) -> None:
        match fault:
            case "raises":
                raise RuntimeError("out of luck")
            case "hangs":
                time.sleep(3600)
            case "dies":
                os._exit(1)
            case "diverges":
                raise NonFiniteError("step 2 of 4 met loss nan; lower the rate")

    def work(config: Config, *, on_progress: Callable[[Any], None] | None = None) -> Done:
        tell = on_progress or (lambda _: None)
        rate = config.training.prompt_learning_rate
        score, fault = score_of(rate), fault_at(rate)
        begun = directory / f"{rate}-{config.seed}"
        first = not begun.exists()
        with begun.open("a") as file:
            file.write("begun\n")
        steps = config.training.steps or 0
        tell(Said("plan", {"steps": steps}))
        for step in range(1, steps + 1):
            time.sleep(seconds / steps)
            if step == 2 and fault is not None and (first or always):
                befall(fault)
            tell(Said("step", {}, step=step))
            tell(Said("evaluated", {"step": step, "mean": score - 1 / step}))
        report = {
            "seed": config.seed,
            "tasks": list(config.tasks),
            "headline": dict.fromkeys(config.tasks, "accuracy"),
            "scores": {task: {"dev": {"n": 1, "metrics": {"accuracy": score}}} for task in config.tasks},
            "steps": steps,
            "tokens": 10 * steps,
            "seconds": seconds,
        }
        return Done(str(directory), report)

    return work


def came_to(trial: FrozenTrial) -> str:
    """Return how a trial ended, every bit of its value included."""
    return f"{trial.state.name} {trial.values} {trial.user_attrs.get('scores')}"


def main() -> None:
    """Try what the search asks for, and say of every trial that it has ended."""
    from attempt_ray.orchestration.tuner import search_on_ray

    given = json.load(sys.stdin)
    config = parse([given["page"]])
    plan = plan_search(config)
    place = storage_place(plan.config)
    open_study_storage(place)
    with held(place, plan.name):
        plan, search = opened(config)

        def on_end(number: int) -> None:
            standing = search.standing()
            done = standing.finished + standing.pruned
            trial = search.study.trials[number]
            sys.stderr.write(f"[{done}/{config.search.trials}] trial {number}: {came_to(trial)}\n")
            sys.stderr.flush()

        at_once = given["at_once"]
        if given["here"]:
            search_here(search, plan.runs_of, trials_at_once=at_once, packed=True, on_end=on_end)
        else:
            work = given["toy"] and toy(
                Path(given["toy"]["directory"]),
                fault_at=by_hash(given["toy"]["share"], given["toy"]["faults"]),
                seconds=given["toy"]["seconds"],
            )
            search_on_ray(
                search,
                plan.runs_of,
                cluster=config.cluster,
                trials_at_once=at_once,
                packed=config.search.packed,
                on_end=on_end,
                work=work,
            )


if __name__ == "__main__":
    main()
