from __future__ import annotations

import pytest
import torch
from peft import MultitaskPromptTuningConfig
from peft.tuners.multitask_prompt_tuning.model import MultitaskPromptEmbedding
from torch.nn import functional

from attempt_ray.config import TrainingConfig
from attempt_ray.errors import ConfigError
from attempt_ray.model.methods import losses

LENGTH, WIDTH = 6, 32


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def teachers() -> dict[str, torch.Tensor]:
    return {"rte": random(LENGTH, WIDTH, seed=1), "cb": random(LENGTH, WIDTH, seed=2)}


@pytest.fixture
def make_mpt(build):
    """Return a function from a backbone to MPT away from its start."""

    def make(backbone, **sections):
        method = build(backbone, given={"sources": teachers()}, method="mpt", **sections)
        with torch.no_grad():
            method.rows_NP.add_(random(2, LENGTH, seed=3))
            method.columns_NH.add_(random(2, WIDTH, seed=4))
        return method

    return make


def test_the_product_is_pefts(backbone, make_mpt, batch):
    method = make_mpt(backbone)
    theirs = MultitaskPromptEmbedding(
        MultitaskPromptTuningConfig(
            task_type="SEQ_2_SEQ_LM",
            num_virtual_tokens=LENGTH,
            token_dim=WIDTH,
            num_transformer_submodules=1,
            num_tasks=2,
            num_ranks=1,
        ),
        backbone.model.shared,
    )
    with torch.no_grad():
        theirs.embedding.weight.copy_(method.shared_PH)
        theirs.prefix_task_cols.copy_(method.rows_NP[:, :, None])
        theirs.prefix_task_rows.copy_(method.columns_NH[:, None, :])
        expected_BPH = theirs(torch.arange(LENGTH).expand(len(batch), -1), batch.task_B)
    found_BPH, weights_BK = method.instance_prompts(method.embed(batch), batch.mask_BT, batch.task_B)
    torch.testing.assert_close(found_BPH, expected_BPH)
    assert weights_BK is None


def test_it_starts_as_the_shared_prompt_for_every_task(backbone, build):
    start_PH = random(LENGTH, WIDTH)
    method = build(backbone, method="mpt", given={"initial": start_PH})
    assert all(torch.equal(prompt_PH, start_PH) for prompt_PH in method.prompt_tensors().values())


def test_a_target_starts_from_the_shared_prompt_and_the_mean_of_the_tasks_parts(
    make_backbone, make_mpt, build
):
    source = make_mpt(make_backbone())
    left = source.source_tensors()
    assert set(left) == {"prompt", "shared_PH", "rows_P", "columns_H"}
    torch.testing.assert_close(left["rows_P"], source.rows_NP.mean(dim=0).detach())
    torch.testing.assert_close(
        left["prompt"], left["shared_PH"] * torch.outer(left["rows_P"], left["columns_H"])
    )
    target = build(make_backbone(), ("mrpc", "wnli", "boolq"), method="mpt", given={"shared": left})
    assert target.trainable_parameters == LENGTH * WIDTH + 3 * (LENGTH + WIDTH)
    for prompt_PH in target.prompt_tensors().values():
        torch.testing.assert_close(prompt_PH, left["prompt"])


def test_shared_prompt_and_tasks_parts_have_rates_of_their_own(backbone, make_mpt):
    method = make_mpt(backbone, mpt={"task_learning_rate": 0.2})
    groups = {
        each["name"]: each for each in method.parameter_groups(TrainingConfig(prompt_learning_rate=0.1))
    }
    assert {name: each["lr"] for name, each in groups.items()} == {"prompts": 0.1, "tasks": 0.2}
    assert [id(each) for each in groups["prompts"]["params"]] == [id(method.shared_PH)]
    assert {id(each) for each in groups["tasks"]["params"]} == set(map(id, method.per_task))


