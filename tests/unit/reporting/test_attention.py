from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from attempt_ray.reporting.attention import AttentionTable, attention_table
from attempt_ray.reporting.runs import read_runs

WriteRun = Callable[..., Path]


def _table(tmp_path: Path, parents: Mapping[str, Sequence[str]]) -> AttentionTable:
    return attention_table(read_runs(tmp_path / "runs").runs, parents=parents)


def test_weights_are_means_over_seeds_and_the_target_does_not_compete(
    write_run: WriteRun, tmp_path: Path
) -> None:
    write_run(seed=1, weights={"mnli": 0.3, "qqp": 0.1, "target": 0.6})
    write_run(seed=2, weights={"mnli": 0.1, "qqp": 0.2, "target": 0.7})
    (row,) = _table(tmp_path, {"rte": ("mnli",)}).rows
    assert row.weights == pytest.approx({"mnli": 0.2, "qqp": 0.15, "target": 0.65})
    assert row.top_source == "mnli"
    assert row.agrees is True
    assert row.by_seed == {1: "mnli", 2: "qqp"}


def test_agreement_counts_targets_with_a_known_parent_among_the_candidates(
    write_run: WriteRun, tmp_path: Path
) -> None:
    weights = {"mnli": 0.5, "qqp": 0.2, "target": 0.3}
    for task in ("rte", "mrpc", "boolq", "wic"):
        write_run("attempt", {task: 80.0}, weights=weights)
    table = _table(tmp_path, {"rte": ("mnli",), "mrpc": ("qqp",), "boolq": ("squad",)})
    agreement = table.agreement("attempt")
    assert (agreement.agreeing, agreement.known, agreement.share) == (1, 2, 0.5)
    assert agreement.chance == 0.5
    assert "for 1 of 2 targets with a known one (50%; picked blindly 50%)" in table.markdown()


def test_constant_weights_attend_most_to_nothing(write_run: WriteRun, tmp_path: Path) -> None:
    write_run(weights={"mnli": 1 / 3, "qqp": 1 / 3, "target": 1 / 3})
    (row,) = _table(tmp_path, {"rte": ("mnli",)}).rows
    assert row.top_source is None
    assert row.agrees is False


def test_runs_with_other_sources_share_one_set_of_columns(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("attempt", {"rte": 80.0}, weights={"mnli": 0.6, "target": 0.4})
    write_run("attempt", {"squadlike": 80.0}, weights={"squad": 0.6, "target": 0.4})
    write_run("prompt_tuning", {"rte": 60.0})
    table = _table(tmp_path, {})
    assert table.candidates == ("mnli", "squad", "target")
    assert table.labels == ("attempt",)
    assert table.agreement("attempt").share is None


def test_markdown_and_dict_hold_entropy_against_uniform(write_run: WriteRun, tmp_path: Path) -> None:
    write_run(weights={"mnli": 0.5, "qqp": 0.2, "target": 0.3})
    table = _table(tmp_path, {"rte": ("mnli",)})
    row = "| ATTEMPT | rte | mnli | 0.50 | 0.30 | 1.00 / 1.10 | 100 | mnli | yes | 1 of 1 |"
    assert row in table.markdown()
    content = json.loads(json.dumps(table.as_dict(), allow_nan=False))
    assert content["agreement"]["attempt"]["share"] == 1.0


def test_runs_without_weights_give_an_empty_table(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("prompt_tuning")
    assert _table(tmp_path, {}).markdown() == "No run has mixing weights."
