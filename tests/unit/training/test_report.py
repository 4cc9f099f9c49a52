from __future__ import annotations

import pytest

from attempt_ray.config import parse
from attempt_ray.reporting.runs import read_run
from attempt_ray.training.report import run_label
from attempt_ray.training.run import execute


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "attempt"),
        ({"tasks": ["rte", "cb"]}, "attempt_mt"),
        *(({"method": name}, name) for name in ("finetune", "adapter", "bitfit", "lora", "mpt", "dept")),
        ({"method": "adapter", "tasks": ["rte", "cb"]}, "adapter_mt"),
        ({"method": "prompt_tuning"}, "prompt_tuning"),
        ({"method": "prompt_tuning", "prompt": {"init": "prompt"}}, "spot"),
        (
            {
                "method": "prompt_tuning",
                "prompt": {"init": "prompt", "init_from": ["source/shared-mnli-qqp"]},
            },
            "spot_generic",
        ),
        ({"method": "prompt_tuning", "prompt": {"init": "average"}}, "spot_similar"),
        (
            {"method": "prompt_tuning", "prompt": {"init": "average", "init_weights": [1.0]}},
            "spot_targeted",
        ),
        ({"method": "prompt_tuning", "job": "source"}, "source"),
        ({"job": "prior"}, "prior"),
    ],
)
def test_label_is_the_row_of_the_table(changes, label):
    assert run_label(parse([{"tasks": ["rte"]}, changes])) == label


@pytest.mark.parametrize(
    "changes", [{"tasks": ["rte", "mrpc"]}, {"method": "prompt_tuning"}, {"method": "finetune"}], ids=str
)
def test_reporting_reads_the_report(make_config, changes):
    result = execute(make_config(**changes))
    run = read_run(result.directory)
    assert run.report.tasks == tuple(result.report["tasks"])
    assert run.unreadable_lines == 0
    assert run.test_rows("rte") == 6
    assert len(run.curve("loss")[0]) == 6
    assert len(run.curve("dev/mean")[0]) == 3


def test_parameters_follow_the_papers_formula(make_config):
    # One prompt for each of N tasks and one G: m*d + (2*d*r + 2*d) / N per task, with m 3, d 16, r 4, N 2.
    report = execute(make_config(tasks=["rte", "mrpc"])).report
    assert report["parameters_per_task"] == 3 * 16 + (2 * 16 * 4 + 2 * 16) / 2
