"""The frozen backbone on a GPU against the same on the processor; skipped where there is no CUDA."""

from __future__ import annotations

import pytest
import torch

from attempt_ray.model.frozen_t5 import FrozenT5, PassOptions
from attempt_ray.model.precision import choose_precision

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("default"),  # torch's compiler warns of itself
]


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def results(model, options=None, *, seeds=None):
    """Logits and gradients of two segments of unlike width."""
    frozen = FrozenT5(model, options)
    device = model.shared.weight.device
    generator = torch.Generator().manual_seed(0)
    inputs, masks, ids = [], [], []
    for tokens, length in ((16, 16), (8, 5)):
        drawn_BTH = torch.randn(4, tokens, model.config.d_model, generator=generator)
        inputs.append(drawn_BTH.to(device, model.dtype).requires_grad_())
        masks.append((torch.arange(tokens) < length).expand(4, -1).to(device))
        ids.append(torch.randint(3, 40, (4, 2, 3), generator=generator).to(device))
    logits = frozen.decode(frozen.encode(inputs, masks, seeds), masks, ids, seeds)
    sum(one.float().log_softmax(dim=-1)[..., 5].sum() for one in logits).backward()
    return [one.float().cpu() for one in [*logits, *(given.grad for given in inputs)]]


@pytest.mark.parametrize("attention", ["auto", "fused", "plain"])
@pytest.mark.parametrize("mode", ["off", "default", "reduce-overhead"])
@pytest.mark.parametrize("family", ["t5", "t5-v1_1", "mt5"])
def test_a_gpu_computes_what_the_processor_does(make_backbone, family, mode, attention):
    model = make_backbone(family).model.eval()
    expected = results(model)
    found = results(model.cuda(), PassOptions(attention=attention, compile=mode))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_on_a_gpu_repeats_by_its_seed(make_backbone, recompute):
    backbone = make_backbone()
    backbone.set_dropout(0.3)
    model = backbone.model.train().cuda()
    options = PassOptions(recompute=recompute)
    first, again, other = (results(model, options, seeds=seeds) for seeds in ([1, 2], [1, 2], [1, 3]))
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in zip(first, again, strict=True))
    assert not torch.allclose(first[1], other[1])


def test_a_gpu_with_bfloat16_computes_in_it(make_backbone):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("a GPU without bfloat16 products")
    assert choose_precision("auto", "cuda").dtype == "bfloat16"
    model = make_backbone().model.eval()
    expected = results(model)
    found = results(model.to("cuda", torch.bfloat16))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 0.1 * theirs.abs().max()
