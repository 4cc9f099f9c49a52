from __future__ import annotations

import ast
import json
import logging
import multiprocessing
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import serve_app
from attempt_ray.errors import ConfigError
from serve_app import keys as module
from serve_app.access import Caller
from serve_app.keys import KeyFile, KeyRing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def file(path: Path) -> KeyFile:
    return KeyFile(path)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call looks at the file."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)


def edit(path: Path, **changes: object) -> None:
    page = json.loads(path.read_text())
    page["keys"][0] |= changes
    path.write_text(json.dumps(page))


def test_a_key_opens_with_its_text_alone_and_the_file_holds_no_part_of_its_secret(path, file):
    key, text = file.add("alice", role="admin")
    assert text.startswith(f"atk_{key.id}_") and len(text) == len("atk_") + 12 + 1 + 43
    ring = KeyRing(path)
    assert ring.authenticate(text) == Caller(key.id, "admin")
    assert text.split("_", 2)[2] not in path.read_text()
    _, other = file.add("bob")
    wrong = [
        "",
        "atk_",
        text[:-1],
        text + "A",
        text[:-1] + ("A" if text[-1] != "A" else "B"),
        text.upper(),
        f" {text}",
        f"{text}\n",
        f"atk_{key.id}_{other.split('_', 2)[2]}",
        f"atk_000000000000_{text.split('_', 2)[2]}",
        key.sha256,
        f"atk_{key.id}_{key.sha256}",
        "atk_\ud800_x",
        "ключ",
    ]
    assert [ring.authenticate(each) for each in wrong] == [None] * len(wrong)


def test_the_file_is_for_its_owner_alone_whatever_the_umask(path, file):
    old = os.umask(0)
    try:
        file.add("alice")
        file.add("bob")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["keys.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o644])
def test_a_file_that_others_may_read_or_change_is_refused_with_the_fix(path, file, mode):
    file.add("alice")
    path.chmod(mode)
    for act in (lambda: KeyRing(path), file.list, lambda: file.add("bob"), lambda: file.revoke("0" * 12)):
        with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
            act()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"keys": 1}',
        "\xff",
        '{"keys": [], "more": 1}',
        '{"keys": [{"id": "0"}]}',
        '{"keys": [',
    ],
)
def test_what_is_no_file_of_keys_is_refused_in_one_line(path, text):
    path.touch(0o600)
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="is no file of keys") as caught:
        KeyRing(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "root"},
        {"id": "ABCDEFABCDEF"},
        {"sha256": "00"},
        {"name": "a b"},
        {"created": "2026-01-01T00:00:00"},
        {"expires": "soon"},
        {"secret": "x"},
    ],
)
def test_a_record_that_is_not_as_it_should_be_is_refused(path, file, changes):
    file.add("alice")
    edit(path, **changes)
    with pytest.raises(ConfigError, match=next(iter(changes))):
        file.list()


def test_two_keys_of_one_id_are_refused(path, file):
    file.add("alice")
    page = json.loads(path.read_text())
    path.write_text(json.dumps({"keys": page["keys"] * 2}))
    with pytest.raises(ConfigError, match="same id"):
        KeyRing(path)


def test_a_missing_file_or_directory_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(ConfigError, match="attempt keys add"):
        KeyRing(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="is a directory"):
        KeyRing(tmp_path)
    with pytest.raises(ConfigError, match="no directory"):
        KeyFile(tmp_path / "none" / "keys.json").add("alice")


@pytest.mark.parametrize("name", ["", "a b", "-a", "a\n", "ä", "x" * 65, "../a", "a\x00"])
def test_names_that_would_trouble_a_log_are_refused(file, path, name):
    with pytest.raises(ConfigError, match="got the name"):
        file.add(name)
    assert not path.exists()


@pytest.mark.parametrize("days", [0, -1, float("nan"), float("inf"), 1e9])
def test_days_that_are_none_are_refused(file, days):
    with pytest.raises(ConfigError, match="days; wanted more than 0"):
        file.add("alice", days=days)


def test_a_key_of_another_id_is_not_revoked_and_a_text_in_its_place_is_not_repeated(file):
    _, text = file.add("alice")
    for act in (file.revoke, file.rotate):
        with pytest.raises(ConfigError, match="attempt keys list"):
            act("0" * 12)
        with pytest.raises(ConfigError, match="12 digits") as caught:
            act(text)
        assert text not in str(caught.value)


def test_an_expired_key_is_refused_though_the_file_has_not_changed(path, file, monkeypatch):
    _, text = file.add("alice", days=1)
    ring = KeyRing(path)
    assert ring.authenticate(text)
    later = datetime.now(UTC) + timedelta(days=1, seconds=1)
    monkeypatch.setattr(module, "_now", lambda: later)
    assert ring.authenticate(text) is None


