"""From rows to token ids, once: every split is rendered, tokenised and kept in an Arrow cache keyed by content.

A cache entry is a directory: `tokens.arrow` (input and label ids, one record batch, mapped into memory and used in
place), `examples.arrow` (the texts) and `manifest.json` (SHA-256 of both files, and of the content). Entries appear
whole or not at all. Their files are hashed at every opening (about a second per gigabyte), and one that does not hold
what was written is built again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from attempt_ray.bank.durable import commit_directory, sha256_file, storage_errors, temporary_name, write_new
from attempt_ray.config import DataConfig
from attempt_ray.data.splits import load_splits
from attempt_ray.errors import BackboneError, DataError
from attempt_ray.tasks.spec import Example, Row, Task, TemplateOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IntArray = npt.NDArray[np.int64]
Role = Literal["train", "dev", "test"]

_NO_END = "the tokenizer does not end every text with </s>, as T5's does; save it with a post-processor that adds it"
_SCHEMA = 1
_CHUNK_ROWS = 1000
_TOKENS = pa.schema([("input_ids", pa.list_(pa.int32())), ("label_ids", pa.list_(pa.int32()))])
_EXAMPLES = pa.schema(
    [
        ("source", pa.string()),
        ("target", pa.string()),
        ("golds", pa.list_(pa.string())),
        ("group", pa.string()),
    ]
)


class EncodedSplit:
    """The examples of one split of a task, as text and as token ids.

    Attributes:
        task: The task.
        split: `train`, `dev` or `test`, or any name for examples encoded in memory.
        digest: SHA-256 of the content: ids and texts, in order.
        lengths: Input tokens of every row.
        label_lengths: Target tokens of every row.
    """

    def __init__(self, task: Task, split: str, *, tokens: pa.Table, examples: pa.Table, digest: str) -> None:
        """Wrap the two tables of an encoding; see `encode_splits` and `encode_examples`."""
        self.task = task
        self.split = split
        self.digest = digest
        self._inputs = _Ragged(tokens.column("input_ids"))
        self._labels = _Ragged(tokens.column("label_ids"))
        self._examples = examples
        self.lengths: IntArray = self._inputs.lengths
        self.label_lengths: IntArray = self._labels.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def inputs(self, rows: IntArray, *, width: int, pad_id: int) -> IntArray:
        """Return the input ids of `rows` [B], padded on the right to [B, width]."""
        return self._inputs.padded(rows, width=width, fill=pad_id)

    def labels(self, rows: IntArray, *, width: int) -> IntArray:
        """Return the label ids of `rows` [B], padded on the right with -100 to [B, width]."""
        return self._labels.padded(rows, width=width, fill=-100)

    def examples(self, rows: IntArray | Sequence[int] | None = None) -> list[Example]:
        """Return the texts of `rows`, in that order; None is every row."""
        table = self._examples if rows is None else self._examples.take(np.asarray(rows, dtype=np.int64))
        return [Example(**{**row, "golds": tuple(row["golds"])}) for row in table.to_pylist()]


@dataclass(frozen=True, eq=False)
class EncodedTask:
    """The three splits of a task, encoded."""

    task: Task
    train: EncodedSplit
    dev: EncodedSplit
    test: EncodedSplit


class EncodedInput(NamedTuple):
    """One input as token ids."""

    ids: list[int]
    """Token ids, the end token last."""
    truncated: bool
    """Whether the text was longer than the task's limit and lost its end."""


def template_options(data: DataConfig) -> TemplateOptions:
    """Return the template choices that a data config makes."""
    return TemplateOptions(
        label_words=data.label_words, legacy_winogrande=data.legacy_winogrande, single_gold=data.single_gold
    )


def encode_splits(
    task: Task, data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, tokenizer_digest: str
) -> EncodedTask:
    """Load, cut, render and tokenise a task's rows, or take the result from the cache.

    Training rows give one example each (ReCoRD: one per gold answer), dev and test rows exactly one. Truncation keeps
    the head of a text and the final `</s>`.

    Args:
        task: The task.
        data: Origin, split policy, template choices, longest input and cache directory.
        tokenizer: Fast tokenizer that ends every text with `</s>`, as T5's does.
        tokenizer_digest: SHA-256 of the tokenizer's files; part of the cache key.

    Raises:
        DataError: Rows are missing or cannot be rendered, such as a label outside the verbalizer.
        BackboneError: The tokenizer does not end texts with `</s>`.
        StorageError: The disk refused the cache.
    """
    splits = load_splits(task, data)
    roles: tuple[tuple[Role, Dataset], ...] = (
        ("train", splits.train),
        ("dev", splits.dev),
        ("test", splits.test),
    )
    encoded = {
        role: _cached(task, role, rows, data, tokenizer, tokenizer_digest=tokenizer_digest)
        for role, rows in roles
    }
    return EncodedTask(task, train=encoded["train"], dev=encoded["dev"], test=encoded["test"])


