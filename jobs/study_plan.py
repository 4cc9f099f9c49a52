"""A study before anything is done: its cells, and the runs behind them, each once.

Pure functions of the config: neither weights nor rows are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attempt_ray.bank.places import below
from attempt_ray.config import Config, config_paths, load_layers, parse, preset_names
from attempt_ray.errors import ConfigError, unknown_name
from attempt_ray.orchestration.study import Job, Results
from attempt_ray.reporting.parameters import BACKBONES
from attempt_ray.tasks import Task
from jobs import plan

MIXTURES = ("attempt", "attempt_mt")
"""Rows that ablations change."""

ABLATIONS: Mapping[str, str] = {
    "no_target": "no target prompt: the sources' mixture alone, without a residual (paper, Table 4)",
    "no_attention": "constant weights 1/(t+1) over sources and target (authors' code)",
    "no_attention_sources": "constant weights 1/t over the sources (paper, Table 4)",
    "single_prompt": "one source: MNLI, or SQuAD where answers are extracted (paper, Table 4)",
    "no_prior": "G starts afresh (paper, Table 4)",
    "frozen_attention": "G keeps its starting values",
    "frozen_norm": "LayerNorm of G keeps its starting values (authors' code)",
    "authors_pooling": "max-pool over the padded width (authors' code), which goes without attention.center",
    "temperature_<K>": "scores divided by d e^K, such as temperature_0.5; temperature_auto divides by what the sources give",
    "init_vocab": "target prompts start from vocabulary rows",
    "init_normal": "target prompts start from N(0, prompt.init_std)",
    "one_rate": "G learns at the prompts' rate",
}
"""What can be changed in a row of `MIXTURES`, and how."""

_FIXED: Mapping[str, Mapping[str, Any]] = {
    "no_target": {"attention": {"target": "none"}},
    "no_attention": {"attention": {"weights": "uniform", "prior": None}},
    "no_attention_sources": {"attention": {"weights": "uniform_sources", "prior": None}},
    "no_prior": {"attention": {"prior": None}},
    "frozen_attention": {"attention": {"frozen": True}},
    "frozen_norm": {"attention": {"train_norm": False}},
    "authors_pooling": {"attention": {"pooling": "authors", "center": False}},
    "init_vocab": {"prompt": {"init": "vocab"}, "attention": {"start": "vocab"}},
    "init_normal": {"prompt": {"init": "vocab"}, "attention": {"start": "normal"}},
}
_TEMPERATURE = "temperature_"
_UNCENTRED = "authors_pooling"
"""Prior groups of an ablation that cannot start from the study's own priors end in it."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place of the study's tables: a row, changed or not, on tasks, with a seed, on a backbone."""

    row: str
    ablation: str | None
    tasks: tuple[str, ...]
    seed: int
    backbone: str
    key: str
    job: str
    """Key of the run that fills it, which may fill others."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """All that a study does."""

    name: str
    config: Config
    backbones: Mapping[str, Config]
    """The study on each backbone, by the backbone's short name."""
    cells: tuple[Cell, ...]
    jobs: tuple[Job, ...]
    """Every run once, those that others start from first."""
    known: Mapping[str, Config]
    """By key, every run as far as it can be told beforehand: what starts from the most similar sources lacks its start."""

    def tasks(self) -> dict[str, list[Task]]:
        """Return the tasks whose rows are read, by backbone."""
        return {name: list(plan.check(page).values()) for name, page in self.backbones.items()}

    def jobs_on(self, backbone: str) -> list[Job]:
        """Return the runs on one backbone, each as far as it can be told."""
        wanted = self.backbones[backbone].backbone
        return [
            Job(key=job.key, config=self.known[job.key], needs=job.needs)
            for job in self.jobs
            if self.known[job.key].backbone == wanted
        ]

    def identities(self) -> dict[str, str]:
        """Return the key of every run by what `identity` tells of it."""
        return {identity(config): key for key, config in self.known.items()}


def plan_study(config: Config) -> StudyPlan:
    """Return the plan of a study.

    Raises:
        ConfigError: A row, ablation, task or backbone is unknown, or parts of the study do not fit together.
    """
    pages = _backbones(config)
    cells: list[Cell] = []
    jobs: list[Job] = []
    known: dict[str, Config] = {}
    for name, page in pages.items():
        _check(page)
        found = list(_cells(page, name, prefix=f"{name}/" if len(pages) > 1 else ""))
        cells += [cell for cell, _ in found]
        own, told = _jobs(page, {cell.job: job for cell, job in found})
        prefix = f"{name}/" if len(pages) > 1 else ""
        jobs += [_prefixed(job, prefix) for job in own]
        known |= {prefix + key: config for key, config in told.items()}
    jobs, known, names = _deduplicated(jobs, known)
    cells = [Cell(**{**vars(cell), "job": names[cell.key]}) for cell in cells]
    jobs = _needed(jobs, {cell.job for cell in cells})
    kept = {job.key for job in jobs}
    return StudyPlan(
        name=config.study.name or plan.study_name(config),
        config=config,
        backbones=pages,
        cells=tuple(cells),
        jobs=tuple(jobs),
        known={key: run for key, run in known.items() if key in kept},
    )
