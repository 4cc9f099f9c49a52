"""What the runs of a job will take: steps, memory of a worker, time; told from the config, without rows."""

from __future__ import annotations

import heapq
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attempt_ray.config import Config, parse
from attempt_ray.errors import AttemptError, ConfigError, DataError
from attempt_ray.orchestration.study import Job
from attempt_ray.reporting.costs import StepMemory, step_memory, trained_memory, training_flops
from attempt_ray.reporting.parameters import BackboneShape, backbone_shape
from attempt_ray.reporting.runs import read_runs
from attempt_ray.tasks import get_task
from jobs.watch import clock

CORE_FLOPS = 55e9
"""Useful operations a second of one core, as measured: T5-small in float32 on one AVX2 core (docs/measurements.md)."""

PASS_TOKENS = {"cpu": 2_048, "gpu": 65_536}
"""Most tokens of a pass that runs share, as `training.loop` has them, which takes torch to import."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What runs will take, told beforehand."""

    runs: int
    steps: int | None
    """Optimizer steps of all runs; None where a budget in epochs needs rows that are not read here."""
    tokens: int | None
    """Input tokens of those steps, prompts counted, at the longest inputs."""
    peak_bytes: int | None
    """Memory of a worker at its peak, at the longest inputs; None where the backbone's shape is not known here."""
    flops: float | None
    """Useful operations of all steps, at the longest inputs."""
    seconds: float | None
    """Time of all steps on the workers asked for; scoring and start-up are not in it."""
    basis: str
    """What the time rests on, or why it is not told."""

    def as_dict(self) -> dict[str, Any]:
        """Return the estimate, JSON-able."""
        return asdict(self)

    def describe(self) -> list[str]:
        """Return the estimate in lines for people."""
        if not self.runs:
            return ["  runs         none: nothing is trained"]
        steps = "steps unknown" if self.steps is None else f"{self.steps:,} steps in all"
        steps += "" if self.tokens is None else f", {self.tokens / 1e6:,.3g} M tokens at the longest inputs"
        peak = (
            "unknown: the backbone's shape is not known here"
            if self.peak_bytes is None
            else f"{self.peak_bytes / 1e9:.2f} GB a worker at its peak, at the longest inputs"
        )
        time = "" if self.seconds is None else f"{clock(self.seconds)}, "
        return [
            f"  runs         {self.runs:,}, {steps}",
            f"  memory       {peak}",
            f"  time         {time}{self.basis}",
        ]


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """What one run takes."""

    flops: float
    """Of a step."""
    steps: int | None
    tokens: int
    """Of a step."""
    peak: int
    """Bytes of memory, at the longest inputs."""


def estimate(jobs: Sequence[Job], config: Config, *, workers: int, flops: float | None = None) -> Estimate:
    """Return what jobs will take.

    Args:
        jobs: The runs, as `jobs.plan` makes them.
        config: The study: cluster, device, and the `runs` whose finished runs tell how fast such steps were.
        workers: Processes that take runs side by side.
        flops: Useful operations a second of one worker; None takes finished runs, else `CORE_FLOPS` for processors.

    Raises:
        ConfigError: A task is unknown.
    """
    configs = _configs(jobs)
    try:
        # The trials of a search are the same runs over and over.
        by_run = {
            identity: run_cost(run) for identity, run in {id(run): run for run in configs.values()}.items()
        }
        costs = {key: by_run[id(run)] for key, run in configs.items()}
    except UnknownShapeError as error:
        return Estimate(
            runs=len(jobs),
            steps=_sum(run.training.steps for run in configs.values()),
            tokens=None,
            peak_bytes=None,
            flops=None,
            seconds=None,
            basis=f"unknown: {error}",
        )
    steps = _sum(cost.steps for cost in costs.values())
    total = seconds = None
    basis = "unknown: budgets in epochs need the rows; set training.steps and study.*_steps for an estimate"
    if steps is not None:
        total = sum(cost.flops * (cost.steps or 0) for cost in costs.values())
        rate, basis = (flops, "as given") if flops else _rate(config)
        if rate is not None:
            basis = f"for {_scaled(total)} at {_scaled(rate)}/s a worker, {basis}; scoring and start-up come on top"
            seconds = _makespan(
                jobs,
                {key: cost.flops * (cost.steps or 0) / rate for key, cost in costs.items()},
                workers=workers,
            )
    return Estimate(
        runs=len(jobs),
        steps=steps,
        tokens=None if steps is None else sum(cost.tokens * (cost.steps or 0) for cost in costs.values()),
        peak_bytes=max((cost.peak for cost in costs.values()), default=0),
        flops=total,
        seconds=seconds,
        basis=basis,
    )


def _configs(jobs: Sequence[Job]) -> dict[str, Config]:
    """Return the config of every run; one that is computed from another's result has that one's rows and budget."""
    known = {job.key: job.config for job in jobs if isinstance(job.config, Config)}
    return {job.key: job.config if isinstance(job.config, Config) else known[job.needs[-1]] for job in jobs}


class UnknownShapeError(Exception):
    """The backbone's shape cannot be told here."""


def _shape(name: str) -> BackboneShape:
    try:
        return backbone_shape(name)
    except ConfigError:
        raise UnknownShapeError(f"the shape of backbone '{name}' is not known here") from None


