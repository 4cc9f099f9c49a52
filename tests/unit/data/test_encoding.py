from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast, T5TokenizerFast

from attempt_ray.config import DataConfig
from attempt_ray.data.encoding import EncodedSplit, EncodedTask, encode_examples, encode_splits
from attempt_ray.errors import BackboneError, DataError
from attempt_ray.tasks import TASKS
from attempt_ray.tasks.spec import Example, Row, Task, TemplateOptions

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
Rows = Callable[..., list[dict[str, Any]]]
Write = Callable[..., Path]


def _encode(
    task: Task, data: DataConfig, tokenizer: PreTrainedTokenizerFast, digest: str = "t1"
) -> EncodedTask:
    return encode_splits(task, data, tokenizer, tokenizer_digest=digest)


def _entries(data: DataConfig) -> list[Path]:
    return sorted(path for path in (Path(data.cache_dir) / "encoded").iterdir() if path.is_dir())


def _ids(split: EncodedSplit, row: int) -> list[int]:
    return split.inputs(np.array([row]), width=int(split.lengths[row]), pad_id=0)[0].tolist()


def test_rows_become_ids_and_texts(
    task: Task, mirror: DataConfig, tokenizer: PreTrainedTokenizerFast, make_rows: Rows
) -> None:
    encoded = _encode(task, mirror, tokenizer)
    assert (len(encoded.train), len(encoded.dev), len(encoded.test)) == (60, 20, 10)
    row = make_rows(60)[33]
    source = f"news text: {row['text']}"
    expected = Example(source=source, target="1", golds=("1",))
    assert encoded.train.examples([33]) == [expected]
    assert _ids(encoded.train, 33) == tokenizer(source)["input_ids"]
    assert encoded.train.labels(np.array([33]), width=3).tolist() == [[*tokenizer("1")["input_ids"], -100]]
    assert len(encoded.test.examples()) == 10


