from __future__ import annotations

import json
from itertools import product

import pytest
import typer

from attempt_ray.config import preset_names
from attempt_ray.data.microworld import PARENTS
from attempt_ray.tasks import GROUPS, TARGET_TASKS
from jobs import cli, plan
from jobs.edge import load_config
from jobs.run_pipeline import all_jobs
from jobs.study_plan import ABLATIONS, plan_study

SIZES = ("small", "base", "large", "3b")
STUDIES = tuple(
    name for name in preset_names() if name.startswith("paper/") and not name.startswith("paper/t5-")
)


def test_every_group_has_its_presets() -> None:
    groups = ("glue", "superglue", "mrqa", "others")
    assert set(STUDIES) == {
        f"paper/{group}-{kind}" for group, kind in product(groups, ("single", "multi"))
    } | {"paper/multirc-single"}


@pytest.mark.parametrize(("size", "study"), list(product(SIZES, STUDIES)))
def test_every_size_of_the_paper_goes_with_every_study(size: str, study: str) -> None:
    config = load_config([f"paper/t5-{size}", study])
    plan.check(config)
    assert all_jobs(config)
    group = study.removeprefix("paper/").split("-")[0]
    (targets,) = [tasks for name, tasks in GROUPS.items() if name.lower() == group]
    assert config.study.targets == targets
    assert config.prompt.length == config.attention.bottleneck == 100
    assert (config.training.warmup_steps, config.training.warmup_fraction) == (500, 1.0)
    slow = group == "superglue" or study == "paper/others-multi"
    assert config.training.attention_learning_rate == (0.1 if slow else 0.3)


@pytest.mark.parametrize(("size", "rows"), [("small", 100), ("base", 32), ("large", 16), ("3b", 2)])
def test_batches_are_the_papers(size: str, rows: int) -> None:
    assert load_config([f"paper/t5-{size}", "paper/glue-single"]).data.batch_rows == rows
    mixed = load_config([f"paper/t5-{size}", "paper/glue-multi"])
    assert mixed.data.batch_rows * len(mixed.study.targets) == 32


def test_the_embedded_preset_knows_the_generators_truth() -> None:
    config = load_config(["embedded"])
    plan.check(config)
    assert config.backbone.name == "nano"
    assert config.study.parents == dict(PARENTS)


def test_the_embedded_suite_has_every_miniature_once_in_a_group() -> None:
    config = load_config(["embedded", "embedded-suite"])
    plan.check(config)
    assert set(config.study.targets) == set(TARGET_TASKS) - {"cola", "copa"}
    assert sorted(task for group in config.study.groups for task in group) == sorted(config.study.targets)
    assert len(config.study.seeds) >= 3


STUDY_PRESETS = tuple(name for name in preset_names() if name.startswith("study/"))
PAPER_STUDIES = tuple(name for name in STUDY_PRESETS if name.startswith("study/paper-"))
RUNS = {
    "study/embedded": (1_300, 1_400),
    "study/embedded-quick": (190, 210),
    "study/embedded-sizes": (630, 670),
    "study/paper-table2": (300, 320),
    "study/paper-table3": (250, 260),
    "study/paper-table4": (140, 155),
    "study/paper-figure4": (170, 180),
    "study/paper-figure5": (410, 420),
    "study/real-small": (590, 605),
}
"""Least and most runs of every study."""


def test_every_study_that_was_promised_is_there() -> None:
    assert set(STUDY_PRESETS) == set(RUNS)


@pytest.mark.parametrize("name", STUDY_PRESETS)
def test_every_study_is_planned_with_equal_steps_and_three_seeds(name: str) -> None:
    study = plan_study(load_config([name]))
    least, most = RUNS[name]
    assert least <= len(study.jobs) <= most
    assert study.name == name.removeprefix("study/")
    targets = [study.known[cell.job] for cell in study.cells]
    assert len({run.training.steps for run in targets}) == 1
    assert len({run.training.eval_steps for run in targets}) == 1
    assert {run.training.selection for run in targets} == {"mean"}
    assert len(study.config.study.seeds) == (2 if name == "study/embedded-quick" else 3)


def test_the_embedded_study_has_every_row_and_every_ablation() -> None:
    study = plan_study(load_config(["study/embedded"]))
    assert {cell.row for cell in study.cells} == set(plan.METHODS)
    changes = {cell.ablation for cell in study.cells if cell.ablation}
    assert {name for name in ABLATIONS if "<" not in name} <= changes
    assert sum(name.startswith("temperature_") for name in changes) >= 4
    sources = study.config.attention.sources
    assert {f"without_{source}" for source in sources} <= changes
    assert set(study.config.study.targets) == set(TARGET_TASKS) - {"cola", "copa"}
    quick = plan_study(load_config(["study/embedded-quick"]))
    assert {cell.row for cell in quick.cells} == set(plan.METHODS)


def test_the_scaling_study_has_the_papers_sizes_and_batches() -> None:
    study = plan_study(load_config(["study/paper-figure4"]))
    rows = {name: page.data.batch_rows for name, page in study.backbones.items()}
    assert rows == {"t5-small": 100, "t5-base": 32, "t5-large": 16, "t5-3b": 2}
    assert set(study.config.study.targets) == {"boolq", "multirc", "wic"}


@pytest.mark.parametrize(
    ("study", "size"),
    [
        *product(sorted(set(PAPER_STUDIES) - {"study/paper-figure4"}), SIZES),
        ("study/paper-figure4", "3b"),
    ],
)
def test_paper_studies_are_planned_on_every_size_without_weights_or_rows(
    study: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sized = [] if study == "study/paper-figure4" else ["-c", f"size/t5-{size}"]
    command = typer.main.get_command(cli.app)
    with pytest.raises(SystemExit) as ended:
        command.main(["study", "run", "-c", study, *sized, "--dry-run"], standalone_mode=False)
    assert ended.value.code == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)["backbones"]
    for facts in told.values():
        assert facts["hours"] > 0 and facts["tokens"] > 0
        assert facts["memory_limit_bytes"] == 24_000_000_000
        for fit in facts["memory"]:
            assert fit["fits"] or fit["fits_with"] or size == "3b"
    assert "30 TFLOP/s a worker, assumed" in printed.err
    if size == "3b" and "full fine-tuning" in printed.err:
        assert "does not fit 24 GB, not with one row either" in printed.err
