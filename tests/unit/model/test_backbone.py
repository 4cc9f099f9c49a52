from __future__ import annotations

import pytest
import torch
from transformers import BertConfig
from transformers.modeling_outputs import BaseModelOutput

from attempt_ray.config import BackboneConfig
from attempt_ray.errors import BackboneError
from attempt_ray.model import backbone as module
from attempt_ray.model.backbone import Memory, check_prompt, load_backbone, tokenizer_sha256, weights_sha256

ROWS, TOKENS, LENGTH, WIDTH = 5, 9, 4, 32
FAMILIES = ["t5", "t5-v1_1", "mt5"]


def inputs():
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(3, 47, (ROWS, TOKENS), generator=generator)
    mask_BT = torch.arange(TOKENS) < torch.tensor([9, 4, 1, 6, 9])[:, None]
    prompts_BPH = torch.randn(ROWS, LENGTH, WIDTH, generator=generator)
    labels_BL = torch.tensor([[3, 1, -100], [8, 9, 1], [4, 1, -100], [1, -100, -100], [20, 21, 22]])
    return ids_BT.masked_fill(~mask_BT, 0), mask_BT, prompts_BPH, labels_BL


def extended(backbone):
    """What transformers is to be given, laid out by hand."""
    ids_BT, mask_BT, prompts_BPH, _ = inputs()
    inputs_BTH = torch.cat([prompts_BPH, backbone.model.shared(ids_BT)], dim=1)
    return inputs_BTH, torch.cat([torch.ones(ROWS, LENGTH), mask_BT], dim=1).long()


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_that_of_transformers(make_backbone, family):
    backbone = make_backbone(family)
    ids_BT, mask_BT, prompts_BPH, labels_BL = inputs()
    inputs_BTH, long_mask_BT = extended(backbone)
    theirs = backbone.model(inputs_embeds=inputs_BTH, attention_mask=long_mask_BT, labels=labels_BL).loss
    loss_BL = backbone.loss(prompts_BPH, backbone.embed(ids_BT), mask_BT, labels_BL)
    assert loss_BL.dtype == torch.float32
    assert (loss_BL[labels_BL == -100] == 0).all()
    torch.testing.assert_close(loss_BL.sum() / (labels_BL != -100).sum(), theirs, atol=1e-5, rtol=0)


def test_heads_are_tied_as_the_family_has_them(make_backbone):
    tied = {family: make_backbone(family).model for family in FAMILIES}
    assert tied["t5"].lm_head.weight is tied["t5"].shared.weight
    assert tied["t5-v1_1"].lm_head.weight is not tied["t5-v1_1"].shared.weight


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_transformers(make_backbone, family):
    backbone = make_backbone(family)
    # A likelier end token, so that rows end at different steps.
    backbone.model.lm_head.weight.data[1] *= 3
    ids_BT, mask_BT, prompts_BPH, _ = inputs()
    inputs_BTH, long_mask_BT = extended(backbone)
    encoded = backbone.model.encoder(inputs_embeds=inputs_BTH, attention_mask=long_mask_BT)
    theirs = backbone.model.generate(
        encoder_outputs=BaseModelOutput(encoded.last_hidden_state),
        attention_mask=long_mask_BT,
        max_new_tokens=8,
        do_sample=False,
        num_beams=1,
    )[:, 1:]
    ours = backbone.generate(prompts_BPH, backbone.embed(ids_BT), mask_BT, max_new_tokens=8)
    assert torch.equal(ours, theirs)


def test_generation_stops_when_all_rows_have_ended(backbone, monkeypatch):
    monkeypatch.setattr(backbone, "_eos_ids", tuple(range(48)))
    ids_BT, mask_BT, prompts_BPH, _ = inputs()
    answers = backbone.generate(prompts_BPH, backbone.embed(ids_BT), mask_BT, max_new_tokens=8)
    assert answers.shape == (ROWS, 1)


