from __future__ import annotations

import contextlib
import os
import threading
import time

import pytest

from attempt_ray.bank.places import open_storage
from attempt_ray.errors import ConfigError, StorageError
from attempt_ray.training import lease as module
from attempt_ray.training.lease import Holder, Lease, this_process


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STALE_SECONDS": 1.5, "RENEW_SECONDS": 0.3, "LOOK_SECONDS": 0.2}.items():
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def storage(s3):
    return open_storage(s3)


def lease(storage, name, lock=""):
    return Lease(storage, "run/.lease", run="run", holder=Holder(name=name, lock=lock))


def test_of_many_at_once_one_holds_and_the_others_are_told_who(storage, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 30.0)  # a busy machine may not renew within a second
    barrier, holding, refused, most = threading.Barrier(4), [], [], []

    def work(name):
        barrier.wait()
        try:
            with lease(storage, name).held():
                holding.append(name)
                most.append(len(holding))
                time.sleep(4)
                holding.remove(name)
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work, args=(f"number {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(refused) == 4
    assert refused
    assert all("executed by number" in line for line in refused)
    assert storage.entries("run/.lease") == []


def test_a_dead_holder_is_followed_once_it_is_stale(storage):
    time.sleep(1 - time.time() % 1)  # by whole seconds, what is written now ages slowest
    storage.replace("run/.lease/dead", b'{"holder": "dead", "lock": "lock"}')
    with lease(storage, "next").held():
        assert "dead" not in [entry.name for entry in storage.entries("run/.lease")]


def test_a_holder_whose_lock_this_process_has_is_gone(storage, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 3600)
    storage.replace("run/.lease/dead", b'{"holder": "dead", "lock": "lock"}')
    with lease(storage, "next", lock="lock").held():
        assert "dead" not in [entry.name for entry in storage.entries("run/.lease")]


def test_an_object_that_is_no_lease_holds_too(storage, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 3600)
    storage.replace("run/.lease/odd", b"\xff")
    renewing = threading.Timer(1.5, storage.replace, args=("run/.lease/odd", b"[]"))
    renewing.start()
    with pytest.raises(ConfigError, match="executed by another process"), lease(storage, "next").held():
        pass


def test_a_holder_that_was_cut_off_gives_way(storage, monkeypatch):
    monkeypatch.setattr(module, "RENEW_SECONDS", 3600)  # no renewal of its own between the lines below
    first = lease(storage, "first")
    with first.held():
        first.check()
        first._renewed -= module.STALE_SECONDS
        storage.replace("run/.lease/other", b'{"holder": "other", "lock": ""}')
        with pytest.raises(ConfigError, match="taken over by other"):
            first.check()
        assert [entry.name for entry in storage.entries("run/.lease")] == ["other"]


def test_a_holder_goes_on_when_the_store_answers_again(storage, monkeypatch):
    first = lease(storage, "first")
    with first.held():
        with monkeypatch.context() as down:

            def refuse(*_):
                raise StorageError("down")

            down.setattr(storage, "replace", refuse)
            first._renewed -= module.STALE_SECONDS
            with pytest.raises(StorageError):
                first.check()
        first.check()


def test_this_process_is_told_by_number_machine_and_lock(tmp_path):
    with (
        (tmp_path / "a").open("w") as one,
        (tmp_path / "a").open() as same,
        (tmp_path / "b").open("w") as other,
    ):
        holder = this_process(one.fileno())
        assert holder.name.startswith(f"process {os.getpid()} on ")
        assert holder == this_process(same.fileno()) != this_process(other.fileno())


def test_the_lease_is_left_even_where_the_store_is_down(storage, monkeypatch):
    with contextlib.ExitStack() as stack:
        stack.enter_context(lease(storage, "first").held())

        def refuse(*_):
            raise StorageError("down")

        monkeypatch.setattr(storage, "remove", refuse)
