from __future__ import annotations

from typing import Any

import pytest

from attempt_ray.errors import DataError
from attempt_ray.tasks import TASKS, Example, TemplateOptions

DIGITS = TemplateOptions()
WORDS = TemplateOptions(label_words="words")

# name, row in hub schema, input text, target as digit, target as word
GOLDEN: list[tuple[str, dict[str, Any], str, str, str]] = [
    (
        "boolq",
        {"question": "is ann tall", "passage": "Ann is tall.", "label": 1, "idx": 0},
        "superglue-boolq question: is ann tall passage: Ann is tall.",
        "1",
        "yes",
    ),
    (
        "wic",
        {
            "word": "bank",
            "sentence1": "The bank closed.",
            "sentence2": "A river bank.",
            "start1": 4,
            "start2": 8,
            "end1": 8,
            "end2": 12,
            "label": 0,
            "idx": 0,
        },
        "superglue-wic sentence1: The bank closed. sentence2: A river bank. word: bank",
        "0",
        "different",
    ),
    (
        "cb",
        {"premise": "I think Ann left.", "hypothesis": "Ann left.", "label": 2, "idx": 0},
        "superglue-cb premise: I think Ann left. hypothesis: Ann left.",
        "2",
        "neutral",
    ),
    (
        "copa",
        {
            "premise": "Ann fell.",
            "choice1": "It rained.",
            "choice2": "She slept.",
            "question": "cause",
            "label": 0,
        },
        "superglue-copa premise: Ann fell. choice1: It rained. choice2: She slept.",
        "0",
        "choice1",
    ),
    (
        "superglue-rte",
        {"premise": "Ann sang.", "hypothesis": "Bea sang.", "label": 1, "idx": 0},
        "superglue-rte premise: Ann sang. hypothesis: Bea sang.",
        "1",
        "not_entailment",
    ),
    (
        "wsc",
        {
            "text": "Ann told Bea that she won, so Bea cheered.",
            "span1_index": 0,
            "span1_text": "Ann",
            "span2_index": 4,
            "span2_text": "she",
            "label": 1,
            "idx": 0,
        },
        "superglue-wsc.fixed text: * Ann * told Bea that # she # won, so Bea cheered.",
        "1",
        "yes",
    ),
]


@pytest.mark.parametrize(("name", "row", "source", "digit", "word"), GOLDEN)
def test_template(name: str, row: dict[str, Any], source: str, digit: str, word: str) -> None:
    task = TASKS[name]
    assert task.eval_example(row, DIGITS) == Example(source=source, target=digit, golds=(digit,))
    assert task.eval_example(row, WORDS) == Example(source=source, target=word, golds=(word,))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("boolq", ("no", "yes")),
        ("multirc", ("no", "yes")),
        ("wsc", ("no", "yes")),
        ("wic", ("different", "same")),
        ("cb", ("entailment", "contradiction", "neutral")),
        ("copa", ("choice1", "choice2")),
        ("superglue-rte", ("entailment", "not_entailment")),
    ],
)
def test_words_follow_the_hubs_class_order(name: str, words: tuple[str, ...]) -> None:
    assert TASKS[name].labels["words"] == words


def marked(sentence: str, first: tuple[str, int], second: tuple[str, int]) -> str:
    row = {
        "text": sentence,
        "span1_text": first[0],
        "span1_index": first[1],
        "span2_text": second[0],
        "span2_index": second[1],
    }
    return TASKS["wsc"].source_text(row, TemplateOptions(prefix=False)).removeprefix("text: ")