@pytest.mark.parametrize("forward", ["own", "transformers"])
def test_rows_that_have_ended_leave_the_decoded_batch(make_backbone, forward, monkeypatch):
    backbone = make_backbone("t5-v1_1")
    backbone._forward_by = forward
    ids_BT, mask_BT, prompts_BPH, _ = inputs()
    (memory,) = backbone.encode_inputs([(prompts_BPH * 3, backbone.embed(ids_BT), mask_BT)])
    limits = [1, 6, 2, 8, 1]
    alone = [
        torch.cat(
            list(
                backbone.decode_greedily(
                    Memory(memory.encoded_BTH[row : row + 1], memory.mask_BT[row : row + 1]),
                    max_new_tokens=limits[row : row + 1],
                )
            )
        ).tolist()
        for row in range(ROWS)
    ]
    stepped = []
    step = backbone._forward().step
    monkeypatch.setattr(
        backbone._forward(), "step", lambda *given: stepped.append(len(given[2])) or step(*given)
    )
    together_BL = torch.stack(list(backbone.decode_greedily(memory, max_new_tokens=limits)), dim=1)
    for ids_L, own in zip(together_BL.tolist(), alone, strict=True):
        assert ids_L == own + [backbone.pad_id] * (len(ids_L) - len(own))
    lengths = [len(own) for own in alone]
    assert len(set(lengths)) > 3
    assert stepped[:3] == [5, 3, 2]
    assert stepped[-1] == 1


@pytest.mark.parametrize("known", [(), (0,), (0, 2), tuple(range(ROWS))], ids=str)
def test_likely_answers_tried_first_do_not_change_greedy_ones(make_backbone, known, monkeypatch):
    backbone = make_backbone("t5-v1_1")
    ids_BT, mask_BT, prompts_BPH, _ = inputs()
    given = (prompts_BPH * 3, backbone.embed(ids_BT), mask_BT)
    greedy_BL = backbone.generate(*given, max_new_tokens=4)
    assert len({tuple(row) for row in greedy_BL.tolist()}) > 1
    candidates = [greedy_BL[row] for row in known] + [torch.tensor([7, 1])]
    candidates_CL = torch.full((len(candidates), 4), -100)
    for index, ids_L in enumerate(candidates):
        real_L = ids_L[ids_L != backbone.pad_id]
        candidates_CL[index, : len(real_L)] = real_L
    stepped = []
    greedy = backbone._greedy
    monkeypatch.setattr(
        backbone,
        "_greedy",
        lambda memory, **more: stepped.append(len(memory.mask_BT)) or greedy(memory, **more),
    )
    found_BL = backbone.generate(*given, max_new_tokens=4, candidates_CL=candidates_CL)
    width = max(found_BL.shape[1], greedy_BL.shape[1])
    found_BL, greedy_BL = (
        torch.nn.functional.pad(ids_BL, (0, width - ids_BL.shape[1]), value=backbone.pad_id)
        for ids_BL in (found_BL, greedy_BL)
    )
    assert torch.equal(found_BL, greedy_BL)
    alike = [row for row in range(ROWS) if any(torch.equal(greedy_BL[row], greedy_BL[one]) for one in known)]
    assert sum(stepped) == ROWS - len(alike)


@pytest.mark.parametrize("family", FAMILIES)
def test_label_scores_equal_the_loss_of_each_candidate_alone(make_backbone, family):
    backbone = make_backbone(family)
    ids_BT, mask_BT, prompts_BPH, _ = inputs()
    embedded_BTH = backbone.embed(ids_BT)
    candidates_CL = backbone.encode_candidates(["0", "w1 w2", "true"])
    scores_BC = backbone.score_labels(prompts_BPH, embedded_BTH, mask_BT, candidates_CL)
    for row in range(ROWS):
        one = slice(row, row + 1)
        for index, ids_L in enumerate(candidates_CL):
            labels_BL = ids_L[ids_L != -100][None]
            loss_BL = backbone.loss(prompts_BPH[one], embedded_BTH[one], mask_BT[one], labels_BL)
            torch.testing.assert_close(scores_BC[row, index], -loss_BL.sum(), atol=1e-5, rtol=1e-5)


def test_no_prompt_is_the_plain_model(backbone):
    ids_BT, mask_BT, _, labels_BL = inputs()
    theirs = backbone.model(input_ids=ids_BT, attention_mask=mask_BT.long(), labels=labels_BL).loss
    loss_BL = backbone.loss(None, backbone.embed(ids_BT), mask_BT, labels_BL)
    torch.testing.assert_close(loss_BL.sum() / (labels_BL != -100).sum(), theirs, atol=1e-5, rtol=0)


