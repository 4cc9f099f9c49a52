from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attempt_ray.bank.manifest import BackboneRecord, Facts
from attempt_ray.bank.store import Bank
from attempt_ray.config import Config, parse
from attempt_ray.errors import ConfigError
from attempt_ray.orchestration.study import Job, PoolResult
from attempt_ray.training.report import run_label
from jobs import plan
from jobs.run_pipeline import all_jobs

STUDY = parse(
    [
        {
            "backbone": {"name": "nano"},
            "training": {"steps": 30},
            "study": {
                "targets": ["rte", "mrpc", "nq"],
                "groups": [["rte", "mrpc"], ["nq"]],
                "methods": list(plan.METHODS),
                "seeds": [1, 2],
                "parents": {"mrpc": ["qqp"]},
                "source_steps": 50,
                "source_batch_rows": 16,
                "prior_steps": 20,
            },
        }
    ]
)


def by_key(config: Config) -> dict[str, Job]:
    jobs = all_jobs(config)
    keyed = {job.key: job for job in jobs}
    assert len(keyed) == len(jobs)
    return keyed


def config_of(jobs: dict[str, Job], key: str) -> Config:
    config = jobs[key].config
    assert isinstance(config, Config)
    return config


def test_a_study_has_every_cell_of_its_table() -> None:
    keys = set(by_key(STUDY))
    cells = {
        f"{method}/{task}/s{seed}"
        for method in plan.SINGLE
        for task in ("rte", "mrpc", "nq")
        for seed in (1, 2)
    }
    multi = {
        f"{method}/{group}/s{seed}"
        for method in plan.MULTI
        for group in ("rte+mrpc", "nq")
        for seed in (1, 2)
    }
    sources = {f"source/{name}" for name in (*STUDY.attention.sources, "generic", "mpt")}
    assert keys == cells | multi | sources | {"prior/text", "prior/qa"}


def test_budgets_of_sources_priors_and_targets_are_their_own() -> None:
    jobs = by_key(STUDY)
    assert config_of(jobs, "source/mnli").training.steps == 50
    assert config_of(jobs, "source/mnli").data.batch_rows == 16
    assert config_of(jobs, "prior/qa").training.steps == 20
    assert config_of(jobs, "attempt/rte/s2").training.steps == 30
    assert config_of(jobs, "attempt/rte/s2").data.batch_rows == 32


def test_each_run_tells_the_row_it_stands_in() -> None:
    for key, job in by_key(STUDY).items():
        if isinstance(job.config, Config) and job.config.job == "target":
            assert run_label(job.config) == (
                "attempt" if key == "attempt_mt/nq/s1" else run_label(job.config)
            )
    jobs = by_key(STUDY)
    for label in ("finetune", "prompt_tuning", "spot", "attempt"):
        assert run_label(config_of(jobs, f"{label}/rte/s1")) == label
    assert run_label(config_of(jobs, "attempt_mt/rte+mrpc/s1")) == "attempt_mt"


def test_targets_start_from_the_prior_of_their_length() -> None:
    jobs = by_key(STUDY)
    assert config_of(jobs, "attempt/rte/s1").attention.prior == "attention/prior-text"
    assert config_of(jobs, "attempt/nq/s1").attention.prior == "attention/prior-qa"
    assert jobs["attempt/rte/s1"].needs[-2:] == ("prior/text", "prior/qa")
    without = parse([STUDY.model_dump(), {"study": {"prior": False}}])
    assert config_of(by_key(without), "attempt/rte/s1").attention.prior is None
    own = parse([STUDY.model_dump(), {"attention": {"prior": "attention/mine@v2"}}])
    assert config_of(by_key(own), "attempt/rte/s1").attention.prior == "attention/mine@v2"


def test_spot_starts_from_the_known_parent_else_from_the_papers_source() -> None:
    jobs = by_key(STUDY)
    assert config_of(jobs, "spot/mrpc/s1").prompt.init_from == ("source/qqp",)
    assert config_of(jobs, "spot/rte/s1").prompt.init_from == ("source/mnli",)
    assert config_of(jobs, "spot/nq/s1").prompt.init_from == ("source/squad",)


def test_what_a_run_does_not_read_does_not_name_it() -> None:
    other = parse([STUDY.model_dump(), {"attention": {"bottleneck": 7, "temperature": "auto"}}])
    jobs, others = by_key(STUDY), by_key(other)
    for key in ("source/mnli", "prompt_tuning/rte/s1", "spot/rte/s1", "finetune/rte/s1"):
        assert config_of(jobs, key).digest() == config_of(others, key).digest()
    for key in ("prior/text", "attempt/rte/s1"):
        assert config_of(jobs, key).digest() != config_of(others, key).digest()


