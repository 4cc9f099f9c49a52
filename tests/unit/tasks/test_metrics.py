from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

import pytest

from attempt_ray.errors import DataError
from attempt_ray.tasks import TASKS, Example, Task, TemplateOptions, headline, score
from attempt_ray.tasks.metrics import squad_normal_form

DIGITS = TemplateOptions()
WORDS = TemplateOptions(label_words="words")


def asked(targets: Sequence[str], groups: Sequence[str] = ()) -> list[Example]:
    names = groups or [""] * len(targets)
    return [
        Example(source="x", target=target, golds=(target,), group=group)
        for target, group in zip(targets, names, strict=True)
    ]


def measuring(task: str, *metrics: str) -> Task:
    return replace(TASKS[task], metrics=metrics)


def test_scores_come_headline_first() -> None:
    scores = score(TASKS["qqp"], ["1", "0"], asked(["1", "0"]), DIGITS)
    assert list(scores.items()) == [("f1", 100.0), ("accuracy", 100.0)]
    assert headline(TASKS["qqp"], {"accuracy": 50.0, "f1": 66.0}) == 66.0


def test_accuracy_strips_and_counts_invalid_answers_as_wrong() -> None:
    scores = score(TASKS["rte"], [" 1 ", "0", "2", "", "1 1"], asked(["1", "1", "1", "0", "1"]), DIGITS)
    assert scores == {"accuracy": pytest.approx(20.0)}


def test_accuracy_compares_words_with_words() -> None:
    assert (
        score(TASKS["rte"], ["entailment", "0"], asked(["entailment", "entailment"]), WORDS)["accuracy"]
        == 50.0
    )


def test_f1_by_hand() -> None:
    # class 1: 2 true positives, 1 false positive, 1 miss: F1 = 4 / (4 + 1 + 1)
    scores = score(TASKS["qqp"], ["1", "1", "1", "0", "0"], asked(["1", "1", "0", "1", "0"]), DIGITS)
    assert scores["f1"] == pytest.approx(100 * 4 / 6)


def test_f1_counts_an_invalid_answer_as_the_opposite_of_gold() -> None:
    # "?" for gold 1 is a miss, "?" for gold 0 a false positive: F1 = 2 / (2 + 1 + 1)
    assert score(measuring("qqp", "f1"), ["1", "?", "?"], asked(["1", "1", "0"]), DIGITS)[
        "f1"
    ] == pytest.approx(50.0)


def test_f1_without_the_positive_class_is_zero() -> None:
    assert score(measuring("qqp", "f1"), ["0", "0"], asked(["0", "0"]), DIGITS)["f1"] == 0.0


def test_macro_f1_by_hand() -> None:
    # golds 0 0 1 2, answers 0 1 1 invalid: F1 is 2/3, 2/3 and 0
    macro = measuring("cb", "macro_f1")
    scores = score(macro, ["0", "1", "1", "?"], asked(["0", "0", "1", "2"]), DIGITS)
    assert scores["macro_f1"] == pytest.approx(100 * (2 / 3 + 2 / 3 + 0) / 3)


def test_macro_f1_is_100_when_all_is_right_though_a_class_is_absent() -> None:
    assert score(measuring("cb", "macro_f1"), ["0", "1"], asked(["0", "1"]), DIGITS)["macro_f1"] == 100.0


def test_macro_f1_of_nothing_but_invalid_answers_is_zero() -> None:
    assert score(measuring("cb", "macro_f1"), ["?", "?"], asked(["0", "1"]), DIGITS)["macro_f1"] == 0.0


def test_matthews_by_hand() -> None:
    # tp 2, tn 1, fp 1, fn 1: (2*1 - 1*1) / sqrt(3 * 3 * 2 * 2)
    scores = score(TASKS["cola"], ["1", "1", "1", "0", "0"], asked(["1", "1", "0", "1", "0"]), DIGITS)
    assert scores["matthews"] == pytest.approx(100 / sqrt(36))


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [(["1", "1", "1"], 0.0), (["0", "1", "0"], -100.0), (["?", "1", "?"], -100.0), (["1", "0", "1"], 100.0)],
)
def test_matthews_of_constant_opposite_and_invalid_answers(predictions: list[str], expected: float) -> None:
    scores = score(TASKS["cola"], predictions, asked(["1", "0", "1"]), DIGITS)
    assert scores["matthews"] == pytest.approx(expected)


def test_group_em_wants_every_answer_of_a_question() -> None:
    examples = asked(["1", "0", "1", "1"], groups=["7", "7", "8", "9"])
    scores = score(TASKS["multirc"], ["1", "0", "0", "1"], examples, DIGITS)
    assert scores["group_em"] == pytest.approx(100 * 2 / 3)
    assert scores["f1"] == pytest.approx(100 * 4 / 5)


