from __future__ import annotations

import errno
import os
import pickle
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from attempt_ray.bank import Bank, Manifest, Version
from attempt_ray.errors import BankError, IntegrityError, StorageError


@pytest.fixture
def published(bank, facts, prompt):
    """A bank with three versions of one prompt."""
    for seed in (1, 2, 3):
        bank.publish("source", "mnli", prompt(seed), facts)
    return bank


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def test_what_is_published_is_loaded_bit_for_bit(any_bank, facts, prompt):
    version = any_bank.publish("target", "rte", prompt(1), facts)
    assert version == Version("target", "rte", 1)
    loaded = any_bank.load("target/rte")
    assert loaded.version == version
    assert loaded.tensors["prompt"].tobytes() == prompt(1)["prompt"].tobytes()
    assert loaded.sha256 == loaded.manifest.files["tensors.safetensors"]
    assert any_bank.list() == any_bank.list("target") == [version]
    assert any_bank.list("source") == []
    assert any_bank.verify() == []


def test_the_manifest_tells_everything(bank, facts, prompt):
    bank.publish("target", "rte", prompt(1), facts)
    manifest = bank.show("target/rte@v1")
    assert manifest.model_dump(include=set(type(facts).model_fields)) == facts.model_dump()
    assert (manifest.schema_number, manifest.kind, manifest.name, manifest.number) == (1, "target", "rte", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", manifest.created)
    assert manifest.tensors["prompt"].model_dump() == {"shape": (3, 8), "dtype": "float32"}
    assert list(manifest.files) == ["tensors.safetensors"]
    assert manifest.imported is None
    directory = Path(bank.place) / "target" / "rte" / "v000001"
    assert sorted(path.name for path in directory.iterdir()) == [
        "manifest.json",
        "manifest.sha256",
        "tensors.safetensors",
    ]


def test_the_same_run_publishes_once(any_bank, facts, prompt):
    for _ in range(3):
        assert any_bank.publish("source", "mnli", prompt(1), facts).number == 1
    assert any_bank.publish("source", "mnli", prompt(2), facts).number == 2
    other_run = facts.model_copy(update={"config_digest": "f" * 12})
    assert any_bank.publish("source", "mnli", prompt(1), other_run).number == 3
    assert any_bank.publish("source", "mnli", prompt(2), facts).number == 2
    assert len(any_bank.list()) == 3


def test_a_damaged_version_is_published_anew_and_left_alone(published, facts, prompt):
    path = Path(published.place) / "source" / "mnli" / "v000003" / "tensors.safetensors"
    path.write_bytes(b"damaged")
    assert published.publish("source", "mnli", prompt(3), facts).number == 4
    assert path.read_bytes() == b"damaged"


def test_versions_never_change(published, facts, prompt):
    before = contents(Path(published.place))
    published.publish("source", "mnli", prompt(9), facts)
    published.promote("source/mnli@v2")
    after = contents(Path(published.place))
    assert {path: after[path] for path in before} == before


def test_numbers_are_never_given_twice(published, facts, prompt):
    root = Path(published.place) / "source" / "mnli"
    shutil.rmtree(root / "v000002")
    assert published.publish("source", "mnli", prompt(9), facts).number == 4


def test_references_resolve(published):
    assert published.resolve("source/mnli").number == 3
    published.set_alias("source", "mnli", "candidate", 1)
    assert published.resolve("source/mnli@candidate").number == 1
    assert published.resolve("source/mnli").number == 3
    published.promote("source/mnli@v2")
    assert published.resolve("source/mnli").number == 2
    assert published.resolve("source/mnli@v3").number == 3


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("source/mnlli", r"no prompt 'source/mnlli'; did you mean 'source/mnli'\?"),
        ("target/mnli@v1", r"no prompt 'target/mnli'; did you mean 'source/mnli'\?"),
        ("sauce/mnli", r"no kind of prompt 'sauce'; did you mean 'source'\?"),
        ("source/mnli@champoin", r"no alias of source/mnli 'champoin'; did you mean 'champion'\?"),
        ("source/mnli@v4", "no version v4 of source/mnli; the newest is v3"),
        ("source/../mnli", "got the name"),
    ],
)
def test_what_is_not_there_is_told_with_the_nearest(published, reference, message):
    published.promote("source/mnli@v1")
    before = contents(Path(published.place))
    for work in (published.resolve, published.load, published.show, published.promote, published.verify):
        with pytest.raises(BankError, match=message):
            work(reference)
    assert contents(Path(published.place)) == before


