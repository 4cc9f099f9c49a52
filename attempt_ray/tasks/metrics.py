"""Scores of generated answers, in 0..100 (correlations in -100..100).

Answers are compared as text, without surrounding space, as in the paper's released code. An answer outside the
label set is wrong; where a metric needs a class, it counts as another one than the gold class.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import MappingProxyType

from attempt_ray.errors import DataError
from attempt_ray.tasks.spec import Example, Task, TaskKind, TemplateOptions

_UNPARSABLE = -1.0
"""Score that stands for a generated text which is no number (authors' code)."""
INVALID = -1
"""Class id of an answer outside the label set."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a metric reads: the answers given, stripped, and what was asked."""

    predictions: tuple[str, ...]
    examples: tuple[Example, ...]
    labels: tuple[str, ...]
    """Text of each class in order of class id; empty for open tasks."""


@dataclass(frozen=True)
class Metric:
    """A named score."""

    kind: TaskKind
    """Tasks it applies to."""
    fraction: Callable[[Answers], float]
    """Computes it, 1 being perfect."""


def score(
    task: Task, predictions: Sequence[str], examples: Sequence[Example], options: TemplateOptions
) -> dict[str, float]:
    """Return every metric of the task, headline first.

    Args:
        task: The task.
        predictions: Generated answers, one for each example.
        examples: What was asked, as :meth:`Task.eval_example` made them.
        options: The options the examples were made with.

    Raises:
        DataError: There is nothing to score, the counts differ, or the examples were made with other label words.
    """
    if len(predictions) != len(examples):
        raise DataError(
            f"task '{task.name}': got {len(predictions)} predictions for {len(examples)} examples; give one for each"
        )
    if not examples:
        raise DataError(f"task '{task.name}': got no examples to score; use a split that has rows")
    labels = task.labels.get(options.label_words, ())
    strangers = {example.target for example in examples} - set(labels) if labels else set()
    if strangers:
        raise DataError(
            f"task '{task.name}': target '{min(strangers)}' is not among its {options.label_words} labels "
            f"({', '.join(labels)}); score with the options that the examples were made with"
        )
    answers = Answers(
        predictions=tuple(prediction.strip() for prediction in predictions),
        examples=tuple(examples),
        labels=labels,
    )
    return {name: 100.0 * METRICS[name].fraction(answers) for name in task.metrics}


def headline(task: Task, scores: Mapping[str, float]) -> float:
    """Return the score that selects checkpoints and fills the paper's tables."""
    return scores[task.metrics[0]]


def class_ids(answers: Answers) -> tuple[list[int], list[int]]:
    """Return gold and predicted class ids; an answer outside the label set is `INVALID`."""
    ids = {label: class_id for class_id, label in enumerate(answers.labels)}
    golds = [ids[example.target] for example in answers.examples]
    return golds, [ids.get(prediction, INVALID) for prediction in answers.predictions]


def wrong_where_invalid(answers: Answers) -> tuple[list[int], list[int]]:
    """Return gold and predicted class ids; an invalid answer is the class after the gold one, so the opposite of two."""
    golds, predicted = class_ids(answers)
    classes = len(answers.labels)
    pairs = zip(golds, predicted, strict=True)
    return golds, [(gold + 1) % classes if found == INVALID else found for gold, found in pairs]


def _accuracy(answers: Answers) -> float:
    golds, predicted = class_ids(answers)
    return fmean(gold == found for gold, found in zip(golds, predicted, strict=True))


def _f1(answers: Answers) -> float:
    """F1 of class 1; 0 where that class is neither there nor predicted."""
    from sklearn.metrics import f1_score

    golds, predicted = wrong_where_invalid(answers)
    return float(f1_score(golds, predicted, labels=[0, 1], pos_label=1, average="binary", zero_division=0))


def _macro_f1(answers: Answers) -> float:
    """Mean F1 over the classes that are there or were predicted; an invalid answer is a miss of its gold class."""
    from sklearn.metrics import f1_score

    golds, predicted = class_ids(answers)
    classes = sorted({*golds, *predicted} - {INVALID})
    return float(f1_score(golds, predicted, labels=classes, average="macro", zero_division=0))


def _matthews(answers: Answers) -> float:
    """Matthews correlation; 0 where either side is constant."""
    from sklearn.metrics import matthews_corrcoef

    golds, predicted = wrong_where_invalid(answers)
    if len(set(golds)) == 1 or len(set(predicted)) == 1:
        return 0.0
    return float(matthews_corrcoef(golds, predicted))


def _group_em(answers: Answers) -> float:
    """Share of question groups whose every answer is right (MultiRC)."""
    right: dict[str, bool] = defaultdict(lambda: True)
    for prediction, example in zip(answers.predictions, answers.examples, strict=True):
        right[example.group] &= prediction == example.target
    return fmean(right.values())


def numbers(answers: Answers) -> tuple[list[float], list[float]]:
    """Return gold and predicted numbers; a text that is none counts as -1, as in the authors' code."""
    golds = [float(example.target) for example in answers.examples]
    return golds, [_number(prediction) for prediction in answers.predictions]


def _number(prediction: str) -> float:
    try:
        value = float(prediction)
    except ValueError:
        return _UNPARSABLE
    return value if math.isfinite(value) else _UNPARSABLE


def _correlated(golds: Sequence[float], predicted: Sequence[float]) -> float:
    """Return Pearson's r; 0 where it is undefined: one row, or one side constant."""
    if len(set(golds)) == 1 or len(set(predicted)) == 1:
        return 0.0
    import numpy as np
    from scipy.stats import pearsonr

    with np.errstate(all="ignore"):
        correlation = float(pearsonr(golds, predicted).statistic)
    return correlation if math.isfinite(correlation) else 0.0


def _pearson(answers: Answers) -> float:
    return _correlated(*numbers(answers))


def _spearman(answers: Answers) -> float:
    from scipy.stats import rankdata

    golds, predicted = numbers(answers)
    return _correlated(rankdata(golds).tolist(), rankdata(predicted).tolist())


def squad_normal_form(answer: str) -> str:
    """Return the answer in lower case, without punctuation and articles, spaces squeezed (SQuAD's official script)."""
    bare = answer.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _exact(prediction: str, gold: str) -> float:
    return float(squad_normal_form(prediction) == squad_normal_form(gold))


def _token_f1(prediction: str, gold: str) -> float:
    found, wanted = squad_normal_form(prediction).split(), squad_normal_form(gold).split()
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2.0 * common / (len(found) + len(wanted))


def _best_over_golds(answers: Answers, *, similarity: Callable[[str, str], float]) -> float:
    return fmean(
        max(similarity(prediction, gold) for gold in example.golds or (example.target,))
        for prediction, example in zip(answers.predictions, answers.examples, strict=True)
    )


def _squad_em(answers: Answers) -> float:
    return _best_over_golds(answers, similarity=_exact)


def _squad_f1(answers: Answers) -> float:
    return _best_over_golds(answers, similarity=_token_f1)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": Metric("classification", _accuracy),
        "f1": Metric("classification", _f1),
        "macro_f1": Metric("classification", _macro_f1),
        "matthews": Metric("classification", _matthews),
        "group_em": Metric("classification", _group_em),
        "pearson": Metric("regression", _pearson),
        "spearman": Metric("regression", _spearman),
        "squad_f1": Metric("qa", _squad_f1),
        "squad_em": Metric("qa", _squad_em),
    }
)
