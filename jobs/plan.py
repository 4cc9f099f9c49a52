"""Which runs a table consists of: from one config to the runs behind every cell, and the runs that those start from.

Pure functions of the config. A run that is asked for alone (`train_target`) and the same run inside `run_pipeline` or
`run_study` have equal configs, hence equal digests and one directory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attempt_ray.config import METHOD_SECTIONS, Config
from attempt_ray.config import METHODS as KNOWN
from attempt_ray.errors import ConfigError, unknown_name
from attempt_ray.orchestration.study import Job, Results
from attempt_ray.tasks import Task, all_tasks, get_task

if TYPE_CHECKING:
    from attempt_ray.bank.store import Bank

_SPOT = ("spot", "spot_similar", "spot_generic", "spot_targeted")
"""Rows of prompt tuning that starts from sources, by where it starts."""

SINGLE = tuple(row for method in KNOWN for row in (method, *(_SPOT if method == "prompt_tuning" else ())))
"""Rows with one run per target and seed."""
MULTI = ("finetune_mt", "adapter_mt", "spot_generic_mt", "spot_targeted_mt", "attempt_mt", "mpt_mt")
"""Rows with one run per group and seed."""
METHODS = (*SINGLE, *MULTI)

_FIRST = ("prompt_tuning", "finetune")
"""Rows that wait for no source, the first of which others wait for."""

_STAGES = {
    "spot": ("sources",),
    "spot_similar": ("sources",),
    "spot_targeted": ("sources",),
    "spot_generic": ("generic",),
    "attempt": ("sources", "priors"),
    "mpt": ("shared",),
}
"""What has to be there before the runs of a row; the others need nothing."""

Needs = Mapping[str, Sequence[str]]
"""Keys of the runs that targets start from: `sources`, `priors`, `generic`, `shared`."""


def check(config: Config) -> Mapping[str, Task]:
    """Return the tasks a study needs, after having checked every name in it.

    Raises:
        ConfigError: A task, method or prior group is unknown, empty or does not fit the others.
    """
    known = all_tasks(config.data.user_tasks)
    study = config.study
    groups = target_groups(config)
    named = [
        *config.attention.sources,
        *study.targets,
        *(task for group in groups for task in group),
        *(task for parents in (*study.parents.values(), *study.prior_groups.values()) for task in parents),
    ]
    for name in (*named, *study.parents):
        if name not in known:
            raise ConfigError(unknown_name("task", name, known))
    for method in study.methods:
        if method not in METHODS:
            raise ConfigError(unknown_name("method in study.methods", method, METHODS))
    if not config.attention.sources:
        raise ConfigError("attention.sources is empty; name at least one source task")
    if not (study.targets and study.methods and study.seeds):
        raise ConfigError(
            "a study needs study.targets, study.methods and study.seeds; name at least one of each"
        )
    for group in groups:
        for task in group:
            if task not in study.targets:
                raise ConfigError(
                    f"study.groups: {unknown_name('task in study.targets', task, study.targets)}"
                )
    return {name: known[name] for name in dict.fromkeys([*config.attention.sources, *study.targets])}


def target_groups(config: Config) -> tuple[tuple[str, ...], ...]:
    """Return the groups of targets that multi-task methods train together."""
    return config.study.groups or (config.study.targets,)


def source_jobs(config: Config) -> list[Job]:
    """Return one run per source prompt (paper section 3.1)."""
    return [
        Job(key=f"source/{source}", config=_source_run(config, (source,)))
        for source in config.attention.sources
    ]


def generic_run(config: Config) -> Config:
    """Return the run of SPoT's generic prompt: one prompt, trained on all sources at once (Vu et al. 2022, section 3)."""
    budget = _budget(config.study.generic_steps)
    return _source_run(config, config.attention.sources, prompt={"shared": True}, training=budget)


def shared_run(config: Config) -> Config:
    """Return the run of MPT's shared prompt, distilled from the prompts of all sources (Wang et al. 2023)."""
    budget = _budget(config.study.shared_steps)
    return _source_run(config, config.attention.sources, method="mpt", training=budget)


def prior_jobs(config: Config, *, needs: Sequence[str] = ()) -> list[Job]:
    """Return one run per group of sources that a G is trained on (paper section 3.3)."""
    if not config.study.prior:
        return []
    return [
        Job(
            key=f"prior/{name}",
            config=_only_read(
                config.updated(
                    job="prior",
                    method="attempt",
                    tasks=tasks,
                    prompt=_fresh_start(config),
                    attention={"prior": None},
                    training=_budget(config.study.prior_steps),
                    study={"prior_groups": prior_groups(config)},  # they tell the run its name in the bank
                )
            ),
            needs=tuple(needs),
        )
        for name, tasks in prior_groups(config).items()
    ]


def prior_groups(config: Config) -> dict[str, tuple[str, ...]]:
    """Return the prior groups, cut to the sources that the study has; those without any are left out."""
    cut = {
        name: tuple(task for task in tasks if task in config.attention.sources)
        for name, tasks in config.study.prior_groups.items()
    }
    return {name: tasks for name, tasks in cut.items() if tasks}


