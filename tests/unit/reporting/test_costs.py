from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5ForConditionalGeneration

from attempt_ray.model.frozen_t5 import FrozenT5, PassOptions
from attempt_ray.reporting.costs import forward_flops, plan_step, step_memory, training_flops
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


def small(*, gated: bool) -> BackboneShape:
    return BackboneShape(
        name="small",
        width=32,
        head_width=24,
        heads=4,
        feed_forward=80,
        encoder_layers=3,
        decoder_layers=2,
        vocabulary=50,
        tokens=50,
        gated=gated,
    )


def frozen_of(shape: BackboneShape, *, recompute: bool = False) -> FrozenT5:
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=shape.vocabulary,
            d_model=shape.width,
            d_kv=shape.head_width,
            num_heads=shape.heads,
            d_ff=shape.feed_forward,
            num_layers=shape.encoder_layers,
            num_decoder_layers=shape.decoder_layers,
            feed_forward_proj="gated-gelu" if shape.gated else "relu",
            decoder_start_token_id=0,
        )
    ).eval()
    return FrozenT5(model.requires_grad_(False), PassOptions(recompute=recompute))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("targets", [2, 40])
def test_the_count_is_that_of_the_operations_done(gated, targets):
    shape = small(gated=gated)
    frozen = frozen_of(shape)
    inputs_BTH = torch.randn(2, 20, 32, requires_grad=True)
    mask_BT = torch.ones(2, 20, dtype=torch.bool)
    ids_BCL = torch.randint(3, 50, (2, 1, targets))
    # The counter does not know the processor's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        frozen.decode(frozen.encode([inputs_BTH], [mask_BT]), [mask_BT], [ids_BCL])
    rows = [(20, targets)] * 2
    assert counter.get_total_flops() == pytest.approx(training_flops(shape, rows) / 2, rel=0.1)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("rows", "tokens", "targets"), [(3, 40, 2), (8, 100, 4), (1, 9, 1)])
def test_activations_are_what_the_backward_pass_keeps(gated, rows, tokens, targets, padded):
    shape = small(gated=gated)
    frozen = frozen_of(shape)
    inputs_BTH = torch.randn(rows, tokens, 32, requires_grad=True)
    mask_BT = torch.ones(rows, tokens, dtype=torch.bool)
    mask_BT[0, tokens - 1] = not padded
    ids_BCL = torch.randint(3, 50, (rows, 1, targets))
    weights = {weight.untyped_storage().data_ptr() for weight in frozen._model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = frozen.decode(frozen.encode([inputs_BTH], [mask_BT]), [mask_BT], [ids_BCL])
    assert logits[0].requires_grad
    found = step_memory(
        shape, rows=rows, tokens=tokens, targets=targets, weight_bytes=4, padded=padded
    ).activations
    assert found == pytest.approx(sum(size for size, _ in kept.values()), rel=0.05)


def test_recomputing_keeps_one_layer_at_a_time():
    shape = small(gated=False)
    frozen = frozen_of(shape, recompute=True)
    inputs_BTH = torch.randn(4, 30, 32, requires_grad=True)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        frozen.encode([inputs_BTH], [torch.ones(4, 30, dtype=torch.bool)])
    whole, alone = (
        step_memory(
            shape, rows=4, tokens=30, targets=1, weight_bytes=4, padded=False, recompute=recompute
        ).activations
        for recompute in (False, True)
    )
    # The input of each layer and of the last norm.
    assert sum(kept.values()) < 1.3 * (shape.encoder_layers + 1) * 4 * 30 * 32 * 4
    layer = 4 * 30 * ((2 * 32 + 4 * 96) * 4 + 80 + 4 * 6)
    assert whole - alone == (shape.encoder_layers - 1) * layer - shape.encoder_layers * 4 * 30 * 32 * 4


def test_the_papers_card_takes_sixteen_rows_of_t5_3b():
    plan = plan_step(BACKBONES["t5-3b"], rows=16, tokens=356, targets=4, weight_bytes=2, limit=24e9)
    assert plan.memory.peak < 24e9
    assert plan.most_rows >= 16
    fits, too_many = (
        plan_step(plan.shape, rows=plan.most_rows + more, tokens=356, targets=4, weight_bytes=2).memory.peak
        for more in (0, 1)
    )
    assert fits <= 24e9 < too_many
    assert "rows fit" in plan.describe()
    assert plan.as_dict()["bytes"]["peak"] == plan.memory.peak


def test_a_card_too_small_takes_none():
    plan = plan_step(BACKBONES["t5-3b"], rows=1, tokens=356, targets=4, weight_bytes=4, limit=8e9)
    assert plan.most_rows == 0
    assert "not one row fits" in plan.describe()
