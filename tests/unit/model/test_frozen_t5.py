from __future__ import annotations

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from attempt_ray.model.frozen_t5 import DecoderState, FrozenT5

FAMILIES = ("t5", "t5-v1_1", "mt5")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2}


@pytest.fixture(params=FAMILIES)
def model(make_backbone, request):
    return make_backbone(request.param).model


def inputs(model, *, padded: bool = True, targets: int = 3):
    generator = torch.Generator().manual_seed(0)
    embedded_BTH = torch.randn(4, 11, model.config.d_model, generator=generator) * 2
    lengths = torch.tensor([11, 4, 1, 7]) if padded else torch.full((4,), 11)
    mask_BT = torch.arange(11) < lengths[:, None]
    ids_BCL = torch.randint(3, 40, (4, 2, targets), generator=generator)
    ids_BCL[..., 0] = 0
    return embedded_BTH.to(model.dtype), mask_BT, ids_BCL


def reference(model, embedded_BTH, mask_BT, ids_BCL):
    """Logits of transformers, candidate by candidate."""
    columns = [
        model(
            inputs_embeds=embedded_BTH,
            attention_mask=mask_BT,
            decoder_input_ids=ids_BCL[:, candidate],
            use_cache=False,
        ).logits
        for candidate in range(ids_BCL.shape[1])
    ]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("targets", [3, 9], ids=["absorbed", "formed"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_logits_are_those_of_transformers(model, dtype, targets, padded):
    model = model.to(dtype).eval()
    frozen = FrozenT5(model)
    embedded_BTH, mask_BT, ids_BCL = inputs(model, padded=padded, targets=targets)
    ours = frozen.decode(frozen.encode(embedded_BTH, mask_BT), mask_BT, ids_BCL)
    theirs = reference(model, embedded_BTH, mask_BT, ids_BCL)
    scale = theirs.abs().max().item()
    assert (ours - theirs).abs().max().item() <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("targets", [3, 9], ids=["absorbed", "formed"])
def test_gradients_of_the_input_are_those_of_transformers(model, targets):
    frozen = FrozenT5(model.eval())
    embedded_BTH, mask_BT, ids_BCL = inputs(model, targets=targets)
    gradients = []
    for run in (
        lambda given: frozen.decode(frozen.encode(given, mask_BT), mask_BT, ids_BCL),
        lambda given: reference(model, given, mask_BT, ids_BCL),
    ):
        given = embedded_BTH.clone().requires_grad_()
        run(given).float().log_softmax(dim=-1)[..., 5].sum().backward()
        gradients.append(given.grad)
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[1].abs().max()


def test_steps_with_kept_keys_are_one_teacher_forced_pass(model):
    frozen = FrozenT5(model.eval())
    embedded_BTH, mask_BT, ids_BCL = inputs(model, targets=4)
    encoded_BTH = frozen.encode(embedded_BTH, mask_BT)
    whole_BLV = frozen.decode(encoded_BTH, mask_BT, ids_BCL[:, :1])[:, 0]
    state = DecoderState()
    for place in range(4):
        logits_BV = frozen.step(encoded_BTH, mask_BT, ids_BCL[:, 0, place], state)
        assert torch.allclose(logits_BV, whole_BLV[:, place], atol=1e-5 * whole_BLV.abs().max().item())


def test_dropout_falls_where_transformers_lets_it_fall(make_backbone):
    """Equal in distribution: the mean encoding over many masks and its spread agree."""
    backbone = make_backbone()
    backbone.set_dropout(0.3)
    model = backbone.model.train()
    frozen = FrozenT5(model)
    embedded_BTH, mask_BT, _ = inputs(model, padded=False)
    torch.manual_seed(0)
    ours = torch.stack([frozen.encode(embedded_BTH, mask_BT) for _ in range(3000)])
    theirs = torch.stack(
        [
            model.encoder(inputs_embeds=embedded_BTH, attention_mask=mask_BT).last_hidden_state
            for _ in range(3000)
        ]
    )
    assert isinstance(BaseModelOutput(theirs), BaseModelOutput)
    assert (ours.std(dim=0).mean() / theirs.std(dim=0).mean()).item() == pytest.approx(1, abs=0.02)
    error = theirs.std(dim=0) * (2 / 3000) ** 0.5
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 5.5 * error).all()