def test_candidates_carry_their_end_token_and_are_padded(backbone):
    candidates_CL = backbone.encode_candidates(["0", "w0 w1"])
    assert candidates_CL.tolist() == [[3, 1, -100], [7, 8, 1]]
    assert backbone.decode(candidates_CL[1:]) == ["w0 w1"]


def test_weights_are_frozen_and_prompts_learn(backbone):
    ids_BT, mask_BT, prompts_BPH, labels_BL = inputs()
    prompts_BPH.requires_grad_()
    backbone.train()
    backbone.loss(prompts_BPH, backbone.embed(ids_BT), mask_BT, labels_BL).sum().backward()
    assert prompts_BPH.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in backbone.parameters())


def test_training_mode_switches_dropout_although_weights_are_frozen(backbone):
    ids_BT, mask_BT, prompts_BPH, labels_BL = inputs()

    def loss():
        return backbone.loss(prompts_BPH, backbone.embed(ids_BT), mask_BT, labels_BL)

    plain = loss()
    assert torch.equal(plain, loss())
    backbone.train()
    assert not torch.equal(loss(), loss())
    backbone.set_dropout(0.0)
    torch.testing.assert_close(loss(), plain, atol=1e-5, rtol=0)
    backbone.set_dropout(None)
    assert not torch.equal(loss(), loss())
    backbone.eval()
    assert torch.equal(loss(), plain)


def test_dropout_reaches_attention_weights(backbone):
    backbone.set_dropout(0.25)
    assert {m.dropout for m in backbone.modules() if type(m).__name__ == "T5Attention"} == {0.25}
    assert {m.p for m in backbone.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    backbone.set_dropout(None)
    assert {m.dropout for m in backbone.modules() if type(m).__name__ == "T5Attention"} == {0.1}


def test_fingerprint_sees_one_changed_number(backbone):
    before = backbone.fingerprint()
    assert before == backbone.fingerprint() == backbone.identity.weights_sha256
    weight = backbone.model.decoder.block[1].layer[2].DenseReluDense.wo.weight
    weight.data[3, 5] += 1e-6
    assert backbone.fingerprint() != before


def test_fingerprint_reads_tied_weights_once_and_names(backbone):
    names = [name for name, _ in backbone.model.named_parameters()]
    assert "lm_head.weight" not in names
    swapped = torch.nn.ParameterDict(
        {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.nn.Parameter(torch.zeros(2))}
    )
    other = torch.nn.ParameterDict(
        {"b": torch.nn.Parameter(torch.ones(2)), "a": torch.nn.Parameter(torch.zeros(2))}
    )
    assert weights_sha256(swapped) != weights_sha256(other)


def test_tokenizer_hash_ignores_how_it_was_called_but_not_its_vocabulary(backbone):
    before = tokenizer_sha256(backbone.tokenizer)
    backbone.tokenizer(["w1 w2", "w3"], padding=True, truncation=True, max_length=2)
    assert tokenizer_sha256(backbone.tokenizer) == before
    backbone.tokenizer.add_tokens(["new"])
    assert tokenizer_sha256(backbone.tokenizer) != before


def test_bfloat16_keeps_the_loss_in_float32(make_backbone):
    backbone = make_backbone(dtype=torch.bfloat16)
    ids_BT, mask_BT, prompts_BPH, labels_BL = inputs()
    embedded_BTH = backbone.embed(ids_BT)
    prompts_BPH.requires_grad_()
    loss_BL = backbone.loss(prompts_BPH, embedded_BTH, mask_BT, labels_BL)
    loss_BL.sum().backward()
    assert embedded_BTH.dtype == torch.bfloat16
    assert loss_BL.dtype == prompts_BPH.grad.dtype == torch.float32
    assert backbone.pad_embedding_H.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_directory_loads_whole(save_backbone, make_backbone, family):
    directory = save_backbone(family)
    loaded = load_backbone(BackboneConfig(name=str(directory), dtype="float32"))
    made = make_backbone(family)
    assert loaded.identity.weights_sha256 == loaded.fingerprint() == made.identity.weights_sha256
    assert loaded.identity.name == str(directory)
    assert (loaded.identity.width, loaded.identity.vocabulary) == (WIDTH, 48)
    assert not loaded.training
    ids_BT, mask_BT, prompts_BPH, labels_BL = inputs()
    losses = [each.loss(prompts_BPH, each.embed(ids_BT), mask_BT, labels_BL) for each in (loaded, made)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)


def test_identity_does_not_depend_on_the_computing_type(save_backbone):
    directory = str(save_backbone())
    full, half = (
        load_backbone(BackboneConfig(name=directory, dtype=dtype)) for dtype in ("float32", "bfloat16")
    )
    assert half.embed(torch.tensor([[3]])).dtype == torch.bfloat16
    assert full.identity == half.identity
    assert full.fingerprint() != half.fingerprint()


def test_a_packaged_backbone_is_found_by_name(save_backbone, monkeypatch):
    monkeypatch.setattr(module, "PACKAGED", save_backbone().parent)
    loaded = load_backbone(BackboneConfig(name="t5"))
    assert loaded.identity.name == "t5"


def test_vocabulary_leaves_out_rows_that_no_token_has(backbone):
    assert backbone.vocabulary_VH.shape == (47, WIDTH)
    assert not backbone.vocabulary_VH.requires_grad


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("t5-bse", "no backbone 't5-bse'; did you mean 't5-base'"),
        ("nanoo", "did you mean 'nano'"),
        ("./not/there", r"no directory './not/there'"),
        ("/not/there", "no directory '/not/there'"),
    ],
)
def test_names_that_lead_nowhere_are_refused(name, says):
    with pytest.raises(BackboneError, match=says):
        load_backbone(BackboneConfig(name=name))


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        BackboneError, match=r"'someone/t5-of-theirs' cannot be loaded from the hub.*local directory"
    ) as e:
        load_backbone(BackboneConfig(name="someone/t5-of-theirs"))
    assert "\n" not in str(e.value)


