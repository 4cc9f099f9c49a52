"""What the `attempt` command shows of tasks and bank: rows of text, no deep-learning import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from attempt_ray.bank.aliases import Canary
from attempt_ray.bank.names import Reference, check_kind
from attempt_ray.bank.store import Bank
from attempt_ray.errors import BankError
from attempt_ray.tasks import Task, TemplateOptions, all_tasks, get_task


def task_rows(user_tasks: tuple[str, ...] = ()) -> list[list[str]]:
    """Return one row per task: name, group, kind, headline metric, data set."""
    return [
        [task.name, task.group, task.kind, task.metrics[0], _data_set(task)]
        for task in all_tasks(user_tasks).values()
    ]


def task_facts(name: str, user_tasks: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what there is to know of a task, with an example from the embedded rows where they have it.

    Raises:
        ConfigError: There is no such task.
    """
    task = get_task(name, user_tasks)
    return {
        "task": task.name,
        "group": task.group,
        "kind": task.kind,
        "data set": _data_set(task),
        "fields": list(task.fields),
        "labels": {words: list(labels) for words, labels in task.labels.items()},
        "metrics": list(task.metrics),
        "split rule": task.split_rule,
        "longest input": task.max_source_tokens,
        "example": _example(task),
    }


def task_text(facts: Mapping[str, Any]) -> str:
    """Return the facts of a task for people."""
    lines = []
    for name, value in facts.items():
        if name == "example" and value:
            lines += [
                "example (embedded rows):",
                f"  reads:  {value['source']}",
                f"  writes: {value['target']}",
            ]
        elif name == "labels":
            lines += [f"labels ({words}): {', '.join(labels)}" for words, labels in value.items()]
        elif value:
            lines.append(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    return "\n".join(lines)


def version_rows(bank_place: str, kind: str | None = None) -> list[list[str]]:
    """Return one row per version of the bank: reference, aliases, backbone, test scores, time.

    Raises:
        BankError: The bank cannot be opened, or there is no such kind.
    """
    bank = Bank(bank_place)
    rows = []
    for version in bank.list(check_kind(kind) if kind is not None else None):
        manifest = bank.show(version.reference)
        aliases = bank.aliases(version.kind, version.name).current
        scores = [
            f"{name} {record.value:.1f} (n={record.n:,})"
            for name, record in manifest.metrics.items()
            if "/" not in name and record.value is not None
        ]
        rows.append(
            [
                version.reference,
                ", ".join(sorted(alias for alias, number in aliases.items() if number == version.number)),
                manifest.backbone.name,
                ", ".join(scores[:2]),
                manifest.created,
            ]
        )
    return rows


def _data_set(task: Task) -> str:
    return f"{task.hub_id} {task.hub_config or ''}".strip() or "your own files"


def start_canary(bank_place: str, reference: str, **limits: float) -> str:
    """Put a version on trial beside its champion, and return what was done.

    Raises:
        BankError: A limit is out of range, or as `Bank.start_canary`.
    """
    version = Bank(bank_place).resolve(reference)
    try:
        canary = Canary.model_validate({"version": version.number, **limits})
    except ValidationError as error:
        first = error.errors()[0]
        raise BankError(f"{first['loc'][0]}: {first['msg']}, got {first['input']}") from None
    Bank(bank_place).start_canary(version.kind, version.name, canary)
    return f"canary: {version.reference} answers {canary.percent:g} % of {version.kind}/{version.name}"


def end_canary(bank_place: str, reference: str) -> str:
    """End the trial of a prompt, and return what it was.

    Raises:
        BankError: There is no such prompt, or no trial under way.
    """
    bank, wanted = Bank(bank_place), Reference.parse(reference)
    trial = bank.aliases(wanted.kind, wanted.name).trial
    if trial is None:
        raise BankError(f"{wanted.kind}/{wanted.name} has no canary; there is nothing to stop")
    bank.end_canary(wanted.kind, wanted.name)
    return f"stopped: {wanted.kind}/{wanted.name}@v{trial.version}"


def _example(task: Task) -> dict[str, str] | None:
    from attempt_ray.data import microworld

    if task.name not in microworld.MINIATURES:
        return None
    row = microworld.rows(task.name, "validation", seed=0, count=1)[0]
    example = task.eval_example(row, TemplateOptions())
    return {"source": example.source, "target": example.target}
