from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from attempt_ray.bank import local
from attempt_ray.bank.durable import temporary_name
from attempt_ray.bank.local import LocalStorage
from attempt_ray.bank.storage import Entry
from attempt_ray.errors import IntegrityError, StorageError

VERSION = "source/mnli/v000001"
FILES = {"tensors": b"12345", "manifest": b"{}"}
OPERATIONS = ("open", "fsync", "mkdir", "rename", "replace")


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path / "bank")


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name != ".lock")


def fail_at(monkeypatch, wanted: int, number: int) -> list[str]:
    """Let the `wanted`-th file operation of this thread fail once, for all it matters to its caller."""
    log: list[str] = []
    thread = threading.get_ident()

    def failing(name, real):
        def operation(*args, **kwargs):
            if threading.get_ident() == thread:
                log.append(name)
                if len(log) == wanted:
                    raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        return operation

    for name in OPERATIONS:
        monkeypatch.setattr(os, name, failing(name, getattr(os, name)))
    return log


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT], ids=errno.errorcode.get
)
def test_a_failure_of_any_operation_of_a_commit_leaves_all_or_nothing(tmp_path, monkeypatch, number):
    wanted, whole = 0, ["source", "source/mnli", VERSION, f"{VERSION}/manifest", f"{VERSION}/tensors"]
    while True:
        wanted += 1
        root = tmp_path / str(wanted)
        root.mkdir()
        log = fail_at(monkeypatch, wanted, number)
        try:
            LocalStorage(root).commit(VERSION, FILES)
        except StorageError:
            monkeypatch.undo()
            # Only the sync that follows the rename can fail with the version in place.
            assert everything(root) in ([], whole)
            if everything(root):
                assert log[wanted - 2 : wanted] in (["rename", "open"], ["open", "fsync"])
            continue
        monkeypatch.undo()
        assert everything(root) == whole
        break
    assert wanted > 12


def test_a_failure_of_any_operation_of_a_replacement_leaves_old_or_new(storage, monkeypatch):
    wanted = 0
    while True:
        wanted += 1
        storage.replace("source/mnli/aliases.json", b"old")
        fail_at(monkeypatch, wanted, errno.ENOSPC)
        try:
            storage.replace("source/mnli/aliases.json", b"new")
        except StorageError:
            monkeypatch.undo()
            assert storage.read("source/mnli/aliases.json", limit=9) in (b"old", b"new")
            assert storage.entries("source/mnli") == [Entry("aliases.json", "file")]
            continue
        break
    assert wanted > 4


def test_links_are_not_followed(storage, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "manifest").write_text("secret")
    (outside / temporary_name("kept")).touch()
    (storage.root / "source").mkdir(parents=True)
    (storage.root / "source" / "mnli").symlink_to(outside)
    (storage.root / "target").symlink_to(outside)
    (storage.root / "file").symlink_to(outside / "manifest")
    for path in ("source/mnli/manifest", "target/manifest", "file", "target/inner/manifest"):
        with pytest.raises(IntegrityError, match="a link"):
            storage.read(path, limit=100)
    for path in ("source/mnli", "target", "target/x"):
        with pytest.raises(IntegrityError, match="a link"):
            storage.entries(path)
        with pytest.raises(IntegrityError, match="a link"):
            storage.commit(f"{path}/v000001", FILES)
        with pytest.raises(IntegrityError, match="a link"):
            storage.replace(f"{path}/aliases.json", b"")
        with pytest.raises(IntegrityError, match="a link"):
            storage.sweep(path)
        with pytest.raises(IntegrityError, match="a link"):
            storage.settle(path)
    assert len(list(outside.iterdir())) == 2
    assert {entry.kind for entry in storage.entries("") if entry.name != "source"} == {"other"}


def test_pipes_devices_and_sockets_are_refused_at_once(storage, monkeypatch):
    storage.root.mkdir()
    os.mkfifo(storage.root / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(storage.root)
    listener.bind("socket")
    listener.close()
    for name in ("pipe", "socket"):
        with pytest.raises(IntegrityError):
            storage.read(name, limit=10)
    if os.geteuid() == 0:
        os.mknod(storage.root / "zero", 0o20600, os.makedev(1, 5))
        with pytest.raises(IntegrityError):
            storage.read("zero", limit=10)


def test_a_root_that_is_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "bank").touch()
    storage = LocalStorage(tmp_path / "bank")
    for work in (
        lambda: storage.entries(""),
        lambda: storage.lock().__enter__(),
        lambda: storage.read("a", limit=1),
    ):
        with pytest.raises(StorageError, match="choose another directory"):
            work()


def test_a_root_that_is_a_broken_link_is_refused(tmp_path):
    (tmp_path / "bank").symlink_to(tmp_path / "none")
    with pytest.raises(IntegrityError), LocalStorage(tmp_path / "bank").lock():
        pass


def test_a_root_behind_a_link_is_the_users_choice(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "bank").symlink_to(tmp_path / "disk")
    LocalStorage(tmp_path / "bank").commit(VERSION, FILES)
    assert (tmp_path / "disk" / VERSION / "manifest").exists()


def test_the_lock_keeps_others_out_and_is_released(storage, monkeypatch):
    monkeypatch.setattr(local, "LOCK_SECONDS", 0.02)
    with storage.lock():
        with pytest.raises(StorageError, match="another process holds it"), storage.lock():
            pass
    with storage.lock():
        pass


def test_a_killed_writer_leaves_the_lock_open_and_its_rest_is_swept(storage, fork):
    def work():
        with storage.lock():
            storage.replace("source/mnli/aliases.json", b"old")
            (storage.root / "source" / "mnli" / temporary_name("v000001")).mkdir()
            os._exit(9)

    assert fork(work)() == 9
    assert len(storage.entries("source/mnli")) == 2
    with storage.lock():
        storage.sweep("source/mnli")
        storage.settle("source/mnli")
    assert storage.entries("source/mnli") == [Entry("aliases.json", "file")]
