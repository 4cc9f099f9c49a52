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


def leased(queue: LeaseQueue, rank: int, places: int = 1, company: str | None = None) -> list[str]:
    """Return the keys that a worker is leased."""
    return [run["key"] for run in queue.lease(rank, places, company).get("runs", ())]


def the_lease(queue: LeaseQueue, rank: int) -> str:
    """Return the lease of the one run that a worker is given."""
    (run,) = queue.lease(rank)["runs"]
    lease: str = run["lease"]
    return lease


def kinds(queue: LeaseQueue) -> list[tuple[str, str]]:
    return [(event["event"], event["key"]) for event in queue.drain()]


def test_runs_are_leased_in_the_order_of_submission() -> None:
    queue = queue_of("a", "b")
    assert [leased(queue, 0), leased(queue, 1)] == [["a"], ["b"]]
    assert queue.lease(0) == {"do": "wait"}
    queue.close()
    assert queue.lease(0) == {"do": "stop"}


def test_what_comes_earlier_in_the_study_overtakes_what_was_submitted_before() -> None:
    queue = queue_of(attempts=1)
    queue.submit("later", {}, 7)
    queue.submit("sooner", {}, 3)
    assert [leased(queue, 0), leased(queue, 1)] == [["sooner"], ["later"]]


def test_a_run_submitted_again_stays_what_it_was() -> None:
    queue = queue_of("a")
    lease = the_lease(queue, 0)
    queue.submit("a", {"seed": 1}, 0)
    assert queue.lease(1) == {"do": "wait"}
    queue.finish("a", lease, {"directory": "here", "report": {}})
    assert kinds(queue)[-1] == ("finished", "a")
    with pytest.raises(ValueError, match="'a' was submitted with another config"):
        queue.submit("a", {"seed": 2}, 0)


def test_a_failing_run_is_tried_again_and_then_set_aside() -> None:
    queue = queue_of("a", attempts=2)
    queue.fail("a", the_lease(queue, 0), ERROR, retry=True)
    queue.fail("a", the_lease(queue, 0), ERROR, retry=True)
    assert kinds(queue) == [("started", "a"), ("retried", "a"), ("started", "a"), ("failed", "a")]
    assert queue.lease(0) == {"do": "wait"}


def test_an_error_of_the_users_is_not_tried_again() -> None:
    queue = queue_of("a", attempts=5)
    queue.fail("a", the_lease(queue, 0), ERROR, retry=False)
    assert kinds(queue)[-1] == ("failed", "a")


def test_a_death_charges_the_run_of_the_dead_and_not_its_neighbours() -> None:
    queue = queue_of("poison", "neighbour", attempts=2)
    for _ in range(2):
        queue.register(0)
        queue.register(1)
        assert {*leased(queue, 0), *leased(queue, 1)} == {"poison", "neighbour"}
        holder = next(rank for rank in (0, 1) if queue._entries["poison"].rank == rank)
        queue.crash({holder: "SIGKILL"})
    queue.register(0)
    queue.register(1)
    events = queue.drain()
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert failed["key"] == "poison" and failed["error"]["message"] == "its worker died: SIGKILL"
    assert leased(queue, 0) == ["neighbour"]
    assert queue.lease(1) == {"do": "wait"}


def test_nobody_is_leased_a_run_between_a_death_and_the_restart_of_the_workers() -> None:
    queue = queue_of("a", "b")
    queue.lease(0)
    queue.crash({0: "SIGKILL"})
    assert queue.lease(1) == {"do": "wait"}
    queue.register(1)
    assert leased(queue, 1) == ["a"]


def test_a_worker_that_was_given_up_is_not_heard() -> None:
    queue = queue_of("a")
    stale = the_lease(queue, 0)
    queue.register(0)
    current = the_lease(queue, 0)
    queue.finish("a", stale, {"directory": "old", "report": {}})
    queue.finish("a", current, {"directory": "new", "report": {}})
    finished = [event for event in queue.drain() if event["event"] == "finished"]
    assert [event["result"]["directory"] for event in finished] == ["new"]


def test_steps_that_nobody_collected_are_overtaken_and_news_is_kept() -> None:
    queue = queue_of("a")
    lease = the_lease(queue, 0)
    queue.progress("a", lease, {"kind": "step", "step": 1})
    queue.progress("a", lease, {"kind": "evaluation", "step": 1})
    queue.progress("a", lease, {"kind": "step", "step": 2})
    facts = [event["facts"] for event in queue.drain() if event["event"] == "progress"]
    assert facts == [{"kind": "step", "step": 2}, {"kind": "evaluation", "step": 1}]
    queue.progress("a", lease, {"kind": "step", "step": 3})
    assert [event["facts"]["step"] for event in queue.drain()] == [3]


def company_of(*companies: str | None, workers: int = 1) -> LeaseQueue:
    queue = LeaseQueue(2, workers)
    for rank in range(workers):
        queue.register(rank, f"node{rank}")
    for order, company in enumerate(companies):
        queue.submit(f"{order}", {}, order, company)
    return queue


def test_a_worker_is_leased_runs_of_one_company_and_overtakes_nothing() -> None:
    queue = company_of("a", "a", "b", "a")
    assert leased(queue, 0, 8) == ["0", "1"]
    assert leased(queue, 0, 6, "a") == []
    for run in ("0", "1"):
        queue.finish(run, queue._entries[run].lease, {})
    assert leased(queue, 0, 8) == ["2"]