@pytest.mark.parametrize("forward", ["own", "transformers"])
@pytest.mark.parametrize("family", ["t5", "t5-v1_1", "mt5"])
def test_distillation_is_the_distance_to_the_source_prompts(make_backbone, make_mpt, batch, family, forward):
    backbone = make_backbone(family)
    backbone._forward_by = forward
    plain = make_mpt(backbone).loss(batch)
    method = make_mpt(backbone, job="source", mpt={"distill": 0.7})
    taught = torch.stack(list(teachers().values()))[batch.task_B]
    own = method.prompts().index_select(0, batch.task_B)
    model = make_backbone(family).model.eval()
    read = []
    for prompts_BPH in (own, taught):
        inputs_BTH = torch.cat([prompts_BPH, backbone.embed(batch.input_ids_BT)], dim=1)
        mask_BT = torch.cat([batch.mask_BT.new_ones(prompts_BPH.shape[:2]), batch.mask_BT], dim=1)
        encoded_BTH = model.encoder(inputs_embeds=inputs_BTH, attention_mask=mask_BT).last_hidden_state
        ids_BL = model.prepare_decoder_input_ids_from_labels(batch.labels_BL)
        hidden_BLH = model.decoder(
            input_ids=ids_BL, encoder_hidden_states=encoded_BTH, encoder_attention_mask=mask_BT
        ).last_hidden_state
        logits_BLV = model(inputs_embeds=inputs_BTH, attention_mask=mask_BT, decoder_input_ids=ids_BL).logits
        real = batch.labels_BL != -100
        read.append((hidden_BLH[real], logits_BLV[real]))
    (hidden_NH, logits_NV), (wanted_NH, wanted_NV) = read
    divergence = functional.kl_div(
        logits_NV.log_softmax(dim=-1), wanted_NV.log_softmax(dim=-1), log_target=True, reduction="batchmean"
    )
    expected = plain + 0.7 * (divergence + functional.mse_loss(hidden_NH, wanted_NH))
    torch.testing.assert_close(method.loss(batch), expected, atol=1e-5, rtol=1e-5)


def test_a_lesson_reaches_what_trains_alone_and_no_other_segment(backbone, make_mpt, build, batch):
    method = make_mpt(backbone, job="source")
    beside = build(backbone, method="prompt_tuning")
    together = losses(backbone, [beside.segment(batch), method.segment(batch)])
    torch.testing.assert_close(together[0], beside.loss(batch), atol=1e-5, rtol=0)
    torch.testing.assert_close(together[1], method.loss(batch), atol=1e-5, rtol=0)
    together[1].backward()
    assert all(parameter.grad.abs().sum() > 0 for _, parameter in method._trainable())
    assert not beside.prompts.prompts_NPH.grad.any()
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_the_teacher_reads_without_dropout_and_leaves_the_mode_as_it_was(make_backbone, make_mpt, batch):
    backbone = make_backbone()
    method = make_mpt(backbone, job="source", training={"dropout": 0.5}).train()
    segment = method.segment(batch, seed=1)
    first, again = (losses(backbone, [segment])[0] for _ in range(2))
    assert torch.equal(first, again)
    assert backbone.model.training
    assert backbone.model.encoder.training
    with torch.no_grad():
        hidden, _ = backbone._taught([segment])
        expected, _ = backbone._taught([segment])
    assert torch.equal(hidden[0], expected[0])


def test_distill_of_zero_needs_no_teacher(backbone, build, batch):
    method = build(backbone, method="mpt", job="source", mpt={"distill": 0})
    assert method.lesson(batch) is None


def test_what_cannot_start_is_refused(backbone, build, make_mpt):
    with pytest.raises(ConfigError, match="no source prompt of task 'rte' to teach"):
        build(backbone, method="mpt", job="source")
    with pytest.raises(ConfigError, match="without shared_PH, rows_P, columns_H; name what a source stage"):
        build(backbone, method="mpt", given={"shared": {"prompt": random(LENGTH, WIDTH)}})
    left = make_mpt(backbone).source_tensors()
    with pytest.raises(ConfigError, match=r"mpt\.source has 6 positions; prompt\.length is 4"):
        build(backbone, method="mpt", prompt={"length": 4}, given={"shared": left})
