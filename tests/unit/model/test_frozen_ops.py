from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from attempt_ray.model.frozen_ops import NO_DROPOUT, Dropout, activated, rectified

GELU = partial(F.gelu, approximate="tanh")


def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = {"input": (6, 8), "first": (20, 8), "gate": (20, 8), "last": (8, 20), "out": (6, 8)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def composed(given, activation, *, gated, kept, scale):
    inner = activation(F.linear(given["input"], given["first"]))
    if gated:
        inner = inner * F.linear(given["input"], given["gate"])
    if kept is not None:
        inner = inner * kept * scale
    return F.linear(inner, given["last"])


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("kind", ["rectified", "gated", "plain"])
def test_a_feed_forward_layer_is_the_composed_one(kind, dropped):
    kept = torch.rand(6, 20, generator=torch.Generator().manual_seed(1)) < 0.7 if dropped else None
    scale = 1 / 0.7 if dropped else 1.0
    results = []
    for own in (True, False):
        given = weights()
        given["input"].requires_grad_()
        if not own:
            activation = F.relu if kind == "rectified" else GELU
            output = composed(given, activation, gated=kind == "gated", kept=kept, scale=scale)
        elif kind == "rectified":
            output = rectified(given["input"], given["first"], given["last"], kept, scale)
        else:
            gate = given["gate"] if kind == "gated" else None
            output = activated(given["input"], GELU, given["first"], gate, given["last"], kept, scale)
        output.backward(given["out"])
        results.append((output, given["input"].grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_rectifier_keeps_a_byte_of_each_number():
    given, kept = weights(), {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rectified(given["input"].requires_grad_(), given["first"], given["last"])
    frozen = given["first"].nbytes + given["last"].nbytes
    assert sum(kept.values()) == frozen + 6 * 20


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_keeps_its_share_and_the_mean(probability):
    ones = torch.ones(1001, 999)
    dropped = Dropout(probability, [torch.Generator().manual_seed(0)]).part(ones, 0)
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(
        probability, abs=5 * (probability * (1 - probability) / ones.numel()) ** 0.5
    )
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - probability)], rel=1e-4)
    # Neighbouring numbers come from one draw of 64 bits.
    zero = (dropped.flatten()[:-1] == 0) & (dropped.flatten()[1:] == 0)
    assert zero.float().mean().item() == pytest.approx(probability**2, rel=0.03)


def test_no_dropout_returns_what_it_is_given():
    tensor = torch.randn(4, 3)
    assert NO_DROPOUT.part(tensor, 0) is tensor
    assert NO_DROPOUT.flat(tensor, [(2, 2)]) is tensor


def test_a_replay_draws_the_same_masks():
    dropout = Dropout(0.5, [torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)])
    tensor, shapes = torch.ones(12, 40), [(2, 3), (3, 2)]
    first, again = dropout.replayed()
    with first:
        found = dropout.flat(tensor, shapes)
    assert not torch.equal(dropout.flat(tensor, shapes), found)
    with again:
        assert torch.equal(dropout.flat(tensor, shapes), found)
