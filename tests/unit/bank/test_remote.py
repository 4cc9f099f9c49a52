from __future__ import annotations

import io

import pytest
from pyarrow import PythonFile, fs

from attempt_ray.bank import Bank
from attempt_ray.bank.places import open_storage
from attempt_ray.bank.remote import CLAIM, RemoteStorage
from attempt_ray.bank.storage import Entry
from attempt_ray.errors import IntegrityError, StorageError


class Upload(io.BytesIO):
    """An object that is there once it is closed."""

    def __init__(self, files, path):
        super().__init__()
        self.files, self.path = files, path

    def close(self):
        if not self.closed:
            self.files[self.path] = self.getvalue()
        super().close()


class Unreliable(fs.FileSystemHandler):
    """A store in memory that refuses its n-th write, in words of its own."""

    def __init__(self, refuse=0):
        self.files, self.writes, self.refuse = {}, 0, refuse

    def get_type_name(self):
        return "unreliable"

    def open_output_stream(self, path, metadata):
        self.writes += 1
        if self.writes == self.refuse:
            raise OSError("AWS Error ACCESS_DENIED during PutObject")
        return PythonFile(Upload(self.files, path), mode="w")

    def create_dir(self, path, recursive):
        pass

    def delete_file(self, path):
        if self.files.pop(path, None) is None:
            raise FileNotFoundError(path)

    def get_file_info_selector(self, selector):
        return [
            fs.FileInfo(path, fs.FileType.File, size=len(data))
            for path, data in self.files.items()
            if path.rpartition("/")[0] == selector.base_dir
        ]

    def get_file_info(self, paths):
        raise OSError("timed out")

    def _unused(self, *args):
        raise NotImplementedError

    copy_file = delete_dir = delete_dir_contents = delete_root_dir_contents = move = normalize_path = _unused
    open_append_stream = open_input_file = open_input_stream = _unused


def test_the_last_file_is_written_last_and_a_refused_write_leaves_nothing():
    files = {"tensors": b"1", "record": b"2", "manifest": b"3"}
    for refuse in range(1, 5):
        handler = Unreliable(refuse)
        storage = RemoteStorage(fs.PyFileSystem(handler), "bucket/bank", scheme="s3")
        with pytest.raises(
            StorageError,
            match=r"cannot publish s3://bucket/bank/source/x/v000001: .*ACCESS_DENIED.*credentials",
        ):
            storage.commit("source/x/v000001", files)
        assert handler.files == {}
        storage.commit("source/x/v000001", files)
        assert [path.rpartition("/")[2] for path in handler.files] == ["tensors", "record", "manifest"]


def test_a_store_that_does_not_answer_is_a_storage_error():
    storage = RemoteStorage(fs.PyFileSystem(Unreliable()), "bucket/bank", scheme="s3")
    with pytest.raises(
        StorageError, match=r"cannot read s3://bucket/bank/x: timed out; check that the store can be reached"
    ):
        storage.read("x", limit=1)


def test_a_claimed_number_is_left_alone(tmp_path):
    storage = RemoteStorage(fs.LocalFileSystem(), str(tmp_path), scheme="arrow")
    (tmp_path / "source" / "x" / "v000001").mkdir(parents=True)
    (tmp_path / "source" / "x" / "v000001" / f"{CLAIM}1").touch()
    with pytest.raises(FileExistsError):
        storage.commit("source/x/v000001", {"manifest": b""})
    assert storage.entries("source/x/v000001") == [Entry(f"{CLAIM}1", "file")]


def test_a_bank_on_an_s3_server_publishes_promotes_verifies_and_tells_damage(s3, facts, prompt):
    bank = Bank(s3)
    first, second = (bank.publish("source", "mnli", prompt(seed), facts) for seed in (1, 2))
    assert bank.publish("source", "mnli", prompt(2), facts) == second
    assert bank.promote("source/mnli@v1") == first
    assert bank.promote("source/mnli") == second
    assert bank.rollback("source", "mnli") == first
    other = Bank(s3)
    assert other.resolve("source/mnli") == first
    assert other.load("source/mnli@v2").tensors["prompt"].tolist() == prompt(2)["prompt"].tolist()
    assert other.verify() == []
    storage = open_storage(s3)
    for name, damage in (
        ("tensors.safetensors", lambda data: data[:-1]),
        ("manifest.json", lambda data: b"{}"),
    ):
        path = f"source/mnli/v000002/{name}"
        whole = storage.read(path, limit=2**20)
        storage.replace(path, damage(whole))
        with pytest.raises(IntegrityError, match="expected"):
            bank.load("source/mnli@v2")
        assert [problem.fault for problem in bank.verify()] == ["damaged"]
        storage.replace(path, whole)
    storage.remove("source/mnli/v000002/manifest.json")
    assert [problem.fault for problem in bank.verify()] == ["unfinished"]
    assert bank.publish("source", "mnli", prompt(2), facts).number == 3
