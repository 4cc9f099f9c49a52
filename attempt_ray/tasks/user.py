"""A task of the user's own, described in one YAML file.

    name: ticket-topic
    template: "subject: {subject} body: {body}"
    fields: [subject, body]          # columns of the rows
    answer: topic                    # column of the answer; default `label`, for qa `answers`
    labels:                          # raw label -> label word; the order gives the class ids
      billing: billing
      bug: fault
    metrics: [accuracy, macro_f1]    # one or more, the first is the headline; the default suits the kind
    kind: classification             # classification, qa or regression; default: classification with labels, else qa

Optional besides: `hub_id`, `hub_config`, `revision`, `split_rule`, `dev_split`, `test_split`, `max_source_tokens`,
`max_target_tokens`, `max_train_rows`, each as in :class:`attempt_ray.tasks.spec.Task`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, StringConstraints, ValidationError

from attempt_ray.config import Section
from attempt_ray.errors import ConfigError, unknown_name
from attempt_ray.tasks.metrics import METRICS
from attempt_ray.tasks.qa import gold_answers
from attempt_ray.tasks.spec import (
    CLOSED_TARGET_TOKENS,
    OPEN_TARGET_TOKENS,
    QA_SOURCE_TOKENS,
    SOURCE_TOKENS,
    Row,
    SplitRule,
    Task,
    TaskKind,
    Template,
    TemplateOptions,
    class_answer,
    class_key,
    number_answer,
    text,
    verbalizers,
)

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
# Hub ids and splits become paths in a mirror; each part starts with a letter or digit, so none climbs out of it.
_PathPart = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_HubId = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$")
]
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Texts = Annotated[
    tuple[_Text, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]

_WANTED = {
    "name": "1 to 64 lower-case letters, digits, '.', '_' and '-', starting with a letter or digit",
    "hub_id": "'owner/name', as on the hub",
    "hub_config": "a configuration name, as on the hub",
    "dev_split": "a split name, such as validation",
    "test_split": "a split name, such as test",
}
_DEFAULT_METRICS: Mapping[TaskKind, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "qa": ("squad_f1", "squad_em"),
    "regression": ("pearson", "spearman"),
}


class _File(Section):
    """The keys of a task file."""

    name: _Name
    template: _Text
    fields: _Texts = Field(min_length=1)
    answer: _Text | None = None
    labels: dict[str, _Text] = Field(default_factory=dict)
    metrics: _Texts = ()
    kind: TaskKind | None = None
    hub_id: _HubId | None = None
    hub_config: _PathPart | None = None
    revision: _Text | None = None
    split_rule: SplitRule = "native"
    dev_split: _PathPart = "validation"
    test_split: _PathPart = "test"
    max_source_tokens: int | None = Field(default=None, ge=4)
    max_target_tokens: int | None = Field(default=None, ge=1)
    max_train_rows: int | None = Field(default=None, ge=1)


class _Loader(yaml.BaseLoader):
    """Reads every scalar as the text it is written as, so that labels such as `yes` and `0` keep their spelling."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key '{key}' appears twice; keep one")
        return super().construct_mapping(node, deep=deep)


def load_user_task(path: str | Path) -> Task:
    """Read a task from its YAML file.

    Raises:
        ConfigError: The file cannot be read, or a key or value cannot be used.
    """
    path = Path(path).expanduser()
    try:
        source = path.read_text(encoding="utf-8")
        content = yaml.load(source, Loader=_Loader)  # noqa: S506  (a BaseLoader: text, lists and mappings only)
    except OSError as error:
        raise ConfigError(
            f"cannot read task file {path}: {error.strerror}; give an existing YAML file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"task file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"task file {path} holds no mapping; wanted keys such as name, fields, template, labels"
        )
    try:
        return _task(_File.model_validate(content), version=_digest(content))
    except ValidationError as error:
        raise ConfigError(f"task file {path}: {_first_problem(error)}") from None
    except ConfigError as error:
        raise ConfigError(f"task file {path}: {error}") from None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _first_problem(error: ValidationError) -> str:
    problems = error.errors()
    # A misspelt key comes with a missing one; the misspelling is what there is to correct.
    problem = next((item for item in problems if item["type"] == "extra_forbidden"), problems[0])
    key = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return unknown_name("key", key, _File.model_fields)
    if problem["type"] == "missing":
        return f"key '{key}' is missing; add it"
    wanted = f"wanted {_WANTED[key]}" if key in _WANTED else problem["msg"]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: got {problem['input']!r}; {wanted}"


