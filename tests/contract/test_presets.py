from __future__ import annotations

from itertools import product

import pytest

from attempt_ray.config import preset_names
from attempt_ray.data.microworld import PARENTS
from attempt_ray.tasks import GROUPS, TARGET_TASKS
from jobs import plan
from jobs.edge import load_config
from jobs.run_pipeline import all_jobs

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
