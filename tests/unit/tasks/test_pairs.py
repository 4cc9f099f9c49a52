from __future__ import annotations

from typing import Any

import pytest

from attempt_ray.errors import DataError
from attempt_ray.tasks import TASKS, Example, TemplateOptions

DIGITS = TemplateOptions()
WORDS = TemplateOptions(label_words="words")
WINOGRANDE_ROW = {"sentence": "Ann beat Bea, so _ won.", "option1": "Ann", "option2": "Bea", "answer": "1"}

# name, row in hub schema, input text, target as digit, target as word
GOLDEN: list[tuple[str, dict[str, Any], str, str, str]] = [
    (
        "winogrande",
        WINOGRANDE_ROW,
        "winogrande sentence: Ann beat Bea, so _ won. option0: Ann option1: Bea",
        "0",
        "option0",
    ),
    (
        "yelp",
        {"text": "Great food.\\nCheap.", "label": 1},
        "yelp_polarity sentence: Great food.\\nCheap.",
        "1",
        "positive",
    ),
    (
        "scitail",
        {
            "sentence1": "Ice melts.",
            "sentence2": "Ice is cold.",
            "gold_label": "neutral",
            "annotator_labels": [],
        },
        "scitail premise: Ice melts. hypothesis: Ice is cold.",
        "1",
        "neutral",
    ),
    (
        "scitail",
        {"premise": "Ice melts.", "hypothesis": "Ice can melt.", "label": "entails"},
        "scitail premise: Ice melts. hypothesis: Ice can melt.",
        "0",
        "entailment",
    ),
    (
        "paws",
        {"id": 1, "sentence1": "Ann beat Bea.", "sentence2": "Bea beat Ann.", "label": 0},
        "paws sentence1: Ann beat Bea. sentence2: Bea beat Ann.",
        "0",
        "not_paraphrase",
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
        ("winogrande", ("option0", "option1")),
        ("yelp", ("negative", "positive")),
        ("scitail", ("entailment", "neutral")),
        ("paws", ("not_paraphrase", "paraphrase")),
    ],
)
def test_words_follow_the_class_order(name: str, words: tuple[str, ...]) -> None:
    assert TASKS[name].labels["words"] == words


def test_winogrande_prints_option_1_twice_only_on_demand() -> None:
    legacy = TASKS["winogrande"].source_text(WINOGRANDE_ROW, TemplateOptions(legacy_winogrande=True))
    assert legacy == "winogrande sentence: Ann beat Bea, so _ won. option0: Ann option1: Ann"


@pytest.mark.parametrize("answer", ["", "0", "3", None])
def test_winogrande_refuses_hidden_answers(answer: object) -> None:
    with pytest.raises(DataError, match=r"label .* in field 'answer' is outside the verbalizer \(1, 2\)"):
        TASKS["winogrande"].eval_example(WINOGRANDE_ROW | {"answer": answer}, DIGITS)


def test_winogrande_answer_2_is_class_1() -> None:
    assert TASKS["winogrande"].eval_example(WINOGRANDE_ROW | {"answer": "2"}, DIGITS).target == "1"
