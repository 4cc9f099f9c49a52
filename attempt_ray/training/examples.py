"""What a run answered, row by row: examples.jsonl, from which scores are resampled and single answers shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from attempt_ray.data.encoding import EncodedSplit
from attempt_ray.training.evaluation import Evaluation

MOST_CHARACTERS = 500
"""Longest input text that is kept of a row."""
_DIGITS = 6


def example_lines(splits: Mapping[str, EncodedSplit], finals: Mapping[str, Evaluation]) -> bytes:
    """Return the answers of evaluations, one JSON object a line: tasks in order, then rows in order.

    A line has `task`, `row`, `input` (the template's text, cut to `MOST_CHARACTERS`), `answer`, `gold` (every accepted
    answer, the preferred one first), `group` where rows belong together as the answers to a question of MultiRC do, and,
    where prompts are mixed, `weights` of the candidates in the order of the report's `attention`.

    Args:
        splits: The rows that were answered, by task.
        finals: What was answered, by task.
    """
    lines = (line for task, final in finals.items() for line in _lines(splits[task], final))
    return b"".join(lines)


def _lines(split: EncodedSplit, final: Evaluation) -> Iterator[bytes]:
    for row, (example, answer) in enumerate(zip(split.examples(), final.predictions, strict=True)):
        line = {
            "task": split.task.name,
            "row": row,
            "input": example.source[:MOST_CHARACTERS],
            "answer": answer,
            "gold": list(example.golds or (example.target,)),
        }
        if example.group:
            line["group"] = example.group
        if final.weights is not None:
            line["weights"] = [round(weight, _DIGITS) for weight in final.weights[row]]
        yield json.dumps(line, ensure_ascii=False).encode() + b"\n"
