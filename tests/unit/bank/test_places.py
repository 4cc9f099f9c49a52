from __future__ import annotations

from pathlib import Path

import pytest

from attempt_ray.bank.local import LocalStorage
from attempt_ray.bank.places import open_storage
from attempt_ray.bank.remote import RemoteStorage
from attempt_ray.errors import BankError


def test_paths_and_file_uris_are_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in (str(tmp_path / "bank"), "bank", f"file://{tmp_path}/bank"):
        storage = open_storage(uri)
        assert isinstance(storage, LocalStorage)
        assert storage.place() == f"{tmp_path}/bank"
    assert open_storage("~/bank").place() == str(Path.home() / "bank")
    assert list(tmp_path.iterdir()) == []


def test_other_uris_are_remote():
    storage = open_storage("fsspec+memory://shelf/bank")
    assert isinstance(storage, RemoteStorage)
    assert storage.place("source") == "fsspec+memory://shelf/bank/source"


@pytest.mark.parametrize("uri", ["", " ", "a\0b", None, 3, "nope://x", "file://relative/x", "s4://bucket"])
def test_other_texts_are_refused(uri):
    with pytest.raises(BankError, match="wanted a directory, or a URI"):
        open_storage(uri)


def test_a_password_is_not_repeated():
    with pytest.raises(BankError) as caught:
        open_storage("s4://user:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)
    storage = open_storage("s3://user:hunter2@bucket/x?region=eu-west-1")
    assert storage.place() == "s3://bucket/x"
