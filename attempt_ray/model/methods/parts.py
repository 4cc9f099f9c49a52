"""What a method is built of, and how its prompts start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attempt_ray.config import Config
from attempt_ray.errors import BackboneError, ConfigError
from attempt_ray.model.backbone import Backbone
from attempt_ray.model.soft_prompt import from_labels, from_normal, from_text, from_vocabulary
from attempt_ray.tasks.spec import Task

PARTS_SEED_OFFSET = 1_000_003
"""Keeps the starting values of G, adapters and updates apart from the draw of the prompts under the same seed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What a builder is given."""

    config: Config
    """What to learn and how."""
    backbone: Backbone
    """The language model; methods that change it take it over."""
    tasks: Sequence[Task]
    """The run's tasks in order."""
    sources: Mapping[str, Tensor] = field(default_factory=dict)
    """Source prompts [P, H] by task name."""
    prior: Mapping[str, Tensor] | None = None
    """Tensors of a G to start from, named as in the bank."""
    initial: Tensor | None = None
    """Prompt to start from: [P, H] for all tasks or [N, P, H]; None follows `prompt.init`."""
    center: Tensor | None = None
    """Mean pooled input [H] of a fresh G."""
    shared: Mapping[str, Tensor] | None = None
    """Tensors of MPT's source stage to start from, named as in the bank."""

    @property
    def names(self) -> list[str]:
        """Names of the tasks."""
        return [task.name for task in self.tasks]


def initial_prompts(config: Config, backbone: Backbone, *, tasks: Sequence[Task]) -> Tensor:
    """Return initial_NPH as `prompt.init` says, for the initialisers that need no bank.

    All tasks start from the same draw, so a task starts alike alone and in a group; `labels` differ by task.

    Raises:
        ConfigError: `prompt.init` needs prompts of the bank, a text or label words that are not given.
    """
    prompt, vocabulary_VH = config.prompt, backbone.vocabulary_VH
    if prompt.init in ("prompt", "average"):
        raise ConfigError(
            f"prompt.init '{prompt.init}' got no prompt to start from; name bank references in prompt.init_from"
        )
    if prompt.init == "labels":
        rows = [_label_prompt(task, config, backbone) for task in tasks]
        return torch.stack(rows)
    if prompt.init == "text":
        ids = backbone.encode(prompt.init_text)[:-1] if prompt.init_text else []
        initial_PH = from_text(vocabulary_VH, config.prompt_length, ids=ids)
    elif prompt.init == "normal":
        initial_PH = from_normal(
            config.prompt_length, backbone.width, std=prompt.init_std, generator=generator(config.seed)
        )
    else:
        initial_PH = from_vocabulary(
            vocabulary_VH, config.prompt_length, top=prompt.init_vocab_top, generator=generator(config.seed)
        )
    return initial_PH.expand(len(tasks), -1, -1)


def _label_prompt(task: Task, config: Config, backbone: Backbone) -> Tensor:
    words = task.labels.get(config.data.label_words, ())
    if not words:
        raise ConfigError(f"prompt.init 'labels' got task '{task.name}', which has no label words; use vocab")
    return from_labels(
        backbone.vocabulary_VH,
        config.prompt_length,
        labels=[backbone.encode(word)[:-1] for word in words],
        top=config.prompt.init_vocab_top,
        generator=generator(config.seed),
    )


def starting_prompts(parts: Parts) -> Tensor:
    """Return initial_NPH: what the run's prompts start from.

    Raises:
        ConfigError: `prompt.init` cannot be followed, or the prompts to start from have another length or number.
        BackboneError: They have another width than the backbone.
    """
    initial, number = parts.initial, len(parts.tasks)
    if initial is None:
        return initial_prompts(parts.config, parts.backbone, tasks=parts.tasks)
    initial_NPH = initial.expand(number, -1, -1) if initial.ndim == 2 else initial
    check_prompt_shape("the prompt to start from", initial_NPH[0], parts=parts)
    if len(initial_NPH) != number:
        raise ConfigError(
            f"got {len(initial_NPH)} prompts to start from for {number} tasks; give one for each"
        )
    return initial_NPH


def check_prompt_shape(what: str, prompt_PH: Tensor, *, parts: Parts) -> None:
    """Refuse a prompt of another shape than the run's.

    Raises:
        ConfigError: It has another length.
        BackboneError: It has another width than the backbone.
    """
    backbone = parts.backbone
    key = "dept.length" if parts.config.method == "dept" else "prompt.length"
    length, width = parts.config.prompt_length, backbone.width
    if prompt_PH.ndim != 2 or prompt_PH.shape[1] != width:
        raise BackboneError(
            f"{what} has shape {list(prompt_PH.shape)}; backbone '{backbone.identity.name}' wants [{length}, {width}]; "
            "use a prompt that was trained on this backbone"
        )
    if prompt_PH.shape[0] != length:
        raise ConfigError(
            f"{what} has {prompt_PH.shape[0]} positions; {key} is {length}; set {key}={prompt_PH.shape[0]}"
        )


def generator(seed: int) -> torch.Generator:
    """Return a CPU generator of its own."""
    return torch.Generator().manual_seed(seed)
