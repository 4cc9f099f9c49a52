"""Score a prompt of the bank on a task: `python -m jobs.evaluate --config embedded --set tasks=[rte]`."""

from __future__ import annotations

from typing import Any

from attempt_ray.config import Config
from attempt_ray.errors import ConfigError
from jobs.watch import Screen


def evaluate(config: Config, *, prompt: str | None = None, split: str = "test") -> dict[str, Any]:
    """Score a prompt of the bank, alone or in the mixture it was trained in, on a split of each task.

    Args:
        config: Backbone, data, decoding, bank and `tasks`.
        prompt: Reference of the prompt; None is each task's own, `target/<task>`.
        split: `dev` or `test`.

    Raises:
        AttemptError: Something cannot be used.
    """
    from attempt_ray.bank.store import Bank
    from attempt_ray.data.encoding import encode_splits
    from attempt_ray.model.backbone import load_backbone
    from attempt_ray.model.published import load_published
    from attempt_ray.tasks import get_task
    from attempt_ray.training import evaluation

    if not config.tasks:
        raise ConfigError("tasks is empty; name at least one, such as --set tasks=[rte]")
    if split not in ("dev", "test"):
        raise ConfigError(f"split: got '{split}'; choose dev or test")
    tasks = [get_task(name, config.data.user_tasks) for name in config.tasks]
    bank = Bank(config.bank)
    references = [bank.resolve(prompt or f"target/{task.name}").reference for task in tasks]
    backbone = load_backbone(config.backbone, config.device)
    found: dict[str, Any] = {}
    with Screen(total=len(tasks)) as screen:
        for task, reference in zip(tasks, references, strict=True):
            method, loaded = load_published(bank, reference, backbone=backbone, task=task.name)
            digest = backbone.identity.tokenizer_sha256
            encoded = encode_splits(task, config.data, backbone.tokenizer, tokenizer_digest=digest)
            rows = encoded.test if split == "test" else encoded.dev
            scored = evaluation.evaluate(method, rows, task_index=0, config=config)
            attention = None if scored.attention is None else evaluation.attention_record(scored.attention)
            found[task.name] = {"prompt": loaded.version.reference, **scored.record(), "attention": attention}
            metrics = ", ".join(f"{name} {value:.1f}" for name, value in scored.scores.items())
            screen.say(f"{task.name} with {loaded.version.reference}: {metrics} ({split}, n={scored.n:,})")
    return {"job": "evaluate", "split": split, "scores": found}


if __name__ == "__main__":
    from jobs.cli import run_job

    run_job("evaluate")