def stage_jobs(config: Config) -> tuple[list[Job], dict[str, list[str]]]:
    """Return the runs that the targets of a study start from, and their keys by stage."""
    sources = source_jobs(config)
    keys = [job.key for job in sources]
    stages = {"sources": sources, "priors": prior_jobs(config, needs=keys), "generic": [], "shared": []}
    rows = {row.removesuffix("_mt") for row in config.study.methods}
    if "spot_generic" in rows:
        stages["generic"] = [Job(key="source/generic", config=generic_run(config))]
    if "mpt" in rows:
        stages["shared"] = [Job(key="source/mpt", config=shared_run(config), needs=tuple(keys))]
    jobs = [job for stage in stages.values() for job in stage]
    return jobs, {name: [job.key for job in stage] for name, stage in stages.items()}


def target_jobs(config: Config, *, needs: Needs | None = None) -> list[Job]:
    """Return every target run of the study, the longest first.

    Args:
        config: The study.
        needs: Keys of the runs that must have finished before, by stage.
    """
    # Groups first; then prompt tuning, since what SPoT by similarity starts from hangs on it.
    rows = [row for row in (*MULTI, *_FIRST, *SINGLE) if row in config.study.methods]
    cells = [
        (row, tasks, seed)
        for row in dict.fromkeys(rows)
        for seed in config.study.seeds
        for tasks in (target_groups(config) if row in MULTI else [(task,) for task in config.study.targets])
    ]
    jobs: dict[str, Job] = {}
    waiting: list[Job] = []
    for row, tasks, seed in cells:
        job = row_job(config, row, tasks, seed, needs=needs)
        if isinstance(job.config, Config):
            jobs[job.key] = job
            continue
        waiting.append(job)
        for task in tasks:
            tuned = row_job(config, "prompt_tuning", (task,), seed, needs=needs)
            jobs.setdefault(tuned.key, tuned)
    return [*jobs.values(), *waiting]


def row_job(
    config: Config, row: str, tasks: tuple[str, ...], seed: int, *, needs: Needs | None = None
) -> Job:
    """Return the run behind one cell of the table.

    What starts from the sources most like the target is told from the result of prompt tuning on it.

    Raises:
        ConfigError: The row is none of `METHODS`, or a task is unknown.
    """
    base = row.removesuffix("_mt")
    needed = tuple(key for stage in _STAGES.get(base, ()) for key in (needs or {}).get(stage, ()))
    key = cell_key(row, tasks, seed)
    if base not in ("spot_similar", "spot_targeted"):
        return Job(key=key, config=target_config(config, label=row, tasks=tasks, seed=seed), needs=needed)
    later = SimilarStart(config=config, row=row, tasks=tasks, seed=seed)
    return Job(key=key, config=later, needs=(*needed, *later.tuned))


def target_config(config: Config, *, label: str, tasks: tuple[str, ...], seed: int) -> Config:
    """Return the run behind one cell of the table, where it can be told beforehand.

    What a method does not read is set back to its default, so that it does not name the run.

    Raises:
        ConfigError: The label is none of `METHODS`, or a task is unknown.
    """
    if label not in METHODS:
        raise ConfigError(unknown_name("method", label, METHODS))
    base = label.removesuffix("_mt")
    spot = base.startswith("spot")
    method = "prompt_tuning" if spot else base
    run = _only_read(config.updated(job="target", method=method, tasks=tasks, seed=seed))
    if base == "attempt":
        return run.updated(attention={"prior": config.attention.prior or _prior(config, tasks)})
    if base == "mpt":
        return run.updated(mpt={"source": f"source/{shared_run(config).source_name}"})
    if spot and label in MULTI and len(tasks) > 1:
        run = run.updated(prompt={"shared": True})
    if base == "spot":
        return run.updated(prompt=_start_from(f"source/{_parent(config, tasks)}"))
    if base == "spot_generic":
        return run.updated(prompt=_start_from(f"source/{generic_run(config).source_name}"))
    return run


def study_name(config: Config) -> str:
    """Return the name of the study's directory: equal studies, in whatever place, share it."""
    text = json.dumps(
        config.model_dump(mode="json", exclude={"bank", "runs", "cluster", "search", "serving"}),
        sort_keys=True,
    )
    return f"study-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, kw_only=True)
class SimilarStart:
    """A run that starts from the source prompts most like what prompt tuning found on its tasks."""

    config: Config
    row: str
    tasks: tuple[str, ...]
    seed: int

    @property
    def tuned(self) -> tuple[str, ...]:
        """Keys of the runs of prompt tuning, one for each task."""
        return tuple(cell_key("prompt_tuning", (task,), self.seed) for task in self.tasks)

    @property
    def weighs(self) -> bool:
        """Whether several sources are averaged, by their likeness, or the most similar is taken alone."""
        return self.row.startswith("spot_targeted")

    def told(self) -> Config:
        """Return the run as far as it can be told beforehand: without the sources it starts from."""
        run = target_config(self.config, label=self.row, tasks=self.tasks, seed=self.seed)
        # An average even of one: what tells the table's rows of similar sources from that of the given ones.
        return run.updated(prompt={"init": "average", "init_weights": (1.0,) if self.weighs else ()})

    def __call__(self, results: Results) -> Config:
        """Return the run."""
        from attempt_ray.bank.store import Bank

        tuned = zip(self.tuned, self.tasks, strict=True)
        references = [results[key].report["bank"][task] for key, task in tuned]
        weights = most_similar(
            Bank(self.config.bank),
            references,
            sources=self.config.attention.sources,
            top_k=self.config.study.similar_top_k if self.weighs else 1,
        )
        return self.told().updated(
            prompt={
                "init_from": tuple(f"source/{source}" for source in weights),
                "init_weights": tuple(weights.values()) if self.weighs else (),
            }
        )


