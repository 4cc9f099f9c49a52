from __future__ import annotations

import math

import pytest
import torch

from attempt_ray.errors import ConfigError
from attempt_ray.model.attention import PromptAttention, auto_divisor, spread_of, temperature_divisor

WIDTH, BOTTLENECK, SOURCES, ROWS, TOKENS = 16, 6, 3, 4, 7


def attention(**options) -> PromptAttention:
    options = {"bottleneck": BOTTLENECK, "divisor": temperature_divisor(WIDTH, temperature=1.0)} | options
    return PromptAttention(WIDTH, generator=torch.Generator().manual_seed(0), **options)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    embedded_BTH = torch.randn(ROWS, TOKENS, WIDTH, generator=generator) * 5
    mask_BT = torch.arange(TOKENS) < torch.tensor([7, 3, 1, 5])[:, None]
    keys_SH = torch.randn(SOURCES, WIDTH, generator=generator) * 4
    target_keys_BH = torch.randn(ROWS, WIDTH, generator=generator) * 4
    return embedded_BTH, mask_BT, keys_SH, target_keys_BH


def widen(embedded_BTH, mask_BT, *, width, pad_H):
    rows, tokens, _ = embedded_BTH.shape
    wide_BTH = pad_H.expand(rows, width, -1).clone()
    wide_BTH[:, :tokens] = torch.where(mask_BT[..., None], embedded_BTH, pad_H)
    return wide_BTH, torch.nn.functional.pad(mask_BT, (0, width - tokens))


def test_155136_numbers_train_on_t5_base():
    with torch.device("meta"):
        module = PromptAttention(768, bottleneck=100, divisor=1.0)
    assert (
        sum(p.numel() for p in module.parameters() if p.requires_grad) == 2 * 768 * 100 + 2 * 768 == 155_136
    )


def test_the_authors_frozen_norm_trains_153600():
    module = PromptAttention(768, bottleneck=100, divisor=1.0, train_norm=False)
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == 153_600


@pytest.mark.parametrize(("width", "divisor"), [(512, 1391.7), (768, 2087.6), (1024, 2783.5)])
def test_divisor_of_the_papers_temperature(width, divisor):
    assert temperature_divisor(width, temperature=1.0) == pytest.approx(divisor, abs=0.1)


def test_starting_values():
    module = PromptAttention(256, bottleneck=100, divisor=1.0, generator=torch.Generator().manual_seed(0))
    for weight in (module.down.weight, module.up.weight):
        assert weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert torch.equal(module.norm.weight, torch.ones(256))
    assert torch.equal(module.norm.bias, torch.zeros(256))
    assert module.norm.eps == 1e-5
    assert sorted(module.state_dict()) == ["down.weight", "norm.bias", "norm.weight", "up.weight"]


def test_weights_follow_the_formula(inputs):
    embedded_BTH, mask_BT, keys_SH, target_keys_BH = inputs
    module = attention()
    weights_BK = module(*inputs)
    for row in range(ROWS):
        pooled_H = embedded_BTH[row][mask_BT[row]].max(dim=0).values
        hidden_R = module.down.weight @ pooled_H
        hidden_H = module.up.weight @ (hidden_R * torch.sigmoid(hidden_R))
        query_H = (hidden_H - hidden_H.mean()) / torch.sqrt(hidden_H.var(correction=0) + 1e-5)
        keys_KH = torch.cat([keys_SH, target_keys_BH[row : row + 1]])
        expected_K = torch.softmax(keys_KH @ query_H / (WIDTH * math.e), dim=0)
        torch.testing.assert_close(weights_BK[row], expected_K, atol=1e-5, rtol=0)


def test_weights_are_positive_and_sum_to_one(inputs):
    weights_BK = attention()(*inputs)
    assert weights_BK.shape == (ROWS, SOURCES + 1)
    assert (weights_BK > 0).all()
    torch.testing.assert_close(weights_BK.sum(dim=1), torch.ones(ROWS))


def test_without_a_target_only_sources_are_weighed(inputs):
    embedded_BTH, mask_BT, keys_SH, _ = inputs
    weights_BK = attention()(embedded_BTH, mask_BT, keys_SH, None)
    torch.testing.assert_close(weights_BK.sum(dim=1), torch.ones(ROWS))
    assert weights_BK.shape == (ROWS, SOURCES)


