"""What every storage promises, for each of them."""

from __future__ import annotations

import threading
import time

import pytest
from pyarrow import fs

from attempt_ray.bank.local import LocalStorage
from attempt_ray.bank.places import open_storage
from attempt_ray.bank.remote import RemoteStorage
from attempt_ray.bank.storage import Entry
from attempt_ray.errors import IntegrityError


@pytest.fixture(params=["local", "memory", "arrow", "s3"])
def storage(request, tmp_path):
    if request.param == "s3":
        return open_storage(f"{request.getfixturevalue('s3').replace('/attempt?', '/bank?')}")
    if request.param == "local":
        return LocalStorage(tmp_path / "bank")
    if request.param == "memory":
        return open_storage(f"fsspec+memory://{tmp_path.name}/bank")
    return RemoteStorage(fs.LocalFileSystem(), str(tmp_path / "bank"), scheme="arrow")


def test_nothing_is_there_at_first(storage):
    assert storage.entries("") == storage.entries("source/mnli") == []
    with pytest.raises(FileNotFoundError):
        storage.read("source/mnli/aliases.json", limit=10)


def test_a_committed_directory_is_read_back(storage):
    with storage.lock():
        storage.sweep("source/mnli")
        storage.commit("source/mnli/v000001", {"b": b"12", "a": b""})
        storage.settle("source/mnli")
    assert storage.entries("source/mnli/v000001") == [Entry("a", "file"), Entry("b", "file")]
    assert storage.entries("source/mnli") == [Entry("v000001", "directory")]
    assert storage.read("source/mnli/v000001/b", limit=2) == b"12"
    assert storage.place("source").endswith("bank/source")


def test_a_commit_never_replaces(storage):
    storage.commit("source/mnli/v000001", {"a": b"old"})
    with pytest.raises(FileExistsError):
        storage.commit("source/mnli/v000001", {"a": b"new", "b": b""})
    assert storage.entries("source/mnli/v000001") == [Entry("a", "file")]
    assert storage.read("source/mnli/v000001/a", limit=9) == b"old"


def test_of_many_that_commit_at_once_at_most_one_wins(storage):
    for number in range(5):
        barrier, won = threading.Barrier(4), []

        def commit(writer, path=f"source/mnli/v{number:06d}", barrier=barrier, won=won):
            barrier.wait()
            try:
                storage.commit(path, {"first": writer, "last": writer})
            except FileExistsError:
                return
            won.append(writer)

        threads = [threading.Thread(target=commit, args=(bytes([writer]),)) for writer in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) <= 1
        assert len(won) == 1 or not storage.commits_whole
        for writer in won:
            names = [entry.name for entry in storage.entries(f"source/mnli/v{number:06d}")]
            assert names == ["first", "last"]
            assert {storage.read(f"source/mnli/v{number:06d}/{name}", limit=9) for name in names} == {writer}


def test_a_file_is_replaced(storage):
    for data in (b"old", b"new"):
        storage.replace("source/mnli/aliases.json", data)
    assert storage.read("source/mnli/aliases.json", limit=3) == b"new"
    assert storage.entries("source/mnli") == [Entry("aliases.json", "file")]


def test_what_is_too_large_or_no_file_is_refused(storage):
    storage.commit("source/mnli/v000001", {"a": b"123"})
    with pytest.raises(IntegrityError, match="larger than the 2 bytes"):
        storage.read("source/mnli/v000001/a", limit=2)
    with pytest.raises(IntegrityError):
        storage.read("source/mnli/v000001", limit=2)


def test_files_and_directories_are_removed_and_what_is_not_there_is_as_good(storage):
    storage.remove("source")
    storage.commit("source/mnli/v000001", {"a": b"1", "b": b"2"})
    storage.replace("source/mnli/aliases.json", b"3")
    storage.remove("source/mnli/v000001/a")
    assert storage.entries("source/mnli/v000001") == [Entry("b", "file")]
    storage.remove("source/mnli/v000001")
    storage.remove("source/mnli/v000001")
    assert storage.entries("source/mnli") == [Entry("aliases.json", "file")]


def test_a_store_tells_when_an_object_was_written(s3):
    storage = open_storage(s3)
    for name in ("first", "second"):
        storage.replace(name, b"")
        time.sleep(1.1)  # S3 tells whole seconds
    first, second = storage.entries("")
    assert first.modified < second.modified
