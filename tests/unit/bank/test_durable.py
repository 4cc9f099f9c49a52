from __future__ import annotations

import errno
import hashlib
import os
import resource
from pathlib import Path

import pytest

from attempt_ray.bank.durable import (
    commit_directory,
    is_temporary,
    remove_temporaries,
    sha256_file,
    storage_errors,
    temporary_name,
    write_durably,
)
from attempt_ray.errors import DeadlineError, StorageError, UnavailableError


def test_a_written_file_holds_the_data_and_leaves_no_other(tmp_path):
    path = tmp_path / "report.json"
    for data in (b"old", b"new, longer", b""):
        write_durably(path, data)
        assert path.read_bytes() == data
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("operation", ["fsync", "replace", "open"])
def test_a_refused_write_keeps_the_old_content_and_leaves_no_temporary(tmp_path, monkeypatch, operation):
    path = tmp_path / "report.json"
    write_durably(path, b"old")

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, operation, refuse)
    with pytest.raises(
        StorageError, match=r"report\.json: No space left.*3 bytes needed, .* bytes free.*free some"
    ):
        write_durably(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_a_file_that_outgrows_the_limit_is_a_storage_error(tmp_path, fork):
    path = tmp_path / "report.json"
    write_durably(path, b"old")

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        try:
            write_durably(path, b"x" * 1000)
        except StorageError as error:
            return str(error)

    assert "1,000 bytes needed" in fork(work)()
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_directory_is_not_created(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_durably(tmp_path / "none" / "report.json", b"new")


def test_a_directory_is_committed_once(tmp_path):
    for attempt in ("first", "second"):
        (tmp_path / attempt / "inner").mkdir(parents=True)
        (tmp_path / attempt / "inner" / "file").write_text(attempt)
    commit_directory(tmp_path / "first", tmp_path / "final")
    with pytest.raises(FileExistsError):
        commit_directory(tmp_path / "second", tmp_path / "final")
    assert (tmp_path / "final" / "inner" / "file").read_text() == "first"
    assert (tmp_path / "second" / "inner" / "file").exists()


@pytest.mark.parametrize("taken", ["file", "link", "directory"])
def test_a_commit_never_replaces_what_appeared_after_its_check(tmp_path, monkeypatch, taken):
    temporary, final = tmp_path / "temporary", tmp_path / "final"
    temporary.mkdir()
    (temporary / "file").write_text("new")
    real = os.path.lexists
    calls = []

    def late(path):
        calls.append(path)
        return real(path) if len(calls) > 1 else False

    {
        "file": final.touch,
        "link": lambda: final.symlink_to(tmp_path),
        "directory": lambda: (final.mkdir(), (final / "other").touch()),
    }[taken]()
    monkeypatch.setattr(os.path, "lexists", late)
    with pytest.raises(FileExistsError):
        commit_directory(temporary, final)
    assert (temporary / "file").read_text() == "new"


def test_every_file_and_directory_is_synced_before_the_rename(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    (temporary / "inner").mkdir(parents=True)
    (temporary / "inner" / "deep").touch()
    (temporary / "top").touch()
    log = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(descriptor):
        log.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", lambda *names: (log.append("rename"), real_rename(*names))[1])
    commit_directory(temporary, tmp_path / "final")
    assert log == ["deep", "inner", "top", "temporary", "rename", tmp_path.name]


def test_sha256_of_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 300_000)
    assert sha256_file(path) == hashlib.sha256(b"x" * 300_000).hexdigest()


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "mount it writable"),
        (errno.EACCES, "right to write"),
        (errno.EIO, "device fails"),
        (errno.ESTALE, "mount it again"),
    ],
)
def test_refusals_name_the_fix(number, fix):
    with (
        pytest.raises(StorageError, match=rf"cannot write it: .*{fix}") as caught,
        storage_errors("write it"),
    ):
        raise OSError(number, "reason")
    with pytest.raises(StorageError, match="cannot write it") as again, storage_errors("do more"):
        raise caught.value
    assert str(again.value) == str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "x"),
        FileExistsError(17, "x"),
        OSError(errno.EBADF, "x"),
        ValueError(),
        DeadlineError("x"),
        UnavailableError("x"),
    ],
)
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as caught, storage_errors("write it"):
        raise error
    assert caught.value is error


def test_only_temporaries_are_removed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    directory = tmp_path / "directory"
    directory.mkdir()
    (directory / temporary_name("file")).touch()
    (directory / temporary_name("v000001")).mkdir()
    (directory / temporary_name("v000001") / "file").parent.mkdir()
    (directory / temporary_name("link")).symlink_to(outside)
    (directory / "file").touch()
    (directory / ".hidden").touch()
    remove_temporaries(directory)
    assert sorted(path.name for path in directory.iterdir()) == [".hidden", "file"]
    assert (outside / "kept").exists()
    remove_temporaries(tmp_path / "none")


def test_temporary_names_differ_and_are_known():
    names = {temporary_name("v000001") for _ in range(100)}
    assert len(names) == 100
    assert all(is_temporary(name) for name in names)
    assert not is_temporary("v000001")
