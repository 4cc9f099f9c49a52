from __future__ import annotations

from typing import Any

import pytest

from attempt_ray.errors import DataError
from attempt_ray.tasks import TASKS, Example, TemplateOptions
from attempt_ray.tasks.qa import space_punctuation

ALL = TemplateOptions()
SINGLE = TemplateOptions(single_gold=True)
SOURCE = (
    "squad question: What did Ann ' s team win ? context: In 2016 , Ann ' s team won $ 1 , 500 ( U . S . ) ."
)
SQUAD_ROW = {
    "id": "1",
    "title": "Ann",
    "context": "In 2016, Ann's team won $1,500 (U.S.).",
    "question": "What did Ann's team win?",
    "answers": {"text": ["$1,500", "$1,500", "1,500"], "answer_start": [24, 24, 25]},
}
MRQA_ROW = {
    "context": SQUAD_ROW["context"],
    "question": SQUAD_ROW["question"],
    "answers": ["$1,500", "1,500"],
    "key": "k",
    "labels": [{"start": [24], "end": [29]}, {"start": [25], "end": [29]}],
}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("squad", SQUAD_ROW),
        ("nq", MRQA_ROW),
        ("hotpotqa", MRQA_ROW),
        ("searchqa", MRQA_ROW),
        ("newsqa", MRQA_ROW),
    ],
)
def test_template(name: str, row: dict[str, Any]) -> None:
    expected = Example(source=SOURCE, target="$ 1 , 500", golds=("$ 1 , 500", "1 , 500"))
    assert TASKS[name].train_examples(row, ALL) == [expected]
    assert TASKS[name].eval_example(row, ALL) == expected
    assert TASKS[name].eval_example(row, SINGLE).golds == ("$ 1 , 500",)


def test_an_answer_may_be_a_plain_text() -> None:
    assert TASKS["nq"].eval_example(MRQA_ROW | {"answers": "1,500"}, ALL).golds == ("1 , 500",)


@pytest.mark.parametrize("answers", [None, 3, [3], {"text": None}, {"answer_start": [1]}])
def test_an_answer_of_another_form_is_refused(answers: object) -> None:
    with pytest.raises(
        DataError, match=r"task 'nq': field 'answers' holds .*; wanted a text, a list of texts, or"
    ):
        TASKS["nq"].eval_example(MRQA_ROW | {"answers": answers}, ALL)


@pytest.mark.parametrize("answers", [[], "", ["", " "], {"text": []}])
def test_a_question_without_an_answer_is_refused(answers: object) -> None:
    with pytest.raises(DataError, match="task 'nq': field 'answers' holds no answer; drop the row"):
        TASKS["nq"].eval_example(MRQA_ROW | {"answers": answers}, ALL)


@pytest.mark.parametrize(
    ("passage", "expected"),
    [
        ("a.b,c!", "a . b , c !"),
        ("snake_case x-y 3½", "snake_case x - y 3½"),
        ("François  naïve\n日本。", "François naïve 日本 。"),
        ("e\u0301t\u00e9\u2014(ok)", "e\u0301t\u00e9 \u2014 ( ok )"),
        ("[PAR] [TLE] “Hi”", "[ PAR ] [ TLE ] “ Hi ”"),
        ("", ""),
    ],
)
def test_punctuation_is_set_apart(passage: str, expected: str) -> None:
    assert space_punctuation(passage) == expected
