from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.bank import Bank
from attempt_ray.bank.aliases import Canary
from attempt_ray.errors import AttemptError, BackboneError, NotFoundError, StorageError
from serve_app import follower as module
from serve_app.follower import Choice, Follower, View


class Loads:
    """Reads versions of the bank, refuses some, and counts."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self.bad: dict[str, AttemptError] = {}
        self.seen: list[str] = []

    def __call__(self, reference: str) -> None:
        self.seen.append(reference)
        if reference in self.bad:
            raise self.bad[reference]
        self._bank.load(reference)


@pytest.fixture
def loads(served: Bank) -> Loads:
    return Loads(served)


@pytest.fixture
def following(served: Bank, loads: Loads) -> Follower:
    made = Follower(served, loads)
    assert made.poll()
    return made


def chosen(view: View, task: str, prompt: str | None = None, *, draw: float = 0.5) -> Choice:
    return view.resolve(task, prompt, draw=draw)


def test_names_lead_to_versions(following: Follower) -> None:
    view = following.view
    assert chosen(view, "rte") == Choice("target/rte@v1", 1, "champion")
    assert chosen(view, "rte@v1").role == "pinned"
    assert chosen(view, "rte@champion").role == "alias"
    assert chosen(view, "mnli").prompt == "source/mnli@v1"
    assert chosen(view, "mnli", "target/cb").prompt == "target/cb@v1"


@pytest.mark.parametrize(
    ("task", "prompt", "message"),
    [
        ("rtf", None, "no task served here 'rtf'; did you mean 'rte'"),
        ("rte@v7", None, "no version v7 of target/rte; the newest is v1"),
        ("rte@chamption", None, "did you mean 'champion'"),
        ("rte", "target/mnli", "no prompt 'target/mnli'"),
        ("g", None, "no task served here 'g'"),
        ("a..b", None, r"got the name 'a\.\.b'"),
        ("rte", "target/rte@..", r"got the alias '\.\.'"),
    ],
)
def test_what_is_not_there_is_told(following: Follower, task: str, prompt: str | None, message: str) -> None:
    with pytest.raises(NotFoundError, match=message):
        chosen(following.view, task, prompt)


def test_every_change_makes_a_new_view_and_leaves_the_old_one(
    following: Follower, served: Bank, publish: Callable[..., Any]
) -> None:
    first = following.view
    publish("rte", seed=9)
    assert following.poll()
    assert chosen(following.view, "rte@v2").version == 2
    assert chosen(following.view, "rte").version == 1
    served.promote("target/rte@v2")
    assert following.poll()
    assert chosen(following.view, "rte").version == 2
    served.rollback("target", "rte")
    assert following.poll()
    assert chosen(following.view, "rte").version == 1
    served.remove("target/rte@v2")
    following.poll()
    with pytest.raises(NotFoundError):
        chosen(following.view, "rte@v2")
    assert chosen(first, "rte").version == 1
    assert following.view.revision == first.revision + 4
    assert not following.poll()


def test_what_has_not_changed_is_not_read_again(
    following: Follower, loads: Loads, publish: Callable[..., Any]
) -> None:
    assert sorted(loads.seen) == ["source/mnli@v1", "source/squad@v1", "target/cb@v1", "target/rte@v1"]
    loads.seen.clear()
    publish("rte", seed=9)
    following.poll()
    following.poll()
    assert loads.seen == []


@pytest.mark.parametrize(
    "error", [BackboneError("made for another"), StorageError("EIO"), AttemptError("not finite")]
)
def test_a_bad_version_is_refused_and_the_old_one_serves(
    following: Follower, served: Bank, loads: Loads, publish: Callable[..., Any], error: AttemptError
) -> None:
    publish("rte", seed=9)
    loads.bad["target/rte@v2"] = error
    served.promote("target/rte@v2")
    following.poll()
    assert chosen(following.view, "rte").version == 1
    assert following.view.refused == {"target/rte@v2": str(error)}
    served.rollback("target", "rte")
    following.poll()
    assert following.view.refused == {}


def test_a_version_that_was_mended_is_taken(
    following: Follower,
    served: Bank,
    loads: Loads,
    publish: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish("rte", seed=9)
    loads.bad["target/rte@v2"] = BackboneError("x")
    served.promote("target/rte@v2")
    following.poll()
    loads.bad.clear()
    following.poll()
    assert chosen(following.view, "rte").version == 1
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    following.poll()
    assert chosen(following.view, "rte").version == 2


def test_a_replica_that_starts_beside_a_bad_champion_serves_the_one_before(
    served: Bank, loads: Loads, publish: Callable[..., Any]
) -> None:
    publish("rte", seed=9)
    served.promote("target/rte@v2")
    loads.bad["target/rte@v2"] = BackboneError("x")
    late = Follower(served, loads)
    late.poll()
    assert chosen(late.view, "rte").version == 1
    assert "target/rte@v2" in late.view.refused


def test_a_task_without_any_usable_version_is_told_and_not_served(served: Bank, loads: Loads) -> None:
    loads.bad["target/cb@v1"] = BackboneError("x")
    late = Follower(served, loads)
    late.poll()
    assert late.view.refused == {"target/cb@v1": "x"}
    with pytest.raises(NotFoundError):
        chosen(late.view, "cb")
    assert chosen(late.view, "rte").version == 1


def test_a_bank_that_cannot_be_read_leaves_the_view(following: Follower, served: Bank) -> None:
    root = Path(served.place)
    view = following.view
    hidden = root.with_name("hidden")
    root.rename(hidden)
    root.write_text("no directory")
    assert not following.poll()
    assert following.view is view
    assert following.trouble is not None
    root.unlink()
    hidden.rename(root)
    following.poll()
    assert following.trouble is None
    assert following.age_seconds < 1


def test_damaged_aliases_leave_what_they_were(following: Follower, served: Bank) -> None:
    path = Path(served.place) / "target" / "rte" / "aliases.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"champion", b"champions"))
    following.poll()
    assert chosen(following.view, "rte").version == 1
    assert "target/rte" in following.view.refused
    path.write_bytes(whole)
    following.poll()
    assert following.view.refused == {}


def test_a_prompt_that_is_gone_is_gone(following: Follower, served: Bank) -> None:
    shutil.rmtree(Path(served.place) / "target" / "cb")
    following.poll()
    with pytest.raises(NotFoundError):
        chosen(following.view, "cb")


def test_a_canary_answers_its_share(following: Follower, served: Bank, publish: Callable[..., Any]) -> None:
    publish("rte", seed=9)
    served.start_canary("target", "rte", Canary(version=2, percent=25))
    following.poll()
    on_trial = chosen(following.view, "rte", draw=0.24)
    assert (on_trial.version, on_trial.role, on_trial.champion) == (2, "canary", "target/rte@v1")
    assert chosen(following.view, "rte", draw=0.25).role == "champion"
    assert chosen(following.view, "rte@champion", draw=0.0).version == 1
    following.forget_canary("target", "rte", 2)
    assert chosen(following.view, "rte", draw=0.0).version == 1
    # Until the bank knows, too.
    following.poll()
    assert chosen(following.view, "rte", draw=0.0).version == 1
    served.end_canary("target", "rte", version=2)
    following.poll()
    served.start_canary("target", "rte", Canary(version=2, percent=25))
    following.poll()
    assert chosen(following.view, "rte", draw=0.0).version == 2


def test_a_bad_canary_answers_nothing(
    following: Follower, served: Bank, loads: Loads, publish: Callable[..., Any]
) -> None:
    publish("rte", seed=9)
    loads.bad["target/rte@v2"] = BackboneError("x")
    served.start_canary("target", "rte", Canary(version=2, percent=100))
    following.poll()
    assert chosen(following.view, "rte").version == 1
    assert following.view.refused == {"target/rte@v2": "x"}


def test_the_candidate_is_named_beside_the_champion(
    following: Follower, served: Bank, publish: Callable[..., Any]
) -> None:
    publish("rte", seed=9)
    served.set_alias("target", "rte", "candidate", 2)
    following.poll()
    assert chosen(following.view, "rte").candidate == "target/rte@v2"
    served.promote("target/rte@v2")
    following.poll()
    assert chosen(following.view, "rte").candidate is None
