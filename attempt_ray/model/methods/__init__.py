"""What can be learned on a backbone, behind one interface: `base.Method`.

A new method is a file here, named like its line in `attempt_ray.config.METHODS`, with `build(parts)`.

Source: Asai et al. (2022), sections 3.2 and 3.3 (ATTEMPT, its two learning rates), 4.2 (the baselines).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module

from torch import Tensor

from attempt_ray.config import Config
from attempt_ray.errors import ConfigError
from attempt_ray.model.backbone import Backbone
from attempt_ray.model.methods.attempt import AttemptMixture
from attempt_ray.model.methods.base import Generated, Method, Scored, losses
from attempt_ray.model.methods.finetune import FineTuning
from attempt_ray.model.methods.parts import Parts, initial_prompts
from attempt_ray.model.methods.prompt_tuning import PromptTuning
from attempt_ray.tasks.spec import Task

__all__ = [
    "AttemptMixture",
    "FineTuning",
    "Generated",
    "Method",
    "PromptTuning",
    "Scored",
    "build_method",
    "initial_prompts",
    "losses",
]


def build_method(
    config: Config,
    backbone: Backbone,
    *,
    tasks: Sequence[Task],
    sources: Mapping[str, Tensor] | None = None,
    prior: Mapping[str, Tensor] | None = None,
    initial: Tensor | None = None,
    center: Tensor | None = None,
    shared: Mapping[str, Tensor] | None = None,
) -> Method:
    """Return the method a config asks for, on the backbone's device, with the config's dropout set.

    Args:
        config: What to learn and how.
        backbone: The language model; methods that change it take it over (`MethodFacts.backbone`).
        tasks: The run's tasks in order.
        sources: Source prompts [P, H] by task name; needed by `method: attempt`, others than
            `attention.sources` being ignored, and by a source stage of `method: mpt`, whose tasks they teach.
        prior: Tensors of a G to start from, named as in the bank; None starts afresh.
        initial: Prompt to start from: [P, H] for all tasks or [N, P, H]; None follows `prompt.init`.
        center: Mean pooled input [H] of a fresh G; needed by `attention.center` without a prior, which has its own.
        shared: Tensors of a source stage of `method: mpt` to start from, named as in the bank; None starts afresh.

    Raises:
        ConfigError: The config asks for something that cannot be built or has nothing to train.
        BackboneError: A prompt has another width than the backbone, or the backbone has been taken over before.
    """
    if config.facts.backbone != "frozen" and config.backbone.dtype == "bfloat16":
        raise ConfigError(
            f"method '{config.method}' got backbone.dtype {config.backbone.dtype}, whose steps it would round away; "
            "set backbone.dtype=float32"
        )
    parts = Parts(
        config=config,
        backbone=backbone,
        tasks=tasks,
        sources=sources or {},
        prior=prior,
        initial=initial,
        center=center,
        shared=shared,
    )
    method: Method = import_module(f"{__name__}.{config.method}").build(parts)
    backbone.set_dropout(config.training.dropout)
    return method.to(backbone.device)
