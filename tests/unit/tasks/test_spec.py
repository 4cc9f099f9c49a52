from __future__ import annotations

import pytest

from attempt_ray.errors import DataError
from attempt_ray.tasks import TASKS, Example, TemplateOptions
from attempt_ray.tasks.spec import class_key, text, texts, verbalizers

DIGITS = TemplateOptions()
ROW = {"sentence1": " A cat sat. ", "sentence2": "It sat.", "label": 0}


def test_prefix_can_be_left_out() -> None:
    rte = TASKS["rte"]
    assert rte.eval_example(ROW, DIGITS).source == "rte sentence1: A cat sat. sentence2: It sat."
    assert (
        rte.eval_example(ROW, TemplateOptions(prefix=False)).source
        == "sentence1: A cat sat. sentence2: It sat."
    )


def test_training_and_evaluation_read_alike() -> None:
    expected = Example(
        source="rte sentence1: A cat sat. sentence2: It sat.", target="0", golds=("0",), group=""
    )
    assert TASKS["rte"].train_examples(ROW, DIGITS) == [expected]
    assert TASKS["rte"].eval_example(ROW, DIGITS) == expected


def test_source_text_needs_no_answer() -> None:
    row = {"sentence1": "A cat sat.", "sentence2": "It sat."}
    assert TASKS["rte"].source_text(row, DIGITS) == "rte sentence1: A cat sat. sentence2: It sat."
    squad = {"question": "Who?", "context": "Ann."}
    assert TASKS["squad"].source_text(squad, DIGITS) == "squad question: Who ? context: Ann ."


def test_a_missing_field_names_task_field_and_fix() -> None:
    row = {"sentence1": "A cat sat.", "sentence_2": "It sat.", "label": 0}
    with pytest.raises(DataError) as caught:
        TASKS["rte"].train_examples(row, DIGITS)
    assert str(caught.value) == (
        "task 'rte': no row field 'sentence2'; did you mean 'sentence_2'? (it reads: sentence1, sentence2, label)"
    )


@pytest.mark.parametrize("label", [-1, 2, None, "maybe", 0.5, True])
def test_a_label_outside_the_verbalizer_is_refused(label: object) -> None:
    with pytest.raises(
        DataError, match=r"^task 'rte': label .* in field 'label' is outside the verbalizer \(0, 1\)"
    ):
        TASKS["rte"].eval_example(ROW | {"label": label}, DIGITS)


@pytest.mark.parametrize("label", [1, "1", 1.0, " 1 ", "1.0"], ids=repr)
def test_a_label_may_come_as_csv_readers_make_it(label: object) -> None:
    assert TASKS["rte"].eval_example(ROW | {"label": label}, DIGITS).target == "1"


@pytest.mark.parametrize("value", [None, float("nan"), True, ["a"], {"a": 1}, b"a"])
def test_text_refuses_what_is_no_text(value: object) -> None:
    with pytest.raises(DataError, match=r"field 'body' holds .*; wanted text"):
        text({"body": value}, "body")


def test_text_writes_numbers_out_and_keeps_empty_texts() -> None:
    assert [text({"body": value}, "body") for value in (7, 2.5, "", " a  b ")] == ["7", "2.5", "", "a  b"]


@pytest.mark.parametrize("value", [None, "Ann", 3, ["Ann", 3]])
def test_texts_refuses_what_is_no_list_of_texts(value: object) -> None:
    with pytest.raises(DataError, match=r"field 'names' holds .*; wanted a list of texts"):
        texts({"names": value}, "names")


def test_class_keys() -> None:
    assert [class_key(value) for value in (1, 1.0, "1", " 1 ", True, "yes")] == [
        "1",
        "1",
        "1",
        "1",
        "true",
        "yes",
    ]


def test_verbalizers() -> None:
    assert verbalizers(("no", "yes")) == {"digits": ("0", "1"), "words": ("no", "yes")}
