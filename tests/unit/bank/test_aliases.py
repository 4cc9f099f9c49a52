from __future__ import annotations

import pytest

from attempt_ray.bank.aliases import ALIASES, MAX_MOVES, Aliases, read_aliases, write_aliases
from attempt_ray.bank.local import LocalStorage
from attempt_ray.errors import IntegrityError


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path)


def moves(*steps):
    aliases = Aliases(kind="source", name="mnli")
    for step in steps:
        if step == "back":
            aliases = aliases.moved("champion", aliases.previous("champion"), action="rollback")
        else:
            aliases = aliases.moved("champion", step, action="set")
    return aliases


def test_there_are_none_at_first(storage):
    assert read_aliases(storage, "source", "mnli") == Aliases(kind="source", name="mnli")


def test_moves_are_counted_and_kept(storage):
    aliases = moves(1, 2).moved("candidate", 3, action="set")
    write_aliases(storage, aliases)
    assert read_aliases(storage, "source", "mnli") == aliases
    assert (aliases.revision, aliases.current) == (3, {"champion": 2, "candidate": 3})
    assert [(move.alias, move.before, move.after) for move in aliases.history] == [
        ("champion", None, 1),
        ("champion", 1, 2),
        ("candidate", None, 3),
    ]


@pytest.mark.parametrize(
    ("steps", "previous"),
    [
        ((), None),
        ((1,), None),
        ((1, 2), 1),
        ((1, 2, 3), 2),
        ((1, 2, 3, "back"), 1),
        ((1, 2, 3, "back", "back"), None),
        ((1, 2, 3, "back", 4), 2),
        ((1, 2, 1), 2),
        ((1, 2, 1, "back"), 1),
        ((1, 2, 1, "back", "back"), None),
    ],
)
def test_each_rollback_goes_back_one_more(steps, previous):
    assert moves(*steps).previous("champion") == previous


def test_old_moves_are_forgotten_and_rollback_stops_there():
    aliases = moves(*range(1, MAX_MOVES + 11))
    assert len(aliases.history) == MAX_MOVES
    assert aliases.revision == MAX_MOVES + 10
    for _ in range(5):
        aliases = aliases.moved("champion", aliases.previous("champion"), action="rollback")
    assert aliases.current["champion"] == MAX_MOVES + 5
    assert aliases.previous("champion") == MAX_MOVES + 4


def test_a_flip_of_any_byte_is_found(storage, flips, tmp_path):
    write_aliases(storage, moves(1, 2))
    for _ in flips(tmp_path / "source" / "mnli" / ALIASES):
        with pytest.raises(IntegrityError, match=f"{ALIASES}.*no alias was read or moved"):
            read_aliases(storage, "source", "mnli")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"sha256": 3}', b"null", b"\xff", b"{" * 1000])
def test_what_is_no_file_of_aliases_is_refused(storage, tmp_path, data):
    path = tmp_path / "source" / "mnli" / ALIASES
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=ALIASES):
        read_aliases(storage, "source", "mnli")


def test_the_aliases_of_another_prompt_are_refused(storage, tmp_path):
    write_aliases(storage, moves(1))
    (tmp_path / "source" / "mnli").rename(tmp_path / "source" / "qnli")
    with pytest.raises(IntegrityError, match="expected source/qnli, found source/mnli"):
        read_aliases(storage, "source", "qnli")
