from __future__ import annotations

from attempt_ray.reporting.study.bootstrap import Bootstrap
from attempt_ray.reporting.study.cells import join, read_study_file, scored
from attempt_ray.reporting.study.grid import as_markdown
from attempt_ray.reporting.study.lines import Line
from attempt_ray.reporting.study.paper import TABLE_2
from attempt_ray.reporting.study.tables import (
    costs_grid,
    differences_grid,
    duration,
    interval,
    layouts,
    scores_grid,
    signed,
)

PT = Line("prompt_tuning", None, "nano")


def joined(study):
    return join(read_study_file(study.write()), study.runs)


def cells(grid):
    return [[entry.text for entry in line.entries] for line in grid.rows]


def exactly(study, row, scores, *, seed=1, **report):
    """A run with given scores and without answers."""
    content = {task: {"test": {"n": 100, "metrics": {"accuracy": score}}} for task, score in scores.items()}
    study.add(
        row,
        0.5,
        tasks=tuple(scores),
        seed=seed,
        examples=False,
        scores=content,
        headline=dict.fromkeys(scores, "accuracy"),
        **report,
    )


def test_scores_stand_in_the_papers_columns_with_its_numbers_below(study) -> None:
    for seed, change in ((1, 0.0), (2, 2.0), (3, 4.0)):
        exactly(study, "prompt_tuning", {"rte": 60.0 + change}, seed=seed)
        exactly(study, "attempt", {"rte": 70.0, "cb": 80.0}, seed=seed)
        exactly(study, "finetune", {"rte": 90.0}, seed=seed)
    found = joined(study)
    grid = scores_grid(found, TABLE_2, found.lines(), name="table-2")
    columns = ["WNLI", "STS-B", "MRPC", "RTE", "MultiRC", "BoolQ", "WiC", "WSC", "CB"]
    assert grid.header == ("method", "params/task", *columns, "Avg.", "Avg. printed")
    rows = cells(grid)
    nothing = "\u2013"
    gaps = [nothing] * 4
    assert rows[0][:1] + rows[0][5:6] == ["metric", "accuracy"]
    assert rows[1][5] == "500 (2.5k)"
    assert rows[1][2] == "\u2013 (634)"
    assert rows[2][5] == "100 (1.00)"
    assert rows[3] == [
        "full fine-tuning",
        "2,560",
        *[nothing] * 3,
        "90.0 \u00b1 0.0",
        *gaps,
        nothing,
        "90.0 \u00b1 0.0 (1 of 9)",
        "",
    ]
    assert rows[5] == [
        "prompt tuning",
        "2,560",
        *[nothing] * 3,
        "62.0 \u00b1 2.0",
        *gaps,
        nothing,
        "62.0 \u00b1 2.0 (1 of 9)",
        "",
    ]
    assert rows[7][0] == "ATTEMPT"
    assert rows[7][-2] == "75.0 \u00b1 0.0 (2 of 9)"
    assert rows[8] == [
        "in the paper",
        "232k",
        *["55.56", "89.67", "85.74", "73.38", "74.39", "77.06", "66.77", "53.84", "78.57"],
        "72.78",
        "74.06\u2020",
    ]
    assert grid.rows[7].entries[5].bold
    assert not grid.rows[3].entries[5].bold  # it does not keep the backbone frozen
    assert grid.rows[8].faint
    assert "\u2020" in grid.notes[1]


def test_the_whole_of_a_small_table_as_markdown(study) -> None:
    exactly(study, "attempt", {"cola": 70.0, "copa": 80.0})
    exactly(study, "spot", {"cola": 60.0})
    found = joined(study)
    (layout,) = layouts(found)
    assert as_markdown(scores_grid(found, layout, found.lines(), name="further")) == (
        "**Targets without a table in the paper**\n\n"
        "| method | params/task | CoLA | COPA | Avg. |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| *metric* |  | accuracy | accuracy |  |\n"
        "| *training rows* |  | 500 | 500 |  |\n"
        "| *test rows (points each)* |  | 100 (1.00) | 100 (1.00) |  |\n"
        "| SPoT | 2,560 | 60.0 | \u2013 | 60.0 (1 of 2) |\n"
        "| ATTEMPT | 1,280 | **70.0** | 80.0 | 75.0 |\n\n"
        "Test scores, mean \u00b1 standard deviation over seeds; bold is the best of the methods that keep the backbone frozen. "
        "An average is over the tasks that the row has."
    )


def test_differences_are_on_common_seeds_and_tasks(study) -> None:
    for task in ("rte", "cb"):
        for seed in (1, 2):
            study.add("attempt", 0.95, tasks=(task,), seed=seed)
    study.add("prompt_tuning", 0.5, tasks=("rte",), seed=1)
    study.add("mpt", 0.5, tasks=("wic",), seed=1)
    found = joined(study)
    grid = differences_grid(
        found, Bootstrap(scored(found)[0]), TABLE_2, lines=found.lines(), reference=PT, name="against"
    )
    (row,) = grid.rows
    texts = [entry.text for entry in row.entries]
    assert texts[0] == "ATTEMPT"
    assert texts[4].startswith("+")
    assert texts[4] == texts[-1]
    assert row.entries[4].bold
    assert texts[9] == "\u2013"
    missing = Line("finetune", None, "nano")
    nothing = differences_grid(
        found, Bootstrap(scored(found)[0]), TABLE_2, lines=found.lines(), reference=missing, name="against"
    )
    assert nothing is None


def test_costs_are_means_and_sums_over_runs(study) -> None:
    exactly(study, "attempt", {"rte": 70.0}, seconds=100.0, tokens=1000)
    exactly(study, "attempt", {"rte": 70.0}, seed=2, seconds=140.0, tokens=3000)
    study.add("mpt", 0.5, status="waiting")
    found = joined(study)
    assert cells(costs_grid(found, found.lines())) == [
        ["ATTEMPT", "2,560", "2,560", "300", "2,000", "2 min", "2", "4 min"]
    ]


def test_numbers_are_written_with_their_sign_and_zero_without() -> None:
    assert [signed(value) for value in (1.25, -1.25, 0.04, -0.04)] == ["+1.2", "\u22121.2", "0.0", "0.0"]
    assert interval(None) == "\u2013"
    assert [duration(value) for value in (59.6, 600, 7200)] == ["60 s", "10 min", "2.0 h"]