def test_priors_are_cut_to_the_sources_at_hand_and_keep_their_names() -> None:
    few = parse([STUDY.model_dump(), {"attention": {"sources": ["mnli", "qqp"]}}])
    assert plan.prior_groups(few) == {"text": ("mnli", "qqp")}
    jobs = by_key(few)
    assert "prior/qa" not in jobs
    assert config_of(jobs, "prior/text").study.prior_groups == {"text": ("mnli", "qqp")}
    assert config_of(jobs, "attempt/nq/s1").attention.prior == "attention/prior-text"


def test_spot_by_similarity_waits_for_prompt_tuning_even_where_the_table_does_not_ask_for_it() -> None:
    alone = parse([STUDY.model_dump(), {"study": {"methods": ["spot_similar"], "seeds": [1]}}])
    jobs = by_key(alone)
    assert "prompt_tuning/rte/s1" in jobs
    assert "prompt_tuning/rte/s1" in jobs["spot_similar/rte/s1"].needs


def test_spot_by_similarity_takes_the_source_most_like_the_tuned_prompt(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    prompts = {name: rng.standard_normal((4, 8), dtype=np.float32) for name in STUDY.attention.sources}
    bank = Bank(str(tmp_path / "bank"))
    record = BackboneRecord(
        name="b", revision=None, weights_sha256="0" * 64, tokenizer_sha256="0" * 64, width=8
    )
    for name, prompt in prompts.items():
        bank.publish(
            "source", name, {"prompt": prompt}, Facts(backbone=record, tasks=(name,), config_digest="0" * 12)
        )
    # Longer by far, but of another direction: length must not count.
    tuned = 0.01 * prompts["qnli"] + 0.001 * prompts["mnli"]
    facts = Facts(backbone=record, tasks=("rte",), config_digest="1" * 12)
    reference = bank.publish("target", "rte", {"prompt": tuned}, facts).reference
    config = parse([STUDY.model_dump(), {"bank": str(tmp_path / "bank")}])
    assert plan.most_similar(bank, [reference], sources=config.attention.sources) == {"qnli": 1.0}

    job = by_key(config)["spot_similar/rte/s1"]
    assert callable(job.config)
    done = PoolResult(key="x", config=None, status="finished", report={"bank": {"rte": reference}})
    run = job.config({"prompt_tuning/rte/s1": done})
    assert run.prompt.init_from == ("source/qnli",)
    assert run_label(run) == "spot_similar"


def test_equal_studies_share_a_directory_wherever_they_are() -> None:
    moved = parse([STUDY.model_dump(), {"runs": "/elsewhere", "cluster": {"workers": 7}}])
    other = parse([STUDY.model_dump(), {"study": {"seeds": [3]}}])
    assert plan.study_name(moved) == plan.study_name(STUDY) != plan.study_name(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study": {"targets": ["rtee"], "groups": []}}, "no task 'rtee'; did you mean 'rte'?"),
        ({"attention": {"sources": ["mnlii"]}}, "no task 'mnlii'; did you mean 'mnli'?"),
        ({"study": {"methods": ["atempt"]}}, "no method in study.methods 'atempt'; did you mean 'attempt'?"),
        ({"study": {"seeds": []}}, "a study needs study.targets, study.methods and study.seeds"),
        ({"study": {"groups": [["cb"]]}}, "study.groups: no task in study.targets 'cb'"),
        ({"study": {"parents": {"rte": ["qqq"]}}}, "no task 'qqq'"),
        ({"attention": {"sources": []}}, "attention.sources is empty"),
    ],
)
def test_a_study_with_a_wrong_name_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?").replace(".", r"\.")):
        plan.check(parse([STUDY.model_dump(), changes]))


@pytest.mark.parametrize(
    ("rate", "moved"),
    [
        ("attention", {"prior", "attempt", "attempt_mt"}),
        ("backbone", {"finetune", "finetune_mt"}),
        (
            "prompt",
            {
                *("source", "prior", "prompt_tuning", "spot", "spot_generic", "spot_generic_mt"),
                *("attempt", "attempt_mt", "mpt", "mpt_mt", "dept"),
            },
        ),
    ],
)
def test_a_learning_rate_names_the_runs_that_read_it_alone(rate: str, moved: set[str]) -> None:
    before = by_key(STUDY)
    after = by_key(STUDY.updated(training={f"{rate}_learning_rate": 0.0123}))
    differing = {
        key.partition("/")[0]
        for key, job in before.items()
        if isinstance(job.config, Config) and job.config.digest() != config_of(after, key).digest()
    }
    assert differing == moved
