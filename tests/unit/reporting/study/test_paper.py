from __future__ import annotations

import pytest

from attempt_ray.reporting.study.paper import NAMES, TABLE_2, TABLE_3, TABLE_4
from attempt_ray.tasks import TASKS

RECOMPUTED = {
    "finetune": 74.58,
    "adapter": 75.15,
    "bitfit": 73.01,
    "prompt_tuning": 61.27,
    "spot_generic": 69.23,
    "spot_targeted": 68.04,
    "attempt": 72.78,
    "finetune_mt": 70.58,
    "adapter_mt": 68.91,
    "spot_generic_mt": 53.06,
    "attempt_mt": 74.78,
}


def test_averages_of_table_2_are_those_of_its_scores() -> None:
    assert set(RECOMPUTED) == set(TABLE_2.rows)
    for label, expected in RECOMPUTED.items():
        assert TABLE_2.average(label, TABLE_2.tasks) == pytest.approx(expected, abs=0.005)


def test_the_papers_attempt_average_is_wrong_by_more_than_a_point() -> None:
    printed, found = TABLE_2.printed_average("attempt", 0), TABLE_2.average("attempt", TABLE_2.tasks)
    assert printed == 74.06
    assert found is not None
    assert printed - found == pytest.approx(1.28, abs=0.005)


def test_averages_of_table_3_are_as_printed_but_for_rounding() -> None:
    for label in TABLE_3.rows:
        for block, (_, tasks) in enumerate(TABLE_3.blocks):
            printed = TABLE_3.printed_average(label, block)
            assert TABLE_3.average(label, tasks) == pytest.approx(printed, abs=0.0101)


def test_every_row_has_a_score_of_every_task_that_we_have() -> None:
    for table in (TABLE_2, TABLE_3, TABLE_4):
        assert set(table.tasks) <= set(TASKS)
        assert set(table.tasks) <= set(NAMES)
        assert set(table.train_rows) == set(table.tasks)
        for row in table.rows.values():
            assert len(row.scores) == len(table.tasks)
            assert len(row.averages) in (0, len(table.blocks))


def test_what_the_paper_does_not_have_is_none() -> None:
    assert TABLE_2.score("lora", "rte") is None
    assert TABLE_2.score("attempt", "nq") is None
    assert TABLE_2.average("lora", TABLE_2.tasks) is None
    assert TABLE_4.printed_average("attempt", 0) is None
