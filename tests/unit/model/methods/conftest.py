"""A batch of several tasks, and methods built on tiny backbones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attempt_ray.config import parse
from attempt_ray.data.batching import Batch
from attempt_ray.model.methods import Method, build_method
from attempt_ray.tasks import get_task

LENGTH, WIDTH = 6, 32
LENGTHS = (9, 4, 1, 6)


@pytest.fixture
def batch() -> Batch:
    """Four rows of two tasks, of unlike lengths."""
    generator = torch.Generator().manual_seed(0)
    mask_BT = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    ids_BT = torch.randint(3, 47, mask_BT.shape, generator=generator) * mask_BT
    return Batch(
        input_ids_BT=ids_BT,
        mask_BT=mask_BT,
        labels_BL=torch.tensor([[3, 1, -100], [8, 9, 1], [4, 1, -100], [20, 21, 1]]),
        task_B=torch.tensor([1, 0, 0, 1]),
        row_B=torch.arange(len(LENGTHS)),
    )


@pytest.fixture
def build() -> Callable[..., Method]:
    """Return a function from a backbone and what differs in the config to a method in eval mode, without dropout."""

    def make(backbone, tasks=("rte", "cb"), *, given: dict[str, Any] | None = None, **sections) -> Method:
        base = {"prompt": {"length": LENGTH}, "training": {"dropout": 0.0}}
        method = build_method(
            parse([base, sections]), backbone, tasks=[get_task(name) for name in tasks], **(given or {})
        )
        return method.eval()

    return make


@pytest.fixture
def logits() -> Callable[..., torch.Tensor]:
    """Return a function from a method and a batch to its teacher-forced logits, by transformers' whole model."""

    def of(method, batch):
        embedded_BTH = method.embed(batch)
        prompts_BPH, _ = method.instance_prompts(embedded_BTH, batch.mask_BT, batch.task_B)
        inputs_BTH, mask_BT = embedded_BTH, batch.mask_BT
        if prompts_BPH is not None:
            inputs_BTH = torch.cat([prompts_BPH, embedded_BTH], dim=1)
            mask_BT = torch.cat([mask_BT.new_ones(prompts_BPH.shape[:2]), mask_BT], dim=1)
        model = method.backbone.model
        return model(inputs_embeds=inputs_BTH, attention_mask=mask_BT, labels=batch.labels_BL).logits

    return of
