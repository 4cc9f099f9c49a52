from __future__ import annotations

import time

import pytest

from attempt_ray.bank.aliases import Canary
from attempt_ray.errors import BankError


@pytest.fixture
def served(bank, facts, prompt):
    """A target of three versions, the first of which is the champion."""
    for seed in range(3):
        bank.publish("target", "rte", prompt(seed), facts.model_copy(update={"mixture": None}))
    bank.promote("target/rte@v1")
    return bank


def trial_of(bank):
    return bank.aliases("target", "rte").trial


def test_a_canary_stands_beside_the_champion(served):
    served.start_canary("target", "rte", Canary(version=2, percent=25))
    assert trial_of(served) == Canary(version=2, percent=25)
    assert served.resolve("target/rte").number == 1


@pytest.mark.parametrize(("champion", "state"), [(2, "promoted"), (3, "stopped")])
def test_a_trial_is_over_once_the_champion_moves(served, champion, state):
    served.start_canary("target", "rte", Canary(version=2))
    served.promote(f"target/rte@v{champion}")
    assert trial_of(served) is None
    assert served.aliases("target", "rte").canary.state == state


def test_a_rolled_back_trial_says_why(served):
    served.start_canary("target", "rte", Canary(version=2))
    served.end_canary("target", "rte", version=2, state="rolled back", reason="7 of 20 rows failed")
    canary = served.aliases("target", "rte").canary
    assert (canary.state, canary.reason) == ("rolled back", "7 of 20 rows failed")


def test_the_trial_of_another_version_goes_on(served):
    served.start_canary("target", "rte", Canary(version=3))
    served.end_canary("target", "rte", version=2, state="rolled back")
    assert trial_of(served).version == 3


@pytest.mark.parametrize(
    ("version", "message"), [(1, "is the champion already"), (9, "no version v9 of target/rte")]
)
def test_a_canary_that_cannot_be_is_refused(served, version, message):
    with pytest.raises(BankError, match=message):
        served.start_canary("target", "rte", Canary(version=version))


def test_a_canary_needs_a_champion(bank, facts, prompt):
    bank.publish("target", "rte", prompt(0), facts)
    with pytest.raises(BankError, match="no champion to compare"):
        bank.start_canary("target", "rte", Canary(version=1))


def test_a_removed_version_is_gone_and_its_number_is_not_given_again(served, facts, prompt):
    served.remove("target/rte@v3")
    assert served.numbers("target", "rte") == [1, 2]
    with pytest.raises(BankError, match="no version v3"):
        served.load("target/rte@v3")
    assert served.publish("target", "rte", prompt(9), facts).number == 4
    assert not served.verify()


def test_what_is_in_use_is_not_removed(served, facts, prompt):
    served.start_canary("target", "rte", Canary(version=2))
    with pytest.raises(BankError, match="@champion points to it"):
        served.remove("target/rte@v1")
    with pytest.raises(BankError, match="its canary points to it"):
        served.remove("target/rte@v2")
    served.publish("source", "mnli", prompt(5), facts.model_copy(update={"mixture": None}))
    mixture = facts.mixture.model_copy(update={"attention": None})
    served.publish("target", "cb", prompt(6), facts.model_copy(update={"mixture": mixture}))
    with pytest.raises(BankError, match="target/cb@v1 is mixed from it"):
        served.remove("source/mnli@v1")
    with pytest.raises(BankError, match="wanted a version with its number"):
        served.remove("target/rte")


def test_a_removal_that_was_cut_short_is_found_and_finished(served, monkeypatch):
    def cut(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(served._storage, "remove", cut)
        with pytest.raises(KeyboardInterrupt):
            served.remove("target/rte@v3")
    assert served.numbers("target", "rte") == [1, 2]
    (problem,) = served.verify()
    assert (problem.fault, problem.path) == ("unfinished", "target/rte/v000003")
    served.remove("target/rte@v3")
    assert not served.verify()


def test_stamps_tell_every_change(any_bank, facts, prompt, monkeypatch):
    monkeypatch.setattr("attempt_ray.bank.local._SETTLED_NS", -(10**10))
    bank = any_bank
    bank.publish("target", "rte", prompt(0), facts)
    bank.publish("target", "cb", prompt(0), facts)
    seen = [bank.stamps()]
    assert set(seen[0]) == {"target/rte", "target/cb"}
    for change in (
        lambda: bank.publish("target", "rte", prompt(1), facts),
        lambda: bank.promote("target/rte@v1"),
        lambda: bank.promote("target/rte@v2"),
        lambda: bank.remove("target/rte@v1"),
    ):
        time.sleep(0.02)  # longer than a filesystem's clock ticks
        change()
        seen.append(bank.stamps())
        assert seen[-1]["target/rte"] != seen[-2]["target/rte"]
        assert seen[-1]["target/cb"] == seen[-2]["target/cb"]
    assert bank.stamps() == seen[-1]


def test_what_has_just_changed_may_change_again(bank, facts, prompt):
    bank.publish("target", "rte", prompt(0), facts)
    assert bank.stamps() == {"target/rte": None}