def _task(file: _File, *, version: str) -> Task:
    kind: TaskKind = file.kind or ("classification" if file.labels else "qa")
    answer = file.answer or ("answers" if kind == "qa" else "label")
    inputs = tuple(name for name in dict.fromkeys(file.fields) if name != answer)
    _check_template(file.template, inputs, answer=answer)
    _check_labels(file.labels, kind)
    metrics = file.metrics or _DEFAULT_METRICS[kind]
    _check_metrics(metrics, kind, classes=len(file.labels))
    labels = verbalizers(list(file.labels.values())) if file.labels else {}
    if kind == "classification":
        class_ids = {class_key(raw): class_id for class_id, raw in enumerate(file.labels)}
        answers = partial(class_answer, column=answer, class_ids=class_ids, labels=labels)
    elif kind == "qa":
        answers = partial(gold_answers, column=answer, spaced=False)
    else:
        answers = partial(number_answer, column=answer)
    is_qa = kind == "qa"
    return Task(
        name=file.name,
        prefix=file.name,
        hub_id=file.hub_id or "",
        hub_config=file.hub_config,
        revision=file.revision,
        fields=(*inputs, answer),
        group="user",
        kind=kind,
        labels=labels,
        metrics=metrics,
        split_rule=file.split_rule,
        dev_split=file.dev_split,
        test_split=file.test_split,
        max_source_tokens=file.max_source_tokens or (QA_SOURCE_TOKENS if is_qa else SOURCE_TOKENS),
        max_target_tokens=file.max_target_tokens or (OPEN_TARGET_TOKENS if is_qa else CLOSED_TARGET_TOKENS),
        max_train_rows=file.max_train_rows,
        template_version=version,
        render=Template(source=partial(_fill, template=file.template), answers=answers),
    )


def _fill(row: Row, _options: TemplateOptions, *, template: str) -> str:
    return "".join(
        literal + (text(row, name) if name is not None else "")
        for literal, name, _, _ in Formatter().parse(template)
    )


def _check_template(template: str, inputs: tuple[str, ...], *, answer: str) -> None:
    try:
        parsed = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(
            f"template: {error}; write {{field}} for a field, and {{{{ or }}}} for a brace"
        ) from None
    for name, spec, conversion in parsed:
        if name == answer:
            raise ConfigError(
                f"template: {{{name}}} is the answer's column, which would give the answer away; remove it"
            )
        if name not in inputs:
            raise ConfigError(f"template: {unknown_name('field', name or '', inputs)}")
        if spec or conversion:
            raise ConfigError(f"template: field '{name}' has a format or conversion; write {{{name}}} alone")
    unused = [name for name in inputs if name not in {part[0] for part in parsed}]
    if unused:
        raise ConfigError(
            f"fields: '{unused[0]}' is not in the template; use {{{unused[0]}}} there or leave it out"
        )
    if not parsed:
        raise ConfigError(
            "template: no {field} in it; every row would read the same, so name at least one field"
        )


def _check_labels(labels: Mapping[str, str], kind: TaskKind) -> None:
    if kind != "classification":
        if labels:
            raise ConfigError(f"labels: a {kind} task has none; remove them or set kind: classification")
        return
    if len(labels) < 2:
        raise ConfigError(
            f"labels: got {len(labels)}; a classification task needs at least 2, as raw label: word"
        )
    if len({class_key(raw) for raw in labels}) < len(labels):
        raise ConfigError(f"labels: two of {', '.join(labels)} are the same raw label; keep one")
    by_word: dict[str, str] = {}
    for raw, word in labels.items():
        if word in by_word:
            raise ConfigError(
                f"labels: '{by_word[word]}' and '{raw}' are both '{word}'; give each label its own word"
            )
        by_word[word] = raw


def _check_metrics(metrics: tuple[str, ...], kind: TaskKind, *, classes: int) -> None:
    # Question groups are read from the hub's idx column, which a user's template does not have.
    allowed = [name for name, metric in METRICS.items() if metric.kind == kind and name != "group_em"]
    for name in metrics:
        if name not in allowed:
            raise ConfigError(f"metrics: {unknown_name(f'{kind} metric', name, allowed)}")
        if name == "f1" and classes != 2:
            raise ConfigError(f"metrics: f1 is for 2 classes, this task has {classes}; use macro_f1")
    if len(set(metrics)) < len(metrics):
        raise ConfigError(f"metrics: got {', '.join(metrics)}; name each one once")
