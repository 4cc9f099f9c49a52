"""What a task is: the recipe that turns a row in hub schema into text to read and text to write.

A task is data plus one template. Every task of the project, the users' own included, is an instance of
:class:`Task`; the modules beside this one only fill it in. Templates, verbalizers, lengths and split rules are
those of the paper's released code (Asai et al. 2022, section 4.1 and appendix), slips corrected where noted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from attempt_ray.config import TaskGroup
from attempt_ray.errors import DataError, unknown_name

Row = Mapping[str, Any]
"""One row in hub schema."""

LabelWords = Literal["digits", "words"]
TaskKind = Literal["classification", "qa", "regression"]
SplitRule = Literal["small", "large", "native"]

SOURCE_TOKENS = 256
"""Longest input of most tasks, in tokens (paper, appendix)."""
QA_SOURCE_TOKENS = 512
"""Longest input of question answering over a passage, in tokens (paper, appendix)."""
CLOSED_TARGET_TOKENS = 16
"""Room for the longest label word in any vocabulary; a target never occupies more than it needs."""
OPEN_TARGET_TOKENS = 128
"""Longest free-text answer, in tokens (authors' code)."""


@dataclass(frozen=True)
class TemplateOptions:
    """Choices that change a task's text; the fields of `DataConfig` with the same names, and `prefix`."""

    label_words: LabelWords = "digits"
    """Class labels as class ids (paper) or as words."""
    legacy_winogrande: bool = False
    """Print option 1 twice, as the authors' released template does."""
    single_gold: bool = False
    """Keep the first gold answer of SQuAD-style tasks only (paper). ReCoRD keeps its list in either case."""
    prefix: bool = True
    """Open the input with the task's prefix (paper: every method except adapters)."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One text-to-text pair."""

    source: str
    """Full input text, task prefix included."""
    target: str
    """Text to be generated."""
    golds: tuple[str, ...] = ()
    """Every accepted answer; the target alone where the label set is closed."""
    group: str = ""
    """Id of the question the example belongs to (MultiRC, ReCoRD); empty elsewhere."""


def _ungrouped(_row: Row) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Template:
    """From a row to text. Calling it gives the row's examples, without the task prefix."""

    source: Callable[[Row, TemplateOptions], str]
    """Input text; reads no answer, so that it also serves rows that have none."""
    answers: Callable[[Row, TemplateOptions], tuple[str, ...]]
    """Accepted answers, at least one, the preferred one first."""
    group: Callable[[Row], str] = _ungrouped
    """Id of the row's question group."""
    expand: bool = False
    """Yield one example for each accepted answer rather than one for the first."""

    def __call__(self, row: Row, options: TemplateOptions) -> list[Example]:
        """Return the row's examples; more than one only where `expand` is set."""
        source = self.source(row, options)
        golds = self.answers(row, options)
        group = self.group(row)
        targets = golds if self.expand else golds[:1]
        return [Example(source=source, target=target, golds=golds, group=group) for target in targets]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: where its rows are, how they read, and how answers are scored."""

    name: str
    """Our name, unique among tasks and safe as a file name."""
    prefix: str
    """First word of every input text, such as `superglue-boolq`."""
    hub_id: str
    """Data set on the Hugging Face hub, also its directory in a mirror; empty for a user's own files."""
    hub_config: str | None = None
    """Configuration of the data set; None is its only one."""
    revision: str | None = None
    """Hub revision (commit, tag or branch); None is the hub's default branch."""
    fields: tuple[str, ...]
    """Columns the template reads, the answer's column included."""
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Field meant by each other column name, for data sets that come in two formats (SciTail's `tsv_format`)."""
    group: TaskGroup
    """Group of the paper's tables."""
    kind: TaskKind
    labels: Mapping[LabelWords, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """Verbalizers: the text of each class, in order of class id; empty unless `kind` is classification."""
    metrics: tuple[str, ...]
    """Names in :data:`attempt_ray.tasks.metrics.METRICS`; the first is the headline."""
    split_rule: SplitRule
    """How the paper cuts dev and test: `small` halves `dev_split` after a seeded permutation, `large` takes dev from
    the permuted training rows and `test_split` whole, `native` takes both splits whole."""
    dev_split: str = "validation"
    """Labelled hub split that `small` halves and `native` scores as dev."""
    test_split: str = "validation"
    """Labelled hub split that `large` and `native` score as test; equals `dev_split` where the test labels are hidden."""
    max_source_tokens: int = SOURCE_TOKENS
    max_target_tokens: int = CLOSED_TARGET_TOKENS
    max_train_rows: int | None = None
    """Most training rows kept, cut after the permutation; None keeps all."""
    template_version: str = "1"
    """Changes whenever the text of any example changes; part of the key of cached encodings."""
    render: Template

    def train_examples(self, row: Row, options: TemplateOptions) -> list[Example]:
        """Return the row's training examples: one, or one per gold answer for ReCoRD.

        Raises:
            DataError: The row lacks a field, or its answer cannot be used.
        """
        with self._naming_itself():
            examples = self.render(self._with_own_names(row), options)
        return [replace(example, source=self._prefixed(example.source, options)) for example in examples]

    def eval_example(self, row: Row, options: TemplateOptions) -> Example:
        """Return the row's one example to be scored, with every gold answer.

        Raises:
            DataError: The row lacks a field, or its answer cannot be used.
        """
        return self.train_examples(row, options)[0]

    def source_text(self, row: Row, options: TemplateOptions) -> str:
        """Return the input text of a row that needs no answer, as for a prediction.

        Raises:
            DataError: The row lacks an input field, or the field holds no text.
        """
        with self._naming_itself():
            return self._prefixed(self.render.source(self._with_own_names(row), options), options)

    def _with_own_names(self, row: Row) -> Row:
        renamed = {own: row[other] for other, own in self.aliases.items() if other in row and own not in row}
        return {**row, **renamed} if renamed else row

    def _prefixed(self, source: str, options: TemplateOptions) -> str:
        return f"{self.prefix} {source}" if options.prefix else source

    @contextmanager
    def _naming_itself(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise DataError(f"task '{self.name}': {error} (it reads: {', '.join(self.fields)})") from None


def cell(row: Row, name: str) -> Any:
    """Return the value of a row's field.

    Raises:
        DataError: The row has no such field.
    """
    if name not in row:
        raise DataError(unknown_name("row field", name, row))
    return row[name]


def text(row: Row, name: str) -> str:
    """Return a field as text without surrounding space; numbers, as CSV readers make them, are written out.

    Raises:
        DataError: The field is absent, null, or neither text nor a number.
    """
    value = cell(row, name)
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise DataError(f"field '{name}' holds {value!r}; wanted text, so fill it in or drop the row")
    return str(value)


def texts(row: Row, name: str) -> tuple[str, ...]:
    """Return a field that lists texts.

    Raises:
        DataError: The field is absent or not a list of texts.
    """
    value = cell(row, name)
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(v, str) for v in value)
    ):
        raise DataError(f"field '{name}' holds {value!r}; wanted a list of texts")
    return tuple(item.strip() for item in value)


def id_of(row: Row, name: str) -> str:
    """Return entry `name` of the row's `idx`, the hub's structured row id, as text.

    Raises:
        DataError: The row has no such id.
    """
    idx = cell(row, "idx")
    if not isinstance(idx, Mapping) or idx.get(name) is None:
        raise DataError(
            f"field 'idx' holds {idx!r}; wanted a mapping with '{name}', the id of the row's question"
        )
    return str(idx[name])


def pieces(row: Row, _options: TemplateOptions, *, columns: Mapping[str, str]) -> str:
    """Return `piece: value` for every piece, space-joined, where `columns` maps a piece to its column."""
    return " ".join(f"{piece}: {text(row, column)}" for piece, column in columns.items())


def class_key(value: object) -> str:
    """Return the spelling under which a raw label is looked up: `1`, `1.0` and `"1"` are one label."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip().removesuffix(".0")


def class_answer(
    row: Row,
    options: TemplateOptions,
    *,
    column: str,
    class_ids: Mapping[str, int],
    labels: Mapping[LabelWords, tuple[str, ...]],
) -> tuple[str, ...]:
    """Return the label text of the row's class.

    Args:
        row: The row.
        options: `label_words` picks the verbalizer.
        column: Column of the raw label.
        class_ids: Class id of every raw label, keyed by :func:`class_key`.
        labels: The verbalizers.

    Raises:
        DataError: The raw label belongs to no class, as the hub's -1 for hidden test labels.
    """
    value = cell(row, column)
    class_id = class_ids.get(class_key(value))
    if class_id is None:
        known = ", ".join(class_ids)
        raise DataError(
            f"label {value!r} in field '{column}' is outside the verbalizer ({known}); use labelled rows"
        )
    return (labels[options.label_words][class_id],)


def verbalizers(words: Sequence[str]) -> dict[LabelWords, tuple[str, ...]]:
    """Return the two label sets of a task whose classes, in order of id, have these words."""
    return {"digits": tuple(str(class_id) for class_id in range(len(words))), "words": tuple(words)}


def number_answer(
    row: Row, _options: TemplateOptions, *, column: str, bounds: tuple[float, float] | None = None
) -> tuple[str, ...]:
    """Return the row's score with one decimal, as the authors' STS-B targets.

    Raises:
        DataError: The score is no finite number, or outside `bounds`, as the hub's -1 for hidden test scores.
    """
    value = cell(row, column)
    low, high = bounds or (float("-inf"), float("inf"))
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = float("nan")
    if not (low <= score <= high and abs(score) != float("inf")):
        wanted = f"a number from {low:g} to {high:g}" if bounds else "a finite number"
        raise DataError(f"field '{column}' holds {value!r}; wanted {wanted}, so use labelled rows")
    return (f"{score:.1f}",)


def classification(
    name: str,
    columns: Mapping[str, str] | Sequence[str],
    *,
    words: Sequence[str],
    label: str = "label",
    class_ids: Mapping[str, int] | None = None,
    source: Callable[[Row, TemplateOptions], str] | None = None,
    row_group: Callable[[Row], str] = _ungrouped,
    more_fields: Sequence[str] = (),
    **facts: Any,
) -> Task:
    """Return a task over a closed label set.

    Args:
        name: Task name.
        columns: Column of each piece of the template, or the columns alone where the pieces bear their names.
        words: Label word of every class, in order of class id.
        label: Column of the raw label.
        class_ids: Class id of every raw label; None takes the ids themselves as labels.
        source: Writes the input text; None joins the pieces.
        row_group: Id of a row's question group.
        more_fields: Columns read besides those of the pieces and the label.
        **facts: The other fields of :class:`Task`.
    """
    named = dict(columns) if isinstance(columns, Mapping) else {column: column for column in columns}
    labels = verbalizers(words)
    class_ids = class_ids or {digit: class_id for class_id, digit in enumerate(labels["digits"])}
    return Task(
        name=name,
        fields=(*named.values(), label, *more_fields),
        kind="classification",
        labels=labels,
        render=Template(
            source=source or partial(pieces, columns=named),
            answers=partial(class_answer, column=label, class_ids=class_ids, labels=labels),
            group=row_group,
        ),
        **facts,
    )
