from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.config import Config, load, parse
from attempt_ray.errors import ConfigError
from attempt_ray.training.run import execute
from jobs.search_plan import plan_search
from tests.conftest import ROOT

MakeSearch = Callable[..., Config]


def paper(*tasks: str, **changes: Any) -> Config:
    """Return a config of the paper's tasks, on a backbone of known shape."""
    preset = load([ROOT / "attempt_ray" / "presets" / "paper" / "t5-small.yaml"])
    return parse([preset.model_dump(), {"tasks": list(tasks)}, changes])


def write_space(directory: Path, *knobs: dict[str, Any], **facts: Any) -> str:
    path = directory / "own.yaml"
    path.write_text(json.dumps({"name": "own", "knobs": knobs, **facts}))
    return str(path)


def choice(key: str, *values: Any) -> dict[str, Any]:
    return {"key": key, "domain": {"kind": "choice", "values": values}}


def test_the_name_is_that_of_the_space_and_of_what_decides_the_trials(make_search: MakeSearch) -> None:
    name = plan_search(make_search()).name
    assert name.startswith("short-") and len(name) == len("short-") + 12
    assert plan_search(make_search(search={"study": "mine"})).name == "mine"


@pytest.mark.parametrize(
    "changes",
    [
        {"search": {"trials": 99, "hours": 1.0, "max_steps": 10, "attempts": 9, "trials_at_once": 7}},
        {"search": {"packed": False, "final_seeds": [7], "directory": "elsewhere", "storage": "x.db"}},
        {"cluster": {"workers": 3}, "bank": "other", "runs": "other"},
        {"data": {"cache_dir": "/elsewhere"}, "training": {"checkpoint_steps": 7, "tensorboard": True}},
        {"seed": 1},
    ],
    ids=["budget", "surroundings", "places", "conveniences", "what was the default"],
)
def test_the_name_stays_whatever_the_budget_and_the_places(
    make_search: MakeSearch, changes: dict[str, Any]
) -> None:
    one, other = plan_search(make_search(seed=1)), plan_search(make_search(**{"seed": 1, **changes}))
    assert one.name == other.name
    assert one.facts() == other.facts()


@pytest.mark.parametrize(
    "changes",
    [
        {"search": {"seeds": [2]}},
        {"search": {"method": "attempt_mt"}},
        {"search": {"objectives": ["dev", "flops"]}},
        {"search": {"sampler": "random"}},
        {"search": {"pruner": "none"}},
        {"search": {"seed": 1}},
        {"search": {"startup_trials": 3}},
        {"study": {"targets": ["mrpc"], "prior": False}},
        {"study": {"targets": ["rte"]}},
        {"training": {"attention_learning_rate": 0.5}},
        {"attention": {"bottleneck": 8}},
        {"evaluation": {"decode": "greedy"}},
        {"seed": 2},
    ],
    ids=str,
)
def test_the_name_changes_with_what_decides_the_trials(
    make_search: MakeSearch, changes: dict[str, Any]
) -> None:
    assert plan_search(make_search(**changes)).name != plan_search(make_search()).name


def test_the_name_changes_with_the_content_of_the_space_not_with_its_place(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    config = make_search()
    space = Path(str(config.search.space)).read_text()
    moved = tmp_path / "moved.yaml"
    moved.write_text(space)
    assert plan_search(make_search(search={"space": str(moved)})).name == plan_search(config).name
    moved.write_text(space.replace("0.03", "0.04"))
    assert plan_search(make_search(search={"space": str(moved)})).name != plan_search(config).name


def test_the_facts_are_plain_json_and_tell_what_is_searched(make_search: MakeSearch) -> None:
    facts = plan_search(make_search(search={"seeds": [3, 4]})).facts()
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["tasks"], facts["seeds"], facts["objectives"]) == (["rte"], [3, 4], ["dev"])
    assert facts["space"]["name"] == "short"


@pytest.mark.parametrize(
    ("tasks", "space"),
    [
        (["cb", "wic"], "superglue"),
        (["mrpc", "cola"], "glue"),
        (["multirc"], "multirc"),
        (["nq", "hotpotqa"], "mrqa"),
        (["scitail"], "others"),
    ],
)
def test_the_space_is_that_of_the_tasks_group(tasks: list[str], space: str) -> None:
    assert plan_search(paper(*tasks)).space.name == space


def test_embedded_tasks_have_a_space_of_their_own() -> None:
    config = load([ROOT / "attempt_ray" / "presets" / "embedded.yaml"])
    assert plan_search(config.updated(tasks=("rte", "cb"))).space.name == "embedded"