def encode_examples(
    task: Task,
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str = "memory",
    max_source_tokens: int | None = None,
) -> EncodedSplit:
    """Tokenise examples in memory, as for a prediction; None takes the task's own longest input.

    Raises:
        DataError: There is no example.
        BackboneError: The tokenizer does not end texts with `</s>`.
    """
    encoder = _Encoder(task, tokenizer, max_source_tokens=max_source_tokens or task.max_source_tokens)
    texts = [encoder.add(chunk) for chunk in _chunks(examples)]
    if not texts:
        raise DataError(f"task '{task.name}' got no example to encode; give it at least one")
    return EncodedSplit(
        task,
        split,
        tokens=encoder.tokens(),
        examples=pa.Table.from_batches(texts, schema=_EXAMPLES),
        digest=encoder.digest(),
    )


def encode_input(text: str, tokenizer: PreTrainedTokenizerBase, *, max_source_tokens: int) -> EncodedInput:
    """Tokenise one input text, as the training rows were.

    Raises:
        BackboneError: The tokenizer does not end texts with `</s>`.
    """
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    if not ids or ids[-1] != tokenizer.eos_token_id:
        raise BackboneError(_NO_END)
    if len(ids) <= max_source_tokens:
        return EncodedInput(ids, truncated=False)
    return EncodedInput([*ids[: max_source_tokens - 1], ids[-1]], truncated=True)