def test_zero_up_projection_weighs_all_alike(inputs):
    module = attention()
    torch.nn.init.zeros_(module.up.weight)
    assert torch.equal(module(*inputs), torch.full((ROWS, SOURCES + 1), 1 / (SOURCES + 1)))


def test_permuting_sources_permutes_weights(inputs):
    embedded_BTH, mask_BT, keys_SH, target_keys_BH = inputs
    order = [2, 0, 1]
    module = attention()
    permuted_BK = module(embedded_BTH, mask_BT, keys_SH[order], target_keys_BH)
    torch.testing.assert_close(permuted_BK, module(*inputs)[:, [*order, SOURCES]])


@pytest.mark.parametrize("temperature", [-1.0, 0.0, 1.0])
def test_scores_are_bounded_by_the_spread_of_the_keys(inputs, temperature):
    module = attention(divisor=temperature_divisor(WIDTH, temperature=temperature))
    keys_KH = torch.cat([inputs[2], inputs[3][:1]])
    bound_K = spread_of(keys_KH) / math.exp(temperature)
    scores_BK = module.scores(*inputs)[:1]
    assert (scores_BK.abs() <= bound_K * (1 + 1e-5)).all()


def test_auto_divisor_bounds_the_mean_score(inputs):
    keys_SH = inputs[2]
    divisor = auto_divisor(keys_SH, auto_logit=2.0)
    assert (WIDTH * spread_of(keys_SH) / divisor).mean().item() == pytest.approx(2.0)


def test_auto_divisor_refuses_keys_without_spread():
    with pytest.raises(ConfigError, match=r"attention\.temperature"):
        auto_divisor(torch.ones(2, WIDTH), auto_logit=2.0)


def test_padding_does_not_move_the_weights(inputs):
    embedded_BTH, mask_BT, *keys = inputs
    module = attention()
    wide = widen(embedded_BTH, mask_BT, width=32, pad_H=torch.full((WIDTH,), 50.0))
    assert torch.equal(module(*wide, *keys), module(*inputs))


def test_authors_pooling_equals_pooling_over_their_padded_width(inputs):
    embedded_BTH, mask_BT, *_ = inputs
    pad_H = torch.linspace(-3, 9, WIDTH)
    module = attention(pooling="authors", pad_embedding_H=pad_H, authors_width=TOKENS)
    theirs_BTH, _ = widen(embedded_BTH, mask_BT, width=TOKENS, pad_H=pad_H)
    torch.testing.assert_close(
        module.pool(embedded_BTH, mask_BT), theirs_BTH.max(dim=1).values, atol=0, rtol=0
    )
    # The first row fills the authors' width, so it alone met no padding there.
    masked = attention()
    same_B = (module.pool(embedded_BTH, mask_BT) == masked.pool(embedded_BTH, mask_BT)).all(dim=1)
    assert same_B.tolist() == [True, False, False, False]
    assert not torch.equal(module(*inputs), masked(*inputs))


def test_a_centre_is_taken_off_the_pooled_input(inputs):
    embedded_BTH, mask_BT, keys_SH, target_keys_BH = inputs
    center_H = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
    centred = attention(center_H=center_H)(embedded_BTH - center_H, mask_BT, keys_SH, target_keys_BH)
    plain = attention()(embedded_BTH - 2 * center_H, mask_BT, keys_SH, target_keys_BH)
    assert torch.allclose(centred, plain, atol=1e-6)
    assert "center_H" in attention(center_H=center_H).state_dict()
    assert "center_H" not in attention().state_dict()


def test_an_input_at_the_centre_weighs_all_alike(inputs):
    embedded_BTH, mask_BT, keys_SH, target_keys_BH = inputs
    module = attention(center_H=attention().pool(embedded_BTH[:1], mask_BT[:1])[0])
    weights_K = module(embedded_BTH, mask_BT, keys_SH, target_keys_BH)[0]
    assert torch.allclose(weights_K, torch.full_like(weights_K, 1 / (SOURCES + 1)))


def test_authors_pooling_needs_the_padding_embedding():
    with pytest.raises(ConfigError, match="pad_embedding_H"):
        attention(pooling="authors")


def test_bfloat16_input_is_weighed_in_float32(inputs):
    embedded_BTH, *rest = inputs
    assert attention()(embedded_BTH.bfloat16(), *rest).dtype == torch.float32