def test_tasks_of_two_groups_want_a_space_to_be_named() -> None:
    with pytest.raises(
        ConfigError, match=r"the tasks are of MRQA, SuperGLUE, which share no search space; name"
    ):
        plan_search(paper("cb", "nq"))
    assert plan_search(paper("cb", "nq", search={"space": "glue"})).space.name == "glue"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("gleu", "no search space or file 'gleu'; did you mean 'glue'"),
        ("missing.yaml", "cannot read search space missing.yaml"),
        ("missing.py", "cannot read search space missing.py"),
    ],
)
def test_an_unknown_space_is_refused(make_search: MakeSearch, space: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_search(make_search(search={"space": space}))


def test_no_tasks_and_unknown_tasks_are_refused(make_search: MakeSearch) -> None:
    with pytest.raises(ConfigError, match="a search needs tasks; name at least one"):
        plan_search(make_search(study={"targets": []}))
    with pytest.raises(ConfigError, match="no task 'rt'"):
        plan_search(make_search(study={"targets": ["rt"]}))


@pytest.mark.parametrize(
    "key",
    [
        "seed",
        "bank",
        "backbone.name",
        "device",
        "search.seeds",
        "study.targets",
        "data.max_dev_rows",
        "data.split_seed",
        "data.root",
        "evaluation.decode",
        "trainings.steps",
    ],
)
def test_what_trials_are_scored_by_is_not_searched(make_search: MakeSearch, tmp_path: Path, key: str) -> None:
    for knob, fixed in (
        (choice(key, "greedy", "labels"), {}),
        (choice("training.steps", 2), {key: "labels"}),
        (choice("mine", "a") | {"sets": {"a": {key: 1}}}, {}),
    ):
        own = write_space(tmp_path, knob, fixed=fixed)
        with pytest.raises(ConfigError, match=rf"space 'own' sets '{key}'; a search sets keys of"):
            plan_search(make_search(search={"space": own}))


@pytest.mark.parametrize("key", ["training.dropout", "training.threads"])
def test_what_runs_must_agree_on_is_searched_apart_alone(
    make_search: MakeSearch, tmp_path: Path, key: str
) -> None:
    own = write_space(tmp_path, choice(key, *([1, 2] if key.endswith("threads") else [0.0, 0.1])))
    with pytest.raises(
        ConfigError, match=rf"sets '{key}', on which trials must agree .* search.packed=false"
    ):
        plan_search(make_search(search={"space": own}))
    assert plan_search(make_search(search={"space": own, "packed": False})).space.name == "own"


def test_a_value_that_the_config_refuses_is_told_with_its_knob(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    own = write_space(tmp_path, choice("training.steps", 2, -1))
    with pytest.raises(ConfigError, match=r"space 'own', knob 'training\.steps' at -1"):
        plan_search(make_search(search={"space": own}))
    own = write_space(tmp_path, choice("training.step", 2))
    with pytest.raises(ConfigError, match="did you mean"):
        plan_search(make_search(search={"space": own}))


def test_a_trial_has_a_run_for_each_task_and_seed(make_search: MakeSearch) -> None:
    plan = plan_search(
        make_search(study={"targets": ["rte", "mrpc"], "prior": False}, search={"seeds": [1, 2]})
    )
    runs = plan.runs_of(plan.space.known[0])
    assert set(runs) == {"rte/s1", "rte/s2", "mrpc/s1", "mrpc/s2"}
    for run in runs.values():
        assert run.trial and run.runs.endswith(f"/search-{plan.name}")
        assert (run.method, run.job, run.training.prompt_learning_rate) == ("attempt", "target", 0.3)
    assert {(run.tasks, run.seed) for run in runs.values()} == {
        ((task,), seed) for task in ("rte", "mrpc") for seed in (1, 2)
    }


def test_a_multi_task_trial_has_one_run_of_all_tasks(make_search: MakeSearch) -> None:
    study = {"targets": ["rte", "mrpc"], "prior": False}
    plan = plan_search(make_search(study=study, search={"method": "attempt_mt"}))
    assert {key: run.tasks for key, run in plan.runs_of(plan.space.known[0]).items()} == {
        "rte+mrpc/s1": ("rte", "mrpc")
    }


def test_the_final_runs_have_fresh_seeds_and_are_no_trials(make_search: MakeSearch) -> None:
    plan = plan_search(make_search())
    jobs = plan.final_jobs(plan.space.known[0])
    assert [job.key for job in jobs] == [f"final/rte/s{seed}" for seed in (101, 102, 103)]
    for job in jobs:
        assert isinstance(job.config, Config)
        assert not job.config.trial
        assert job.config.runs == plan.config.runs
        assert job.config.search.study == plan.name


def test_corners_are_the_known_points_and_every_end_of_every_knob(make_search: MakeSearch) -> None:
    plan = plan_search(make_search())
    corners = plan.corners()
    assert corners[0] == plan.space.known[0]
    assert len(corners) == 1 + 2 + 2 + 2
    for corner in corners:
        plan.space.check_point(corner)
    for knob in plan.space.knobs:
        assert set(knob.domain.ends()) <= {corner[knob.key] for corner in corners}


def test_the_number_of_parameters_is_what_a_run_trains(make_search: MakeSearch) -> None:
    plan = plan_search(make_search(search={"objectives": ["dev", "parameters"]}))
    point = plan.space.known[0]
    (run,) = plan.runs_of(point).values()
    assert plan.costs(point) == [execute(run).report["trainable_parameters"]]


def test_costs_come_in_the_order_of_the_objectives(tmp_path: Path) -> None:
    own = write_space(
        tmp_path, choice("attention.bottleneck", 25, 100), choice("data.max_source_tokens", 64, 128)
    )
    objectives = ["dev", "flops", "parameters"]
    plan = plan_search(paper("cb", "wic", search={"space": own, "objectives": objectives}))
    small, wide, long = (
        plan.costs({"attention.bottleneck": width, "data.max_source_tokens": tokens})
        for width, tokens in ((25, 64), (100, 64), (25, 128))
    )
    assert wide[0] == small[0] < long[0]
    assert small[1] == long[1] < wide[1]
    assert wide[1] - small[1] == 75 * 2 * 512
    assert plan_search(paper("cb", search={"space": own})).costs({"attention.bottleneck": 25}) == []


def test_the_cost_counts_every_trial_at_the_longest_budget(make_search: MakeSearch) -> None:
    cost = plan_search(make_search(search={"trials": 5, "seeds": [1, 2]})).cost()
    assert (cost.runs, cost.steps) == (10, 40)
    assert cost.seconds is not None
    assert cost.describe()