class _Ragged:
    """Integer lists of unequal length, as one flat array and its offsets."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        lists = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        offsets: IntArray = lists.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        self._flat: npt.NDArray[np.int32] = lists.values.to_numpy(zero_copy_only=True)
        self._starts = offsets[:-1]
        self.lengths: IntArray = np.diff(offsets)

    def padded(self, rows: IntArray, *, width: int, fill: int) -> IntArray:
        positions = np.arange(width)
        real = positions < self.lengths[rows, None]
        padded = np.full(real.shape, fill, dtype=np.int64)
        padded[real] = self._flat[(self._starts[rows, None] + positions)[real]]
        return padded


class _Encoder:
    """Tokenises chunks of examples; gathers their ids and the digest of all it has seen."""

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_source_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._longest = (max_source_tokens, task.max_target_tokens)
        self._batches: list[pa.RecordBatch] = []
        self._hash = hashlib.sha256()

    def add(self, examples: Sequence[Example]) -> pa.RecordBatch:
        """Tokenise a chunk and return its texts."""
        columns = []
        for texts, longest in zip(
            ([example.source for example in examples], [example.target for example in examples]),
            self._longest,
            strict=True,
        ):
            ids = self._tokenizer(texts, truncation=True, max_length=longest, verbose=False)["input_ids"]
            columns.append(self._checked(ids))
        self._batches.append(pa.record_batch(columns, schema=_TOKENS))
        rows = [[example.source, example.target, list(example.golds), example.group] for example in examples]
        self._hash.update(json.dumps(rows).encode())
        return pa.record_batch(
            [
                pa.array(column, type=kind)
                for column, kind in zip(zip(*rows, strict=True), _EXAMPLES.types, strict=True)
            ],
            schema=_EXAMPLES,
        )

    def tokens(self) -> pa.Table:
        """Return the ids of every chunk, as one record batch."""
        return pa.Table.from_batches(self._batches, schema=_TOKENS).combine_chunks()

    def digest(self) -> str:
        """Return the SHA-256 of the content so far."""
        return self._hash.hexdigest()

    def _checked(self, ids: Sequence[Sequence[int]]) -> pa.ListArray:
        offsets = np.cumsum([0, *(len(row) for row in ids)], dtype=np.int32)
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(offsets[-1]))
        if (np.diff(offsets) == 0).any() or (flat[offsets[1:] - 1] != self._tokenizer.eos_token_id).any():
            raise BackboneError(_NO_END)
        self._hash.update(offsets.astype("<i4").tobytes())
        self._hash.update(flat.astype("<i4").tobytes())
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _cached(
    task: Task,
    role: Role,
    rows: Dataset,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokenizer_digest: str,
) -> EncodedSplit:
    options = template_options(data)
    rows = rows.select_columns([name for name in rows.column_names if name in {*task.fields, *task.aliases}])
    max_source_tokens = data.max_source_tokens or task.max_source_tokens
    facts = {
        "schema": _SCHEMA,
        "task": task.name,
        "prefix": task.prefix,
        "template_version": task.template_version,
        "labels": {name: list(words) for name, words in task.labels.items()},
        "options": asdict(options),
        "expanded": role == "train",
        "max_source_tokens": max_source_tokens,
        "max_target_tokens": task.max_target_tokens,
        "tokenizer": tokenizer_digest,
        "rows": _rows_digest(rows),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    root = Path(data.cache_dir).expanduser() / "encoded"
    entry = root / f"{task.name}-{role}-{key[:24]}"

    def build(directory: Path) -> None:
        encoder = _Encoder(task, tokenizer, max_source_tokens=max_source_tokens)
        _write_table(
            directory / "examples.arrow",
            _EXAMPLES,
            (encoder.add(chunk) for chunk in _chunks(_rendered(task, role, rows, options))),
        )
        tokens = encoder.tokens()
        _write_table(directory / "tokens.arrow", _TOKENS, tokens.to_batches())
        files = {name: sha256_file(directory / name) for name in ("tokens.arrow", "examples.arrow")}
        manifest = {**facts, "content": encoder.digest(), "files": files}
        write_new(directory / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True).encode())

    with storage_errors(f"cache encoded rows in {root}", where=root):
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / f".{entry.name}.lock"):
            found = _opened(task, role, entry)
            if found is None:
                _replace(entry, build)
                found = _opened(task, role, entry)
    if found is None:
        raise DataError(
            f"{entry} cannot be read back after writing; check the disk or set data.cache_dir elsewhere"
        )
    return found


def _rendered(task: Task, role: Role, rows: Dataset, options: TemplateOptions) -> Iterator[Example]:
    number = 0
    for columns in rows.iter(batch_size=_CHUNK_ROWS):
        for values in zip(*columns.values(), strict=True):
            row: Row = dict(zip(columns, values, strict=True))
            try:
                if role == "train":
                    yield from task.train_examples(row, options)
                else:
                    yield task.eval_example(row, options)
            except DataError as error:
                raise DataError(f"{error} (row {number} of {role})") from None
            number += 1


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while chunk := list(islice(iterator, _CHUNK_ROWS)):
        yield chunk


def _rows_digest(rows: Dataset) -> str:
    """Return the SHA-256 of the rows as Arrow writes them: columns, types and values, in order."""
    sink = _HashSink()
    schema = rows.data.schema.remove_metadata()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), schema) as writer:
        for table in rows.with_format("arrow").iter(batch_size=10 * _CHUNK_ROWS):
            writer.write_table(table.replace_schema_metadata(None).combine_chunks())
    return sink.hash.hexdigest()


class _HashSink:
    """A file that keeps nothing but the SHA-256 of what is written to it."""

    closed = False

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def close(self) -> None:
        """Do nothing: there is no file."""


def _write_table(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _read_table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _opened(task: Task, role: Role, entry: Path) -> EncodedSplit | None:
    """Return the encoding of a cache entry; None if it is absent or does not hold what was written."""
    try:
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        if any(sha256_file(entry / name) != digest for name, digest in manifest["files"].items()):
            return None
        return EncodedSplit(
            task,
            role,
            tokens=_read_table(entry / "tokens.arrow"),
            examples=_read_table(entry / "examples.arrow"),
            digest=manifest["content"],
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _replace(entry: Path, build: Callable[[Path], None]) -> None:
    """Build a new entry in the place of a missing or corrupt one; the caller holds its lock."""
    temporary = entry.with_name(temporary_name(entry.name))
    temporary.mkdir()
    try:
        build(temporary)
        if entry.exists():
            corrupt = entry.with_name(temporary_name(entry.name))
            entry.rename(corrupt)
            shutil.rmtree(corrupt)
        commit_directory(temporary, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold the lock of a cache entry, so that of several processes one tokenises and the others wait for it."""
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
