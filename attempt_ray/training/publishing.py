"""From a finished run to the bank: its prompts and its G as versions, with where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attempt_ray.bank.aliases import CANDIDATE, CHAMPION
from attempt_ray.bank.manifest import Facts, MetricRecord, MixtureRecord
from attempt_ray.bank.names import Kind, Version, check_name
from attempt_ray.bank.store import Bank
from attempt_ray.config import Config, joined
from attempt_ray.errors import BankError
from attempt_ray.model.methods import Method
from attempt_ray.training.ingredients import Ingredients
from attempt_ray.training.selection import Selection

ATTENTION = "attention"
"""Key of the shared G among a run's references; a task's own is under `attention:<task>`."""

Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Count and metrics by task and split, as the run report holds them."""


def attention_name(config: Config) -> str:
    """Return what the bank calls the run's G: its tasks, or `prior-` and the prior group that they are.

    Raises:
        BankError: The tasks' names cannot name it.
    """
    if config.job != "prior":
        return check_name(joined(config.tasks))
    groups = config.study.prior_groups.items()
    own = next((key for key, tasks in groups if set(tasks) == set(config.tasks)), joined(config.tasks))
    return check_name(f"prior-{own}")


def is_published(config: Config, digest: str, references: Mapping[str, str]) -> bool:
    """Return whether the bank holds the versions that a run reported, made by that run."""
    bank = Bank(config.bank)
    try:
        return all(bank.show(reference).config_digest == digest for reference in references.values())
    except BankError:
        return False


def publish(
    ingredients: Ingredients, method: Method, selection: Selection, *, digest: str, scores: Scores, steps: int
) -> dict[str, str]:
    """Publish what the run learned and return the references: prompts by task, G under `ATTENTION`.

    A source run publishes its prompt under `Config.source_name`, a prior G alone, a target run both; trials and methods
    whose outcome is no prompt publish nothing. New versions become `candidate`, and those of sources and priors `champion` too where there is none yet. Publishing
    the same run again changes nothing.

    Args:
        ingredients: What the run read.
        method: What it trained; left in the last state published.
        selection: The states that were kept.
        digest: Digest of the run.
        scores: Scores of every task.
        steps: Optimizer steps taken.

    Raises:
        BankError: The bank refuses.
        StorageError: The disk or store refuses.
    """
    config = ingredients.config
    if not config.facts.served or config.trial:
        return {}
    bank = Bank(config.bank)
    references: dict[str, str] = {}
    recipe = {"config": config.model_dump(mode="json"), "seed": config.seed, "steps": steps}

    def add(
        kind: Kind, name: str, tensors: Mapping[str, Tensor], tasks: tuple[str, ...], g: str | None
    ) -> str:
        facts = Facts(
            backbone=ingredients.backbone_record(),
            tasks=tasks,
            config_digest=digest,
            data_sha256={task: ingredients.data_sha256[task] for task in tasks},
            metrics=_metrics(scores, tasks),
            parents=ingredients.parents,
            mixture=_mixture(ingredients, method, attention=g),
            recipe=recipe,
        )
        arrays = {key: tensor.float().numpy() for key, tensor in tensors.items()}
        version = bank.publish(kind, name, arrays, facts)
        _move_aliases(bank, version, champion=config.job != "target")
        return version.reference

    if config.job == "source":
        method.load_trainable_state(selection.state_for(config.tasks[0]))
        name = config.source_name
        return {name: add("source", name, method.source_tensors(), config.tasks, None)}
    shared: str | None = None
    for task in config.tasks:
        method.load_trainable_state(selection.state_for(task))
        own = selection.rule == "per_task" and len(config.tasks) > 1
        attention = shared
        if method.attention is not None and config.attention.frozen and ingredients.prior is not None:
            attention = ingredients.prior.version.reference
        elif method.attention is not None and (own or shared is None):
            name, tasks = (check_name(task), (task,)) if own else (attention_name(config), config.tasks)
            attention = add("attention", name, method.attention_tensors(), tasks, None)
            references[f"{ATTENTION}:{task}" if own else ATTENTION] = attention
            shared = None if own else attention
        prompts = method.prompt_tensors()
        if prompts and config.job != "prior":
            references[task] = add("target", task, {"prompt": prompts[task]}, (task,), attention)
    return references


def _move_aliases(bank: Bank, version: Version, *, champion: bool) -> None:
    kind, name, number = version.kind, version.name, version.number
    current = bank.aliases(kind, name).current
    if current.get(CANDIDATE, 0) < number:
        bank.set_alias(kind, name, CANDIDATE, number)
    if champion and CHAMPION not in current:
        try:
            bank.set_alias(kind, name, CHAMPION, number, expected=None)
        except BankError:
            # Another run of the same task may have been promoted a moment ago, which is as good.
            if CHAMPION not in bank.aliases(kind, name).current:
                raise


def _metrics(scores: Scores, tasks: tuple[str, ...]) -> dict[str, MetricRecord]:
    """Return every score as `<split>/<task>/<metric>`, and one task's test scores by metric alone too."""
    records: dict[str, MetricRecord] = {}
    for task in tasks:
        for split, scored in scores[task].items():
            for metric, value in scored["metrics"].items():
                record = MetricRecord(value=value, n=scored["n"], split=split)
                records[f"{split}/{task}/{metric}"] = record
                if len(tasks) == 1 and split == "test":
                    records[metric] = record
    return records


def _mixture(ingredients: Ingredients, method: Method, *, attention: str | None) -> MixtureRecord | None:
    if not method.candidates:
        return None
    wanted = ingredients.config.attention
    return MixtureRecord(
        sources=tuple(loaded.version.reference for loaded in ingredients.sources.values()),
        attention=attention,
        # Constant weights come from no score; 1 divides nothing.
        divisor=method.attention.divisor if method.attention is not None else 1.0,
        pooling=wanted.pooling,
        authors_width=wanted.authors_width,
        weights=wanted.weights,
        target=wanted.target,
    )
