from __future__ import annotations

import math

import pytest
import torch

from attempt_ray.config import TrainingConfig

LENGTH, WIDTH, RANK, POSITIONS = 6, 32, 3, 5
DEPT = {"method": "dept", "dept": {"length": LENGTH, "rank": RANK, "positions": POSITIONS, "alpha": 2.0}}


@pytest.fixture
def dept(backbone, build):
    method = build(backbone, **DEPT)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        method.prompts.prompts_NPH.add_(torch.randn(2, LENGTH, WIDTH, generator=generator))
        method.right_NRH.copy_(torch.randn(2, RANK, WIDTH, generator=generator))
    return method


def test_embeddings_are_moved_by_position_and_task(dept, backbone, batch, logits):
    found_BTH = dept.embed(batch)
    for row, task in enumerate(batch.task_B.tolist()):
        for position in range(batch.mask_BT.shape[1]):
            expected_H = backbone.model.shared.weight[batch.input_ids_BT[row, position]]
            if position < POSITIONS:
                moved_H = dept.left_NSR[task, position] @ dept.right_NRH[task]
                expected_H = expected_H + 2.0 / math.sqrt(RANK) * moved_H
            torch.testing.assert_close(found_BTH[row, position], expected_H)
    expected = torch.nn.functional.cross_entropy(logits(dept, batch).flatten(0, 1), batch.labels_BL.flatten())
    torch.testing.assert_close(dept.loss(batch), expected, atol=1e-5, rtol=1e-5)


def test_at_its_start_it_is_prompt_tuning(backbone, build, batch):
    plain = build(backbone, method="prompt_tuning")
    method = build(backbone, **DEPT)
    assert torch.equal(method.prompts.prompts_NPH, plain.prompts.prompts_NPH)
    assert torch.equal(method.loss(batch), plain.loss(batch))
    assert method.left_NSR.abs().max() <= 1 / math.sqrt(RANK)
    assert method.left_NSR.std().item() == pytest.approx(1 / math.sqrt(3 * RANK), rel=0.3)
    assert torch.equal(method.left_NSR[0], method.left_NSR[1])


def test_gradient_reaches_tasks_of_the_batch_alone(dept, batch):
    one = type(batch)(**{**vars(batch), "task_B": torch.zeros_like(batch.task_B)})
    dept.loss(one).backward()
    for parameter in dept.per_task:
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1].abs().sum() == 0


def test_prompt_and_update_have_rates_of_their_own(dept):
    groups = dept.parameter_groups(TrainingConfig(prompt_learning_rate=0.1))
    assert {group["name"]: group["lr"] for group in groups} == {"prompts": 0.1, "update": 5e-3}
    assert dept.prompt_tensors() == {}


def test_a_bfloat16_backbone_reads_its_own_type(make_backbone, build, batch):
    method = build(make_backbone(dtype=torch.bfloat16), **DEPT)
    assert method.embed(batch).dtype == torch.bfloat16
    assert method.left_NSR.dtype == torch.float32
    method.loss(batch).backward()
    assert method.right_NRH.grad.dtype == torch.float32