def test_an_empty_bank_is_told_and_not_created(bank):
    with pytest.raises(BankError, match=r"no prompt 'source/mnli'.*bank .*/bank"):
        bank.load("source/mnli")
    with pytest.raises(BankError, match="no prompt"):
        bank.rollback("source", "mnli")
    assert bank.list() == []
    assert not Path(bank.place).exists()


@pytest.mark.parametrize(
    "name", ["../x", "..", "/etc", "x/y", "", "X", ".x", "x\0", "a" * 65, None, "x\\..\\y", "%2e%2e"]
)
def test_names_that_could_leave_the_root_are_refused(bank, facts, prompt, name):
    for work in (
        lambda: bank.publish("source", name, prompt(1), facts),
        lambda: bank.publish(name, "mnli", prompt(1), facts),
        lambda: bank.set_alias("source", name, "champion", 1),
        lambda: bank.set_alias("source", "mnli", name, 1),
        lambda: bank.rollback("source", name),
        lambda: bank.aliases("source", name),
        lambda: bank.load(f"source/{name}@x/y"),
        lambda: bank.list(name) if name is not None else bank.list("none"),
    ):
        with pytest.raises(BankError):
            work()
    assert not Path(bank.place).exists()


def test_non_finite_tensors_are_refused(bank, facts):
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(BankError, match="NaN or infinite"):
            bank.publish("source", "mnli", {"prompt": np.full((3, 8), value, np.float32)}, facts)
    assert not Path(bank.place).exists()


@pytest.mark.parametrize("value", [float("nan"), object(), {1: 2}.keys()])
def test_a_recipe_that_is_no_json_is_refused(bank, facts, prompt, value):
    with pytest.raises(BankError, match="plain JSON"):
        bank.publish("source", "mnli", prompt(1), facts.model_copy(update={"recipe": {"x": [value]}}))
    assert not Path(bank.place).exists()


def test_a_bank_travels_to_a_worker(any_bank, facts, prompt):
    any_bank.publish("source", "mnli", prompt(1), facts)
    assert pickle.loads(pickle.dumps(any_bank)).load("source/mnli").version.number == 1


def test_a_damaged_file_is_neither_served_nor_promoted(published):
    published.promote("source/mnli@v1")
    path = Path(published.place) / "source" / "mnli" / "v000003" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    before = contents(Path(published.place))
    for work in (published.load, published.promote, lambda text: published.export(text, path.parent / "out")):
        with pytest.raises(
            IntegrityError,
            match=r"v000003/tensors.safetensors: expected sha256 \w{64}, found \w{64}; nothing",
        ):
            work("source/mnli@v3")
    assert contents(Path(published.place)) == before
    assert published.load("source/mnli").version.number == 1


def test_promotion_takes_the_candidate_or_the_newest(any_bank, facts, prompt):
    for seed in (1, 2):
        any_bank.publish("source", "mnli", prompt(seed), facts)
    assert any_bank.promote("source/mnli").number == 2
    any_bank.set_alias("source", "mnli", "candidate", 1)
    assert any_bank.promote("source/mnli").number == 1
    assert any_bank.promote("source/mnli@v2").number == 2
    assert any_bank.promote("source/mnli@candidate").number == 1
    assert any_bank.rollback("source", "mnli").number == 2
    assert any_bank.rollback("source", "mnli").number == 1
    assert any_bank.rollback("source", "mnli").number == 2
    assert any_bank.resolve("source/mnli").number == 2
    with pytest.raises(BankError, match="no earlier version"):
        any_bank.rollback("source", "mnli")
    assert any_bank.aliases("source", "mnli").revision == 8


def test_an_alias_moves_only_from_where_it_was_expected(published):
    published.set_alias("source", "mnli", "champion", 1, expected=None)
    with pytest.raises(BankError, match="points to v1, expected no version: somebody moved it"):
        published.set_alias("source", "mnli", "champion", 2, expected=None)
    with pytest.raises(BankError, match="points to v1, expected v3"):
        published.promote("source/mnli@v2", expected=3)
    published.promote("source/mnli@v2", expected=1)
    assert published.aliases("source", "mnli").current == {"champion": 2}
    assert published.set_alias("source", "mnli", "champion", 2).revision == 2


