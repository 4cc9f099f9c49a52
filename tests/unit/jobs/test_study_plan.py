from __future__ import annotations

from pathlib import Path

import pytest

from attempt_ray.config import Config, parse
from attempt_ray.errors import ConfigError
from attempt_ray.orchestration.study import PoolResult
from jobs import plan
from jobs.study_plan import ABLATIONS, StudyPlan, ablated, identity, plan_study

NAMES = tuple(name for name in ABLATIONS if "<" not in name)
STUDY = parse(
    [
        {
            "backbone": {"name": "nano"},
            "training": {"steps": 30, "attention_learning_rate": 0.1},
            "attention": {"sources": ["mnli", "qqp", "squad"]},
            "study": {
                "name": "small",
                "targets": ["rte", "mrpc", "nq"],
                "groups": [["rte", "mrpc"], ["nq"]],
                "methods": list(plan.METHODS),
                "seeds": [1, 2],
                "source_steps": 50,
                "prior_steps": 20,
                "generic_steps": 40,
                "shared_steps": 45,
            },
        }
    ]
)


def planned(**changes: object) -> StudyPlan:
    return plan_study(STUDY.updated(**changes))


def run_of(study: StudyPlan, cell: str) -> Config:
    (job,) = [found.job for found in study.cells if found.key == cell]
    return study.known[job]


def test_a_study_has_every_cell_of_its_tables() -> None:
    study = planned(
        study={"ablations": ["no_prior", "attempt_mt/no_prior"], "leave_one_out": ["rte"], "seeds": [1]}
    )
    told = {(cell.row, cell.ablation, cell.tasks) for cell in study.cells}
    single = {(row, None, (task,)) for row in plan.SINGLE for task in ("rte", "mrpc", "nq")}
    multi = {(row, None, tasks) for row in plan.MULTI for tasks in (("rte", "mrpc"), ("nq",))}
    changed = {("attempt", "no_prior", (task,)) for task in ("rte", "mrpc", "nq")}
    changed |= {("attempt_mt", "no_prior", tasks) for tasks in (("rte", "mrpc"), ("nq",))}
    without = {("attempt", f"without_{source}", ("rte",)) for source in ("mnli", "qqp", "squad")}
    assert told == single | multi | changed | without
    assert len({cell.key for cell in study.cells}) == len(study.cells) == len(told)
    assert {cell.backbone for cell in study.cells} == {"nano"}


def test_equal_runs_are_done_once_and_fill_all_their_cells() -> None:
    study = planned(study={"ablations": ["temperature_1.0", "temperature_0", "one_rate"]})
    cells = {cell.key: cell.job for cell in study.cells}
    # K = 1 is the default, a group of one task is that task alone.
    assert cells["attempt-temperature_1.0/rte/s1"] == cells["attempt/rte/s1"]
    assert cells["attempt-temperature_0/rte/s1"] != cells["attempt/rte/s1"]
    assert cells["attempt_mt/nq/s2"] == cells["attempt/nq/s2"]
    assert cells["spot_targeted_mt/nq/s2"] == cells["spot_targeted/nq/s2"]
    assert cells["finetune_mt/nq/s1"] == cells["finetune/nq/s1"]
    assert cells["attempt-one_rate/rte/s1"] != cells["attempt/rte/s1"]
    digests = [job.config.digest() for job in study.jobs if isinstance(job.config, Config)]
    assert len(set(digests)) == len(digests)
    assert {job.key for job in study.jobs} >= set(cells.values())
    for job in study.jobs:
        assert set(job.needs) <= {other.key for other in study.jobs}


def test_stages_are_those_that_the_rows_need() -> None:
    def stages(*rows: str, **study: object) -> set[str]:
        found = planned(study={"methods": rows, "seeds": [1], **study})
        cells = {cell.job for cell in found.cells}
        return {job.key for job in found.jobs if job.key not in cells}

    sources = {"source/mnli", "source/qqp", "source/squad"}
    assert stages("prompt_tuning", "finetune", "adapter", "dept") == set()
    assert stages("spot") == sources
    assert stages("spot_generic") == {"source/generic"}
    assert stages("attempt") == sources | {"prior/text", "prior/qa"}
    assert stages("attempt", prior=False) == sources
    assert stages("mpt") == sources | {"source/mpt"}
    assert "prompt_tuning/rte/s1" in stages("spot_targeted_mt")