def test_correlations_by_hand() -> None:
    # x = 1 2 3, y = 1 3 2: both correlations are 1/2; y = 1 2 9: Pearson is 8 / sqrt(2 * 38)
    half = score(TASKS["stsb"], ["1.0", "3.0", "2.0"], asked(["1.0", "2.0", "3.0"]), DIGITS)
    assert half == {"pearson": pytest.approx(50.0), "spearman": pytest.approx(50.0)}
    skew = score(TASKS["stsb"], ["1", "2", "9"], asked(["1.0", "2.0", "3.0"]), DIGITS)
    assert skew == {"pearson": pytest.approx(100 * 8 / sqrt(76)), "spearman": pytest.approx(100.0)}


@pytest.mark.parametrize("junk", ["", "high", "nan", "inf", "-infinity", "1,0"])
def test_what_is_no_number_counts_as_minus_one(junk: str) -> None:
    examples = asked(["1.0", "2.0", "3.0"])
    assert score(TASKS["stsb"], ["1", "2", junk], examples, DIGITS) == score(
        TASKS["stsb"], ["1", "2", "-1"], examples, DIGITS
    )


@pytest.mark.parametrize(
    ("predictions", "targets"),
    [
        (["2", "2"], ["1.0", "3.0"]),
        (["1", "3"], ["2.0", "2.0"]),
        (["junk", "junk"], ["1.0", "3.0"]),
        (["1"], ["1.0"]),
    ],
)
def test_an_undefined_correlation_is_zero(predictions: list[str], targets: list[str]) -> None:
    assert score(TASKS["stsb"], predictions, asked(targets), DIGITS) == {"pearson": 0.0, "spearman": 0.0}


def test_a_huge_number_breaks_no_correlation() -> None:
    scores = score(TASKS["stsb"], ["1", "1e308", "-1e308"], asked(["1.0", "2.0", "3.0"]), DIGITS)
    assert all(-100.0 <= value <= 100.0 for value in scores.values())


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The U.S. Army!", "us army"),
        ("  An  apple,a day ", "applea day"),
        ("theory of A", "theory of"),
        ("...", ""),
    ],
)
def test_squad_normal_form(answer: str, normal: str) -> None:
    assert squad_normal_form(answer) == normal


def test_squad_scores_by_hand_and_best_over_golds() -> None:
    # "the red car" against "red car" and "blue": exact; "old red car" against "car": 1 common of 3 + 1 tokens
    examples = [
        Example(source="x", target="blue", golds=("blue", "red car")),
        Example(source="x", target="car", golds=("car",)),
        Example(source="x", target="sea", golds=("sea",)),
    ]
    scores = score(TASKS["squad"], ["The red car.", "old red car", "sky"], examples, DIGITS)
    assert scores["squad_em"] == pytest.approx(100 / 3)
    assert scores["squad_f1"] == pytest.approx(100 * (1 + 2 / 4 + 0) / 3)


def test_squad_counts_repeated_tokens_once_each() -> None:
    # common tokens: "a" is an article; "new new york" and "new york": 2 of 3 + 2
    examples = [Example(source="x", target="new york", golds=("new york",))]
    assert score(TASKS["squad"], ["new new york"], examples, DIGITS)["squad_f1"] == pytest.approx(100 * 4 / 5)


def test_an_empty_answer_matches_only_an_empty_normal_form() -> None:
    examples = [
        Example(source="x", target="the", golds=("the",)),
        Example(source="x", target="sea", golds=("sea",)),
    ]
    assert score(TASKS["squad"], ["", ""], examples, DIGITS) == {"squad_f1": 50.0, "squad_em": 50.0}


def test_spaced_and_plain_scores_agree_with_spaced_golds() -> None:
    row = {"question": "When?", "context": "May 18, 2018.", "answers": ["May 18, 2018"]}
    example = TASKS["nq"].eval_example(row, DIGITS)
    assert score(TASKS["nq"], [example.target], [example], DIGITS) == {"squad_f1": 100.0, "squad_em": 100.0}
    assert score(TASKS["nq"], ["May 18, 2018"], [example], DIGITS) == {"squad_f1": 100.0, "squad_em": 100.0}


def test_scoring_refuses_what_does_not_fit() -> None:
    with pytest.raises(DataError, match="task 'rte': got 1 predictions for 2 examples; give one for each"):
        score(TASKS["rte"], ["1"], asked(["1", "0"]), DIGITS)
    with pytest.raises(DataError, match="task 'rte': got no examples to score"):
        score(TASKS["rte"], [], [], DIGITS)
    with pytest.raises(DataError, match=r"task 'rte': target '0' is not among its words labels \(entailment"):
        score(TASKS["rte"], ["1"], asked(["0"]), WORDS)
