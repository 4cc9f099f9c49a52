"""Answer rows of your own with a prompt of the bank.

`python -m jobs.predict rte --config embedded --field sentence1="..." --field sentence2="..."`
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attempt_ray.config import Config
from attempt_ray.errors import ConfigError, DataError
from jobs.watch import Screen

if TYPE_CHECKING:
    from attempt_ray.model.methods import Method
    from attempt_ray.tasks import Task

Row = Mapping[str, Any]


def predict(
    config: Config, task_name: str, rows: Sequence[Row], *, prompt: str | None = None
) -> dict[str, Any]:
    """Answer rows, and tell how much each source prompt had to do with every answer.

    Args:
        config: Backbone, data options, decoding and bank.
        task_name: The task whose template the rows go through.
        rows: The columns its template reads, the answer's left out.
        prompt: Reference of the prompt; None is `target/<task>`.

    Raises:
        AttemptError: Something cannot be used.
    """
    from attempt_ray.bank.store import Bank
    from attempt_ray.data.encoding import template_options
    from attempt_ray.model.backbone import load_backbone
    from attempt_ray.model.published import load_published
    from attempt_ray.tasks import get_task

    task = get_task(task_name, config.data.user_tasks)
    if not rows:
        raise DataError(f"no row to answer; give --field name=value for each of: {', '.join(task.fields)}")
    texts = [task.source_text(row, template_options(config.data)) for row in rows]
    bank = Bank(config.bank)
    reference = bank.resolve(prompt or f"target/{task.name}").reference
    method, loaded = load_published(
        bank, reference, backbone=load_backbone(config.backbone, config.device), task=task.name
    )
    answers = answer(method, task, texts, config=config)
    with Screen() as screen:
        for found in answers:
            screen.say(_line(found))
    return {"job": "predict", "task": task.name, "prompt": loaded.version.reference, "answers": answers}


def answer(method: Method, task: Task, texts: Sequence[str], *, config: Config) -> list[dict[str, Any]]:
    """Return an answer for every text, in order: label probabilities for closed tasks, free text for open ones."""
    from attempt_ray.data.batching import evaluation_batches
    from attempt_ray.data.encoding import encode_examples
    from attempt_ray.tasks import Example

    backbone = method.backbone
    split = encode_examples(
        task,
        [Example(source=text, target="") for text in texts],
        backbone.tokenizer,
        max_source_tokens=config.data.max_source_tokens,
    )
    labels = task.labels.get(config.data.label_words, ())
    words = task.labels.get("words", labels)
    candidates = backbone.encode_candidates(labels) if labels else None
    longest = min(config.evaluation.max_new_tokens, task.max_target_tokens)
    found: list[dict[str, Any]] = [{} for _ in texts]
    rows = config.evaluation.batch_rows
    for batch in evaluation_batches(split, rows=rows, task_index=0, pad_id=backbone.pad_id):
        on_device = batch.to(backbone.device)
        if candidates is not None:
            scores, weights = method.score_labels(on_device, candidates)
            shares = scores.softmax(dim=-1).tolist()
            answers = [
                {
                    "answer": labels[share.index(max(share))],
                    "meaning": words[share.index(max(share))],
                    "probabilities": dict(zip(words, share, strict=True)),
                }
                for share in shares
            ]
        else:
            ids, weights = method.generate(on_device, max_new_tokens=longest)
            answers = [{"answer": text} for text in backbone.decode(ids)]
        mixed = [None] * len(answers) if weights is None else weights.tolist()
        for row, given, share in zip(batch.row_B.tolist(), answers, mixed, strict=True):
            attention = None if share is None else dict(zip(method.candidates, share, strict=True))
            found[row] = {"text": texts[row], **given, "attention": attention}
    return found


def read_rows(fields: Sequence[str], lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the rows that `name=value` fields make, or else one row per line of JSON.

    Raises:
        ConfigError: A field is not of that form.
        DataError: A line is not a JSON object.
    """
    if fields:
        row = {}
        for field in fields:
            name, equals, value = field.partition("=")
            if not equals or not name.strip():
                raise ConfigError(
                    f"--field got '{field}'; wanted name=value, such as --field sentence='a fine day'"
                )
            row[name.strip()] = value
        return [row]
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise DataError(
                f'line {number} of the rows is no JSON object; give one per line, such as {{"sentence": ...}}'
            )
        rows.append(content)
    return rows


def _line(found: Mapping[str, Any]) -> str:
    if "probabilities" in found:
        text = f"{found['answer']} ({found['meaning']}, {max(found['probabilities'].values()):.0%})"
    else:
        text = found["answer"] or "(nothing)"
    if found["attention"]:
        top = sorted(found["attention"].items(), key=lambda item: -item[1])[:3]
        text += "  attends to " + ", ".join(f"{name} {share:.2f}" for name, share in top)
    return f"{found['text']}\n  -> {text}"


if __name__ == "__main__":
    from jobs.cli import run_job

    run_job("predict")
