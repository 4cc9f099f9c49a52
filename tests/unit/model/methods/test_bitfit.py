from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from attempt_ray.model.methods.bitfit import BiasedNorm


@pytest.mark.parametrize("family", ["t5", "t5-v1_1", "mt5"])
def test_at_zero_it_is_the_frozen_model(make_backbone, build, batch, logits, family):
    frozen = make_backbone(family).model
    expected = frozen(
        input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT, labels=batch.labels_BL
    ).logits
    method = build(make_backbone(family), method="bitfit")
    assert torch.equal(logits(method, batch), expected)


def test_biases_are_added_where_they_belong(backbone, build, batch, logits):
    before = logits(build(backbone, method="bitfit"), batch)
    model, generator = backbone.model, torch.Generator().manual_seed(0)
    linear, norm = model.decoder.block[0].layer[2].DenseReluDense.wo, model.encoder.final_layer_norm
    hidden = torch.randn(3, 64, generator=generator)
    with torch.no_grad():
        for bias in (linear.bias, norm.bias_H, model.lm_head.bias):
            bias.copy_(torch.randn(bias.shape, generator=generator))
        assert torch.equal(linear(hidden), functional.linear(hidden, linear.weight, linear.bias))
        rows = hidden[:, :32]
        scaled = rows / (rows.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.norm.weight
        torch.testing.assert_close(norm(rows), scaled + norm.bias_H)
        linear.bias.zero_()
        norm.bias_H.zero_()
        after = model(
            input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT, labels=batch.labels_BL
        ).logits
    torch.testing.assert_close(after, before + model.lm_head.bias)


def test_every_linear_map_and_norm_has_a_bias_and_nothing_else_trains(backbone, build):
    method = build(backbone, method="bitfit")
    model = backbone.model
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    norms = [module for module in model.modules() if isinstance(module, BiasedNorm)]
    assert len(linears) == 2 * (4 + 2) + 2 * (4 + 4 + 2) + 1
    assert len(norms) == 2 * 2 + 1 + 3 * 2 + 1
    biases = {id(module.bias) for module in linears} | {id(module.bias_H) for module in norms}
    assert {id(parameter) for _, parameter in method._trainable()} == biases
    assert all(tensor.abs().sum() == 0 for tensor in method.trainable_state().values())
