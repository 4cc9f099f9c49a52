"""A study before anything is done: its cells, and the runs behind them, each once.

Pure functions of the config: neither weights nor rows are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from attempt_ray.bank.places import below
from attempt_ray.config import Config, config_paths, load_layers, parse, preset_names
from attempt_ray.errors import ConfigError, unknown_name
from attempt_ray.orchestration.study import Job, Results
from attempt_ray.reporting.parameters import BACKBONES, shipped_backbones
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
_UNCENTRED = "-authors-pooling"
"""What the names of priors without a centre end in."""


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
    """Every run once, in the order in which idle workers shall take them."""
    known: Mapping[str, Config]
    """By key, every run as far as it can be told beforehand: what starts from the most similar sources lacks its start."""

    def tasks(self) -> dict[str, list[Task]]:
        """Return the tasks whose rows are read, by backbone."""
        return {name: list(plan.check(page).values()) for name, page in self.backbones.items()}

    def jobs_on(self, backbone: str) -> list[Job]:
        """Return the runs on one backbone, each as far as it can be told."""
        prefix = _prefix(backbone, self.backbones)
        return [
            Job(key=job.key, config=self.known[job.key], needs=job.needs)
            for job in self.jobs
            if job.key.startswith(prefix)
        ]


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
        own = _on_one_backbone(page, name, prefix=_prefix(name, pages))
        cells += own.cells
        jobs += own.jobs
        known |= own.known
    jobs, names = _each_once(jobs, known)
    cells = [replace(cell, job=names[cell.job]) for cell in cells]
    jobs = _needed(jobs, {cell.job for cell in cells})
    return StudyPlan(
        name=config.study.name or plan.study_name(config),
        config=config,
        backbones=pages,
        cells=tuple(cells),
        jobs=tuple(jobs),
        known={job.key: known[job.key] for job in jobs},
    )


def identity(run: Config) -> str:
    """Return what tells a run from its config, as planned or as its directory holds it: equal for equal runs.

    The type that `backbone.dtype: auto` is settled to does not enter, nor does which sources an average starts from.
    """
    prompt = run.prompt
    if prompt.init == "average":
        weights = (1.0,) if prompt.init_weights else ()
        prompt = prompt.model_copy(update={"init_from": (), "init_weights": weights})
    backbone = run.backbone.model_copy(update={"dtype": "auto"})
    return run.model_copy(update={"prompt": prompt, "backbone": backbone}).digest()


def ablated(config: Config, run: Config, name: str) -> Config:
    """Return a run of the mixture, changed.

    Args:
        config: The study.
        run: The run of the row.
        name: One of `ABLATIONS`, or `without_<source>`.

    Raises:
        ConfigError: There is no such change.
    """
    if name.startswith("without_"):
        left = tuple(source for source in config.attention.sources if f"without_{source}" != name)
        return run.updated(attention={"sources": left})
    if name.startswith(_TEMPERATURE):
        return run.updated(attention={"temperature": _temperature(name)})
    if name == "single_prompt":
        return run.updated(attention={"sources": (plan.first_source(config, run.tasks),)})
    if name == "one_rate":
        return run.updated(training={"attention_learning_rate": run.training.prompt_learning_rate})
    if name not in _FIXED:
        raise ConfigError(unknown_name("ablation in study.ablations", name, ABLATIONS))
    changed = run.updated(**_FIXED[name])
    if name == "authors_pooling" and config.attention.center and run.attention.prior:
        # A centre is part of a G: one without cannot start from one with.
        return changed.updated(attention={"prior": f"{run.attention.prior}{_UNCENTRED}"})
    return changed


def _temperature(name: str) -> float | str:
    text = name.removeprefix(_TEMPERATURE)
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise ConfigError(
            f"study.ablations got '{name}'; wanted temperature_ and a number K, such as temperature_0.5, or temperature_auto"
        ) from None


def _backbones(config: Config) -> dict[str, Config]:
    """Return the study on each of its backbones, by short name."""
    entries = config.study.backbones or (config.backbone.name,)
    pages: dict[str, Config] = {}
    for entry in entries:
        is_page = bool(config.study.backbones) and (
            entry in preset_names() or Path(entry).suffix in (".yaml", ".yml")
        )
        name = Path(entry).stem if is_page else Path(entry).name
        if is_page:
            layers = [
                {key: value for key, value in layer.items() if key != "study"}
                for layer in load_layers(config_paths([entry]))
            ]
            page = parse([config.model_dump(), *layers])
        else:
            _check_backbone(entry)
            same = entry == config.backbone.name
            page = config if same else config.updated(backbone={"name": entry, "revision": None})
        if name in pages:
            raise ConfigError(
                f"study.backbones names '{name}' twice; give each backbone a directory or file name of its own"
            )
        pages[name] = page
    if len(pages) == 1:
        return pages
    return {name: page.updated(bank=below(config.bank, name)) for name, page in pages.items()}


def _check_backbone(name: str) -> None:
    """Refuse what can be neither a known backbone nor a directory nor a hub id."""
    shipped = shipped_backbones()
    if not (name in shipped or name in BACKBONES or "/" in name or Path(name).is_dir()):
        raise ConfigError(
            unknown_name("backbone", name, [*shipped, *BACKBONES, *preset_names()])
            + "; or give a directory, a hub id or a YAML file"
        )


def _check(config: Config) -> None:
    """Refuse a study whose parts do not fit together."""
    plan.check(config)
    study, sources = config.study, config.attention.sources
    for key, given in (
        ("study.targets", study.targets),
        ("study.methods", study.methods),
        ("study.seeds", study.seeds),
        ("study.ablations", study.ablations),
        ("attention.sources", sources),
        ("study.groups, all together,", [task for group in plan.target_groups(config) for task in group]),
    ):
        twice = [name for name, count in Counter(given).items() if count > 1]
        if twice:
            raise ConfigError(f"{key} names {twice[0]!r} twice; name it once")
    for text in study.ablations:
        row, name = _row_and_name(text)
        ablated(config, plan.target_config(config, label="attempt", tasks=study.targets[:1], seed=0), name)
        if row not in MIXTURES:
            raise ConfigError(f"study.ablations got '{text}'; wanted changes of {' or '.join(MIXTURES)}")
        if row not in study.methods:
            raise ConfigError(
                f"study.ablations got '{text}', and the row '{row}' is not in study.methods; add it there"
            )
    for key, tasks in (
        ("study.ablation_targets", study.ablation_targets),
        ("study.leave_one_out", _left_out_on(config)),
    ):
        for task in tasks:
            if task not in study.targets:
                raise ConfigError(f"{key}: {unknown_name('task in study.targets', task, study.targets)}")
    if _left_out_on(config) and len(sources) < 2:
        raise ConfigError(
            f"study.leave_one_out got the one source '{sources[0]}', without which there is none; name more in "
            "attention.sources"
        )
    if _left_out_on(config) and "attempt" not in study.methods:
        raise ConfigError(
            "study.leave_one_out trains the row 'attempt' again, which is not in study.methods; add it there"
        )


def _left_out_on(config: Config) -> tuple[str, ...]:
    wanted = config.study.leave_one_out
    if isinstance(wanted, bool):
        return config.study.targets if wanted else ()
    return wanted


def _prefix(backbone: str, backbones: Mapping[str, Config]) -> str:
    """Return what the keys of a backbone's runs begin with."""
    return f"{backbone}/" if len(backbones) > 1 else ""