def test_budgets_of_stages_are_their_own_and_those_of_rows_are_equal() -> None:
    study = planned()
    steps = {key: study.known[key].training.steps for key in ("source/mnli", "source/generic", "source/mpt")}
    assert steps == {"source/mnli": 50, "source/generic": 40, "source/mpt": 45}
    assert {study.known[cell.job].training.steps for cell in study.cells} == {30}
    plain = planned(study={"generic_steps": None, "shared_steps": None})
    assert plain.known["source/generic"].training.steps == 50
    assert plain.known["source/mpt"].training.steps == 50


def test_generic_and_shared_prompts_are_learned_from_all_sources_and_started_from() -> None:
    study = planned()
    generic, shared = study.known["source/generic"], study.known["source/mpt"]
    assert (generic.method, generic.prompt.shared, generic.tasks) == (
        "prompt_tuning",
        True,
        ("mnli", "qqp", "squad"),
    )
    assert (shared.method, shared.job, shared.tasks) == ("mpt", "source", ("mnli", "qqp", "squad"))
    assert run_of(study, "spot_generic/rte/s1").prompt.init_from == (f"source/{generic.source_name}",)
    assert run_of(study, "mpt/rte/s1").mpt.source == f"source/{shared.source_name}"
    assert run_of(study, "spot_generic_mt/rte+mrpc/s1").prompt.shared
    assert run_of(study, "spot_targeted_mt/rte+mrpc/s1").prompt.shared
    assert not run_of(study, "spot_generic/rte/s1").prompt.shared


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("no_target", {"target": "none"}),
        ("no_attention", {"weights": "uniform", "prior": None}),
        ("no_attention_sources", {"weights": "uniform_sources", "prior": None}),
        ("single_prompt", {"sources": ("mnli",), "prior": "attention/prior-text"}),
        ("no_prior", {"prior": None}),
        ("frozen_attention", {"frozen": True, "prior": "attention/prior-text"}),
        ("frozen_norm", {"train_norm": False}),
        ("authors_pooling", {"pooling": "authors", "prior": "attention/prior-text"}),
        ("temperature_auto", {"temperature": "auto"}),
        ("temperature_-0.5", {"temperature": -0.5}),
        ("init_vocab", {"start": "vocab"}),
        ("init_normal", {"start": "normal"}),
        ("without_qqp", {"sources": ("mnli", "squad"), "prior": "attention/prior-text"}),
    ],
)
def test_an_ablation_changes_what_it_names_and_nothing_else(name: str, changes: dict[str, object]) -> None:
    run = plan.target_config(STUDY, label="attempt", tasks=("rte",), seed=1)
    found = ablated(STUDY, run, name)
    assert {key: getattr(found.attention, key) for key in changes} == changes
    assert found.updated(attention=run.attention.model_dump()) == run


def test_one_rate_is_the_prompts_and_a_single_prompt_is_the_one_targets_start_from() -> None:
    run = plan.target_config(STUDY, label="attempt", tasks=("nq",), seed=1)
    assert ablated(STUDY, run, "one_rate").training.attention_learning_rate == 0.3
    assert ablated(STUDY, run, "single_prompt").attention.sources == ("squad",)


def test_authors_pooling_has_priors_of_its_own_where_the_studys_have_a_centre() -> None:
    study = planned(attention={"center": True}, study={"ablations": ["authors_pooling"]})
    run = run_of(study, "attempt-authors_pooling/rte/s1")
    assert not run.attention.center
    assert run.attention.prior == "attention/prior-text-authors-pooling"
    (cell,) = [cell for cell in study.cells if cell.key == "attempt-authors_pooling/rte/s1"]
    (job,) = [job for job in study.jobs if job.key == cell.job]
    prior = "prior/text-authors-pooling"
    assert prior in job.needs
    assert not study.known[prior].attention.center
    assert "prior/text-authors-pooling" not in {job.key for job in planned(attention={"center": True}).jobs}


def test_ablations_may_be_on_some_targets_alone_and_take_groups_that_have_one() -> None:
    study = planned(
        study={"ablations": ["no_prior", "attempt_mt/no_prior"], "ablation_targets": ["mrpc"], "seeds": [1]}
    )
    assert [cell.key for cell in study.cells if cell.ablation] == [
        "attempt-no_prior/mrpc/s1",
        "attempt_mt-no_prior/rte+mrpc/s1",
    ]