@pytest.mark.parametrize(
    ("sentence", "first", "second", "expected"),
    [
        ("When she left, Ann wept.", ("Ann", 3), ("she", 1), "When # she # left, * Ann * wept."),
        ("Ann and Ann met them.", ("Ann", 2), ("them", 4), "Ann and * Ann * met # them #."),
        ("The old man's dog bit him.", ("The old man", 0), ("him", 5), "* The old man *'s dog bit # him #."),
        ("Pay (a+b)* $5 to him.", ("(a+b)*", 1), ("him", 4), "Pay * (a+b)* * $5 to # him #."),
        (r"Read C:\1\g [x] to it.", (r"C:\1\g", 1), ("it", 4), r"Read * C:\1\g * [x] to # it #."),
        ("Ann  met\nBea and  her.", ("Bea", 2), ("her", 4), "Ann  met\n* Bea * and  # her #."),
        (
            "I saw their mothers there.",
            ("their mothers", 2),
            ("their", 2),
            "I saw * # their # mothers * there.",
        ),
        (
            "I saw their mothers there.",
            ("mothers", 3),
            ("their mothers", 2),
            "I saw # their * mothers * # there.",
        ),
        ("Ann saw an item, use it now.", ("Ann", 0), ("it", 4), "* Ann * saw an item, use # it # now."),
    ],
)
def test_wsc_marks_both_spans(
    sentence: str, first: tuple[str, int], second: tuple[str, int], expected: str
) -> None:
    assert marked(sentence, first, second) == expected


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"span2_text": "him"}, r"span 2 'him' is not in the text 'Ann met her.'; correct span2_text"),
        ({"span1_text": ""}, r"span 1 is '' at word 0; wanted"),
        ({"span1_index": None}, r"span 1 is 'Ann' at word None; wanted"),
    ],
)
def test_wsc_refuses_a_span_it_cannot_find(change: dict[str, Any], problem: str) -> None:
    row = {
        "text": "Ann met her.",
        "span1_text": "Ann",
        "span1_index": 0,
        "span2_text": "her",
        "span2_index": 2,
    }
    with pytest.raises(DataError, match=problem):
        TASKS["wsc"].source_text(row | change, DIGITS)


MULTIRC_ROW = {
    "paragraph": "<b>Sent 1: </b>Ann sang.<br><b>Sent 2: </b>Bea left.<br>",
    "question": "Who <b>sang</b>?",
    "answer": "Ann<br>",
    "idx": {"paragraph": 0, "question": 12, "answer": 3},
    "label": 1,
}


def test_multirc_drops_markup_and_keeps_the_question_group() -> None:
    assert TASKS["multirc"].eval_example(MULTIRC_ROW, DIGITS) == Example(
        source="superglue-multirc question: Who sang? answer: Ann paragraph: Sent 1: Ann sang. Sent 2: Bea left.",
        target="1",
        golds=("1",),
        group="12",
    )


@pytest.mark.parametrize("idx", [None, 12, {"paragraph": 0}, {"question": None}])
def test_multirc_needs_the_question_group(idx: object) -> None:
    with pytest.raises(
        DataError, match=r"task 'multirc': field 'idx' holds .*; wanted a mapping with 'question'"
    ):
        TASKS["multirc"].eval_example(MULTIRC_ROW | {"idx": idx}, DIGITS)


RECORD_ROW = {
    "passage": 'Ann met Bea.\n@highlight\nAnn won\n@highlight\n"Hooray!"\n@highlight\nBea smiled',
    "query": "@placeholder was glad",
    "entities": ["Ann", "Bea"],
    "entity_spans": {"text": ["Ann", "Bea"], "start": [0, 8], "end": [3, 11]},
    "answers": ["Bea", "Ann"],
    "idx": {"passage": 3, "query": 7},
}
RECORD_SOURCE = (
    "superglue-record record query: @placeholder was glad entities: Ann, Bea "
    'passage: Ann met Bea. Ann won. "Hooray!" Bea smiled'
)


def test_record_trains_on_every_gold_answer_and_is_scored_against_all() -> None:
    bea = Example(source=RECORD_SOURCE, target="Bea", golds=("Bea", "Ann"), group="7")
    ann = Example(source=RECORD_SOURCE, target="Ann", golds=("Bea", "Ann"), group="7")
    assert TASKS["record"].train_examples(RECORD_ROW, DIGITS) == [bea, ann]
    assert TASKS["record"].eval_example(RECORD_ROW, DIGITS) == bea
    assert TASKS["record"].eval_example(RECORD_ROW, TemplateOptions(single_gold=True)) == bea


def test_record_without_an_answer_expects_unk() -> None:
    row = RECORD_ROW | {"answers": []}
    assert TASKS["record"].train_examples(row, DIGITS) == [
        Example(source=RECORD_SOURCE, target="<unk>", golds=("<unk>",), group="7")
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Why?", "Why? Next"),
        ("No!", "No! Next"),
        ("it'", "it' Next"),
        ("it", "it. Next"),
        ("it,", "it,. Next"),
    ],
)
def test_record_highlights_become_sentences(before: str, after: str) -> None:
    row = RECORD_ROW | {"passage": f"{before}\n@highlight\nNext"}
    assert TASKS["record"].source_text(row, DIGITS).endswith(f"passage: {after}")
