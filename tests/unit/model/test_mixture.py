from __future__ import annotations

import pytest
import torch

from attempt_ray.errors import ConfigError
from attempt_ray.model.attention import PromptAttention, temperature_divisor
from attempt_ray.model.mixture import PromptMixture
from attempt_ray.model.soft_prompt import SoftPrompts

WIDTH, LENGTH, SOURCES, TASKS, ROWS, TOKENS = 16, 5, 3, 4, 6, 7
TASK_B = torch.tensor([2, 0, 2, 3, 0, 0])
NAMES = ("mnli", "qqp", "squad")


def seeded(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def source_prompts() -> dict[str, torch.Tensor]:
    return {name: seeded(LENGTH, WIDTH, seed=index) * 3 for index, name in enumerate(NAMES)}


def target_prompts() -> SoftPrompts:
    return SoftPrompts(seeded(TASKS, LENGTH, WIDTH, seed=10) * 3)


def make_attention() -> PromptAttention:
    return PromptAttention(
        WIDTH,
        bottleneck=6,
        divisor=temperature_divisor(WIDTH, temperature=0.0),
        generator=torch.Generator().manual_seed(0),
    )


def make_mixture(**options) -> PromptMixture:
    options = {"targets": target_prompts(), "attention": make_attention()} | options
    return PromptMixture(options.pop("sources", source_prompts()), **options)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    mask_BT = torch.arange(TOKENS) < torch.tensor([7, 3, 1, 5, 2, 7])[:, None]
    return seeded(ROWS, TOKENS, WIDTH, seed=20) * 5, mask_BT


def naive(mixture: PromptMixture, embedded_BTH, mask_BT, task_B):
    """The paper's formulas with nothing shared or precomputed: every row's candidates are laid out whole."""
    rows = len(task_B)
    sources_BSPH = mixture.sources_SPH.expand(rows, -1, -1, -1)
    target_BPH = torch.stack([mixture.targets.prompts_NPH[task] for task in task_B.tolist()])
    candidates_BKPH = torch.cat([sources_BSPH, target_BPH[:, None]], dim=1)
    module = mixture.attention
    pooled_BH = torch.stack(
        [tokens_TH[mask_T].max(dim=0).values for tokens_TH, mask_T in zip(embedded_BTH, mask_BT, strict=True)]
    )
    query_BH = module.norm(module.up(torch.nn.functional.silu(module.down(pooled_BH))))
    keys_BKH = candidates_BKPH.max(dim=2).values
    weights_BK = (torch.einsum("bkh,bh->bk", keys_BKH, query_BH) / module.divisor).softmax(dim=1)
    return target_BPH + torch.einsum("bk,bkph->bph", weights_BK, candidates_BKPH), weights_BK


def test_equals_the_naive_formula_on_a_mixed_batch():
    mixture = make_mixture()
    prompts_BPH, weights_BK = mixture(*inputs(), TASK_B)
    expected_BPH, expected_BK = naive(mixture, *inputs(), TASK_B)
    torch.testing.assert_close(prompts_BPH, expected_BPH, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights_BK, expected_BK, atol=1e-5, rtol=0)
    assert weights_BK.std(dim=0).max() > 0.01  # weights that vary, so that the comparison says something


def test_gradients_equal_those_of_the_naive_formula():
    ours, theirs = make_mixture(), make_mixture()
    direction_BPH = seeded(ROWS, LENGTH, WIDTH, seed=30)
    (ours(*inputs(), TASK_B).prompts_BPH * direction_BPH).sum().backward()
    (naive(theirs, *inputs(), TASK_B)[0] * direction_BPH).sum().backward()
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_only_prompts_of_tasks_in_the_batch_receive_gradient():
    mixture = make_mixture()
    mixture(*inputs(), TASK_B).prompts_BPH.square().sum().backward()
    touched_N = mixture.targets.prompts_NPH.grad.abs().sum(dim=(1, 2)) > 0
    assert touched_N.tolist() == [True, False, True, True]
    assert not mixture.sources_SPH.requires_grad
    assert mixture.attention.down.weight.grad.abs().sum() > 0


def test_zero_up_projection_adds_the_mean_of_all_candidates():
    mixture = make_mixture()
    torch.nn.init.zeros_(mixture.attention.up.weight)
    prompts_BPH, weights_BK = mixture(*inputs(), TASK_B)
    target_BPH = mixture.targets.prompts_NPH[TASK_B]
    expected_BPH = target_BPH + (mixture.sources_SPH.sum(dim=0) + target_BPH) / (SOURCES + 1)
    assert torch.equal(weights_BK, torch.full((ROWS, SOURCES + 1), 1 / (SOURCES + 1)))
    torch.testing.assert_close(prompts_BPH, expected_BPH, atol=1e-5, rtol=0)


def test_order_of_sources_does_not_move_the_prompt():
    sources = source_prompts()
    permuted = {name: sources[name] for name in ("squad", "mnli", "qqp")}
    one, other = make_mixture(), make_mixture(sources=permuted)
    torch.testing.assert_close(one(*inputs(), TASK_B)[0], other(*inputs(), TASK_B)[0], atol=1e-5, rtol=0)
    assert other.candidates == ("squad", "mnli", "qqp", "target")


def test_padding_does_not_move_the_prompt():
    mixture = make_mixture()
    embedded_BTH, mask_BT = inputs()
    wide = (
        torch.nn.functional.pad(embedded_BTH, (0, 0, 0, 9), value=100.0),
        torch.nn.functional.pad(mask_BT, (0, 9)),
    )
    assert torch.equal(mixture(*wide, TASK_B)[0], mixture(embedded_BTH, mask_BT, TASK_B)[0])


def test_uniform_weighs_sources_and_target_alike():
    mixture = make_mixture(attention=None, weights="uniform")
    prompts_BPH, weights_BK = mixture(*inputs(), TASK_B)
    target_BPH = mixture.targets.prompts_NPH[TASK_B]
    torch.testing.assert_close(weights_BK, torch.full((ROWS, SOURCES + 1), 1 / (SOURCES + 1)))
    torch.testing.assert_close(
        prompts_BPH,
        target_BPH + (mixture.sources_SPH.sum(dim=0) + target_BPH) / (SOURCES + 1),
        atol=1e-5,
        rtol=0,
    )


def test_uniform_sources_leaves_the_target_its_residual():
    mixture = make_mixture(attention=None, weights="uniform_sources")
    prompts_BPH, weights_BK = mixture(*inputs(), TASK_B)
    expected_BPH = mixture.targets.prompts_NPH[TASK_B] + mixture.sources_SPH.mean(dim=0)
    torch.testing.assert_close(prompts_BPH, expected_BPH, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights_BK[0], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0]))


