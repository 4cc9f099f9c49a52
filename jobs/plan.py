"""Which runs a study consists of: from one config to the runs behind every cell of its table.

Pure functions of the config. A run that is asked for alone (`train_target`) and the same run inside `run_pipeline`
have equal configs, hence equal digests and one directory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from attempt_ray.config import AttentionConfig, Config, PromptConfig, TrainingConfig
from attempt_ray.errors import ConfigError, unknown_name
from attempt_ray.orchestration.study import Job, Results
from attempt_ray.tasks import Task, all_tasks, get_task

if TYPE_CHECKING:
    from attempt_ray.bank.store import Bank

SINGLE = ("finetune", "prompt_tuning", "spot", "spot_similar", "attempt")
"""Methods with one run per target and seed."""
MULTI = ("attempt_mt",)
"""Methods with one run per group and seed."""
METHODS = (*SINGLE, *MULTI)

_UNREAD_ATTENTION = AttentionConfig().model_dump()


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
        Job(
            key=f"source/{source}",
            config=config.updated(
                job="source",
                method="prompt_tuning",
                tasks=(source,),
                prompt=_fresh_start(config),
                attention=_UNREAD_ATTENTION,
                data={"batch_rows": config.study.source_batch_rows or config.data.batch_rows},
                training=_budget(config.study.source_steps) | _unread_rates(read=("prompt",)),
            ),
        )
        for source in config.attention.sources
    ]


def prior_jobs(config: Config, *, needs: Sequence[str] = ()) -> list[Job]:
    """Return one run per group of sources that a G is trained on (paper section 3.3)."""
    if not config.study.prior:
        return []
    return [
        Job(
            key=f"prior/{name}",
            config=config.updated(
                job="prior",
                method="attempt",
                tasks=tasks,
                prompt=_fresh_start(config),
                attention={"prior": None},
                training=_budget(config.study.prior_steps) | _unread_rates(read=("prompt", "attention")),
                study={"prior_groups": prior_groups(config)},  # they tell the run its name in the bank
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


def target_jobs(config: Config, *, needs: Mapping[str, Sequence[str]] | None = None) -> list[Job]:
    """Return every target run of the study, the longest first.

    Args:
        config: The study.
        needs: Keys of the runs that must have finished before, under `sources` and `priors`.
    """
    needs = needs or {}
    sources, priors = tuple(needs.get("sources", ())), tuple(needs.get("priors", ()))
    waits = {"finetune": (), "prompt_tuning": (), "spot": sources, "attempt": sources + priors}
    jobs = [
        Job(
            key=_key("attempt_mt", group, seed),
            config=target_config(config, label="attempt_mt", tasks=group, seed=seed),
            needs=sources + priors,
        )
        for seed in config.study.seeds
        for group in target_groups(config)
        if "attempt_mt" in config.study.methods
    ]
    # Prompt tuning before the rest: what SPoT by similarity starts from hangs on it.
    order = sorted(
        set(config.study.methods) & set(waits), key=("prompt_tuning", "finetune", "attempt", "spot").index
    )
    for label in order:
        jobs += [
            Job(
                key=_key(label, (target,), seed),
                config=target_config(config, label=label, tasks=(target,), seed=seed),
                needs=waits[label],
            )
            for seed in config.study.seeds
            for target in config.study.targets
        ]
    if "spot_similar" in config.study.methods:
        jobs += _similar_jobs(config, jobs, sources=sources)
    return jobs


def target_config(config: Config, *, label: str, tasks: tuple[str, ...], seed: int) -> Config:
    """Return the run behind one cell of the table, where it can be told beforehand.

    What a method does not read is set back to its default, so that it does not name the run.

    Raises:
        ConfigError: The label is none of `METHODS`, or a task is unknown.
    """
    if label not in METHODS:
        raise ConfigError(unknown_name("method", label, METHODS))
    run = config.updated(job="target", tasks=tasks, seed=seed)
    if label in MULTI or label == "attempt":
        return run.updated(
            method="attempt",
            attention={"prior": config.attention.prior or _prior(config, tasks)},
            training=_unread_rates(read=("prompt", "attention")),
        )
    if label == "finetune":
        return run.updated(
            method="finetune",
            prompt=PromptConfig().model_dump(),
            attention=_UNREAD_ATTENTION,
            training=_unread_rates(read=("backbone",)),
        )
    run = run.updated(
        method="prompt_tuning", attention=_UNREAD_ATTENTION, training=_unread_rates(read=("prompt",))
    )
    if label == "spot":
        return run.updated(prompt=_start_from(_parent(config, tasks), init="prompt"))
    return run


def study_name(config: Config) -> str:
    """Return the name of the study's directory: equal studies, in whatever place, share it."""
    text = json.dumps(
        config.model_dump(mode="json", exclude={"bank", "runs", "cluster", "search", "serving"}),
        sort_keys=True,
    )
    return f"study-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _similar_jobs(config: Config, others: Sequence[Job], *, sources: tuple[str, ...]) -> list[Job]:
    """Return SPoT runs that start from the source prompt most like what prompt tuning found on the same task."""
    known = {job.key for job in others}
    jobs = []
    for seed in config.study.seeds:
        for target in config.study.targets:
            tuned = _key("prompt_tuning", (target,), seed)
            if tuned not in known:
                jobs.append(
                    Job(
                        key=tuned,
                        config=target_config(config, label="prompt_tuning", tasks=(target,), seed=seed),
                    )
                )
            jobs.append(
                Job(
                    key=_key("spot_similar", (target,), seed),
                    config=partial(_similar_config, config, target=target, seed=seed, tuned=tuned),
                    needs=(*sources, tuned),
                )
            )
    return jobs


