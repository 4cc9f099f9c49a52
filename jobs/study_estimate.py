"""What a study will take on each of its backbones, told without weights and rows: runs, steps, tokens, hours, memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attempt_ray.config import Config
from attempt_ray.errors import ConfigError
from attempt_ray.orchestration.study import Job
from jobs.estimate import Estimate, UnknownShapeError, estimate, run_cost
from jobs.study_plan import StudyPlan
from jobs.watch import counted

GPU_TFLOPS = 30.0
"""Useful TFLOP/s of one GPU where no rate is given: some 40 % of the 71 that a 24 GB RTX 3090 multiplies in bfloat16."""
GPU_MEMORY_GB = 24.0
"""Memory at hand: the card of the paper's scaling runs."""

_KINDS = {
    "frozen": "frozen backbone",
    "extended": "parts inside the backbone",
    "trained": "full fine-tuning",
}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether the largest step of a kind of methods fits the memory at hand."""

    kind: str
    """What trains: `frozen`, `extended` or `trained`, as `attempt_ray.config.MethodFacts.backbone`."""
    run: str
    """Key of the run that takes most."""
    peak_bytes: int
    """What that takes, as configured."""
    fits: bool
    settings: tuple[str, ...]
    """With which it would fit, where it does not; empty where none was found."""
    fitted_bytes: int | None
    """Peak with them."""

    def describe(self, limit_gb: float) -> str:
        """Return it in words."""
        text = f"{_KINDS[self.kind]}: {self.peak_bytes / 1e9:.1f} GB ({self.run})"
        if self.fits:
            return f"{text}, fits {limit_gb:g} GB"
        if self.fitted_bytes is None:
            return f"{text}, does not fit {limit_gb:g} GB, not with one row either"
        smaller = any(setting.startswith("data.batch_rows") for setting in self.settings)
        return (
            f"{text}, does not fit {limit_gb:g} GB; {self.fitted_bytes / 1e9:.1f} GB with {' '.join(self.settings)}"
            f"{' (a smaller batch: other results)' if smaller else ''}"
        )


@dataclass(frozen=True, kw_only=True)
class BackboneEstimate:
    """What a study takes on one backbone."""

    backbone: str
    estimate: Estimate
    workers: int
    fits: tuple[Fit, ...]
    limit_gb: float | None
    """Memory at hand; None on a processor where none was given."""

    def as_dict(self) -> dict[str, Any]:
        """Return it, JSON-able."""
        return {
            **self.estimate.as_dict(),
            "workers": self.workers,
            "hours": None if self.estimate.seconds is None else self.estimate.seconds / 3600,
            "memory_limit_bytes": None if self.limit_gb is None else int(self.limit_gb * 1e9),
            "memory": [
                {
                    "kind": fit.kind,
                    "run": fit.run,
                    "peak_bytes": fit.peak_bytes,
                    "fits": fit.fits,
                    "fits_with": list(fit.settings),
                    "peak_bytes_with": fit.fitted_bytes,
                }
                for fit in self.fits
            ],
        }

    def describe(self) -> list[str]:
        """Return it in lines for people."""
        found = self.estimate
        steps = "steps unknown" if found.steps is None else f"{found.steps:,} steps"
        tokens = "" if found.tokens is None else f", {found.tokens / 1e6:,.4g} M tokens at the longest inputs"
        workers = counted(self.workers, "worker")
        hours = "" if found.seconds is None else f"{found.seconds / 3600:,.3g} h on {workers}, "
        lines = [
            f"{self.backbone}:",
            f"  runs         {found.runs:,}, {steps}{tokens}",
            f"  time         {hours}{found.basis}",
        ]
        if not self.fits:
            return [*lines, "  memory       unknown: the backbone's shape is not known here"]
        if self.limit_gb is None:
            return [
                *lines,
                f"  memory       {max(fit.peak_bytes for fit in self.fits) / 1e9:.2f} GB a worker",
            ]
        return [*lines, *(f"  memory       {fit.describe(self.limit_gb)}" for fit in self.fits)]


def estimate_study(
    study: StudyPlan, *, tflops: float | None = None, memory_gb: float | None = None
) -> list[BackboneEstimate]:
    """Return what a study takes on each backbone.

    Args:
        study: Its plan.
        tflops: Useful operations a second of one worker, in units of 10^12; None is what finished runs tell, else
            `GPU_TFLOPS` on a GPU.
        memory_gb: Memory of a worker's device; None is `GPU_MEMORY_GB` on a GPU, and what it takes is told alone on a
            processor.

    Raises:
        ConfigError: A rate or memory is not above 0.
    """
    for name, given in (("--tflops", tflops), ("--memory", memory_gb)):
        if given is not None and given <= 0:
            raise ConfigError(f"{name} got {given:g}; wanted more than 0")
    found = []
    for name, page in study.backbones.items():
        jobs = study.jobs_on(name)
        workers = page.cluster.workers
        told = estimate(jobs, page, workers=workers, flops=None if tflops is None else tflops * 1e12)
        if told.seconds is None and told.steps is not None and tflops is None and page.device != "cpu":
            told = estimate(jobs, page, workers=workers, flops=GPU_TFLOPS * 1e12)
            told = replace(told, basis=told.basis.replace("as given", "assumed; give yours with --tflops"))
        limit = memory_gb if memory_gb is not None or page.device == "cpu" else GPU_MEMORY_GB
        found.append(
            BackboneEstimate(
                backbone=name,
                estimate=told,
                workers=workers,
                fits=_fits(jobs, limit_gb=limit),
                limit_gb=limit,
            )
        )
    return found


def _fits(jobs: Sequence[Job], *, limit_gb: float | None) -> tuple[Fit, ...]:
    # Runs of one method on the same rows take the same memory.
    alike: dict[Any, tuple[str, Config]] = {}
    for job in jobs:
        if isinstance(job.config, Config):
            run = job.config
            alike.setdefault((run.method, run.tasks, run.data, run.prompt.length), (job.key, run))
    found = []
    for kind in _KINDS:
        mine = {key: run for key, run in alike.values() if run.facts.backbone == kind}
        try:
            if mine:
                found.append(_fit(kind, mine, limit=float("inf") if limit_gb is None else limit_gb * 1e9))
        except UnknownShapeError:
            return ()
    return tuple(found)


def _fit(kind: str, runs: Mapping[str, Config], *, limit: float) -> Fit:
    def peaks(settings: Mapping[str, Any]) -> dict[str, int]:
        return {key: run_cost(_with(run, settings)).peak for key, run in runs.items()}

    configured = peaks({})
    largest = max(configured, key=configured.__getitem__)
    found = Fit(
        kind=kind,
        run=largest,
        peak_bytes=configured[largest],
        fits=configured[largest] <= limit,
        settings=(),
        fitted_bytes=None,
    )
    if found.fits:
        return found
    for settings in _ways_out(kind, most_rows=max(run.data.batch_rows for run in runs.values())):
        taken = max(peaks(settings).values())
        if taken <= limit:
            named = tuple(f"{key}={str(value).lower()}" for key, value in settings.items())
            return replace(found, settings=named, fitted_bytes=taken)
    return found


def _ways_out(kind: str, *, most_rows: int) -> Iterator[dict[str, Any]]:
    """Yield settings that take less memory, those first that change no result."""
    settings: dict[str, Any] = {}
    if kind == "frozen":
        settings = {"cluster.runs_per_worker": 1}
        yield settings
        settings = settings | {"backbone.recompute": True}
        yield settings
    rows = most_rows // 2
    while rows:
        yield settings | {"data.batch_rows": rows}
        rows //= 2


def _with(run: Config, settings: Mapping[str, Any]) -> Config:
    changed = run
    for key, value in settings.items():
        section, _, knob = key.partition(".")
        part = getattr(changed, section)
        taken = min(value, part.batch_rows) if knob == "batch_rows" else value
        changed = changed.model_copy(update={section: part.model_copy(update={knob: taken})})
    return changed