def test_rotation_leaves_both_keys_good_for_the_overlap_and_keeps_role_and_life(path, file, monkeypatch):
    old, old_text = file.add("alice", role="admin", days=30)
    new, new_text = file.rotate(old.id, overlap_hours=2)
    assert (new.name, new.role) == ("alice", "admin") and new.id != old.id
    assert new.expires is not None and new.expires - new.created == timedelta(days=30)
    ring = KeyRing(path)
    assert ring.authenticate(old_text) and ring.authenticate(new_text)
    later = datetime.now(UTC) + timedelta(hours=2, seconds=1)
    monkeypatch.setattr(module, "_now", lambda: later)
    assert ring.authenticate(old_text) is None
    assert ring.authenticate(new_text) == Caller(new.id, "admin")
    with pytest.raises(ConfigError, match="has expired"):
        file.rotate(old.id)


def test_an_overlap_never_lengthens_the_life_of_the_old_key(file):
    old, _ = file.add("alice", days=1)
    file.rotate(old.id, overlap_hours=100)
    assert file.list()[0].expires == old.expires


def test_an_overlap_of_nothing_ends_the_old_key_at_once(path, file):
    old, text = file.add("alice")
    file.rotate(old.id, overlap_hours=0)
    assert KeyRing(path).authenticate(text) is None


def test_a_ring_follows_new_and_revoked_keys_within_two_seconds(path, file):
    key, text = file.add("alice")
    ring = KeyRing(path)
    _, later = file.add("bob")
    file.revoke(key.id)
    deadline = time.monotonic() + 2
    while ring.authenticate(text) is not None or ring.authenticate(later) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_ring_looks_at_the_file_twice_a_second_at_most_and_reads_it_only_when_it_changed(
    path, file, monkeypatch
):
    _, text = file.add("alice")
    ring = KeyRing(path)
    looks: list[Path] = []
    reads: list[Path] = []
    look, read = module._signature, module._read
    monkeypatch.setattr(module, "_signature", lambda path: looks.append(path) or look(path))
    monkeypatch.setattr(module, "_read", lambda path: reads.append(path) or read(path))
    for _ in range(1000):
        ring.authenticate(text)
    assert len(looks) <= 1
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    for _ in range(10):
        ring.authenticate(text)
    assert len(looks) >= 10 and reads == []


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("harm", ["malformed", "gone", "open", "directory"])
def test_a_file_that_goes_bad_leaves_the_keys_as_they_were_and_says_so_once(path, file, caplog, harm):
    caplog.set_level(logging.INFO, logger="serve_app.keys")
    key, text = file.add("alice")
    ring = KeyRing(path)
    assert ring.problem is None
    good = path.read_bytes()
    if harm == "malformed":
        path.write_text("{")
    elif harm == "open":
        path.chmod(0o644)
    else:
        path.unlink()
        if harm == "directory":
            path.mkdir()
    assert [ring.authenticate(text) for _ in range(3)] == [Caller(key.id, "infer")] * 3
    assert ring.problem is not None and str(path) in ring.problem
    assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 1
    if harm == "directory":
        path.rmdir()
    path.touch(0o600)
    path.chmod(0o600)
    path.write_bytes(good)
    assert ring.authenticate(text)
    assert ring.problem is None
    file.revoke(key.id)
    assert ring.authenticate(text) is None
    assert text not in caplog.text and key.sha256 not in caplog.text


def test_an_unknown_id_costs_a_comparison_too(path, file, monkeypatch):
    _, text = file.add("alice")
    ring = KeyRing(path)
    compared: list[tuple[str, str]] = []
    compare = module.hmac.compare_digest
    monkeypatch.setattr(module.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    for each in (text, text[:-1] + "-", f"atk_000000000000_{'x' * 43}", "nonsense"):
        compared.clear()
        ring.authenticate(each)
        ((got, wanted),) = compared
        assert len(got) == len(wanted) == 64


def test_no_module_of_the_deployment_compares_digests_with_the_equals_sign():
    for source in Path(serve_app.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                words = ast.unparse(node)
                assert not any(word in words for word in ("sha256", "digest", "secret")), f"{source}: {words}"


def _add(path: Path, name: str) -> None:
    KeyFile(path).add(name)


def test_processes_that_change_the_file_at_once_lose_no_key(path, file):
    context = multiprocessing.get_context("fork")
    names = [f"user{number}" for number in range(8)]
    children = [context.Process(target=_add, args=(path, name)) for name in names]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0] * 8
    assert sorted(key.name for key in file.list()) == names


def test_a_lock_that_is_held_for_too_long_is_named(path, file, monkeypatch):
    import fcntl

    from attempt_ray.errors import StorageError

    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.05)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="fuser"):
            file.add("alice")
    finally:
        os.close(descriptor)
    file.add("alice")