def most_similar(
    bank: Bank, references: Sequence[str], *, sources: Iterable[str], top_k: int = 1
) -> dict[str, float]:
    """Return the sources whose prompts are most like the prompts `references`, and their weights, which add up to 1.

    The likeness of two prompts is the sum, over prompt positions, of the cosine between tokens of the same position, and
    the weights are the likenesses of the `top_k`, divided by their sum: SPoT's per-token similarity and its weighted
    average as in ATTEMPT's code (Vu et al. 2022, section 5.1). Of several references it is the mean
    likeness. Likenesses below 0 would turn a source's prompt around: such sources are left out, and where all are, the
    most similar is taken alone.
    """
    import numpy as np

    def unit(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        prompt = np.asarray(bank.load(name).tensors["prompt"], dtype=np.float64)
        rows: np.ndarray[Any, np.dtype[np.float64]] = prompt / np.linalg.norm(
            prompt, axis=1, keepdims=True
        ).clip(1e-12)
        return rows

    tuned = np.mean([unit(reference) for reference in references], axis=0)
    likeness = {source: float((unit(f"source/{source}") * tuned).sum()) for source in sources}
    ranked = sorted(likeness, key=lambda source: -likeness[source])[:top_k]
    positive = [source for source in ranked if likeness[source] > 0] or ranked[:1]
    if len(positive) == 1:
        return {positive[0]: 1.0}
    total = sum(likeness[source] for source in positive)
    return {source: likeness[source] / total for source in positive}


def cell_key(row: str, tasks: Sequence[str], seed: int) -> str:
    """Return what a run is called inside its study, such as `attempt/rte/s1`."""
    name = "+".join(tasks) if len(tasks) < 4 else f"{tasks[0]}+{len(tasks) - 1} more"
    return f"{row}/{name}/s{seed}"


def first_source(config: Config, tasks: Sequence[str]) -> str:
    """Return the source for targets without a known parent: MNLI, or SQuAD where answers are extracted (paper)."""
    chosen = [get_task(task, config.data.user_tasks) for task in tasks]
    paper = "squad" if all(task.kind == "qa" for task in chosen) else "mnli"
    return paper if paper in config.attention.sources else config.attention.sources[0]


def _source_run(config: Config, tasks: tuple[str, ...], **changes: Any) -> Config:
    run = config.updated(
        job="source",
        method="prompt_tuning",
        tasks=tasks,
        prompt=_fresh_start(config),
        mpt={"source": None},
        data={"batch_rows": config.study.source_batch_rows or config.data.batch_rows},
        training=_budget(config.study.source_steps),
    )
    return _only_read(run.updated(**changes))


def _budget(steps: int | None) -> dict[str, Any]:
    return {} if steps is None else {"steps": steps}


def _only_read(run: Config) -> Config:
    """Return a run with everything that its method does not read at its default."""
    defaults = Config().model_dump()
    unread = {
        section: defaults[section]
        for section in ("prompt", "attention", *METHOD_SECTIONS)
        if section not in run.facts.sections
    }
    rates = {
        rate: value
        for rate, value in defaults["training"].items()
        if rate.endswith("_learning_rate") and rate.removesuffix("_learning_rate") not in run.facts.rates
    }
    return run.updated(**unread, training=rates)


def _fresh_start(config: Config) -> dict[str, Any]:
    """Return the start of prompts that cannot descend from others: as configured, unless from the bank."""
    if config.prompt.init in ("prompt", "average"):
        return {"init": "vocab", "init_from": (), "init_weights": ()}
    return {}


def _start_from(reference: str) -> dict[str, Any]:
    return {"init": "prompt", "init_from": (reference,), "init_weights": ()}


def _parent(config: Config, tasks: Sequence[str]) -> str:
    parents = config.study.parents.get(tasks[0], ()) if len(tasks) == 1 else ()
    return parents[0] if parents else first_source(config, tasks)


def _prior(config: Config, tasks: Sequence[str]) -> str | None:
    """Return the G to start from: `qa` serves MRQA targets and `text` all others (paper, appendix)."""
    groups = prior_groups(config)
    if not config.study.prior or not groups:
        return None
    chosen = [get_task(task, config.data.user_tasks) for task in tasks]
    wanted = "qa" if all(task.group == "MRQA" for task in chosen) else "text"
    return f"attention/prior-{wanted if wanted in groups else next(iter(groups))}"