def test_a_stale_champion_can_be_replaced(published):
    published.promote("source/mnli@v1")
    published.promote("source/mnli@v3")
    shutil.rmtree(Path(published.place) / "source" / "mnli" / "v000003")
    with pytest.raises(BankError, match="no version v3 of source/mnli; the newest is v2"):
        published.load("source/mnli")
    assert published.rollback("source", "mnli").number == 1
    assert published.promote("source/mnli").number == 2


def test_of_two_that_move_an_alias_at_once_exactly_one_wins(published, fork):
    def work(number):
        won = 0
        for expected in range(10):
            try:
                published.set_alias("source", "mnli", f"a{expected}", number, expected=None)
                won += 1
            except BankError:
                continue
        return won

    waiting = [fork(lambda number=number: work(number)) for number in (1, 2)]
    assert sum(finish() for finish in waiting) == 10
    assert published.aliases("source", "mnli").revision == 10


def test_two_publishers_at_once_get_different_numbers(bank, facts, fork):
    def work(writer):
        return [
            bank.publish(
                "source", "mnli", {"prompt": np.full((1, 8), 100 * writer + turn, np.float32)}, facts
            ).number
            for turn in range(20)
        ]

    waiting = [fork(lambda writer=writer: work(writer)) for writer in (1, 2)]
    first, second = (finish() for finish in waiting)
    assert sorted(first + second) == list(range(1, 41))
    for writer, mine in ((1, first), (2, second)):
        values = [bank.load(f"source/mnli@v{number}").tensors["prompt"][0, 0] for number in mine]
        assert values == [100 * writer + turn for turn in range(20)]
    assert bank.verify() == []


def test_readers_never_meet_half_a_version(bank, facts, prompt, fork):
    bank.publish("source", "mnli", prompt(0), facts)

    def write():
        for seed in range(1, 30):
            bank.publish("source", "mnli", prompt(seed), facts)
            bank.promote(f"source/mnli@v{seed + 1}")

    finish = fork(write)
    seen = {bank.load("source/mnli").version.number for _ in range(100)}
    assert finish() is None
    assert max(seen) <= 30
    assert bank.resolve("source/mnli").number == 30


def test_a_version_promoted_while_versions_are_listed_is_no_error(bank, facts, prompt, monkeypatch):
    bank.publish("source", "mnli", prompt(0), facts)
    listed = bank._numbers

    def promote_after_listing(kind, name):
        numbers = listed(kind, name)
        monkeypatch.undo()
        bank.publish("source", "mnli", prompt(1), facts)
        bank.promote("source/mnli@v2")
        return numbers

    monkeypatch.setattr(bank, "_numbers", promote_after_listing)
    assert bank.resolve("source/mnli").number == 1
    assert bank.resolve("source/mnli").number == 2


def test_killed_publishers_lose_nothing_and_leave_nothing(bank, facts, fork):
    bank.publish("source", "mnli", {"prompt": np.zeros((1, 8), np.float32)}, facts)
    draw = random.Random(0)
    for kill in range(20):
        reading, writing = os.pipe()

        def work(kill=kill, writing=writing):
            for turn in range(1000):
                tensors = {"prompt": np.full((1, 8), 1000 * kill + turn, np.float32)}
                version = bank.publish("source", "mnli", tensors, facts)
                bank.promote(version.reference)
                os.write(writing, f"{version.number} {1000 * kill + turn}\n".encode())

        finish = fork(work)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            first = [pipe.readline()] if kill % 2 else []
            time.sleep(draw.uniform(0.0, 0.03))
            assert finish(kill=signal.SIGKILL) == -signal.SIGKILL
            acknowledged = [line.split() for line in (*first, *pipe)]
        for number, value in acknowledged:
            assert bank.load(f"source/mnli@v{number}").tensors["prompt"][0, 0] == int(value)
        if acknowledged:
            assert bank.resolve("source/mnli").number >= int(acknowledged[-1][0])
        assert {problem.fault for problem in bank.verify()} <= {"unfinished"}
        bank.publish("source", "mnli", {"prompt": np.full((1, 8), -1 - kill, np.float32)}, facts)
        assert bank.verify() == []


