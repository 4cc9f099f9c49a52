from __future__ import annotations

import hashlib
import json

import pytest

from attempt_ray.errors import DataError
from attempt_ray.reporting.examples import read_examples
from attempt_ray.reporting.runs import fetched, read_run


def written(write_run, lines, **changes):
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    directory = write_run(examples_sha256=hashlib.sha256(content).hexdigest(), **changes)
    (directory / "examples.jsonl").write_bytes(content)
    return directory


def line(row, **changes):
    return {"task": "rte", "row": row, "input": f"rte {row}", "answer": "1", "gold": ["1"], **changes}


def test_answers_come_back_in_order_with_their_weights(write_run):
    lines = [line(row, weights=[0.25, 0.75]) for row in range(100)]
    answered = read_examples(read_run(written(write_run, lines, weights={"mnli": 0.25, "target": 0.75})))[
        "rte"
    ]
    assert len(answered) == 100
    assert answered.inputs[7] == "rte 7"
    assert answered.golds[7] == ("1",)
    assert answered.weights[99] == (0.25, 0.75)


def test_answers_without_a_mixture_have_no_weights(write_run):
    assert read_examples(read_run(written(write_run, map(line, range(100)))))["rte"].weights is None


def test_an_older_run_is_read_and_says_what_it_lacks(write_run):
    run = read_run(write_run())
    assert run.test_score("rte") == 80.0
    with pytest.raises(DataError, match="no per-example answers"):
        read_examples(run)


def test_what_rows_belong_to_comes_back_if_every_row_says_it(write_run):
    lines = [line(row, group=f"question {row // 2}") for row in range(100)]
    answered = read_examples(read_run(written(write_run, lines)))["rte"]
    assert answered.groups[:3] == ("question 0", "question 0", "question 1")
    assert read_examples(read_run(written(write_run, [*lines[:99], line(99)])))["rte"].groups == ()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(row) for row in range(99)], "the 100 test rows of 'rte'"),
        ([line(row) for row in (1, 0, *range(2, 100))], "in order"),
        ([line(row, weights=[1.0]) for row in range(100)], "with no weights"),
        ([line(0, task="cb")], "line 1: not an answer"),
        ([line(0, gold=[])], "line 1: not an answer"),
    ],
)
def test_what_the_run_cannot_have_answered_is_refused(write_run, lines, message):
    with pytest.raises(DataError, match=message):
        read_examples(read_run(written(write_run, lines)))


def test_a_changed_file_is_refused(write_run):
    directory = written(write_run, map(line, range(100)))
    path = directory / "examples.jsonl"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(DataError, match="does not hold what the run wrote"):
        read_examples(read_run(directory))


def test_answers_are_fetched_from_a_store_where_they_are_wanted(write_run, s3):
    from attempt_ray.bank.places import open_storage

    storage = open_storage(s3)
    for directory in (written(write_run, map(line, range(100))), write_run(seed=2)):
        for path in directory.iterdir():
            storage.replace(f"{directory.name}/{path.name}", path.read_bytes())
    name = next(entry.name for entry in storage.entries("") if "-s1-" in entry.name)
    with fetched(s3, names=[name], examples=True) as root:
        assert [path.name for path in root.iterdir()] == [name]
        assert len(read_examples(read_run(root / name))["rte"]) == 100
    with fetched(s3) as root:
        assert not list(root.glob("*/examples.jsonl"))
        assert len(list(root.iterdir())) == 2
