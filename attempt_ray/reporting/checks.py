"""What keeps runs from being laid side by side, and what a reader of their numbers must be told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from attempt_ray.config import METHODS
from attempt_ray.reporting.runs import Run

_CHANGING = {name for name, facts in METHODS.items() if facts.backbone != "frozen"}

WANTED_SEEDS = 3
"""Fewest seeds whose spread means something (notes on the paper: it reports none)."""

_NAMED = 4
"""Most methods that a sentence on what they have in common names."""


def newest(runs: Iterable[Run]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """Return one run for each method, task and seed, the one that finished last, and what was left out.

    Several runs of one method on one task with one seed differ in config or data; they are no repetitions of
    each other, so a mean over them would mean nothing.
    """
    kept: list[Run] = []
    notes: list[str] = []
    winners: dict[tuple[str, str, str, int], Run] = {}
    for run in sorted(runs, key=lambda run: (-run.finished, run.report.digest)):
        report = run.report
        keys = [(report.job, report.label, task, report.seed) for task in report.tasks]
        newer = next((winners[key] for key in keys if key in winners), None)
        if newer is not None:
            notes.append(
                f"{run.directory.name} was left out: {newer.directory.name} is newer and has the same method, "
                "task and seed"
            )
            continue
        winners.update(dict.fromkeys(keys, run))
        kept.append(run)
    return tuple(sorted(kept, key=lambda run: run.directory)), tuple(sorted(notes))


def warnings(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return what a reader of a table over `runs` must know, one sentence each, in a fixed order."""
    return (*_of_single_runs(runs), *_of_comparisons(runs), *_of_seeds(runs))


def _of_single_runs(runs: Sequence[Run]) -> list[str]:
    constant: dict[tuple[str, str], list[int]] = defaultdict(list)
    cold: dict[tuple[str, str], list[int]] = defaultdict(list)
    found: list[str] = []
    for run in runs:
        report = run.report
        for task in report.tasks:
            if report.constant_prediction.get(task):
                constant[report.label, task].append(report.seed)
        if report.warmup_steps >= report.steps:
            cold[report.label, "+".join(report.tasks)].append(report.seed)
        if report.backbone_unchanged is False and report.method not in _CHANGING:
            found.append(
                f"{run.directory.name}: the backbone changed during the run, though it is to be frozen"
            )
        if run.unreadable_lines:
            found.append(
                f"{run.directory.name}: {run.unreadable_lines} unreadable lines of metrics.jsonl skipped"
            )
    found += [
        f"{label} answers {tasks} with one and the same answer (seeds {seeds}): its score is no skill"
        for label, tasks, seeds in _by_label(constant)
    ]
    found += [
        f"{label} on {tasks}: warm-up never ended (seeds {seeds}), the peak learning rate was not reached"
        for label, tasks, seeds in _by_label(cold)
    ]
    return found


def _of_comparisons(runs: Sequence[Run]) -> list[str]:
    steps: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    rows: dict[str, set[int]] = defaultdict(set)
    data: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for task in run.report.tasks:
            steps[task][run.report.label].add(run.report.steps)
            rows[task].add(run.test_rows(task))
            if task in run.report.data_sha256:
                data[task].add(run.report.data_sha256[task])
    unequal: dict[str, list[str]] = defaultdict(list)
    for task, of_task in sorted(steps.items()):
        if len(set().union(*of_task.values())) > 1:
            unequal[", ".join(_alike(of_task))].append(task)
    found = [
        f"{', '.join(tasks)}: methods took unequal steps ({shares})" for shares, tasks in unequal.items()
    ]
    found += [
        f"{task}: test sets of unequal size ({_listed(counts)})"
        for task, counts in rows.items()
        if len(counts) > 1
    ]
    found += [
        f"{task}: runs saw {len(digests)} different data sets"
        for task, digests in data.items()
        if len(digests) > 1
    ]
    backbones = {run.report.backbone.weights_sha256: run.report.backbone.name for run in runs}
    if len(backbones) > 1:
        names = sorted(f"{name} ({sha[:8]})" for sha, name in backbones.items())
        found.append(f"runs use different backbones: {', '.join(names)}")
    return found


def _of_seeds(runs: Sequence[Run]) -> list[str]:
    seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
    for run in runs:
        for task in run.report.tasks:
            seeds[run.report.label, task].add(run.report.seed)
    few: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for (label, task), of_task in sorted(seeds.items()):
        if len(of_task) < WANTED_SEEDS:
            few[label][len(of_task)].append(task)
    alike: dict[tuple[int, tuple[str, ...]], list[str]] = defaultdict(list)
    for label, by_count in few.items():
        for count, tasks in sorted(by_count.items()):
            alike[count, tuple(tasks)].append(label)
    return [
        f"{', '.join(labels)}: {count} {'seed' if count == 1 else 'seeds'} only on {', '.join(tasks)} "
        f"(at least {WANTED_SEEDS} wanted)"
        for (count, tasks), labels in alike.items()
    ]


def _by_label(seeds: Mapping[tuple[str, str], Iterable[int]]) -> list[tuple[str, str, str]]:
    """Return label, tasks and seeds, the tasks together on which a label has the same seeds."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (label, task), of_task in seeds.items():
        found[label, _listed(of_task)].append(task)
    return [(label, ", ".join(tasks), listed) for (label, listed), tasks in found.items()]


def _alike(steps: Mapping[str, Iterable[int]]) -> list[str]:
    """Return labels with their steps, those together that took the same; the most, where they are many, as all others."""
    found: dict[str, list[str]] = defaultdict(list)
    for label, counts in sorted(steps.items()):
        found[_listed(counts)].append(label)
    most = max(found, key=lambda counts: len(found[counts]))
    if len(found[most]) > _NAMED:
        return [
            *(f"{' and '.join(found[counts])} {counts}" for counts in found if counts != most),
            f"all others {most}",
        ]
    return [f"{' and '.join(labels)} {counts}" for counts, labels in found.items()]


def _listed(values: Iterable[int]) -> str:
    return ", ".join(str(value) for value in sorted(values))
