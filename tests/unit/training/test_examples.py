from __future__ import annotations

import hashlib
import json

import pytest

from attempt_ray.reporting.examples import read_examples
from attempt_ray.reporting.runs import read_run
from attempt_ray.training.examples import MOST_CHARACTERS, example_lines
from attempt_ray.training.ingredients import gather
from attempt_ray.training.run import execute


def lines_of(result):
    return [json.loads(line) for line in (result.directory / "examples.jsonl").read_text().splitlines()]


def test_a_mixture_leaves_answers_with_weights_whose_mean_the_report_tells(make_config):
    config = make_config(tasks=["rte", "squad"])
    result = execute(config)
    lines, report = lines_of(result), result.report
    splits = {split.task.name: split for split in gather(config).test}
    assert [(line["task"], line["row"]) for line in lines] == [
        (task, row) for task, split in splits.items() for row in range(len(split))
    ]
    for task, split in splits.items():
        of_task = [line for line in lines if line["task"] == task]
        assert [line["input"] for line in of_task] == [example.source for example in split.examples()]
        assert [tuple(line["gold"]) for line in of_task] == [example.golds for example in split.examples()]
        columns = zip(*(line["weights"] for line in of_task), strict=True)
        means = [sum(column) / len(of_task) for column in columns]
        assert means == pytest.approx(report["attention"][task]["mean"], abs=1e-5)
    right = [line["answer"] == line["gold"][0] for line in lines if line["task"] == "rte"]
    assert 100 * sum(right) / len(right) == pytest.approx(
        report["scores"]["rte"]["test"]["metrics"]["accuracy"]
    )
    data = (result.directory / "examples.jsonl").read_bytes()
    assert report["examples_sha256"] == hashlib.sha256(data).hexdigest()


def test_reporting_reads_what_training_writes(make_config):
    result = execute(make_config(tasks=["rte", "squad"]))
    answered = read_examples(read_run(result.directory))
    lines = lines_of(result)
    assert [answer for task in answered.values() for answer in task.answers] == [
        line["answer"] for line in lines
    ]
    assert answered["squad"].weights[-1] == tuple(lines[-1]["weights"])


def test_answers_to_a_question_say_which(make_config):
    config = make_config(method="prompt_tuning", tasks=["multirc"], data={"origin": "embedded"})
    (split,) = gather(config).test
    groups = [example.group for example in split.examples()]
    assert all(groups) and [line["group"] for line in lines_of(execute(config))] == groups
    assert all("group" not in line for line in lines_of(execute(make_config(method="prompt_tuning"))))


def test_without_a_mixture_there_are_no_weights(make_config):
    assert all("weights" not in line for line in lines_of(execute(make_config(method="prompt_tuning"))))


def test_sources_and_trials_leave_none(make_config):
    for changes in (
        {"job": "source", "method": "prompt_tuning", "tasks": ["mnli"]},
        {"method": "prompt_tuning", "trial": True},
    ):
        result = execute(make_config(**changes))
        assert not (result.directory / "examples.jsonl").exists()
        assert "examples_sha256" not in result.report


def test_inputs_are_cut_and_other_scripts_stay_readable(make_evaluation):
    split, final = make_evaluation(source="é" * (MOST_CHARACTERS + 1), golds=())
    data = example_lines({"rte": split}, {"rte": final})
    assert json.loads(data)["input"] == "é" * MOST_CHARACTERS
    assert json.loads(data)["gold"] == ["1"]
    assert b"\\u" not in data


@pytest.fixture
def make_evaluation():
    from types import SimpleNamespace

    from attempt_ray.tasks import Example
    from attempt_ray.training.evaluation import Evaluation

    def make(**example):
        asked = Example(target="1", **example)
        split = SimpleNamespace(task=SimpleNamespace(name="rte"), examples=lambda: [asked])
        final = Evaluation(scores={}, headline=0.0, n=1, predictions=("1",), constant=True, attention=None)
        return split, final

    return make
