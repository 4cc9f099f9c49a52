from __future__ import annotations

import pytest

from attempt_ray.bank.store import Bank
from attempt_ray.training.publishing import attention_name
from attempt_ray.training.run import execute


def test_a_target_run_publishes_prompts_and_the_g_they_are_mixed_by(make_config):
    config = make_config(tasks=["rte", "mrpc"])
    report = execute(config).report
    assert report["bank"] == {
        "attention": "attention/rte-mrpc@v1",
        "rte": "target/rte@v1",
        "mrpc": "target/mrpc@v1",
    }
    manifest = Bank(config.bank).show("target/mrpc@v1")
    assert manifest.mixture.sources == ("source/mnli@v1", "source/squad@v1")
    assert manifest.mixture.attention == "attention/rte-mrpc@v1"
    assert manifest.parents == ("source/mnli@v1", "source/squad@v1")
    assert manifest.config_digest == report["digest"]
    assert manifest.metrics["accuracy"].value == report["scores"]["mrpc"]["test"]["metrics"]["accuracy"]
    assert (manifest.metrics["accuracy"].n, manifest.metrics["accuracy"].split) == (6, "test")
    assert "dev/mrpc/accuracy" in manifest.metrics
    assert manifest.tasks == ("mrpc",)
    assert Bank(config.bank).show("attention/rte-mrpc@v1").tasks == ("rte", "mrpc")
    assert Bank(config.bank).verify() == []


def test_per_task_selection_gives_every_task_its_own_g(make_config):
    config = make_config(tasks=["rte", "mrpc"], training={"selection": "per_task"})
    references = execute(config).report["bank"]
    assert set(references) == {"attention:rte", "attention:mrpc", "rte", "mrpc"}
    for task in ("rte", "mrpc"):
        assert Bank(config.bank).show(references[task]).mixture.attention == references[f"attention:{task}"]


def test_targets_are_candidates_and_sources_champions_once(make_config):
    config = make_config()
    execute(config)
    bank = Bank(config.bank)
    assert bank.aliases("target", "rte").current == {"candidate": 1}
    assert bank.aliases("source", "mnli").current == {"candidate": 1, "champion": 1}
    again = make_config(job="source", method="prompt_tuning", tasks=["mnli"], seed=1)
    assert execute(again).report["bank"] == {"mnli": "source/mnli@v2"}
    assert bank.aliases("source", "mnli").current == {"candidate": 2, "champion": 1}


def test_a_prior_is_named_by_its_group(make_config):
    groups = {"prior_groups": {"text": ["mnli"], "all": ["squad", "mnli"]}}
    config = make_config(job="prior", tasks=["mnli", "squad"], study=groups)
    assert execute(config).report["bank"] == {"attention": "attention/prior-all@v1"}
    assert Bank(config.bank).aliases("attention", "prior-all").current == {"candidate": 1, "champion": 1}
    assert attention_name(config.updated(tasks=["squad"])) == "prior-squad"


@pytest.mark.parametrize(
    ("attention", "kinds"),
    [
        ({"weights": "uniform"}, {"target"}),
        ({"target": "none"}, {"attention"}),
        ({"frozen": True}, {"target", "attention"}),
    ],
)
def test_variants_publish_what_they_have(make_config, attention, kinds):
    references = execute(make_config(attention=attention)).report["bank"].values()
    assert {reference.partition("/")[0] for reference in references} == kinds


def test_a_frozen_prior_is_referred_to_not_copied(make_config):
    prior = execute(make_config(job="prior", tasks=["mnli", "squad"])).report["bank"]["attention"]
    config = make_config(attention={"prior": prior, "frozen": True})
    references = execute(config).report["bank"]
    assert set(references) == {"rte"}
    assert Bank(config.bank).show(references["rte"]).mixture.attention == prior


def test_plain_prompts_have_no_mixture(make_config):
    config = make_config(method="prompt_tuning", prompt={"init": "prompt", "init_from": ["source/mnli"]})
    manifest = Bank(config.bank).show(execute(config).report["bank"]["rte"])
    assert manifest.mixture is None
    assert manifest.parents == ("source/mnli@v1",)
