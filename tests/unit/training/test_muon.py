from __future__ import annotations

import pytest
import torch

from attempt_ray.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (2, 16, 4)])
def test_singular_values_move_close_to_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalised(matrices))
    assert singular.min() > 0.3
    assert singular.max() < 1.5


def test_matches_torchs_muon() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(24, 40, generator=generator)
    gradients = [torch.randn(24, 40, generator=generator) for _ in range(3)]
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    mine = Muon([ours], lr=0.01, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    # torch iterates in bfloat16, whose 8 bits of precision the tolerance allows for.
    assert (ours - theirs).abs().max() < 0.02 * (ours - start).abs().max() + 2e-4
    assert (
        torch.nn.functional.cosine_similarity((ours - start).flatten(), (theirs - start).flatten(), dim=0)
        > 0.999
    )