def test_each_backbone_has_its_runs_its_bank_and_its_page(tmp_path: Path) -> None:
    (tmp_path / "little").mkdir()
    page = tmp_path / "other.yaml"
    page.write_text("backbone: {name: google-t5/t5-small}\ndata: {batch_rows: 5}\nstudy: {seeds: [9]}\n")
    study = planned(
        bank="s3://bucket/bank?region=x",
        study={
            "backbones": ["nano", str(tmp_path / "little"), str(page), "google/flan-t5-base"],
            "methods": ["attempt", "spot_targeted"],
            "seeds": [1],
        },
    )
    assert list(study.backbones) == ["nano", "little", "other", "flan-t5-base"]
    assert study.backbones["other"].data.batch_rows == 5
    assert study.backbones["nano"].data.batch_rows == 32
    assert study.backbones["little"].bank == "s3://bucket/bank/little?region=x"
    assert {cell.seed for cell in study.cells} == {1}
    for name in study.backbones:
        jobs = study.jobs_on(name)
        assert len(jobs) == len(study.jobs) / 4
        assert all(need.startswith(f"{name}/") for job in jobs for need in job.needs)
    # What starts from similar sources asks for the results of its own backbone's runs.
    (job,) = [job for job in study.jobs if job.key == "little/spot_targeted/rte/s1"]
    assert callable(job.config)
    done = PoolResult(key="x", config=None, status="finished", report={"bank": {}})
    with pytest.raises(KeyError, match="rte"):
        job.config(dict.fromkeys(job.needs, done))


def test_a_run_is_known_again_by_what_its_directory_holds() -> None:
    study = planned(study={"seeds": [1]})
    seen = {}
    for key, run in study.known.items():
        settled = run.updated(backbone={"dtype": "float32"}, bank="/elsewhere", runs="/elsewhere")
        if run.prompt.init == "average":
            weights = (0.5, 0.5) if run.prompt.init_weights else ()
            settled = settled.updated(prompt={"init_from": ("source/a", "source/b"), "init_weights": weights})
        assert identity(parse([settled.model_dump(mode="json")])) == identity(run)
        seen[identity(run)] = key
    assert len(seen) == len(study.known)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study": {"methods": ["atempt"]}}, "no method in study.methods 'atempt'; did you mean 'attempt'?"),
        ({"study": {"ablations": ["no_targt"]}}, "no ablation in study.ablations 'no_targt'; did you mean"),
        ({"study": {"ablations": ["temperature_hot"]}}, "wanted temperature_ and a number K"),
        ({"study": {"ablations": ["spot/no_prior"]}}, "wanted changes of attempt or attempt_mt"),
        (
            {"study": {"ablations": ["no_prior"], "methods": ["spot"]}},
            "the row 'attempt' is not in study.methods",
        ),
        ({"study": {"ablation_targets": ["cb"]}}, "study.ablation_targets: no task in study.targets 'cb'"),
        ({"study": {"leave_one_out": ["cb"]}}, "study.leave_one_out: no task in study.targets 'cb'"),
        (
            {"study": {"leave_one_out": True}, "attention": {"sources": ["mnli"]}},
            "got the one source 'mnli'",
        ),
        ({"study": {"leave_one_out": True, "methods": ["spot"]}}, "the row 'attempt' again"),
        ({"study": {"seeds": []}}, "a study needs study.targets, study.methods and study.seeds"),
        ({"study": {"seeds": [1, 1]}}, "study.seeds names 1 twice"),
        ({"study": {"targets": ["rtee"], "groups": []}}, "no task 'rtee'; did you mean 'rte'?"),
        ({"study": {"backbones": ["t5-bse"]}}, "no backbone 't5-bse'; did you mean 't5-base'?"),
        ({"study": {"backbones": ["nano", "a/nano"]}}, "study.backbones names 'nano' twice"),
        ({"study": {"backbones": ["missing.yaml"]}}, "cannot read config missing.yaml"),
        ({"backbone": {"name": "nanno"}}, "no backbone 'nanno'"),
    ],
)
def test_a_study_that_cannot_be_done_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(**changes)
    assert message in str(caught.value)


def test_all_fixed_ablations_can_be_asked_for_at_once() -> None:
    study = planned(study={"ablations": NAMES, "methods": ["attempt"], "seeds": [1]})
    assert len(study.cells) == 3 * (1 + len(NAMES))