def test_constant_weights_keep_no_attention_module():
    mixture = make_mixture(weights="uniform")
    assert [name for name, _ in mixture.named_parameters()] == ["targets.prompts_NPH"]


def test_without_a_target_there_is_no_residual():
    mixture = make_mixture(targets=None)
    prompts_BPH, weights_BK = mixture(*inputs(), TASK_B)
    assert mixture.candidates == NAMES
    torch.testing.assert_close(
        prompts_BPH, torch.einsum("bs,sph->bph", weights_BK, mixture.sources_SPH), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(weights_BK.sum(dim=1), torch.ones(ROWS))


def test_a_single_source_is_weighed_against_the_target():
    mixture = make_mixture(sources={"mnli": source_prompts()["mnli"]})
    expected_BPH, _ = naive(mixture, *inputs(), TASK_B)
    prompts_BPH, weights_BK = mixture(*inputs(), TASK_B)
    assert weights_BK.shape == (ROWS, 2)
    torch.testing.assert_close(prompts_BPH, expected_BPH, atol=1e-5, rtol=0)


def test_attempt_on_t5_base_trains_231936_numbers():
    mixture = PromptMixture(
        {"mnli": torch.zeros(100, 768)},
        targets=SoftPrompts(torch.zeros(1, 100, 768)),
        attention=PromptAttention(768, bottleneck=100, divisor=1.0),
    )
    assert sum(p.numel() for p in mixture.parameters() if p.requires_grad) == 231_936


def test_spreads_name_every_candidate():
    mixture = make_mixture()
    spreads = mixture.spreads()
    assert tuple(spreads) == mixture.candidates
    assert spreads["qqp"] == pytest.approx(
        source_prompts()["qqp"].amax(dim=0).std(correction=0).item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sources": {}}, "no source prompt"),
        ({"attention": None}, "no attention module"),
        ({"targets": None, "weights": "uniform"}, "uniform_sources"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        make_mixture(**options)