def test_a_run_without_company_has_a_worker_to_itself() -> None:
    queue = company_of(None, "a", None)
    assert leased(queue, 0, 8) == ["0"]
    assert leased(queue, 0, 7, None) == []
    queue.finish("0", queue._entries["0"].lease, {})
    assert leased(queue, 0, 8) == ["1"]
    assert leased(queue, 0, 7, "a") == []


def test_a_worker_takes_no_more_than_its_share() -> None:
    queue = company_of(*"aaaaa", workers=2)
    assert leased(queue, 0, 8) == ["0", "1", "2"]
    assert leased(queue, 1, 8) == ["3", "4"]
    queue.submit("5", {}, 5, "a")
    assert leased(queue, 0, 5, "a") == []
    assert leased(queue, 1, 6, "a") == ["5"]


def test_a_death_among_several_charges_none_and_the_killer_is_found() -> None:
    queue = company_of("a", "a", "a")
    assert leased(queue, 0, 8) == ["0", "1", "2"]
    queue.crash({0: "SIGKILL"})
    assert kinds(queue) == [("started", f"{n}") for n in range(3)] + [("retried", f"{n}") for n in range(3)]
    for _ in range(2):
        queue.register(0)
        assert leased(queue, 0, 8) == ["0"]
        queue.crash({0: "SIGKILL"})
    queue.register(0)
    assert kinds(queue)[-1] == ("failed", "0")
    assert leased(queue, 0, 8) == ["1"]


def test_a_run_given_back_is_leased_again_and_not_charged() -> None:
    queue = queue_of("a", attempts=1)
    queue.give_back("a", the_lease(queue, 0))
    (run,) = queue.lease(1)["runs"]
    queue.finish("a", run["lease"], {})
    (finished,) = [event for event in queue.drain() if event["event"] == "finished"]
    assert finished["attempts"] == 1


def test_workers_of_a_node_that_goes_leave_and_the_others_stay() -> None:
    queue = company_of("a", "a", workers=2)
    queue.vacate(["node1"])
    assert [queue.beat(rank, {})["stop"] for rank in (0, 1)] == [False, True]
    assert queue.lease(1) == {"do": "stop"}
    assert leased(queue, 0) == ["0"]


def test_all_workers_leave_a_pool_that_stops() -> None:
    queue = company_of("a", workers=2)
    queue.stop()
    assert queue.beat(0, {})["stop"] and queue.beat(1, {})["stop"]
    assert queue.lease(0) == {"do": "stop"}


def test_a_new_queue_learns_from_the_workers_what_they_hold() -> None:
    old, new = company_of("a", "a", "a"), LeaseQueue(2)
    assert old.generation() != new.generation()
    held = {run["key"]: run["lease"] for run in old.lease(0, 2)["runs"]}
    new.beat(0, held, "node0")
    for order in range(3):
        new.submit(f"{order}", {}, order, "a")
    assert leased(new, 0, 8, "a") == ["2"]
    new.finish("0", held["0"], {"directory": "here", "report": {}})
    assert ("finished", "0") in kinds(new)


def test_what_ended_before_the_driver_told_of_it_is_leased_again() -> None:
    old, new = company_of("a"), LeaseQueue(2)
    held = {run["key"]: run["lease"] for run in old.lease(0)["runs"]}
    new.beat(0, held)
    new.finish("0", held["0"], {"directory": "here", "report": {}})
    new.submit("0", {}, 0, "a")
    assert leased(new, 0) == ["0"]


def test_a_worker_that_moved_is_asked_by_its_new_node() -> None:
    queue = company_of("a")
    queue.vacate(["node9"])
    assert not queue.beat(0, {}, "node0")["stop"]
    assert queue.beat(0, {}, "node9")["stop"]


def test_a_dropped_run_that_waits_is_forgotten_and_one_that_is_held_is_told_with_the_beat() -> None:
    queue = company_of("a", "a", "a", workers=1)
    (run, *_) = queue.lease(0, places=1)["runs"]
    held = {run["key"]: run["lease"]}
    assert queue.beat(0, held)["unwanted"] == []
    queue.drop(["0", "1", "no such run"])
    assert queue.beat(0, held)["unwanted"] == ["0"]
    queue.finish("0", run["lease"], {})
    assert [event["key"] for event in queue.drain() if event["event"] == "finished"] == []
    assert leased(queue, 0) == ["2"]


def test_events_can_be_drained_for_some_runs_alone() -> None:
    queue = company_of("a", "a", workers=1)
    runs = {run["key"]: run["lease"] for run in queue.lease(0, places=2)["runs"]}
    for key, lease in runs.items():
        queue.progress(key, lease, {"kind": "step", "step": 1})
    found = queue.drain(["1"])
    assert {event["key"] for event in found} == {"1"}
    queue.progress("1", runs["1"], {"kind": "step", "step": 2})
    assert [event["facts"]["step"] for event in queue.drain(["1"])] == [2]
    assert [event["key"] for event in queue.drain() if event["event"] == "progress"] == ["0"]


@pytest.mark.parametrize("how", ["beat", "end", "start"])
def test_a_dropped_run_is_leased_anew_once_its_holder_let_go_of_it(how: str) -> None:
    queue = queue_of("a")
    lease = the_lease(queue, 0)
    queue.drop(["a"])
    queue.submit("again", {"seed": 1}, 1)
    queue.submit("other", {"seed": 2}, 2)
    assert queue.lease(1) == {"do": "wait"}
    assert queue.beat(0, {"a": lease})["unwanted"] == ["a"]
    assert queue.lease(1) == {"do": "wait"}
    match how:
        case "beat":
            queue.beat(0, {})
        case "end":
            queue.give_back("a", lease)
        case "start":
            queue.register(0)
    assert leased(queue, 1) == ["again"]
