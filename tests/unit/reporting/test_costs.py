from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5ForConditionalGeneration

from attempt_ray.model.frozen_t5 import FrozenT5
from attempt_ray.reporting.costs import forward_flops, training_flops
from attempt_ray.reporting.parameters import BACKBONES, BackboneShape


@pytest.mark.parametrize("tokens", [140, 228])
@pytest.mark.parametrize("backbone", ["t5-small", "t5-base", "t5-large"])
def test_a_row_costs_what_the_matrices_say(backbone, tokens):
    shape = BACKBONES[backbone]
    blocks = shape.parameters(vocabulary=0)
    # Two operations a weight and token in the encoder; the decoder and attention add the rest.
    encoder_share = shape.encoder_layers * (
        4 * shape.width * shape.inner + 2 * shape.width * shape.feed_forward
    )
    least = 2 * encoder_share * tokens
    assert encoder_share < blocks
    assert least < forward_flops(shape, tokens=tokens, targets=2) < 1.35 * least


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("targets", [2, 40])
def test_the_count_is_that_of_the_operations_done(gated, targets):
    shape = BackboneShape(
        name="small",
        width=32,
        head_width=8,
        heads=4,
        feed_forward=64,
        encoder_layers=3,
        decoder_layers=2,
        vocabulary=50,
        tokens=50,
        gated=gated,
    )
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=50,
            d_model=32,
            d_kv=8,
            num_heads=4,
            d_ff=64,
            num_layers=3,
            num_decoder_layers=2,
            feed_forward_proj="gated-gelu" if gated else "relu",
            decoder_start_token_id=0,
        )
    ).eval()
    model.requires_grad_(False)
    frozen = FrozenT5(model)
    inputs_BTH = torch.randn(2, 20, 32, requires_grad=True)
    mask_BT = torch.ones(2, 20, dtype=torch.bool)
    ids_BCL = torch.randint(3, 50, (2, 1, targets))
    # The counter does not know the processor's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        frozen.decode(frozen.encode([inputs_BTH], [mask_BT]), [mask_BT], [ids_BCL])
    rows = [(20, targets)] * 2
    assert counter.get_total_flops() == pytest.approx(training_flops(shape, rows) / 2, rel=0.1)