def _similar_config(config: Config, results: Results, *, target: str, seed: int, tuned: str) -> Config:
    from attempt_ray.bank.store import Bank

    reference = results[tuned].report["bank"][target]
    source = most_similar(Bank(config.bank), reference, sources=config.attention.sources)
    run = target_config(config, label="spot_similar", tasks=(target,), seed=seed)
    # An average of one: what tells the table's row of similar sources from that of the given ones.
    return run.updated(prompt=_start_from(source, init="average"))


def most_similar(bank: Bank, reference: str, *, sources: Iterable[str]) -> str:
    """Return the source whose prompt is most like the prompt `reference`.

    The likeness is the mean, over prompt positions, of the cosine between tokens of the same position: SPoT's
    per-token similarity (Vu et al. 2022, section 5.1) as in the authors' code.
    """
    import numpy as np

    def unit(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        prompt = np.asarray(bank.load(name).tensors["prompt"], dtype=np.float64)
        rows: np.ndarray[Any, np.dtype[np.float64]] = prompt / np.linalg.norm(
            prompt, axis=1, keepdims=True
        ).clip(1e-12)
        return rows

    tuned = unit(reference)
    likeness = {source: float((unit(f"source/{source}") * tuned).sum(axis=1).mean()) for source in sources}
    return max(likeness, key=likeness.__getitem__)


def _key(label: str, tasks: Sequence[str], seed: int) -> str:
    name = "+".join(tasks) if len(tasks) < 4 else f"{tasks[0]}+{len(tasks) - 1} more"
    return f"{label}/{name}/s{seed}"


def _budget(steps: int | None) -> dict[str, Any]:
    return {} if steps is None else {"steps": steps}


def _unread_rates(*, read: Sequence[str]) -> dict[str, Any]:
    """Return the defaults of the learning rates that a method does not read."""
    unread = [f"{part}_learning_rate" for part in ("prompt", "attention", "backbone") if part not in read]
    return TrainingConfig().model_dump(include=set(unread))


def _fresh_start(config: Config) -> dict[str, Any]:
    """Return the start of prompts that cannot descend from others: as configured, unless from the bank."""
    if config.prompt.init in ("prompt", "average"):
        return {"init": "vocab", "init_from": (), "init_weights": ()}
    return {}


def _start_from(source: str, *, init: str) -> dict[str, Any]:
    return {"init": init, "init_from": (f"source/{source}",), "init_weights": ()}


def _first_source(config: Config, tasks: Sequence[str]) -> str:
    """Return the source for targets without a known parent: MNLI, or SQuAD where answers are extracted (paper)."""
    chosen = [get_task(task, config.data.user_tasks) for task in tasks]
    paper = "squad" if all(task.kind == "qa" for task in chosen) else "mnli"
    return paper if paper in config.attention.sources else config.attention.sources[0]


def _parent(config: Config, tasks: Sequence[str]) -> str:
    parents = config.study.parents.get(tasks[0], ()) if len(tasks) == 1 else ()
    return parents[0] if parents else _first_source(config, tasks)


def _prior(config: Config, tasks: Sequence[str]) -> str | None:
    """Return the G to start from: `qa` serves MRQA targets and `text` all others (paper, appendix)."""
    groups = prior_groups(config)
    if not config.study.prior or not groups:
        return None
    chosen = [get_task(task, config.data.user_tasks) for task in tasks]
    wanted = "qa" if all(task.group == "MRQA" for task in chosen) else "text"
    return f"attention/prior-{wanted if wanted in groups else next(iter(groups))}"