def test_other_architectures_are_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"is a 'bert' model; wanted one of the T5 family"):
        load_backbone(BackboneConfig(name=str(tmp_path)))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_directory_with_a_missing_or_broken_file_is_refused(save_backbone, file):
    path = save_backbone() / file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BackboneError, match="cannot be read"):
        load_backbone(BackboneConfig(name=str(path.parent)))
    path.unlink()
    with pytest.raises(BackboneError, match="cannot be read"):
        load_backbone(BackboneConfig(name=str(path.parent)))


def test_pickled_weights_are_not_opened(save_backbone):
    directory = save_backbone()
    (directory / "model.safetensors").unlink()
    torch.save({"shared.weight": torch.zeros(48, WIDTH)}, directory / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"wanted config\.json, model\.safetensors"):
        load_backbone(BackboneConfig(name=str(directory)))


def test_an_incomplete_checkpoint_is_refused(save_backbone):
    from safetensors.torch import load_file, save_file

    path = save_backbone() / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.final_layer_norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lacks 1 of its weights, 'encoder\.final_layer_norm\.weight'"):
        load_backbone(BackboneConfig(name=str(path.parent)))


def test_a_tokenizer_larger_than_the_model_is_refused(save_backbone, backbone):
    directory = save_backbone()
    backbone.tokenizer.add_tokens([f"more{index}" for index in range(5)])
    backbone.tokenizer.save_pretrained(directory)
    with pytest.raises(BackboneError, match="embeds 48 tokens but its tokenizer has 52"):
        load_backbone(BackboneConfig(name=str(directory)))


def test_a_prompt_of_this_backbone_is_accepted(backbone):
    check_prompt(
        "source/rte@v1", shape=(4, WIDTH), made_for=backbone.identity.as_dict(), backbone=backbone.identity
    )


@pytest.mark.parametrize(
    ("shape", "fact", "says"),
    [
        ((4, 64), {}, "has shape .4, 64.*'other'.*'tiny-t5' wants width 32"),
        ((4,), {}, "wants width 32"),
        ((4, WIDTH), {"weights_sha256": "f" * 64}, "made for backbone 'other' with weights ffff.*'tiny-t5'"),
        ((4, WIDTH), {"tokenizer_sha256": "e" * 64}, "with tokenizer eeee"),
    ],
)
def test_a_prompt_of_another_backbone_is_refused_naming_both(backbone, shape, fact, says):
    made_for = backbone.identity.as_dict() | {"name": "other"} | fact
    with pytest.raises(BackboneError, match=says):
        check_prompt("source/rte@v1", shape=shape, made_for=made_for, backbone=backbone.identity)