def test_a_crash_between_any_two_operations_leaves_old_or_new(tmp_path, facts, prompt, fork):
    step = 0
    while True:
        step += 1
        bank = Bank(str(tmp_path / str(step)))
        bank.publish("source", "mnli", prompt(1), facts)
        bank.promote("source/mnli@v1")

        def work(bank=bank, step=step):
            seen = 0

            def count(event, arguments):
                nonlocal seen
                writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
                if writes or event in ("os.mkdir", "os.rename", "os.remove"):
                    seen += 1
                if seen == step:
                    os._exit(9)

            sys.addaudithook(count)
            bank.publish("source", "mnli", prompt(2), facts)
            bank.promote("source/mnli@v2")
            return "done"

        end = fork(work)()
        there = [version.number for version in bank.list()]
        assert there in ([1], [1, 2])
        assert bank.resolve("source/mnli").number in there
        for number in there:
            assert (
                bank.load(f"source/mnli@v{number}").tensors["prompt"].tobytes()
                == prompt(number)["prompt"].tobytes()
            )
        assert {problem.fault for problem in bank.verify()} <= {"unfinished"}
        bank.publish("source", "mnli", prompt(2), facts)
        assert [version.number for version in bank.list()] == [1, 2]
        assert bank.verify() == []
        if end == "done":
            break
        assert end == 9
    assert step > 10


def test_a_full_disk_names_the_bytes_and_changes_nothing(published, facts, prompt, monkeypatch):
    before = contents(Path(published.place))

    def refuse(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", refuse)
    message = r"cannot commit .*/bank/source/mnli/v000004: No space left on device \([\d,]+ bytes needed, [\d,]+ bytes free"
    with pytest.raises(StorageError, match=message):
        published.publish("source", "mnli", prompt(9), facts)
    with pytest.raises(StorageError):
        published.promote("source/mnli@v1")
    monkeypatch.undo()
    assert contents(Path(published.place)) == before
    assert published.publish("source", "mnli", prompt(9), facts).number == 4


def test_an_exported_version_is_imported_bit_for_bit(published, any_bank, facts, prompt, tmp_path):
    directory = published.export("source/mnli@v2", tmp_path / "out")
    source = Path(published.place) / "source" / "mnli" / "v000002"
    assert contents(directory) == contents(source)
    other = Bank(str(tmp_path / "other")) if any_bank.place == published.place else any_bank
    other.publish("source", "mnli", prompt(7), facts)
    assert other.import_(directory) == Version("source", "mnli", 2)
    assert other.import_(directory) == Version("source", "mnli", 2)
    loaded = other.load("source/mnli@v2")
    assert loaded.tensors["prompt"].tobytes() == prompt(2)["prompt"].tobytes()
    there, here = published.show("source/mnli@v2"), loaded.manifest
    assert here.imported.reference == "source/mnli@v2"
    assert here.imported.manifest_sha256 == (source / "manifest.sha256").read_text()[:64]
    assert here.model_copy(update={"imported": None}) == there
    again = other.export("source/mnli@v2", tmp_path / "again")
    assert (again / "tensors.safetensors").read_bytes() == (directory / "tensors.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "tensors.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "missing", "link"])
def test_a_tampered_export_is_refused(published, tmp_path, name, damage):
    path = published.export("source/mnli", tmp_path / "out") / name
    data = path.read_bytes()
    path.unlink()
    if damage == "flip":
        path.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    elif damage == "link":
        (tmp_path / "moved").write_bytes(data)
        path.symlink_to(tmp_path / "moved")
    other = Bank(str(tmp_path / "other"))
    with pytest.raises(IntegrityError):
        other.import_(tmp_path / "out")
    assert not (tmp_path / "other").exists()


def test_an_export_with_more_in_it_is_refused(published, tmp_path):
    directory = published.export("source/mnli", tmp_path / "out")
    (directory / "prompt.pt").touch()
    with pytest.raises(IntegrityError, match="found also"):
        published.import_(directory)


def test_exports_and_imports_need_their_directory(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    for place in (Path("taken"), Path(), Path("..")):
        with pytest.raises(BankError, match="exists; export to"):
            published.export("source/mnli", place)
    with pytest.raises(BankError, match="no directory"):
        published.import_(tmp_path / "none")
    assert published.export("source/mnli", Path("new/inner")) == tmp_path / "new" / "inner"


def test_nothing_from_storage_is_run(published, tmp_path, fork):
    directory = published.export("source/mnli", tmp_path / "out")

    def work():
        events = set()
        sys.addaudithook(lambda event, _: events.add(event))
        published.load("source/mnli")
        published.verify()
        published.import_(directory)
        return events & {
            "pickle.find_class",
            "exec",
            "compile",
            "subprocess.Popen",
            "os.system",
            "marshal.loads",
        }

    assert fork(work)() == set()


def test_a_bank_shows_where_it_is(bank):
    assert repr(bank) == f"Bank('{bank.place}')"
    assert Manifest.model_fields["schema_number"].alias == "schema"
