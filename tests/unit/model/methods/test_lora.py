from __future__ import annotations

import torch

LORA = {"method": "lora", "lora": {"rank": 2, "alpha": 6}}


def test_at_its_start_it_is_the_frozen_model(make_backbone, build, batch, logits):
    frozen = make_backbone().model
    expected = frozen(
        input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT, labels=batch.labels_BL
    ).logits
    torch.testing.assert_close(logits(build(make_backbone(), **LORA), batch), expected)


def test_it_adds_the_scaled_product_to_queries_and_values(make_backbone, build, batch, logits):
    method, plain = build(make_backbone(), **LORA), make_backbone().model
    generator = torch.Generator().manual_seed(0)
    targets = set()
    with torch.no_grad():
        for _, parameter in method._trainable():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        state = method.trainable_state()
        for name, down_RH in state.items():
            if ".lora_A." not in name:
                continue
            up_XR = state[name.replace(".lora_A.", ".lora_B.")]
            place = name.removeprefix("backbone.model.").partition(".lora_A.")[0]
            plain.get_submodule(place).weight.add_(6.0 / 2 * up_XR @ down_RH)
            targets.add(place)
    assert len(targets) == 2 * (2 + 2 * 2)
    assert {place.rpartition(".")[2] for place in targets} == {"q", "v"}
    expected = plain(
        input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT, labels=batch.labels_BL
    ).logits
    torch.testing.assert_close(logits(method, batch), expected, atol=1e-4, rtol=1e-4)


def test_it_is_drawn_from_the_runs_seed_and_the_global_generator_does_not_move(make_backbone, build):
    before = torch.get_rng_state()
    first, again, other = (build(make_backbone(), seed=seed, **LORA).trainable_state() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    drawn = [name for name in first if ".lora_A." in name]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
