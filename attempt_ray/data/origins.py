"""Where rows come from: the hub, a mirror of it, the user's own files, or the embedded micro-world.

Whatever the origin, rows arrive as a `datasets.Dataset` in the schema of the task's hub data set.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets import Dataset

from attempt_ray.bank.durable import storage_errors
from attempt_ray.config import DataConfig
from attempt_ray.data import microworld
from attempt_ray.errors import DataError, StorageError, unknown_name
from attempt_ray.tasks.spec import Task

_READERS = {".parquet": "parquet", ".jsonl": "json", ".csv": "csv"}


def load_split(task: Task, split: str, data: DataConfig) -> Dataset:
    """Return the rows of one split, under the name the origin has for it.

    Raises:
        DataError: The origin has no such split or cannot be reached, the file cannot be read, or it holds no row.
        StorageError: The disk refused the copy that `datasets` keeps under `data.cache_dir`.
    """
    if data.origin == "embedded":
        count = data.embedded_train_rows if split == "train" else None
        rows = _generated(task.name, split, seed=data.embedded_seed, count=count)
    elif data.origin == "hub":
        rows = _from_hub(task, split)
    elif data.origin == "mirror":
        rows = _from_file(task, _mirror_file(task, split, _root(data)), data)
    else:
        rows = _from_file(task, _own_file(task, split, _root(data)), data)
    if len(rows) == 0:
        raise DataError(
            f"split '{split}' of task '{task.name}' holds no row in origin '{data.origin}'; give it at least one"
        )
    return rows


@functools.lru_cache(maxsize=96)
def _generated(task: str, split: str, *, seed: int, count: int | None) -> Dataset:
    """Return embedded rows, which a worker with many runs of one task need not draw again."""
    return Dataset.from_list(microworld.rows(task, split, seed=seed, count=count))


def _root(data: DataConfig) -> Path:
    if data.root is None:
        raise DataError(f"data.origin '{data.origin}' needs data.root; set it to the directory of the rows")
    root = Path(data.root).expanduser()
    if not root.is_dir():
        raise DataError(f"data.root '{data.root}' is no directory; set it to the directory of the rows")
    return root


def _from_hub(task: Task, split: str) -> Dataset:
    if not task.hub_id:
        raise DataError(f"task '{task.name}' has no data set on the hub; set data.origin=files and data.root")
    name = task.hub_id if task.hub_config is None else f"{task.hub_id} ({task.hub_config})"
    try:
        rows = datasets.load_dataset(task.hub_id, task.hub_config, revision=task.revision, split=split)
    except (ConnectionError, TimeoutError) as error:
        raise DataError(
            f"cannot reach the hub for {name} of task '{task.name}': {_first_line(error)}; connect, or set "
            "data.origin=mirror with data.root (a directory in hub layout), or data.origin=files"
        ) from error
    # The hub's client raises errors of many libraries; all of them mean that these rows cannot be had.
    except Exception as error:
        _raise_if_disk_refused(error, f"keep the rows of {name}")
        raise DataError(
            f"the hub gives no split '{split}' of {name} for task '{task.name}': {_first_line(error)}; check the "
            "task's hub id, config, revision and split, or set data.origin=mirror or files with data.root"
        ) from error
    return rows


def _mirror_file(task: Task, split: str, root: Path) -> Path:
    if not task.hub_id:
        raise DataError(f"task '{task.name}' has no data set on the hub, so no mirror; set data.origin=files")
    directory = root / task.hub_id / (task.hub_config or "default")
    file = directory / f"{split}.parquet"
    if not file.is_file():
        raise DataError(
            f"mirror {root} has no split '{split}' of task '{task.name}'; {_what_is_there(directory)}; "
            f"add {file.relative_to(root)} or set data.origin=hub"
        )
    return file


def _own_file(task: Task, split: str, root: Path) -> Path:
    directory = root / task.name
    found = [file for suffix in _READERS if (file := directory / f"{split}{suffix}").is_file()]
    if not found:
        raise DataError(
            f"{root} has no split '{split}' of task '{task.name}'; {_what_is_there(directory)}; "
            f"add {task.name}/{split}.parquet, .jsonl or .csv"
        )
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise DataError(f"{directory} holds the split '{split}' twice, as {names}; keep one")
    return found[0]


def _what_is_there(directory: Path) -> str:
    """Say which splits `directory` holds, or which directories stand beside the first one missing on its path."""
    if directory.is_dir():
        splits = sorted(file.stem for file in directory.iterdir() if file.suffix in _READERS)
        return f"there are: {', '.join(splits) or '(no files of rows)'}"
    missing = directory
    while not missing.parent.is_dir():
        missing = missing.parent
    beside = [entry.name for entry in missing.parent.iterdir() if entry.is_dir()]
    return unknown_name(f"directory in {missing.parent}:", missing.name, beside)


def _from_file(task: Task, file: Path, data: DataConfig) -> Dataset:
    # pandas would read the words "null" and "NA" as missing values; here they are text.
    options = {"keep_default_na": False} if file.suffix == ".csv" else {}
    cache = str(Path(data.cache_dir).expanduser() / "rows")
    if file.stat().st_size == 0:
        raise DataError(f"{file} of task '{task.name}' is an empty file; give it at least one row")
    try:
        with _quiet():
            return datasets.load_dataset(
                _READERS[file.suffix],
                data_files={"rows": str(file)},
                split="rows",
                cache_dir=cache,
                **options,
            )
    # Readers raise errors of pyarrow, pandas and datasets alike; all of them mean that the file cannot be used.
    except Exception as error:
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):  # how `datasets` reports a header without a row
            raise DataError(f"{file} of task '{task.name}' holds no row; give it at least one") from error
        _raise_if_disk_refused(cause, f"keep the rows of {file} under {cache}")
        raise DataError(
            f"cannot read {file} of task '{task.name}' as {file.suffix[1:]}: {_first_line(cause)}; write it again"
        ) from error


def _raise_if_disk_refused(error: BaseException, what: str) -> None:
    if isinstance(error, OSError) and error.errno is not None:
        try:
            with storage_errors(what):
                raise error
        except StorageError:
            raise
        except OSError:
            return  # some other trouble, which the caller describes


@contextmanager
def _quiet() -> Iterator[None]:
    """Hush the progress bars and log lines of `datasets`: a local file loads at once, and errors are told by us."""
    logger = logging.getLogger("datasets")
    level, bars_were_off = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars_were_off:
            datasets.enable_progress_bars()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
