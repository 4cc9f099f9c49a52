from __future__ import annotations

import re

import pytest

from attempt_ray.bank.store import Bank
from attempt_ray.errors import BankError, ConfigError
from attempt_ray.training.ingredients import gather
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


def test_a_source_stage_of_mpt_leaves_what_targets_start_from(make_config):
    stage = execute(make_config(job="source", method="mpt", tasks=["mnli", "squad"])).report
    assert stage["bank"] == {"mpt-mnli-squad": "source/mpt-mnli-squad@v1"}
    assert stage["parents"] == ["source/mnli@v1", "source/squad@v1"]
    config = make_config(method="mpt", tasks=["rte", "mrpc"], mpt={"source": "source/mpt-mnli-squad"})
    bank = Bank(config.bank)
    left = bank.load("source/mpt-mnli-squad")
    assert set(left.tensors) == {"prompt", "shared_PH", "rows_P", "columns_H"}
    assert left.manifest.tasks == ("mnli", "squad")
    assert bank.aliases("source", "mpt-mnli-squad").current == {"candidate": 1, "champion": 1}
    report = execute(config).report
    assert report["label"] == "mpt_mt"
    assert report["bank"] == {"rte": "target/rte@v1", "mrpc": "target/mrpc@v1"}
    assert report["parents"] == ["source/mpt-mnli-squad@v1"]
    assert set(bank.load("target/rte@v1").tensors) == {"prompt"}
    assert bank.show("target/rte@v1").mixture is None
    assert bank.verify() == []


def test_teachers_name_the_run_and_no_distillation_reads_none(make_config):
    stage = {"job": "source", "method": "mpt", "tasks": ["mnli", "squad"]}
    taught, untaught = gather(make_config(**stage)), gather(make_config(**stage, mpt={"distill": 0}))
    assert list(taught.sources) == ["mnli", "squad"]
    assert untaught.sources == {}
    again = make_config(job="source", method="prompt_tuning", tasks=["mnli"], seed=5)
    Bank(again.bank).promote(execute(again).report["bank"]["mnli"])
    assert gather(make_config(**stage)).digest() != taught.digest()
    with pytest.raises(BankError, match="rte"):
        gather(make_config(**stage | {"tasks": ["rte"]}))


def test_one_prompt_of_several_sources_starts_a_target(make_config):
    shared = {"method": "prompt_tuning", "prompt": {"shared": True}}
    report = execute(make_config(job="source", tasks=["mnli", "squad"], **shared)).report
    assert report["bank"] == {"shared-mnli-squad": "source/shared-mnli-squad@v1"}
    started = make_config(
        method="prompt_tuning", prompt={"init": "prompt", "init_from": ["source/shared-mnli-squad"]}
    )
    assert execute(started).report["parents"] == ["source/shared-mnli-squad@v1"]


def test_one_prompt_of_several_targets_is_published_for_each(make_config):
    config = make_config(method="prompt_tuning", tasks=["rte", "mrpc"], prompt={"shared": True})
    report = execute(config).report
    assert report["label"] == "prompt_tuning_mt"
    assert report["parameters_per_task"] == 3 * 16 / 2
    prompts = [Bank(config.bank).load(report["bank"][task]).tensors["prompt"] for task in ("rte", "mrpc")]
    assert (prompts[0] == prompts[1]).all()


@pytest.mark.parametrize("method", ["adapter", "bitfit", "lora", "dept"])
def test_what_is_no_prompt_is_not_published(make_config, method):
    dept = {"length": 3, "rank": 2, "positions": 8}
    report = execute(make_config(method=method, tasks=["rte", "mrpc"], dept=dept)).report
    assert report["bank"] == {}
    assert report["label"] == f"{method}_mt"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "lora", "job": "source"}, "job 'source' got method 'lora'; set method=prompt_tuning or"),
        ({"method": "dept", "job": "prior"}, "job 'prior' got method 'dept'; set method=attempt"),
        ({"method": "prompt_tuning", "job": "source", "tasks": ["mnli", "rte"]}, "prompt.shared=true"),
        (
            {
                "method": "mpt",
                "job": "source",
                "tasks": ["mnli", "rte"],
                "training": {"selection": "per_task"},
            },
            "set training.selection=mean",
        ),
        ({"method": "mpt", "mpt": {"source": "source/mnli"}}, "without shared_PH"),
    ],
)
def test_what_does_not_fit_is_one_line(make_config, changes, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        gather(make_config(**changes)).build()
    assert "\n" not in str(caught.value)