def _row_and_name(text: str) -> tuple[str, str]:
    row, slash, name = text.rpartition("/")
    return (row if slash else "attempt"), name


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A study on one of its backbones."""

    cells: list[Cell]
    jobs: list[Job]
    known: dict[str, Config]


def _on_one_backbone(config: Config, backbone: str, *, prefix: str) -> _Part:
    stages, needs = plan.stage_jobs(config)
    own_priors = _uncentred_priors(config, needs["sources"])
    targets = plan.target_jobs(config, needs=needs)
    cells, changed = [], []
    for row, ablation, tasks, seed in _places(config):
        key = plan.cell_key(row if ablation is None else f"{row}-{ablation}", tasks, seed)
        name = prefix + key
        cells.append(
            Cell(row=row, ablation=ablation, tasks=tasks, seed=seed, backbone=backbone, key=name, job=name)
        )
        if ablation is not None:
            run = ablated(config, plan.target_config(config, label=row, tasks=tasks, seed=seed), ablation)
            waits = (*needs["sources"], *needs["priors"])
            if ablation == "authors_pooling":
                waits += tuple(job.key for job in own_priors)
            changed.append(Job(key=key, config=run, needs=waits))
    jobs = [*stages, *own_priors, *targets, *changed]
    known = {
        job.key: job.config.told() if isinstance(job.config, plan.SimilarStart) else job.config
        for job in jobs
        if isinstance(job.config, Config | plan.SimilarStart)
    }
    return _Part(
        cells=cells,
        jobs=[_renamed(job, {key: prefix + key for key in (job.key, *job.needs)}) for job in jobs],
        known={prefix + key: run for key, run in known.items()},
    )


def _places(config: Config) -> Iterator[tuple[str, str | None, tuple[str, ...], int]]:
    """Yield row, change, tasks and seed of every cell, in the order of the tables."""
    study, groups = config.study, plan.target_groups(config)
    single = [(task,) for task in study.targets]
    for row in study.methods:
        for seed in study.seeds:
            for tasks in groups if row in plan.MULTI else single:
                yield row, None, tasks, seed
    wanted = set(study.ablation_targets or study.targets)
    for text in study.ablations:
        row, name = _row_and_name(text)
        for seed in study.seeds:
            for tasks in groups if row in plan.MULTI else single:
                if wanted & set(tasks):
                    yield row, name, tasks, seed
    for source in config.attention.sources if _left_out_on(config) else ():
        for seed in study.seeds:
            for task in _left_out_on(config):
                yield "attempt", f"without_{source}", (task,), seed


def _uncentred_priors(config: Config, needs: Sequence[str]) -> list[Job]:
    """Return the priors of the authors' pooling where the study's own have a centre, which that goes without."""
    if not config.attention.center or not config.study.prior or config.attention.prior:
        return []
    changed = config.updated(
        **_FIXED["authors_pooling"],
        study={
            "prior_groups": {name + _UNCENTRED: tasks for name, tasks in plan.prior_groups(config).items()}
        },
    )
    return plan.prior_jobs(changed, needs=needs)


def _renamed(job: Job, names: Mapping[str, str]) -> Job:
    """Return a job under another name, with the runs it needs under theirs."""
    make = job.config
    if not isinstance(make, Config):
        make = partial(_make, make, {need: names[need] for need in job.needs})
    return Job(key=names[job.key], config=make, needs=tuple(dict.fromkeys(names[need] for need in job.needs)))


def _make(make: Callable[[Results], Config], names: Mapping[str, str], results: Results) -> Config:
    return make({need: results[name] for need, name in names.items()})


def _each_once(jobs: Sequence[Job], known: Mapping[str, Config]) -> tuple[list[Job], dict[str, str]]:
    """Return the jobs without those whose run is another's, and the key that every key stands for."""
    first: dict[str, str] = {}
    names: dict[str, str] = {}
    for job in jobs:
        names[job.key] = first.setdefault(known[job.key].digest(), job.key)
    return [_renamed(job, names) for job in jobs if names[job.key] == job.key], names


def _needed(jobs: Sequence[Job], wanted: set[str]) -> list[Job]:
    """Return those jobs that are wanted or that wanted ones need, in their order."""
    by_key = {job.key: job for job in jobs}
    open_, found = list(wanted), set(wanted)
    while open_:
        more = set(by_key[open_.pop()].needs) - found
        found |= more
        open_ += more
    return [job for job in jobs if job.key in found]
