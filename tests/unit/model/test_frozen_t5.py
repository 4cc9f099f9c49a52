from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch

from attempt_ray.model.backbone import Backbone
from attempt_ray.model.frozen_t5 import DecoderState, FrozenT5, PassOptions, WholeT5

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


def alone(frozen, embedded_BTH, mask_BT, ids_BCL):
    """Logits of ours, of one segment."""
    (logits_BCLV,) = frozen.decode(frozen.encode([embedded_BTH], [mask_BT]), [mask_BT], [ids_BCL])
    return logits_BCLV


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("targets", [3, 9], ids=["absorbed", "formed"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_logits_are_those_of_transformers(model, dtype, targets, padded):
    model = model.to(dtype).eval()
    frozen = FrozenT5(model)
    embedded_BTH, mask_BT, ids_BCL = inputs(model, padded=padded, targets=targets)
    ours = alone(frozen, embedded_BTH, mask_BT, ids_BCL)
    theirs = reference(model, embedded_BTH, mask_BT, ids_BCL)
    scale = theirs.abs().max().item()
    assert (ours - theirs).abs().max().item() <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("targets", [3, 9], ids=["absorbed", "formed"])
def test_gradients_of_the_input_are_those_of_transformers(model, targets):
    frozen = FrozenT5(model.eval())
    embedded_BTH, mask_BT, ids_BCL = inputs(model, targets=targets)
    gradients = []
    for run in (
        lambda given: alone(frozen, given, mask_BT, ids_BCL),
        lambda given: reference(model, given, mask_BT, ids_BCL),
    ):
        given = embedded_BTH.clone().requires_grad_()
        run(given).float().log_softmax(dim=-1)[..., 5].sum().backward()
        gradients.append(given.grad)
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[1].abs().max()


def test_steps_with_kept_keys_are_one_teacher_forced_pass(model):
    frozen = FrozenT5(model.eval())
    embedded_BTH, mask_BT, ids_BCL = inputs(model, targets=4)
    (encoded_BTH,) = frozen.encode([embedded_BTH], [mask_BT])
    whole_BLV = frozen.decode([encoded_BTH], [mask_BT], [ids_BCL[:, :1]])[0][:, 0]
    state = DecoderState()
    for place in range(4):
        logits_BV = frozen.step(encoded_BTH, mask_BT, ids_BCL[:, 0, place], state)
        assert torch.allclose(logits_BV, whole_BLV[:, place], atol=1e-5 * whole_BLV.abs().max().item())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("whole", [False, True], ids=["own", "transformers"])
def test_a_segment_does_not_depend_on_its_neighbours(make_backbone, dropout, whole):
    backbone = make_backbone()
    backbone.set_dropout(dropout)
    forward = (WholeT5 if whole else FrozenT5)(backbone.model.train())
    embedded_BTH, mask_BT, ids_BCL = inputs(backbone.model)
    segments = [
        (embedded_BTH, mask_BT, ids_BCL),
        (embedded_BTH[:2, :5], mask_BT[:2, :5], ids_BCL[:2, :1, :2]),
        (embedded_BTH[2:, 3:9], mask_BT[:2, 3:9], ids_BCL[2:]),
    ]
    given, masks, ids = zip(*segments, strict=True)
    seeds = [4, 5, 6]
    global_state = torch.get_rng_state()
    together = forward.decode(forward.encode(given, masks, seeds), masks, ids, seeds)
    assert torch.equal(torch.get_rng_state(), global_state)
    for index, logits_BCLV in enumerate(together):
        one = slice(index, index + 1)
        encoded = forward.encode(given[one], masks[one], seeds[one])
        (expected_BCLV,) = forward.decode(encoded, masks[one], ids[one], seeds[one])
        torch.testing.assert_close(logits_BCLV, expected_BCLV, rtol=1e-5, atol=1e-5)
    again = forward.decode(forward.encode(given, masks, [7, 8, 9]), masks, ids, [7, 8, 9])
    assert torch.equal(again[0], together[0]) == (dropout == 0)


@pytest.mark.parametrize("seeds", [None, [4, 5]], ids=["global", "own"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("whole", [False, True], ids=["own", "transformers"])
def test_layers_computed_again_give_the_same_gradient(make_backbone, whole, dropout, seeds):
    gradients = []
    for recompute in (False, True):
        backbone = make_backbone()
        backbone.set_dropout(dropout)
        model = backbone.model.train()
        forward = (
            WholeT5(model, recompute=recompute)
            if whole
            else FrozenT5(model, PassOptions(recompute=recompute))
        )
        embedded_BTH, mask_BT, _ = inputs(model)
        given = [embedded_BTH.requires_grad_(), embedded_BTH.detach()[:, :5].requires_grad_()]
        torch.manual_seed(0)
        encoded = forward.encode(given, [mask_BT, mask_BT[:, :5]], seeds)
        sum(one.square().sum() for one in encoded).backward()
        gradients.append([one.grad for one in given])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler warns of itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_encoder_computes_the_same(make_backbone, monkeypatch):
    # What the compiler makes of a graph is its own affair, and takes a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model = make_backbone().model.eval()
    gradients = []
    for mode in ("off", "default"):
        frozen = FrozenT5(model, PassOptions(compile=mode))
        embedded_BTH, mask_BT, ids_BCL = inputs(model)
        given = embedded_BTH.requires_grad_()
        alone(frozen, given, mask_BT, ids_BCL).float().log_softmax(dim=-1)[..., 5].sum().backward()
        gradients.append(given.grad)
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[0].abs().max()


def test_dropout_without_a_seed_draws_from_the_global_generator(make_backbone):
    backbone = make_backbone()
    backbone.set_dropout(0.3)
    embedded_BTH, mask_BT, _ = inputs(backbone.model.train())
    frozen = FrozenT5(backbone.model)
    torch.manual_seed(0)
    first, second = (frozen.encode([embedded_BTH], [mask_BT])[0] for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(frozen.encode([embedded_BTH], [mask_BT])[0], first)
    assert not torch.equal(first, second)


def test_dropout_falls_where_transformers_lets_it_fall(make_backbone):
    """Equal in distribution: the mean encoding over many masks and its spread agree."""
    backbone = make_backbone()
    backbone.set_dropout(0.3)
    model = backbone.model.train()
    frozen = FrozenT5(model)
    embedded_BTH, mask_BT, _ = inputs(model, padded=False)
    ours = torch.stack([frozen.encode([embedded_BTH], [mask_BT], [seed])[0] for seed in range(3000)])
    torch.manual_seed(0)
    theirs = torch.stack(
        [
            model.encoder(inputs_embeds=embedded_BTH, attention_mask=mask_BT).last_hidden_state
            for _ in range(3000)
        ]
    )
    assert (ours.std(dim=0).mean() / theirs.std(dim=0).mean()).item() == pytest.approx(1, abs=0.02)
    error = theirs.std(dim=0) * (2 / 3000) ** 0.5
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 5.5 * error).all()


def test_a_backbone_answers_alike_whoever_computes_it(make_backbone):
    own = make_backbone("t5-v1_1")
    theirs = Backbone(own.model, own.tokenizer, own.identity, forward="transformers")
    embedded_BTH, mask_BT, ids_BCL = inputs(own.model)
    prompts_BPH = torch.randn(4, 3, own.width, generator=torch.Generator().manual_seed(3))
    given = (prompts_BPH, embedded_BTH, mask_BT)
    labels_BL = ids_BCL[:, 1].masked_fill(torch.arange(3) == torch.tensor([[2], [9], [1], [9]]), -100)
    candidates_CL = torch.tensor([[3, 1, -100], [4, 5, 1]])
    assert torch.allclose(own.loss(*given, labels_BL), theirs.loss(*given, labels_BL), rtol=1e-5, atol=1e-5)
    assert torch.equal(own.generate(*given, max_new_tokens=5), theirs.generate(*given, max_new_tokens=5))
    scores_BC = own.score_labels(*given, candidates_CL)
    assert torch.allclose(scores_BC, theirs.score_labels(*given, candidates_CL), rtol=1e-5, atol=1e-5)


def test_weights_that_train_are_computed_by_transformers(make_backbone):
    backbone = make_backbone()
    backbone.unfreeze()
    embedded_BTH, mask_BT, ids_BCL = inputs(backbone.model)
    backbone.loss(None, embedded_BTH, mask_BT, ids_BCL[:, 0]).sum().backward()
    assert all(
        weight.grad is not None
        for name, weight in backbone.model.named_parameters()
        if name != "shared.weight"
    )


def test_a_moved_backbone_computes_with_the_moved_weights(make_backbone):
    backbone = make_backbone()
    embedded_BTH, mask_BT, ids_BCL = inputs(backbone.model)
    before = backbone.loss(None, embedded_BTH, mask_BT, ids_BCL[:, 0])
    backbone.to(torch.bfloat16)
    after = backbone.loss(None, embedded_BTH.bfloat16(), mask_BT, ids_BCL[:, 0])
    assert torch.allclose(before, after, rtol=0.05, atol=0.2)
    assert not torch.equal(before, after)


def test_fusing_keeps_one_copy_of_the_weights(make_backbone):
    backbone = make_backbone()
    before = backbone.fingerprint()
    FrozenT5(backbone.model)
    attention = backbone.model.encoder.block[0].layer[0].SelfAttention
    storages = {part.weight.untyped_storage().data_ptr() for part in (attention.q, attention.k, attention.v)}
    assert len(storages) == 1
    assert backbone.fingerprint() == before
