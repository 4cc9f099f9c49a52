"""The report of a run: every number that reporting may print, and how it came about."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from attempt_ray import __version__
from attempt_ray.config import Config
from attempt_ray.model.methods import Method
from attempt_ray.training.evaluation import Evaluation, attention_record
from attempt_ray.training.ingredients import Ingredients
from attempt_ray.training.optimizer import StepPlan
from attempt_ray.training.selection import Selection

SCHEMA = 1


def run_label(config: Config) -> str:
    """Return the table row that a run belongs to: its method, for most.

    Prompt tuning that starts from one prompt of the bank is SPoT, and generic SPoT where that was learned on several
    tasks; from an average of such prompts it is SPoT with similar sources, and targeted SPoT where they are weighted.
    Several tasks in one run are told by `_mt`.
    """
    if config.job != "target":
        return config.job
    label, prompt = config.method, config.prompt
    if label == "prompt_tuning" and prompt.init == "prompt":
        shared = any(reference.startswith("source/shared-") for reference in prompt.init_from)
        label = "spot_generic" if shared else "spot"
    elif label == "prompt_tuning" and prompt.init == "average":
        label = "spot_targeted" if prompt.init_weights else "spot_similar"
    return f"{label}_mt" if len(config.tasks) > 1 else label


def build_report(
    ingredients: Ingredients,
    method: Method,
    selection: Selection,
    *,
    digest: str,
    plan: StepPlan,
    steps: int,
    finals: Mapping[str, Evaluation],
    scores: Mapping[str, Mapping[str, Any]],
    tokens: int,
    seconds: float,
    backbone_unchanged: bool | None,
) -> dict[str, Any]:
    """Return the content of report.json, but for what the bank and the disk add.

    Args:
        ingredients: What the run read.
        method: What it trained.
        selection: What it kept.
        digest: Digest of the run.
        plan: Its budget.
        steps: Optimizer steps it took, fewer than planned where it stopped early.
        finals: Evaluation of every task in the state kept for it.
        scores: Count and metrics by task and split.
        tokens: Tokens it trained on.
        seconds: Time it took, restarts included.
        backbone_unchanged: Whether the backbone's weights are those from before; None where they train.
    """
    config = ingredients.config
    attention = {
        task: attention_record(final.attention)
        for task, final in finals.items()
        if final.attention is not None
    }
    return {
        "schema": SCHEMA,
        "job": config.job,
        "method": config.method,
        "label": run_label(config),
        "tasks": list(config.tasks),
        "seed": config.seed,
        "digest": digest,
        "steps": steps,
        "planned_steps": plan.steps,
        "warmup_steps": plan.warmup_steps,
        "backbone": ingredients.backbone.identity.as_dict(),
        "backbone_unchanged": backbone_unchanged,
        "trainable_parameters": method.trainable_parameters,
        "parameters_per_task": method.trainable_parameters / len(config.tasks),
        "train_rows": {task.name: 0 for task in ingredients.tasks}
        | {split.task.name: len(split) for split in ingredients.train},
        "data_sha256": ingredients.data_sha256,
        "seconds": round(seconds, 3),
        "tokens": tokens,
        "selection": config.training.selection,
        "best_step": selection.best_step,
        "kept": selection.facts(),
        "scores": scores,
        "headline": {task.name: task.metrics[0] for task in ingredients.tasks},
        "attention": attention or None,
        "constant_prediction": {task: final.constant for task, final in finals.items()},
        "parents": list(ingredients.parents),
        "environment": {
            "attempt_ray": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
            "device": config.device,
            "threads": torch.get_num_threads(),
        },
    }
