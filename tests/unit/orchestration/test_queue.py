from __future__ import annotations

import pytest

from attempt_ray.orchestration.queue import LeaseQueue

ERROR = {"type": "RuntimeError", "message": "no", "traceback": ""}


def queue_of(*keys: str, attempts: int = 2) -> LeaseQueue:
    queue = LeaseQueue(attempts)
    queue.register(0)
    queue.register(1)
    for order, key in enumerate(keys):
        queue.submit(key, {"seed": 1}, order)
    return queue


def kinds(queue: LeaseQueue) -> list[tuple[str, str]]:
    return [(event["event"], event["key"]) for event in queue.drain()]


def test_runs_are_leased_in_the_order_of_submission() -> None:
    queue = queue_of("a", "b")
    assert [queue.lease(0)["key"], queue.lease(1)["key"]] == ["a", "b"]
    assert queue.lease(0) == {"do": "wait"}
    queue.close()
    assert queue.lease(0) == {"do": "stop"}


def test_what_comes_earlier_in_the_study_overtakes_what_was_submitted_before() -> None:
    queue = queue_of(attempts=1)
    queue.submit("later", {}, 7)
    queue.submit("sooner", {}, 3)
    assert [queue.lease(0)["key"], queue.lease(0)["key"]] == ["sooner", "later"]


def test_a_key_is_submitted_once() -> None:
    with pytest.raises(ValueError, match="'a' was submitted before"):
        queue_of("a", "a")


def test_a_failing_run_is_tried_again_and_then_set_aside() -> None:
    queue = queue_of("a", attempts=2)
    queue.fail("a", queue.lease(0)["lease"], ERROR, retry=True)
    queue.fail("a", queue.lease(0)["lease"], ERROR, retry=True)
    assert kinds(queue) == [("started", "a"), ("retried", "a"), ("started", "a"), ("failed", "a")]
    assert queue.lease(0) == {"do": "wait"}


def test_an_error_of_the_users_is_not_tried_again() -> None:
    queue = queue_of("a", attempts=5)
    queue.fail("a", queue.lease(0)["lease"], ERROR, retry=False)
    assert kinds(queue)[-1] == ("failed", "a")


def test_a_death_charges_the_run_of_the_dead_and_not_its_neighbours() -> None:
    queue = queue_of("poison", "neighbour", attempts=2)
    for _ in range(2):
        queue.register(0)
        queue.register(1)
        assert {queue.lease(0)["key"], queue.lease(1)["key"]} == {"poison", "neighbour"}
        holder = next(rank for rank in (0, 1) if queue._entries["poison"].rank == rank)
        queue.crash({holder: "SIGKILL"})
    queue.register(0)
    queue.register(1)
    events = queue.drain()
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert failed["key"] == "poison" and failed["error"]["message"] == "its worker died: SIGKILL"
    assert queue.lease(0)["key"] == "neighbour"
    assert queue.lease(1) == {"do": "wait"}


def test_nobody_is_leased_a_run_between_a_death_and_the_restart_of_the_workers() -> None:
    queue = queue_of("a", "b")
    queue.lease(0)
    queue.crash({0: "SIGKILL"})
    assert queue.lease(1) == {"do": "wait"}
    queue.register(1)
    assert queue.lease(1)["key"] == "a"


def test_a_worker_that_was_given_up_is_not_heard() -> None:
    queue = queue_of("a")
    stale = queue.lease(0)["lease"]
    queue.register(0)
    current = queue.lease(0)["lease"]
    queue.finish("a", stale, {"directory": "old", "report": {}})
    queue.finish("a", current, {"directory": "new", "report": {}})
    finished = [event for event in queue.drain() if event["event"] == "finished"]
    assert [event["result"]["directory"] for event in finished] == ["new"]


def test_steps_that_nobody_collected_are_overtaken_and_news_is_kept() -> None:
    queue = queue_of("a")
    lease = queue.lease(0)["lease"]
    queue.progress("a", lease, {"kind": "step", "step": 1})
    queue.progress("a", lease, {"kind": "evaluation", "step": 1})
    queue.progress("a", lease, {"kind": "step", "step": 2})
    facts = [event["facts"] for event in queue.drain() if event["event"] == "progress"]
    assert facts == [{"kind": "step", "step": 2}, {"kind": "evaluation", "step": 1}]
    queue.progress("a", lease, {"kind": "step", "step": 3})
    assert [event["facts"]["step"] for event in queue.drain()] == [3]