def run_cost(config: Config) -> RunCost:
    """Return what a run takes, at its longest inputs.

    Raises:
        ConfigError: A task is unknown.
        UnknownShapeError: The backbone's shape cannot be told here.
    """
    shape, data, prompt = _shape(config.backbone.name), config.data, config.prompt_length
    tasks = [get_task(name, data.user_tasks) for name in config.tasks]
    lengths = [(data.max_source_tokens or task.max_source_tokens) + prompt for task in tasks]
    if data.batch_tokens is None:
        each = [data.batch_rows] * len(tasks)
    else:
        each = [max(1, data.batch_tokens // (length - prompt) // len(tasks)) for length in lengths]
    rows = [
        (length, task.max_target_tokens)
        for task, length, count in zip(tasks, lengths, each, strict=True)
        for _ in range(count)
    ]
    tokens, targets = max(lengths), max(target for _, target in rows)
    # The gradient of all weights costs another forward pass.
    work = training_flops(shape, rows) * (1.5 if config.facts.backbone == "trained" else 1.0)
    read = sum(length for length, _ in rows)
    memory = _memory(config, shape, rows=len(rows), tokens=tokens, targets=targets)
    return RunCost(flops=work, steps=config.training.steps, tokens=read, peak=memory.peak)


def _memory(config: Config, shape: BackboneShape, *, rows: int, tokens: int, targets: int) -> StepMemory:
    kind = config.facts.backbone
    small = config.backbone.dtype == "bfloat16" or (
        config.backbone.dtype == "auto" and config.device != "cpu" and kind == "frozen"
    )
    weight_bytes = 2 if small else 4
    if kind == "frozen":
        return step_memory(
            shape,
            rows=_rows_at_once(config, rows=rows, tokens=tokens),
            tokens=tokens,
            targets=targets,
            weight_bytes=weight_bytes,
            recompute=config.backbone.recompute,
            dropout=bool(shape.dropout if config.training.dropout is None else config.training.dropout),
        )
    trained = {
        "finetune": shape.parameters(vocabulary=shape.vocabulary),
        "adapter": shape.adapter,
        "bitfit": shape.bitfit,
        "lora": shape.lora(config.lora.rank),
    }
    return trained_memory(
        shape,
        rows=rows,
        tokens=tokens,
        targets=targets,
        weight_bytes=weight_bytes,
        trained=trained.get(config.method, 0),  # of a method not named here: little beside the backbone
    )


def _rows_at_once(config: Config, *, rows: int, tokens: int) -> int:
    """Return the most rows of one forward pass: of one run, or of several that share it."""
    if config.cluster.runs_at_once == 1:
        return rows
    most = PASS_TOKENS["cpu" if config.device == "cpu" else "gpu"]
    return max(rows, min(config.cluster.runs_at_once * rows, most // tokens))


def _rate(config: Config) -> tuple[float | None, str]:
    """Return the operations a second of one worker and what that rests on; None where nothing is known."""
    measured = _measured(config)
    if measured:
        return statistics.median(measured), f"the median of {len(measured)} finished runs in {config.runs}"
    if config.device == "cpu":
        cores = config.training.threads or max(1, int(config.cluster.cpus_per_worker))
        return cores * CORE_FLOPS, "assumed: T5-small's on AVX2 cores, every input at its longest"
    return None, f"unknown: no finished run on '{config.device}' in {config.runs}; give a rate with --tflops"


def _measured(config: Config) -> list[float]:
    """Return the operations a second of finished runs with the same backbone, device and threads.

    Counted at the longest inputs, as those of the runs to come are: that rows are shorter, and that a step is more than
    matrix products, is in the rate.
    """
    try:
        found = read_runs(Path(config.runs).expanduser()).runs
    except (DataError, OSError):
        return []
    rates = []
    for run in found:
        try:
            page = parse([json.loads((run.directory / "config.json").read_bytes())])
            alike = (page.backbone.name, page.device, page.training.threads) == (
                config.backbone.name,
                config.device,
                config.training.threads,
            )
            if alike and page.facts.backbone == "frozen" and run.report.steps and run.report.seconds > 0:
                rates.append(run_cost(page).flops * run.report.steps / run.report.seconds)
        except (AttemptError, OSError, ValueError, UnknownShapeError):
            continue
    return rates


def _makespan(jobs: Sequence[Job], seconds: Mapping[str, float], *, workers: int) -> float:
    """Return when the last run ends, each idle worker taking the first run whose needs have finished."""
    ends: dict[str, float] = {}
    needs = {job.key: len(job.needs) for job in jobs}
    needed_by: dict[str, list[int]] = {}
    for place, job in enumerate(jobs):
        for need in job.needs:
            needed_by.setdefault(need, []).append(place)
    free = [0.0] * workers
    ready: list[int] = []
    later = [(0.0, place) for place, job in enumerate(jobs) if not job.needs]
    while ready or later:
        now = heapq.heappop(free)
        while later and later[0][0] <= now:
            heapq.heappush(ready, heapq.heappop(later)[1])
        start, place = (now, heapq.heappop(ready)) if ready else heapq.heappop(later)
        key = jobs[place].key
        ends[key] = start + seconds[key]
        heapq.heappush(free, ends[key])
        for waiting in needed_by.get(key, ()):
            needs[jobs[waiting].key] -= 1
            if not needs[jobs[waiting].key]:
                heapq.heappush(later, (max(ends[need] for need in jobs[waiting].needs), waiting))
    return max(ends.values(), default=0.0)


def _sum(counts: Iterable[int | None]) -> int | None:
    found = list(counts)
    known = [count for count in found if count is not None]
    return sum(known) if len(known) == len(found) else None


def _scaled(flops: float) -> str:
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if flops >= limit:
            return f"{flops / limit:.3g} {unit}FLOP"
    return f"{flops / 1e6:.3g} MFLOP"
