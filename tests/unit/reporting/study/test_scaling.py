from __future__ import annotations

import pytest

from attempt_ray.reporting.study.bootstrap import Bootstrap
from attempt_ray.reporting.study.cells import join, read_study_file, scored
from attempt_ray.reporting.study.scaling import grid, points, sizes


def joined(study):
    found = join(read_study_file(study.write()), study.runs)
    return found, Bootstrap(scored(found)[0])


def fill(study, row, skills, *, tasks=("rte", "cb")):
    for backbone, skill in skills.items():
        for task in tasks:
            for seed in (1, 2, 3):
                study.add(row, skill, tasks=(task,), seed=seed, backbone=backbone)


def test_backbones_stand_by_size_and_rows_are_compared_on_each(study) -> None:
    fill(study, "prompt_tuning", {"t5-small": 0.5, "nano": 0.5})
    fill(study, "attempt", {"t5-small": 0.95, "nano": 0.55})
    found, bootstrap = joined(study)
    assert sizes(found) == {"nano": 838_272, "t5-small": 60_506_624}
    table = grid(found, bootstrap)
    assert table.header == ("method", "targets", "nano (838,272)", "t5-small (60,506,624)")
    told = [[field.text for field in line.entries] for line in table.rows]
    assert [line[:2] for line in told] == [["prompt tuning", "2"], ["ATTEMPT", "2"], ["", ""]]
    assert [field.bold for field in table.rows[2].entries] == [False, False, False, True]
    small, large = (
        dict(points(found, bootstrap)[row])["t5-small"].value for row in ("prompt_tuning", "attempt")
    )
    assert float(told[2][3].split(" ")[0]) == pytest.approx(large - small, abs=0.051)


def test_a_methods_targets_are_those_it_has_on_all_of_its_backbones(study) -> None:
    fill(study, "attempt", {"t5-small": 0.9, "nano": 0.6})
    fill(study, "attempt", {"nano": 0.6}, tasks=("mrpc",))
    fill(study, "mpt", {"nano": 0.6})
    found, bootstrap = joined(study)
    assert list(points(found, bootstrap)) == ["attempt"]
    assert points(found, bootstrap)["attempt"][0][1].tasks == ("rte", "cb")
    assert [line.entries[0].text for line in grid(found, bootstrap).rows] == [
        "ATTEMPT"
    ]  # nothing to compare with


def test_one_backbone_has_no_scaling(study) -> None:
    fill(study, "attempt", {"nano": 0.6})
    assert grid(*joined(study)) is None
