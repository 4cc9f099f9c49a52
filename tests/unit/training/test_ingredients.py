from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from attempt_ray.bank.store import Bank
from attempt_ray.errors import AttemptError, BackboneError, BankError, ConfigError, DataError
from attempt_ray.model.published import load_published
from attempt_ray.training import ingredients
from attempt_ray.training.ingredients import gather
from attempt_ray.training.run import execute


def prompt(config, reference):
    return torch.from_numpy(Bank(config.bank).load(reference).tensors["prompt"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tasks": []}, ConfigError, "tasks is empty"),
        ({"tasks": ["rte", "rte"]}, ConfigError, "names one twice"),
        ({"tasks": ["rtee"]}, ConfigError, "no task 'rtee'; did you mean 'rte'"),
        ({"job": "source"}, ConfigError, "set method=prompt_tuning"),
        (
            {"job": "source", "method": "prompt_tuning", "tasks": ["mnli", "squad"]},
            ConfigError,
            "a run of its own",
        ),
        ({"job": "prior", "method": "prompt_tuning"}, ConfigError, "set method=attempt"),
        ({"job": "prior", "attention": {"frozen": True}}, ConfigError, "attention.frozen=false"),
        ({"job": "prior", "training": {"selection": "per_task"}}, ConfigError, "selection=mean"),
        (
            {"attention": {"sources": ["mnly"]}},
            BankError,
            "no prompt 'source/mnly'; did you mean 'source/mnli'",
        ),
        ({"attention": {"prior": "attention/prior-text"}}, BankError, "no prompt 'attention/prior-text'"),
        (
            {"attention": {"prior": "source/mnli"}},
            ConfigError,
            "attention.prior got source/mnli@v1, a prompt",
        ),
        ({"prompt": {"init": "prompt"}}, ConfigError, "name one in prompt.init_from"),
        ({"prompt": {"init": "prompt", "init_from": ["source/mnli@v9"]}}, BankError, "v9"),
        ({"device": "gpu"}, ConfigError, "no torch device"),
        ({"tasks": ["cb"]}, DataError, "no split 'train' of task 'cb'"),
        ({"backbone": {"name": "nanoo"}}, BackboneError, "did you mean 'nano'"),
        ({"bank": "nosuch://bank"}, BankError, "wanted a directory"),
    ],
)
def test_what_a_user_gets_wrong_is_found_before_training(make_config, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        gather(make_config(**changes))
    assert not (tmp_path / "runs").exists()


def test_prompt_of_another_length_is_refused(make_config):
    with pytest.raises(AttemptError, match=r"prompt\.length"):
        gather(make_config(prompt={"length": 5})).build()


def test_prompt_of_another_backbone_is_refused(make_config, files, tmp_path):
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(files / "backbone", tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(BackboneError, match="source/mnli@v1 was made for backbone"):
        gather(make_config(backbone={"name": str(other)}))


def test_attempt_targets_start_from_mnli_or_squad(make_config):
    config = make_config(tasks=["rte", "squad"])
    started = gather(config).build().prompt_tensors()
    assert torch.equal(started["rte"], prompt(config, "source/mnli"))
    assert torch.equal(started["squad"], prompt(config, "source/squad"))


def test_attempt_targets_start_like_prompt_tuning_where_asked(make_config):
    start = gather(make_config(attention={"start": "vocab"})).build()
    tuned = gather(make_config(method="prompt_tuning")).build()
    assert torch.equal(start.prompt_tensors()["rte"], tuned.prompt_tensors()["rte"])


def test_attempt_targets_start_from_noise_where_asked(make_config):
    changes = {"prompt": {"init_std": 0.25}, "attention": {"start": "normal"}, "tasks": ["rte", "mrpc"]}
    started = gather(make_config(**changes)).build().prompt_tensors()
    assert torch.equal(started["rte"], started["mrpc"])
    assert started["rte"].std().item() == pytest.approx(0.25, rel=0.3)
    again = gather(make_config(**changes, seed=9)).build().prompt_tensors()
    assert not torch.equal(again["rte"], started["rte"])


def test_attempt_without_the_preferred_source_starts_from_the_vocabulary(make_config):
    ingredients = gather(make_config(attention={"sources": ["squad"]}))
    started = ingredients.build().prompt_tensors()["rte"]
    rows = ingredients.backbone.vocabulary_VH
    assert all((row == rows).all(dim=1).any() for row in started)


def test_prompt_tuning_starts_from_the_vocabulary(make_config):
    ingredients = gather(make_config(method="prompt_tuning"))
    started = ingredients.build().prompt_tensors()["rte"]
    assert all((row == ingredients.backbone.vocabulary_VH).all(dim=1).any() for row in started)
    assert ingredients.parents == ()


@pytest.mark.parametrize(("weights", "share"), [([], 0.5), ([3, 1], 0.75)])
def test_spot_starts_from_prompts_of_the_bank(make_config, weights, share):
    names = ["source/mnli", "source/squad"]
    config = make_config(
        method="prompt_tuning", prompt={"init": "average", "init_from": names, "init_weights": weights}
    )
    ingredients = gather(config)
    expected = share * prompt(config, names[0]) + (1 - share) * prompt(config, names[1])
    torch.testing.assert_close(ingredients.build().prompt_tensors()["rte"], expected)
    assert ingredients.parents == ("source/mnli@v1", "source/squad@v1")


def test_digest_follows_content_not_places(make_config, files, tmp_path):
    base = gather(make_config()).digest()
    assert gather(make_config(runs=str(tmp_path / "elsewhere"))).digest() == base
    assert gather(make_config(seed=1)).digest() != base
    config = make_config()
    bank = Bank(config.bank)
    loaded = bank.load("source/mnli")
    loaded.tensors["prompt"][0, 0] += 1
    facts = {name: getattr(loaded.manifest, name) for name in ("backbone", "tasks", "config_digest")}
    from attempt_ray.bank.manifest import Facts

    bank.promote(bank.publish("source", "mnli", loaded.tensors, Facts(**facts)).reference)
    assert gather(config).digest() != base


def test_digest_follows_the_rows(make_config, files, tmp_path):
    rows = shutil.copytree(files / "rows", tmp_path / "rows")
    config = make_config(method="prompt_tuning", data={"root": str(rows)})
    before = gather(config).digest()
    with (rows / "rte" / "train.jsonl").open("a") as file:
        file.write('{"sentence1": "w1", "sentence2": "w2", "label": 0, "idx": 99, "id": "99", "title": ""}\n')
    assert gather(config).digest() != before


def test_backbone_is_kept_for_the_next_run_but_never_lent_to_finetuning(make_config):
    first, second = gather(make_config()), gather(make_config(seed=2))
    assert first.backbone is second.backbone
    assert gather(make_config(method="finetune")).backbone is not first.backbone


def test_test_rows_alone_need_no_training_rows(make_config):
    ingredients = gather(make_config(tasks=["cb"]), rows="test")
    assert (len(ingredients.train), len(ingredients.dev), len(ingredients.test[0])) == (0, 0, 4)


def test_test_rows_alone_are_those_of_training(make_config):
    config = make_config(tasks=["rte", "mnli", "squad"])
    alone, beside = gather(config, rows="test"), gather(config)
    for one, other in zip(alone.test, beside.test, strict=True):
        assert one.examples() == other.examples()


def test_the_centre_is_the_mean_pooled_input_each_task_counting_alike(make_config, monkeypatch):
    monkeypatch.setattr(ingredients, "CENTER_ROWS", 11)
    float32 = {"dtype": "float32"}
    found = gather(make_config(tasks=["rte", "mrpc"], attention={"center": True}, backbone=float32))
    means = []
    for split in found.train:
        rows = [
            split.inputs(np.array([row]), width=int(split.lengths[row]), pad_id=0)[0] for row in range(11)
        ]
        pooled = [found.backbone.embed(torch.from_numpy(ids)).amax(dim=0) for ids in rows]
        means.append(torch.stack(pooled).mean(dim=0))
    center_H = found.build().attention.center_H
    assert torch.allclose(center_H, (means[0] + means[1]) / 2, atol=1e-6)


def test_a_run_from_a_prior_keeps_the_priors_centre(make_config):
    prior = make_config(job="prior", tasks=["mnli"], attention={"center": True})
    reference = execute(prior).report["bank"]["attention"]
    centre = Bank(prior.bank).load(reference).tensors["center_H"]
    config = make_config(attention={"center": True, "prior": reference})
    report = execute(config).report
    assert np.array_equal(Bank(config.bank).load(report["bank"]["attention"]).tensors["center_H"], centre)
    backbone = gather(config).backbone
    published = load_published(Bank(config.bank), "target/rte", backbone=backbone, task="rte")
    assert np.array_equal(published.method.attention.center_H.numpy(), centre)
