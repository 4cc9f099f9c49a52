from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from jobs.cli import main
from serve_app.access import Caller
from serve_app.keys import KeyRing


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run `attempt keys` and return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["attempt", "keys", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call


def test_a_new_key_is_all_that_is_on_stdout_and_never_shown_again(keys):
    code, out, err = keys("add", "alice", "--role", "admin")
    text = out.rstrip("\n")
    caller = KeyRing(Path("keys.json")).authenticate(text)
    assert code == 0 and caller is not None and caller.role == "admin"
    assert "alice" in err and caller.key in err and text not in err
    code, out, err = keys("list")
    assert code == 0 and caller.key in out and "alice" in out and "never" in out
    assert text.split("_", 2)[2] not in out + err


def test_json_has_the_key_and_its_facts(keys):
    code, out, _ = keys("add", "alice", "--days", "2", "--file", "mine.json", "--json")
    made = json.loads(out)
    assert code == 0 and set(made) == {"id", "name", "role", "expires", "key"}
    assert KeyRing(Path("mine.json")).authenticate(made["key"]) == Caller(made["id"], "infer")
    (row,) = json.loads(keys("list", "--file", "mine.json", "--json")[1])
    assert (row["id"], row["role"], row["state"]) == (made["id"], "infer", "good")
    assert row["expires"] == made["expires"]


def test_rotation_prints_the_new_key_and_the_old_one_ends(keys):
    old = json.loads(keys("add", "alice", "--role", "admin", "--json")[1])
    code, out, err = keys("rotate", old["id"], "--overlap-hours", "0", "--json")
    new = json.loads(out)
    assert code == 0 and (new["name"], new["role"]) == ("alice", "admin") and old["id"] in err
    ring = KeyRing(Path("keys.json"))
    assert ring.authenticate(old["key"]) is None and ring.authenticate(new["key"])
    assert [row["state"] for row in json.loads(keys("list", "--json")[1])] == ["expired", "good"]


def test_a_revoked_key_is_gone(keys):
    made = json.loads(keys("add", "alice", "--json")[1])
    code, out, _ = keys("revoke", made["id"], "--json")
    assert (code, json.loads(out)) == (0, {"revoked": made["id"], "name": "alice"})
    assert json.loads(keys("list", "--json")[1]) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("revoke", "0" * 12),
        ("rotate", "0" * 12),
        ("add", "a b"),
        ("add", "alice", "--role", "root"),
        ("add", "alice", "--days", "0"),
        ("add", "alice", "--file", "none/keys.json"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(keys, arguments):
    code, out, err = keys(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
