from __future__ import annotations

import time

import pytest
import torch

from attempt_ray.model.attention_kernels import AttentionKernels, fastest, fused, plain


def given(*, rows: int = 2, tokens: int = 5, grad: bool = False):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(rows, 3, tokens, 8, generator=generator).requires_grad_(grad) for _ in range(3)]
    return (*parts, torch.randn(1, 3, tokens, tokens, generator=generator))


def refusing(*_):
    raise RuntimeError("No available kernel")


def slow(*inputs):
    time.sleep(0.02)
    return plain(*inputs)


def test_all_kernels_attend_alike():
    inputs = given()
    scores = inputs[0] @ inputs[1].transpose(2, 3) + inputs[3]
    expected = scores.softmax(dim=-1) @ inputs[2]
    for wanted in ("auto", "fused", "plain"):
        assert torch.allclose(AttentionKernels(wanted)(*inputs), expected, atol=1e-6)


@pytest.mark.parametrize("grad", [False, True])
def test_the_fastest_that_works_is_taken(grad):
    with torch.set_grad_enabled(grad):
        name = fastest({"refusing": refusing, "slow": slow, "plain": plain}, *given(grad=grad))
    assert name == "plain"


def test_where_all_refuse_the_first_says_why():
    kernels = AttentionKernels("auto", {"refusing": refusing, "too": refusing})
    with pytest.raises(RuntimeError, match="No available kernel"):
        kernels(*given())


def test_a_shape_is_tried_once():
    calls = []

    def counting(*inputs):
        calls.append(1)
        return fused(*inputs)

    kernels = AttentionKernels("auto", {"counting": counting, "slow": slow})
    for _ in range(3):
        kernels(*given())
    once = len(calls)
    kernels(*given())
    assert len(calls) == once + 1
    kernels(*given(tokens=6))
    assert len(calls) > once + 2
    assert list(kernels.chosen.values()) == ["counting", "counting"]


def test_on_a_processor_nothing_is_timed():
    kernels = AttentionKernels("auto")
    kernels(*given())
    assert not kernels.chosen