def test_padding_is_on_the_right(task: Task, mirror: DataConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    train = _encode(task, mirror, tokenizer).train
    padded = train.inputs(np.array([2, 0]), width=64, pad_id=9)
    for row, ids in zip((2, 0), padded, strict=True):
        length = int(train.lengths[row])
        assert ids[:length].tolist() == _ids(train, row)
        assert (ids[length:] == 9).all()


def test_truncation_keeps_the_head_and_the_end_mark(
    task: Task, mirror: DataConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    whole = _encode(task, mirror, tokenizer).train
    short = _encode(task, mirror.model_copy(update={"max_source_tokens": 6}), tokenizer).train
    assert short.lengths.max() == 6
    row = int(np.argmax(whole.lengths))
    assert _ids(short, row) == [*_ids(whole, row)[:5], 1]


def test_label_words_are_a_choice(task: Task, mirror: DataConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    words = _encode(task, mirror.model_copy(update={"label_words": "words"}), tokenizer).train
    assert [example.target for example in words.examples([0, 1])] == ["bad", "good"]


def test_training_rows_expand_and_scored_rows_do_not(
    with_rule: Callable[..., Task], mirror: DataConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    def both(_row: Row, _options: TemplateOptions) -> tuple[str, ...]:
        return ("good", "bad")

    base = with_rule()
    task = replace(base, render=replace(base.render, answers=both, expand=True))
    encoded = _encode(task, mirror, tokenizer)
    assert (len(encoded.train), len(encoded.dev)) == (120, 20)
    assert [example.target for example in encoded.train.examples([0, 1])] == ["good", "bad"]
    assert encoded.dev.examples([0])[0].golds == ("good", "bad")


def test_a_second_call_reads_the_cache(
    task: Task, mirror: DataConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    first = _encode(task, mirror, tokenizer)
    before = {path: path.stat().st_mtime_ns for path in _entries(mirror)}
    second = _encode(task, mirror, tokenizer)
    assert {path: path.stat().st_mtime_ns for path in _entries(mirror)} == before
    assert len(before) == 3
    assert first.train.digest == second.train.digest
    assert first.train.examples() == second.train.examples()


def test_the_cache_is_keyed_by_content_not_by_place(
    task: Task, mirror: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    first = _encode(task, mirror, tokenizer)
    moved = Path(str(mirror.root)).rename(tmp_path / "moved")
    second = _encode(task, mirror.model_copy(update={"root": str(moved)}), tokenizer)
    assert len(_entries(mirror)) == 3
    assert first.dev.digest == second.dev.digest


def test_what_changes_the_encoding_changes_the_entry(
    with_rule: Callable[..., Task],
    mirror: DataConfig,
    tokenizer: PreTrainedTokenizerFast,
    write_split: Write,
    make_rows: Rows,
) -> None:
    _encode(with_rule(), mirror, tokenizer)
    for number, change in enumerate(
        (
            lambda: _encode(with_rule(template_version="2"), mirror, tokenizer),
            lambda: _encode(with_rule(), mirror, tokenizer, digest="t2"),
            lambda: _encode(with_rule(), mirror.model_copy(update={"max_source_tokens": 9}), tokenizer),
            lambda: _encode(with_rule(), mirror.model_copy(update={"label_words": "words"}), tokenizer),
        ),
        start=2,
    ):
        change()
        assert len(_entries(mirror)) == 3 * number
    write_split("test", make_rows(9))
    _encode(with_rule(), mirror, tokenizer)
    assert len(_entries(mirror)) == 3 * 5 + 1


def test_columns_that_no_template_reads_do_not_matter(
    task: Task, mirror: DataConfig, tokenizer: PreTrainedTokenizerFast, write_split: Write, make_rows: Rows
) -> None:
    _encode(task, mirror, tokenizer)
    write_split("test", [{**row, "idx": -1} for row in make_rows(10, first=80)])
    _encode(task, mirror, tokenizer)
    assert len(_entries(mirror)) == 3


@pytest.mark.parametrize("name", ["tokens.arrow", "examples.arrow", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_corrupt_entry_is_built_again(
    task: Task, mirror: DataConfig, tokenizer: PreTrainedTokenizerFast, name: str, damage: str
) -> None:
    intact = _encode(task, mirror, tokenizer).train
    (entry,) = (path for path in _entries(mirror) if "-train-" in path.name)
    file = entry / name
    content = bytearray(file.read_bytes())
    file.unlink()  # `intact` maps the old file
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    again = _encode(task, mirror, tokenizer).train
    assert again.digest == intact.digest
    assert again.examples() == intact.examples()
    assert len(_entries(mirror)) == 3


def test_a_label_outside_the_verbalizer_is_refused_with_its_row(
    task: Task, mirror: DataConfig, tokenizer: PreTrainedTokenizerFast, write_split: Write, make_rows: Rows
) -> None:
    rows = make_rows(10)
    rows[3]["label"] = -1
    write_split("test", rows)
    with pytest.raises(DataError, match=r"task 'news'.*-1.*row 3 of test"):
        _encode(task, mirror, tokenizer)
    assert all(
        "-test-" not in path.name for path in (Path(mirror.cache_dir) / "encoded").iterdir() if path.is_dir()
    )


def test_a_missing_column_is_refused(
    with_rule: Callable[..., Task], mirror: DataConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = tmp_path / "own" / "news" / "train.csv"
    file.parent.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        file.with_stem(split).write_text("body,label\na,0\n")
    data = mirror.model_copy(update={"origin": "files", "root": str(tmp_path / "own")})
    with pytest.raises(DataError, match="no row field 'text'"):
        _encode(with_rule(), data, tokenizer)


def test_a_tokenizer_without_end_mark_is_refused(
    task: Task, mirror: DataConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    bare = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str()),
        eos_token="</s>",
        pad_token="<pad>",
    )
    bare.backend_tokenizer.post_processor = None
    with pytest.raises(BackboneError, match="</s>"):
        _encode(task, mirror, bare)


def test_examples_in_memory_encode_like_rows(
    task: Task, mirror: DataConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    cached = _encode(task, mirror, tokenizer).dev
    in_memory = encode_examples(task, cached.examples(), tokenizer)
    assert in_memory.digest == cached.digest
    assert in_memory.lengths.tolist() == cached.lengths.tolist()
    with pytest.raises(DataError, match="at least one"):
        encode_examples(task, [], tokenizer)


def _encode_in_process(
    task: Task, data: DataConfig, tokenizer: PreTrainedTokenizerFast, results: Any
) -> None:
    results.put(_encode(task, data, tokenizer).train.digest)


def test_processes_may_encode_at_once(
    task: Task, mirror: DataConfig, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_encode_in_process, args=(task, mirror, tokenizer, results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len({results.get() for _ in processes}) == 1
    assert len(_entries(mirror)) == 3


@pytest.mark.shared
def test_real_rows_with_the_real_tokenizer(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here")
    tokenizer = T5TokenizerFast.from_pretrained(str(SHARED / "t5_tokenizer"))
    data = DataConfig(origin="mirror", root=str(SHARED / "hub"), cache_dir=str(tmp_path))
    encoded = _encode(TASKS["rte"], data, tokenizer)
    assert (len(encoded.train), len(encoded.dev), len(encoded.test)) == (2490, 138, 139)
    example = encoded.test.examples([5])[0]
    assert _ids(encoded.test, 5) == tokenizer(example.source)["input_ids"]
    assert {example.target for example in encoded.dev.examples()} == {"0", "1"}
