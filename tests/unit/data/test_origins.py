from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from datasets import Dataset

from attempt_ray.config import DataConfig
from attempt_ray.data.origins import load_split
from attempt_ray.errors import DataError
from attempt_ray.tasks import get_task
from attempt_ray.tasks.spec import Task

Rows = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def own(tmp_path: Path) -> DataConfig:
    (tmp_path / "own" / "news").mkdir(parents=True)
    return DataConfig(origin="files", root=str(tmp_path / "own"), cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def own_dir(own: DataConfig) -> Path:
    assert own.root is not None
    return Path(own.root) / "news"


def test_a_mirror_gives_hub_rows_with_class_ids(task: Task, mirror: DataConfig, make_rows: Rows) -> None:
    assert load_split(task, "train", mirror).to_list() == make_rows(60)


def test_a_mirror_without_the_split_says_what_is_there(task: Task, mirror: DataConfig) -> None:
    with pytest.raises(DataError, match=r"no split 'validation_matched'.*there are: test, train, validation"):
        load_split(task, "validation_matched", mirror)


def test_a_mirror_without_the_config_names_the_nearest(
    with_rule: Callable[..., Task], mirror: DataConfig
) -> None:
    with pytest.raises(DataError, match=r"no directory in .*owner/news: 'plane'; did you mean 'plain'"):
        load_split(with_rule(hub_config="plane"), "train", mirror)


def test_a_mirror_without_the_data_set_says_so(with_rule: Callable[..., Task], mirror: DataConfig) -> None:
    with pytest.raises(DataError, match=r"no directory in .*: 'zzz'; choose one of: owner"):
        load_split(with_rule(hub_id="zzz/thing"), "train", mirror)


def test_a_data_set_without_configs_is_at_default(
    with_rule: Callable[..., Task], tmp_path: Path, write_split: Callable[..., Path], make_rows: Rows
) -> None:
    root = write_split("train", make_rows(3), config="default")
    data = DataConfig(origin="mirror", root=str(root), cache_dir=str(tmp_path / "cache"))
    assert len(load_split(with_rule(hub_config=None), "train", data)) == 3


def test_a_mirror_cannot_serve_a_task_without_hub_id(
    with_rule: Callable[..., Task], mirror: DataConfig
) -> None:
    with pytest.raises(DataError, match=r"no data set on the hub.*data\.origin=files"):
        load_split(with_rule(hub_id=""), "train", mirror)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_own_files_of_every_format_give_the_same_rows(
    task: Task, own: DataConfig, own_dir: Path, make_rows: Rows, suffix: str
) -> None:
    rows = Dataset.from_list(make_rows(5))
    path = str(own_dir / f"train.{suffix}")
    {"parquet": rows.to_parquet, "jsonl": rows.to_json, "csv": rows.to_csv}[suffix](path)
    assert load_split(task, "train", own).to_list() == make_rows(5)


def test_csv_words_that_look_like_missing_values_stay_words(
    task: Task, own: DataConfig, own_dir: Path
) -> None:
    (own_dir / "train.csv").write_text("text,label\nnull,0\nNA,1\n")
    assert load_split(task, "train", own)["text"][:] == ["null", "NA"]


def test_a_rewritten_file_is_read_again(task: Task, own: DataConfig, own_dir: Path) -> None:
    file = own_dir / "train.csv"
    file.write_text("text,label\na,0\n")
    load_split(task, "train", own)
    file.write_text("text,label\nb,0\n")
    assert load_split(task, "train", own)["text"][:] == ["b"]


def test_own_files_without_the_split_say_what_is_there(task: Task, own: DataConfig, own_dir: Path) -> None:
    (own_dir / "train.csv").write_text("text,label\na,0\n")
    with pytest.raises(DataError, match=r"no split 'test'.*there are: train; add news/test\.parquet"):
        load_split(task, "test", own)


def test_a_split_in_two_formats_is_refused(task: Task, own: DataConfig, own_dir: Path) -> None:
    (own_dir / "train.csv").write_text("text,label\na,0\n")
    (own_dir / "train.jsonl").write_text('{"text": "a", "label": 0}\n')
    with pytest.raises(DataError, match=r"twice, as train\.jsonl and train\.csv; keep one"):
        load_split(task, "train", own)


@pytest.mark.parametrize(
    ("name", "content"),
    [("train.csv", b""), ("train.csv", b"text,label\n"), ("train.jsonl", b""), ("train.parquet", b"")],
)
def test_an_empty_file_is_refused(
    task: Task, own: DataConfig, own_dir: Path, name: str, content: bytes
) -> None:
    (own_dir / name).write_bytes(content)
    with pytest.raises(DataError, match="give it at least one"):
        load_split(task, "train", own)


def test_a_parquet_file_without_rows_is_refused(
    task: Task, tmp_path: Path, write_split: Callable[..., Path]
) -> None:
    root = write_split("train", [])
    data = DataConfig(origin="mirror", root=str(root), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match="at least one"):
        load_split(task, "train", data)


@pytest.mark.parametrize(
    ("name", "content"),
    [("train.parquet", b"PAR1 no"), ("train.jsonl", b"{\n"), ("train.csv", b"\xff\xfe\xff\n")],
)
def test_a_broken_file_is_refused_in_one_line(
    task: Task, own: DataConfig, own_dir: Path, name: str, content: bytes
) -> None:
    (own_dir / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot read .*{name} of task 'news'") as caught:
        load_split(task, "train", own)
    assert "\n" not in str(caught.value)


def test_a_root_that_is_no_directory_is_refused(task: Task, tmp_path: Path) -> None:
    data = DataConfig(origin="files", root=str(tmp_path / "absent"))
    with pytest.raises(DataError, match="is no directory"):
        load_split(task, "train", data)


def test_the_hub_offline_names_the_other_origins(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"cannot reach the hub for owner/news \(plain\).*data\.origin=mirror"
    ):
        load_split(task, "train", DataConfig())


def test_a_hub_data_set_without_the_split_is_refused(
    with_rule: Callable[..., Task], mirror: DataConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A local directory goes through the same loader as a hub id.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub_cache")
    local = with_rule(hub_id=f"{mirror.root}/owner/news/plain", hub_config=None)
    assert len(load_split(local, "train", DataConfig())) == 60
    with pytest.raises(DataError, match=r"gives no split 'dev'.*Unknown split"):
        load_split(local, "dev", DataConfig())


def test_embedded_rows_are_generated_by_seed() -> None:
    task = get_task("rte")
    rows = load_split(task, "validation", DataConfig(origin="embedded", embedded_seed=3))
    again = load_split(task, "validation", DataConfig(origin="embedded", embedded_seed=3))
    other = load_split(task, "validation", DataConfig(origin="embedded", embedded_seed=4))
    assert rows.to_list() == again.to_list() != other.to_list()


def test_more_embedded_rows_can_be_trained_on_without_moving_the_others() -> None:
    few, more = (DataConfig(origin="embedded", embedded_train_rows=count) for count in (3, 400))
    task = get_task("cb")
    assert len(load_split(task, "train", few)) == 3
    assert len(load_split(task, "train", more)) == 400
    assert load_split(task, "test", few).to_list() == load_split(task, "test", more).to_list()
