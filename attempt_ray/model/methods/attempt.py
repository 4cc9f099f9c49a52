"""ATTEMPT: frozen source prompts and a trained target prompt, mixed for every input (Asai et al. 2022, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attempt_ray.config import AttentionConfig, TrainingConfig
from attempt_ray.errors import ConfigError, unknown_name
from attempt_ray.model.attention import PromptAttention, auto_divisor, temperature_divisor
from attempt_ray.model.backbone import Backbone
from attempt_ray.model.methods.base import Method, check_shape, group
from attempt_ray.model.methods.parts import (
    PARTS_SEED_OFFSET,
    Parts,
    check_prompt_shape,
    generator,
    starting_prompts,
)
from attempt_ray.model.mixture import Mixed, PromptMixture
from attempt_ray.model.soft_prompt import SoftPrompts


class AttemptMixture(Method):
    """ATTEMPT: frozen source prompts and a trained target prompt per task, mixed for every input."""

    def __init__(self, backbone: Backbone, tasks: Sequence[str], mixture: PromptMixture) -> None:
        super().__init__(
            backbone,
            tasks,
            attention=mixture.attention,
            candidates=mixture.candidates,
            prompt_length=mixture.sources_SPH.shape[1],
        )
        self.prompts = mixture.targets  # before the mixture, so that the state names it so
        self.mixture = mixture

    def instance_prompts(self, embedded_BTH: Tensor, mask_BT: Tensor, task_B: Tensor) -> Mixed:
        """Return the mixture for each row (paper equation 4) with its weights."""
        mixed: Mixed = self.mixture(embedded_BTH, mask_BT, task_B)
        return mixed

    def parameter_groups(self, training: TrainingConfig) -> list[dict[str, Any]]:
        """Return the groups `prompts` and `attention`, each where it trains."""
        prompts, attention, decay = self.prompts, self.attention, training.weight_decay
        groups = []
        if prompts is not None:
            groups += group(
                "prompts",
                prompts.parameters(),
                learning_rate=training.prompt_learning_rate,
                weight_decay=decay,
            )
        if attention is not None:
            groups += group(
                "attention",
                attention.parameters(),
                learning_rate=training.attention_learning_rate,
                weight_decay=decay,
            )
        return groups

    @property
    def per_task(self) -> tuple[nn.Parameter, ...]:
        """The target prompts."""
        return () if self.prompts is None else (self.prompts.prompts_NPH,)

    def prompt_tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of the target prompts [P, H] by task."""
        return {} if self.prompts is None else self.prompts.by_task(self.tasks)


def build(parts: Parts) -> AttemptMixture:
    """Return ATTEMPT with the sources that the config names, or one of its ablations.

    Raises:
        ConfigError: A source is missing, G or its prior cannot be made as configured, or nothing would train.
        BackboneError: A prompt has another width than the backbone.
    """
    wanted = parts.config.attention
    chosen = _chosen_sources(parts)
    targets = SoftPrompts(starting_prompts(parts)) if wanted.target == "trained" else None
    attention = _attention(parts, chosen) if wanted.weights == "learned" else None
    if targets is None and (attention is None or wanted.frozen):
        raise ConfigError(
            "nothing trains: attention.target is 'none' and G is frozen or replaced by constant weights; "
            "set attention.target=trained, or attention.weights=learned with attention.frozen=false"
        )
    mixture = PromptMixture(chosen, targets=targets, attention=attention, weights=wanted.weights)
    return AttemptMixture(parts.backbone, parts.names, mixture)


def _chosen_sources(parts: Parts) -> dict[str, Tensor]:
    wanted, sources = parts.config.attention.sources, parts.sources
    if len(set(wanted)) != len(wanted):
        raise ConfigError(f"attention.sources names a task twice: {', '.join(wanted)}; name each once")
    for name in wanted:
        if name not in sources:
            raise ConfigError(unknown_name("source prompt", name, sources))
        check_prompt_shape(f"source prompt '{name}'", sources[name], parts=parts)
    return {name: sources[name] for name in wanted}


def _attention(parts: Parts, sources: Mapping[str, Tensor]) -> PromptAttention:
    backbone, prior, center = parts.backbone, parts.prior, parts.center
    wanted = parts.config.attention
    if prior is not None and ("center_H" in prior) != wanted.center:
        made = "with" if "center_H" in prior else "without"
        raise ConfigError(
            f"the prior was trained {made} a centre; set attention.center={str(not wanted.center).lower()} or name "
            "another in attention.prior"
        )
    if wanted.center and prior is None and center is None:
        raise ConfigError("attention.center got no rows to take the mean of; set attention.center=false")
    attention = PromptAttention(
        backbone.width,
        bottleneck=wanted.bottleneck,
        divisor=_divisor(wanted, backbone.width, sources),
        pooling=wanted.pooling,
        train_norm=wanted.train_norm,
        pad_embedding_H=backbone.pad_embedding_H.cpu(),
        authors_width=wanted.authors_width,
        center_H=(center if prior is None else prior["center_H"]) if wanted.center else None,
        generator=generator(parts.config.seed + PARTS_SEED_OFFSET),
    )
    if prior is not None:
        own = attention.state_dict()
        if own.keys() != prior.keys():
            raise ConfigError(
                f"the prior holds {', '.join(sorted(prior)) or 'nothing'}; wanted {', '.join(sorted(own))}; "
                "name an attention version in attention.prior"
            )
        for name, tensor in own.items():
            check_shape(name, prior[name], tuple(tensor.shape))
        attention.load_state_dict(dict(prior))
    if wanted.frozen:
        attention.requires_grad_(False)
    return attention


def _divisor(attention: AttentionConfig, width: int, sources: Mapping[str, Tensor]) -> float:
    if attention.temperature == "auto":
        keys_SH = torch.stack([prompt.float().amax(dim=0) for prompt in sources.values()])
        return auto_divisor(keys_SH, auto_logit=attention.auto_logit)
    return temperature_divisor(width, temperature=attention.temperature)
