from __future__ import annotations

import math

import torch
from torch.nn import functional

from attempt_ray.config import TrainingConfig

ADAPTER = {"method": "adapter", "adapter": {"reduction": 4}}


def norm(hidden, gain):
    return hidden / (hidden.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * gain


def attended(hidden, read, weights, prefix, bias):
    """T5's attention: no scale; `bias` is added to the scores."""
    query, key, value = (
        (source @ weights[f"{prefix}.{name}.weight"].T).unflatten(-1, (4, 8)).transpose(1, 2)
        for name, source in (("q", hidden), ("k", read), ("v", read))
    )
    scores = (query @ key.mT + bias).softmax(dim=-1)
    return (scores @ value).transpose(1, 2).flatten(2)


def adapted(hidden, weights, prefix):
    inner = hidden @ weights[f"{prefix}.down_RH"].T + weights[f"{prefix}.down_R"]
    cubic = inner + 0.044715 * inner**3
    inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * cubic))
    return hidden + inner @ weights[f"{prefix}.up_HR"].T + weights[f"{prefix}.up_H"]


def stack(model, name, hidden, bias, *, encoded=None, hides=None):
    """A stack of T5 with adapters, written out."""
    weights = {key.removeprefix(f"{name}."): tensor for key, tensor in model.state_dict().items()}
    for block in range(2):
        at = f"block.{block}.layer"
        normed = norm(hidden, weights[f"{at}.0.layer_norm.weight"])
        found = attended(normed, normed, weights, f"{at}.0.SelfAttention", bias)
        found = found @ weights[f"{at}.0.SelfAttention.o.0.weight"].T
        hidden = hidden + adapted(found, weights, f"{at}.0.SelfAttention.o.1")
        last = 1
        if encoded is not None:
            last = 2
            normed = norm(hidden, weights[f"{at}.1.layer_norm.weight"])
            found = attended(normed, encoded, weights, f"{at}.1.EncDecAttention", hides)
            hidden = hidden + found @ weights[f"{at}.1.EncDecAttention.o.weight"].T
        normed = norm(hidden, weights[f"{at}.{last}.layer_norm.weight"])
        inner = torch.relu(normed @ weights[f"{at}.{last}.DenseReluDense.0.wi.weight"].T)
        found = inner @ weights[f"{at}.{last}.DenseReluDense.0.wo.weight"].T
        hidden = hidden + adapted(found, weights, f"{at}.{last}.DenseReluDense.1")
    return norm(hidden, weights["final_layer_norm.weight"])


def test_forward_is_t5_with_adapters_written_out(backbone, build, batch):
    method = build(backbone, **ADAPTER)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in method._trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model = backbone.model
    hides = torch.where(batch.mask_BT, 0.0, -1e9)[:, None, None]
    tokens, labels = batch.mask_BT.shape[1], batch.labels_BL.shape[1]
    first = [each.block[0].layer[0].SelfAttention for each in (model.encoder, model.decoder)]
    encoded = stack(
        model, "encoder", model.shared(batch.input_ids_BT), first[0].compute_bias(tokens, tokens) + hides
    )
    later = torch.full((labels, labels), -1e9).triu(1)
    ids = model.prepare_decoder_input_ids_from_labels(batch.labels_BL)
    bias = first[1].compute_bias(labels, labels) + later
    decoded = stack(model, "decoder", model.shared(ids), bias, encoded=encoded, hides=hides)
    logits = decoded * 32**-0.5 @ model.shared.weight.T
    expected = functional.cross_entropy(logits.flatten(0, 1), batch.labels_BL.flatten(), ignore_index=-100)
    torch.testing.assert_close(method.loss(batch), expected, atol=1e-5, rtol=1e-5)


def test_adapters_and_norm_gains_alone_train(backbone, build):
    names = {name for name, _ in build(backbone, **ADAPTER)._trainable()}
    adapters = {name for name in names if ".o.1." in name or "DenseReluDense.1." in name}
    assert len(adapters) == 4 * 2 * (2 + 2)
    assert not [name for name in adapters if "EncDecAttention" in name]
    assert all(name.endswith("layer_norm.weight") for name in names - adapters)
    assert len(names - adapters) == 2 * 2 + 1 + 3 * 2 + 1


def test_they_start_small_with_biases_at_zero_and_alike_for_equal_seeds(make_backbone, build):
    states = [build(make_backbone(), seed=seed, **ADAPTER).trainable_state() for seed in (1, 1, 2)]
    weights = torch.cat([tensor.flatten() for name, tensor in states[0].items() if name[-2:] in ("RH", "HR")])
    assert 0.009 < weights.std() < 0.011
    assert all(tensor.abs().sum() == 0 for name, tensor in states[0].items() if name[-3:] in ("n_R", "p_H"))
    same, other = (
        [torch.equal(tensor, state[name]) for name, tensor in states[0].items()] for state in states[1:]
    )
    assert all(same)
    assert not all(other)


def test_its_rate_is_its_own(backbone, build):
    method = build(backbone, method="adapter", adapter={"learning_rate": 0.01})
    (group,) = method.parameter_groups(TrainingConfig(weight_decay=0.5))
    assert (group["name"], group["lr"], group["weight_decay"]) == ("adapter", 0.01, 0.5)
