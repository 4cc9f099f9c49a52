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
        "mnli",
        {"premise": "Ann sings.", "hypothesis": "Ann is silent.", "label": 2, "idx": 0},
        "mnli premise: Ann sings. hypothesis: Ann is silent.",
        "2",
        "contradiction",
    ),
    (
        "sst2",
        {"sentence": "a fine film ", "label": 1, "idx": 0},
        "sst2 sentence: a fine film",
        "1",
        "positive",
    ),
    (
        "qnli",
        {"question": "Who sang?", "sentence": "Ann sang.", "label": 0, "idx": 0},
        "qnli question: Who sang? sentence: Ann sang.",
        "0",
        "entailment",
    ),
    (
        "qqp",
        {"question1": "How old is Ann?", "question2": "What is Ann's age?", "label": 1, "idx": 0},
        "qqp question1: How old is Ann? question2: What is Ann's age?",
        "1",
        "duplicate",
    ),
    (
        "wnli",
        {"sentence1": "Ann met Bea as she left.", "sentence2": "Ann left.", "label": 1, "idx": 0},
        "wnli sentence1: Ann met Bea as she left. sentence2: Ann left.",
        "1",
        "entailment",
    ),
    (
        "mrpc",
        {"sentence1": "Ann sold it .", "sentence2": "It was sold .", "label": 0, "idx": 0},
        "mrpc sentence1: Ann sold it . sentence2: It was sold .",
        "0",
        "not_equivalent",
    ),
    (
        "rte",
        {"sentence1": "Ann sang.", "sentence2": "Bea sang.", "label": 1, "idx": 0},
        "rte sentence1: Ann sang. sentence2: Bea sang.",
        "1",
        "not_entailment",
    ),
    (
        "cola",
        {"sentence": "Ann sing.", "label": 0, "idx": 0},
        "cola sentence: Ann sing.",
        "0",
        "unacceptable",
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
        ("mnli", ("entailment", "neutral", "contradiction")),
        ("sst2", ("negative", "positive")),
        ("qnli", ("entailment", "not_entailment")),
        ("qqp", ("not_duplicate", "duplicate")),
        ("wnli", ("not_entailment", "entailment")),
        ("mrpc", ("not_equivalent", "equivalent")),
        ("rte", ("entailment", "not_entailment")),
        ("cola", ("unacceptable", "acceptable")),
    ],
)
def test_words_follow_the_hubs_class_order(name: str, words: tuple[str, ...]) -> None:
    assert TASKS[name].labels["words"] == words


@pytest.mark.parametrize(
    ("label", "target"),
    [(3.799999952316284, "3.8"), (5.0, "5.0"), (0, "0.0"), (2.6666667, "2.7"), ("4.25", "4.2")],
)
def test_stsb_scores_have_one_decimal(label: object, target: str) -> None:
    row = {"sentence1": "A man plays.", "sentence2": "A man is playing.", "label": label, "idx": 0}
    source = "stsb sentence1: A man plays. sentence2: A man is playing."
    assert TASKS["stsb"].eval_example(row, WORDS) == Example(source=source, target=target, golds=(target,))


@pytest.mark.parametrize("label", [-1.0, 5.5, float("nan"), float("inf"), None, "high"])
def test_stsb_refuses_what_is_no_score(label: object) -> None:
    row = {"sentence1": "A man plays.", "sentence2": "A man is playing.", "label": label}
    with pytest.raises(DataError, match=r"task 'stsb': field 'label' holds .*; wanted a number from 0 to 5"):
        TASKS["stsb"].eval_example(row, DIGITS)
