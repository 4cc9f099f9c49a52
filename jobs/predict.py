"""Answer rows of your own with a prompt of the bank, here or by a deployment.

`python -m jobs.predict rte --config embedded --field sentence1="..." --field sentence2="..."`
`python -m jobs.predict rte@candidate --url http://127.0.0.1:8000 --rows rows.jsonl`
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_ray.config import Config
from attempt_ray.errors import AttemptError, ConfigError, DataError
from jobs.watch import Screen

if TYPE_CHECKING:
    from attempt_ray.model.answering import Answerer
    from attempt_ray.tasks import Task
    from serve_app.schema import RowIn, RowOut

REMOTE_ROWS = 64
"""Rows of one request; a deployment takes as many unless it is told otherwise."""
_REMOTE_RETRIES = 5
"""Fewer than a program's: somebody waits, and may have mistyped the URL."""

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
    from attempt_ray.model.answering import Answerer
    from attempt_ray.model.backbone import load_backbone
    from attempt_ray.tasks import get_task

    task = get_task(task_name, config.data.user_tasks)
    if not rows:
        raise DataError(f"no row to answer; give --field name=value for each of: {', '.join(task.fields)}")
    texts = [task.source_text(row, template_options(config.data)) for row in rows]
    bank = Bank(config.bank)
    reference = bank.resolve(prompt or f"target/{task.name}").reference
    answerer = Answerer(
        load_backbone(config.backbone, config.device),
        bank,
        prompt_bytes=config.serving.prompt_bytes,
        pass_tokens=config.serving.pass_tokens,
    )
    answers = answer(answerer, task, texts, prompt=reference, config=config)
    with Screen() as screen:
        for found in answers:
            screen.say(_line(found))
    return {"job": "predict", "task": task.name, "prompt": reference, "answers": answers}


def predict_remotely(
    task_name: str,
    rows: Sequence[Row],
    *,
    url: str,
    key: str | None = None,
    prompt: str | None = None,
    batch_rows: int = REMOTE_ROWS,
) -> dict[str, Any]:
    """Have a deployment answer rows; the result is `predict`'s, but for what only a deployment knows.

    An answer has its own `prompt`, since a trial may divide rows between versions, and `fields` in place of `text`, since
    the template is filled in over there. `prompt` of the whole is None where it was not one version.

    Args:
        task_name: The task, such as `rte`, `rte@candidate` or `rte@v3`.
        rows: The columns its template reads, the answer's left out.
        url: Where the deployment is.
        key: API key; None is ATTEMPT_API_KEY, where that is set.
        prompt: Reference of the prompt; None is what the task serves.
        batch_rows: Most rows of one request.

    Raises:
        AttemptError: Something cannot be used, or the deployment refused.
    """
    from serve_app.client import Client
    from serve_app.wire import checked_rows

    if not rows:
        raise DataError("no row to answer; give --field name=value for each field, or --rows FILE")
    answers: list[dict[str, Any]] = []
    with Client(url, key=key, retries=_REMOTE_RETRIES) as client, Screen() as screen:
        task = client.task(task_name.partition("@")[0])
        wanted = checked_rows(
            [{"task": task_name, "prompt": prompt, "fields": _sendable(row)} for row in rows]
        )
        for start in range(0, len(wanted), batch_rows):
            asked = wanted[start : start + batch_rows]
            try:
                found = client.predict(asked, attention=True).rows
            except AttemptError as error:
                if len(asked) == len(wanted):
                    raise
                raise type(error)(f"of rows {start} to {start + len(asked) - 1}, {error}") from None
            for row, given in zip(asked, found, strict=True):
                answers.append(_remote_answer(row, given))
                screen.say(_line(answers[-1]))
    prompts = {each["prompt"] for each in answers}
    return {
        "job": "predict",
        "task": task.task,
        "prompt": prompts.pop() if len(prompts) == 1 else None,
        "answers": answers,
    }


def read_key(path: Path) -> str:
    """Return the API key in a file.

    Raises:
        ConfigError: The file cannot be read, or is empty.
    """
    try:
        key = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--key-file: cannot read {path}: {error}") from None
    if not key:
        raise ConfigError(f"--key-file: {path} is empty; wanted an API key")
    return key


def answer(
    answerer: Answerer, task: Task, texts: Sequence[str], *, prompt: str, config: Config
) -> list[dict[str, Any]]:
    """Return an answer for every text, in order: label probabilities for closed tasks, free text for open ones.

    Args:
        answerer: The backbone and the bank.
        task: What decides label words and lengths.
        texts: Inputs, rendered.
        prompt: Reference of the prompt's version, with its number.
        config: Decoding and sizes.

    Raises:
        AttemptError: The prompt cannot be used.
    """
    import torch

    from attempt_ray.data.encoding import encode_input
    from attempt_ray.model.answering import Question

    labels = task.labels.get(config.data.label_words, ())
    words = task.labels.get("words", labels)
    encoded = [
        encode_input(
            text,
            answerer.backbone.tokenizer,
            max_source_tokens=config.data.max_source_tokens or task.max_source_tokens,
        )
        for text in texts
    ]
    questions = [
        Question(
            prompt=prompt,
            ids=one.ids,
            labels=labels,
            decode=config.evaluation.decode,
            max_new_tokens=min(config.evaluation.max_new_tokens, task.max_target_tokens),
        )
        for one in encoded
    ]
    found: list[dict[str, Any]] = []
    for start in range(0, len(questions), config.evaluation.batch_rows):
        for reply in answerer.answer(questions[start : start + config.evaluation.batch_rows]):
            if isinstance(reply, AttemptError):
                raise reply
            given: dict[str, Any] = {"answer": reply.text}
            if labels:
                shares = torch.tensor(reply.logprobs).softmax(dim=-1).tolist()
                given["meaning"] = None if reply.label is None else words[reply.label]
                given["probabilities"] = dict(zip(words, shares, strict=True))
            found.append({"text": texts[len(found)], **given, "attention": reply.weights})
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


def _sendable(row: Row) -> dict[str, Any]:
    """Return the columns that may be fields; data sets have others besides, such as answers with their places."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, str | int | float)
        or (isinstance(value, list) and all(isinstance(each, str) for each in value))
    }


def _remote_answer(row: RowIn, given: RowOut) -> dict[str, Any]:
    found: dict[str, Any] = {"fields": row.fields, "prompt": given.prompt, "answer": given.answer}
    if given.probabilities is not None:
        found |= {"meaning": given.label, "probabilities": given.probabilities}
    return {**found, "attention": given.attention}


def _line(found: Mapping[str, Any]) -> str:
    if found.get("meaning") is not None:
        text = f"{found['answer']} ({found['meaning']}, {found['probabilities'][found['meaning']]:.0%})"
    else:
        text = found["answer"] or "(nothing)"
    if found["attention"]:
        top = sorted(found["attention"].items(), key=lambda item: -item[1])[:3]
        text += "  attends to " + ", ".join(f"{name} {share:.2f}" for name, share in top)
    asked = found["text"] if "text" in found else " ".join(f"{k}: {v}" for k, v in found["fields"].items())
    return f"{asked}\n  -> {text}"


if __name__ == "__main__":
    from jobs.cli import run_job

    run_job("predict")
