"""Soft prompts and the ways to start them.

Source: Lester et al. (2021), https://arxiv.org/abs/2104.08691, section 2 (prompt tuning) and 3.2 (initialisation);
Vu et al. (2022), https://arxiv.org/abs/2110.07904 (starting from other prompts).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attempt_ray.errors import BackboneError, ConfigError


class SoftPrompts(nn.Module):
    """One trainable prompt for each task of a run: N*P*H numbers (76,800 for one prompt of 100 on T5-base)."""

    def __init__(self, initial_NPH: Tensor) -> None:
        super().__init__()
        self.prompts_NPH = nn.Parameter(initial_NPH.detach().to(torch.float32).clone())

    def forward(self, task_B: Tensor) -> Tensor:
        """Return prompts_BPH: each row's own task's prompt.

        Args:
            task_B: Index of each row's task in the run's task list.
        """
        return self.prompts_NPH.index_select(0, task_B)

    def by_task(self, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return copies on the CPU of the prompts [P, H], by the names of the run's tasks."""
        prompts_NPH = self.prompts_NPH.detach().to("cpu", copy=True)
        return {task: prompt_PH.clone() for task, prompt_PH in zip(tasks, prompts_NPH, strict=True)}

    def keys(self, task_B: Tensor) -> Tensor:
        """Return keys_BH: each row's task's prompt max-pooled over its positions (paper section 3.2)."""
        return self.prompts_NPH.amax(dim=1).index_select(0, task_B)


def from_vocabulary(embedding_VH: Tensor, length: int, *, top: int, generator: torch.Generator) -> Tensor:
    """Return a prompt_PH of distinct rows of the pretrained embedding matrix, drawn from its most frequent ids.

    The authors' code draws before the checkpoint is loaded and so starts from N(0, 1) noise; here the rows are real.

    Args:
        embedding_VH: Pretrained embeddings, frequent tokens first as in T5's vocabulary.
        length: Prompt positions.
        top: Only ids below this one are drawn; more than V means all.
        generator: CPU generator behind the draw.

    Raises:
        ConfigError: Fewer ids than positions.
    """
    known = min(top, embedding_VH.shape[0])
    if length > known:
        raise ConfigError(
            f"prompt.length {length} is more than the {known} vocabulary rows to draw from; "
            "lower prompt.length or raise prompt.init_vocab_top"
        )
    ids_P = torch.randperm(known, generator=generator)[:length]
    return embedding_VH[ids_P.to(embedding_VH.device)].to("cpu", torch.float32)


def from_text(embedding_VH: Tensor, length: int, *, ids: Sequence[int]) -> Tensor:
    """Return a prompt_PH of a text's embedded tokens, repeated or cut to `length`.

    Raises:
        ConfigError: The text has no tokens.
    """
    if not ids:
        raise ConfigError(
            "prompt.init_text holds no tokens; write the text that prompt.init=text starts from"
        )
    repeats = -(-length // len(ids))
    ids_P = torch.tensor((list(ids) * repeats)[:length], device=embedding_VH.device)
    return embedding_VH[ids_P].to("cpu", torch.float32)


def from_labels(
    embedding_VH: Tensor,
    length: int,
    *,
    labels: Sequence[Sequence[int]],
    top: int,
    generator: torch.Generator,
) -> Tensor:
    """Return a prompt_PH that opens with one position per label, the rest drawn as by `from_vocabulary`.

    A label of several tokens is the mean of their embeddings (Lester et al., section 3.2).

    Args:
        embedding_VH: Pretrained embeddings.
        length: Prompt positions; labels beyond it are left out.
        labels: Token ids of each label word, none empty.
        top: As for `from_vocabulary`.
        generator: CPU generator behind the draw.

    Raises:
        ConfigError: Fewer ids than positions to fill.
    """
    device = embedding_VH.device
    rows = [embedding_VH[torch.tensor(list(ids), device=device)].mean(dim=0) for ids in labels[:length]]
    opening_PH = torch.stack(rows).to("cpu", torch.float32)
    if len(rows) == length:
        return opening_PH
    return torch.cat(
        [opening_PH, from_vocabulary(embedding_VH, length - len(rows), top=top, generator=generator)]
    )


def from_prompt(prompt_PH: Tensor, length: int, *, width: int) -> Tensor:
    """Return a copy of another prompt.

    Raises:
        ConfigError: It has another length.
        BackboneError: It has another width, so it was made for another backbone.
    """
    if prompt_PH.ndim != 2 or prompt_PH.shape[1] != width:
        raise BackboneError(
            f"the prompt to start from has shape {tuple(prompt_PH.shape)}; the backbone wants [{length}, {width}]; "
            "use a prompt that was trained on this backbone"
        )
    if prompt_PH.shape[0] != length:
        raise ConfigError(
            f"the prompt to start from has {prompt_PH.shape[0]} positions; prompt.length is {length}; "
            f"set prompt.length={prompt_PH.shape[0]}"
        )
    return prompt_PH.detach().to("cpu", torch.float32).clone()


def from_average(
    prompts: Sequence[Tensor], length: int, *, width: int, weights: Sequence[float] = ()
) -> Tensor:
    """Return the weighted mean of other prompts, position by position (Vu et al., section 4.1).

    Args:
        prompts: Prompts of shape [P, H].
        length: Prompt positions that each must have.
        width: Model width that each must have.
        weights: One for each prompt, scaled here to sum to 1; empty is uniform.

    Raises:
        ConfigError: No prompt, a count of weights that does not fit, a sum that is not positive, or another length.
        BackboneError: A prompt has another width.
    """
    if not prompts:
        raise ConfigError("prompt.init_from names no prompt to average; name at least one")
    if weights and len(weights) != len(prompts):
        raise ConfigError(
            f"prompt.init_weights has {len(weights)} values for {len(prompts)} prompts; give one for each, or none"
        )
    total = sum(weights) if weights else float(len(prompts))
    if not total > 0:
        raise ConfigError(f"prompt.init_weights sum to {total}; wanted a positive sum")
    shares = [weight / total for weight in weights] if weights else [1 / total] * len(prompts)
    stacked_KPH = torch.stack([from_prompt(prompt, length, width=width) for prompt in prompts])
    return torch.einsum("k,kph->ph", torch.tensor(shares), stacked_KPH)


def from_normal(length: int, width: int, *, std: float, generator: torch.Generator) -> Tensor:
    """Return a prompt_PH of N(0, std**2); with std 1 what the authors' released prompts started from."""
    return torch.randn(length, width, generator=generator) * std
