from __future__ import annotations

import socket
from pathlib import Path

import pytest

from attempt_ray.bank import places
from attempt_ray.bank.local import LocalStorage
from attempt_ray.bank.places import below, check_reachable, open_runs, open_storage
from attempt_ray.bank.remote import RemoteStorage
from attempt_ray.errors import BankError, ConfigError, StorageError


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


def test_a_place_that_answers_is_left_as_it_was(tmp_path, s3):
    for uri in (str(tmp_path / "bank"), s3):
        storage = open_storage(uri)
        check_reachable(storage)
        assert storage.entries("") == []


def test_a_store_that_is_down_is_told_of_in_one_line(unused_port):
    options = f"endpoint_override=127.0.0.1:{unused_port}&scheme=http"
    with pytest.raises(
        StorageError,
        match=r"cannot list s3://bucket/x/?: .*NETWORK_CONNECTION.*check that the store can be reached",
    ):
        check_reachable(open_storage(f"s3://bucket/x?{options}&region=us-east-1"))


def test_a_store_that_cannot_be_asked_for_its_region_is_told_of(monkeypatch):
    class Unreachable:
        def from_uri(self, uri):
            raise OSError(f"When resolving region for {uri}: NETWORK_CONNECTION")

    monkeypatch.setattr(places.fs, "FileSystem", Unreachable())
    with pytest.raises(
        StorageError, match=r"cannot open runs at its 's3' URI: .*NETWORK_CONNECTION; check that"
    ):
        open_runs("s3://bucket/x")
    with pytest.raises(StorageError, match="cannot open bank at its 's3' URI; check that"):
        open_storage("s3://user:hunter2@bucket/x")


def test_a_store_that_takes_calls_and_says_nothing_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        storage = open_storage(
            f"s3://bucket/x?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        )
        with pytest.raises(StorageError, match=r"cannot reach s3://bucket/x: no answer in 0 s"):
            check_reachable(storage, seconds=0.2)


def test_a_bucket_that_is_not_there_and_an_option_that_is_none_are_named(s3):
    bucket = s3.partition("://")[2].partition("/")[0]
    with pytest.raises(StorageError, match="Bucket 'no-such-bucket' not found"):
        check_reachable(open_storage(s3.replace(bucket, "no-such-bucket")))
    with pytest.raises(BankError, match="Unexpected query parameter in S3 URI: 'nope'"):
        open_storage(f"{s3}&nope=1")


def test_runs_that_are_no_place_are_the_configs_fault():
    with pytest.raises(ConfigError, match="cannot open runs at its 'nope' URI"):
        open_runs("nope://x")


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("runs", "runs/x"),
        ("/shared/runs/", "/shared/runs/x"),
        ("s3://mine/runs/", "s3://mine/runs/x"),
        ("s3://mine/runs?region=eu&scheme=http", "s3://mine/runs/x?region=eu&scheme=http"),
    ],
)
def test_a_name_below_a_place_leaves_the_options_of_a_uri_behind_it(place: str, found: str) -> None:
    assert below(place, "x") == found
