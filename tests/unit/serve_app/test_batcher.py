from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Coroutine, Generator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from attempt_ray.config import ServingConfig
from attempt_ray.errors import AttemptError, BankError, DeadlineError, OverloadedError
from serve_app.batcher import Batched, Batcher

Events = Generator[tuple[int, str | int | AttemptError], None, None]


class FakeEngine:
    """Answers a row's number with ten times it; negative ones are errors; it computes only while `gate` is open."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fails = False
        self.pieces = 0
        self.closed = 0

    def run(self, rows: Sequence[int]) -> Events:
        self.batches.append(list(rows))
        try:
            for _ in range(self.pieces):
                yield 0, "piece "
                time.sleep(0.002)
            assert self.gate.wait(10)
            if self.fails:
                raise ZeroDivisionError("broken")
            for index, row in enumerate(rows):
                yield index, BankError("bad") if row < 0 else 10 * row
        finally:
            self.closed += 1


def config(**changes: Any) -> ServingConfig:
    return ServingConfig(**{"batch_rows": 4, "batch_tokens": 100, "queue_rows": 50, **changes})


def batcher(engine: FakeEngine, **changes: Any) -> Batcher[int, int]:
    return Batcher(engine, config(**changes))


async def settled(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def found_of(asked: Awaitable[Batched[int]]) -> list[int | Exception]:
    return list((await asked).found)


def ask(
    made: Batcher[int, int], *rows: int, tokens: int = 10, **more: Any
) -> asyncio.Task[list[int | Exception]]:
    return asyncio.create_task(found_of(made.answer([(row, tokens) for row in rows], **more)))


async def occupied(made: Batcher[int, int], engine: FakeEngine) -> asyncio.Task[list[int | Exception]]:
    """Keep the engine busy with row 0 until its gate opens."""
    engine.gate.clear()
    first = ask(made, 0, key="first")
    while not engine.batches:
        await asyncio.sleep(0.001)
    return first


def drive(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


def test_a_lone_row_is_computed_at_once_and_what_comes_meanwhile_is_one_batch() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine) as made:
            first = await occupied(made, engine)
            later = [ask(made, row) for row in (1, 2, 3)]
            await settled()
            assert made.snapshot().queued_rows == 3
            assert made.snapshot().queued_tokens == 30
            assert made.snapshot().running_rows == 1
            engine.gate.set()
            assert [await task for task in (first, *later)] == [[0], [10], [20], [30]]
        assert engine.batches == [[0], [1, 2, 3]]
        counts = made.snapshot()
        assert (counts.batches, counts.batch_rows, counts.batch_tokens, counts.answered) == (2, 4, 40, 4)
        assert (counts.queued_rows, counts.queued_tokens, counts.running_rows) == (0, 0, 0)
        assert counts.batch_fill == pytest.approx(1 / 4 + 3 / 4)
        assert counts.busy_seconds > 0
        assert counts.wait_seconds > 0

    drive(scenario())


def test_rows_keep_their_order_and_batches_their_budgets() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine) as made:
            first = await occupied(made, engine)
            many = ask(made, *range(1, 7))
            heavy = ask(made, 7, 8, 9, tokens=45)
            await settled()
            engine.gate.set()
            assert await many == [10 * row for row in range(1, 7)]
            assert await heavy == [70, 80, 90]
            await first
        assert engine.batches == [[0], [1, 2, 3, 4], [5, 6, 7], [8, 9]]

    drive(scenario())


def test_a_row_beyond_the_budget_is_computed_alone() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine) as made:
            first = await occupied(made, engine)
            tasks = [ask(made, 1, tokens=500), ask(made, 2)]
            await settled()
            engine.gate.set()
            await asyncio.gather(first, *tasks)
        assert engine.batches == [[0], [1], [2]]

    drive(scenario())


@pytest.mark.parametrize(("age", "batches"), [(60.0, [[0], [1, 3], [2]]), (0.0, [[0], [1], [2, 3]])])
def test_a_row_that_does_not_fit_is_overtaken_until_it_is_old(age: float, batches: list[list[int]]) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine, max_age_seconds=age) as made:
            first = await occupied(made, engine)
            tasks = [
                ask(made, 1, tokens=50, key="a"),
                ask(made, 2, tokens=80, key="b"),
                ask(made, 3, tokens=20, key="c"),
            ]
            await settled()
            engine.gate.set()
            await asyncio.gather(first, *tasks)
        assert engine.batches == batches

    drive(scenario())


def test_keys_take_turns_inside_a_batch_and_from_batch_to_batch() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine) as made:
            first = await occupied(made, engine)
            flood = ask(made, *range(100, 108), key="flood")
            await settled()
            others = [ask(made, row, row + 1, key=str(row)) for row in (1, 11, 21, 31)]
            await settled()
            engine.gate.set()
            await asyncio.gather(first, flood, *others)
        assert engine.batches[1:4] == [[100, 1, 11, 21], [31, 101, 2, 12], [22, 32, 102, 103]]

    drive(scenario())


def test_a_full_queue_refuses_with_the_seconds_to_wait_and_takes_all_rows_or_none() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine, queue_rows=5) as made:
            first = await occupied(made, engine)
            tasks = [ask(made, 1, 2, 3)]
            await settled()
            with pytest.raises(OverloadedError, match="3 rows wait and 3 more do not fit") as refused:
                await made.answer([(4, 10), (5, 10), (6, 10)])
            assert refused.value.retry_after_seconds >= 1
            assert made.snapshot().refused == 3
            assert made.snapshot().queued_rows == 3
            engine.gate.set()
            await asyncio.gather(first, *tasks)

    drive(scenario())


def test_in_a_full_queue_the_longest_gives_up_its_latest_rows_to_another_key() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine, queue_rows=6) as made:
            first = await occupied(made, engine)
            flood = ask(made, *range(100, 106), key="flood")
            await settled()
            light = ask(made, 1, 2, key="light")
            await settled()
            assert made.snapshot().queued_rows == 6
            with pytest.raises(OverloadedError):
                await made.answer([(200, 10)], key="flood")
            engine.gate.set()
            found = await flood
            assert found[:4] == [1000, 1010, 1020, 1030]
            assert all(isinstance(one, OverloadedError) for one in found[4:])
            assert await light == [10, 20]
            await first
            assert made.snapshot().refused == 3

    drive(scenario())


@pytest.mark.parametrize(
    ("settings", "timeout_seconds"), [({"queue_seconds": 2.0}, 60.0), ({}, 2.0)], ids=["limit", "own time"]
)
def test_what_would_wait_too_long_is_refused_at_once(
    settings: dict[str, float], timeout_seconds: float
) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine, **settings) as made:
            first = await occupied(made, engine)
            made._counts.tokens_per_second = 10.0
            flood = ask(made, 1, 2, 3, key="flood")
            await settled()
            with pytest.raises(OverloadedError, match="would have to wait 3 s") as refused:
                await made.answer([(4, 10), (5, 10)], key="flood", timeout_seconds=timeout_seconds)
            assert refused.value.retry_after_seconds == 3
            assert made.snapshot().refused == 2
            # Keys take turns, so another key's first row waits for no queue of others.
            light = ask(made, 6, key="light", timeout_seconds=timeout_seconds)
            await settled()
            assert made.snapshot().queued_rows == 4
            engine.gate.set()
            await asyncio.gather(first, flood, light)

    drive(scenario())


def test_retry_after_follows_the_rate_of_the_engine() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine, queue_rows=1) as made:
            first = await occupied(made, engine)
            await asyncio.sleep(0.05)
            engine.gate.set()
            await first
            while not made.snapshot().batches:
                await asyncio.sleep(0.001)
            rate = made.snapshot().tokens_per_second
            assert 10 / 5 < rate < 10 / 0.05
            engine.gate.clear()
            running = ask(made, 1)
            await asyncio.sleep(0.02)
            waiting = ask(made, 2, tokens=int(20 * rate))
            await settled()
            with pytest.raises(OverloadedError) as refused:
                await made.answer([(3, 1)])
            assert 19 <= refused.value.retry_after_seconds <= 21
            engine.gate.set()
            await asyncio.gather(running, waiting)

    drive(scenario())


def test_an_expired_row_never_reaches_the_engine() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine) as made:
            first = await occupied(made, engine)
            tasks = [ask(made, 1, timeout_seconds=0.02), ask(made, 2), ask(made, 3, timeout_seconds=30)]
            begun = time.monotonic()
            (late,) = await tasks[0]
            assert isinstance(late, DeadlineError)
            assert time.monotonic() - begun < 1
            assert made.snapshot().queued_rows == 2
            engine.gate.set()
            await asyncio.gather(first, *tasks[1:])
            assert made.snapshot().expired == 1
        assert engine.batches == [[0], [2, 3]]

    drive(scenario())


def test_a_row_that_expires_while_it_is_computed_leaves_the_others_alone() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine) as made:
            engine.gate.clear()
            tasks = [ask(made, 1, timeout_seconds=0.05), ask(made, 2)]
            (late,) = await tasks[0]
            assert isinstance(late, DeadlineError)
            engine.gate.set()
            assert await tasks[1] == [20]
            counts = made.snapshot()
            assert (counts.expired, counts.answered) == (1, 1)
        assert engine.batches == [[1, 2]]

    drive(scenario())


def test_a_row_cancelled_before_never_reaches_the_engine_and_one_during_disturbs_nobody() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine) as made:
            first = await occupied(made, engine)
            before, during, other = ask(made, 1), ask(made, 2), ask(made, 3)
            await settled()
            before.cancel()
            await settled()
            assert made.snapshot().queued_rows == 2
            engine.pieces = 50
            engine.gate.set()
            await first
            while len(engine.batches) < 2:
                await asyncio.sleep(0.001)
            during.cancel()
            assert await other == [30]
            for task in (before, during):
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert engine.batches == [[0], [2, 3]]
        assert made.snapshot().cancelled == 2

    drive(scenario())


def test_the_engine_stops_when_nobody_waits_for_the_batch() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        engine.pieces = 5000
        async with batcher(engine) as made:
            task = ask(made, 1)
            while not engine.batches:
                await asyncio.sleep(0.001)
            task.cancel()
            begun = time.monotonic()
            while not engine.closed:
                await asyncio.sleep(0.001)
            assert time.monotonic() - begun < 2

    drive(scenario())


def test_an_error_of_the_engine_reaches_the_rows_of_its_batch_and_no_others() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine) as made:
            first = await occupied(made, engine)
            engine.fails = True
            later = ask(made, 1, 2)
            engine.gate.set()
            (broken,) = await first
            assert isinstance(broken, ZeroDivisionError)
            assert all(isinstance(one, ZeroDivisionError) for one in await later)
            engine.fails = False
            assert await ask(made, 3) == [30]
            counts = made.snapshot()
            assert (counts.failed, counts.answered) == (3, 1)

    drive(scenario())


def test_the_error_of_a_row_is_its_own() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine) as made:
            fine, bad = await ask(made, 1, -2)
            assert fine == 10
            assert isinstance(bad, BankError)

    drive(scenario())


def test_pieces_are_streamed_and_the_answer_comes_last() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        engine.pieces = 3
        async with batcher(engine) as made:
            assert [event async for event in made.stream(7, tokens=5)] == ["piece "] * 3 + [70]
            with pytest.raises(BankError):
                [event async for event in made.stream(-7, tokens=5)]
            assert await ask(made, 8) == [80]

    drive(scenario())


def test_the_loop_stays_responsive_while_the_model_computes() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with batcher(engine) as made:
            first = await occupied(made, engine)
            begun = time.monotonic()
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert time.monotonic() - begun < 1
            assert made.oldest_running_seconds() >= 0.02
            engine.gate.set()
            await first
            while made.oldest_running_seconds():
                await asyncio.sleep(0.001)

    drive(scenario())


def test_a_drain_answers_what_is_there_and_refuses_what_comes() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        made = batcher(engine)
        made.start()
        first = await occupied(made, engine)
        later = ask(made, 1, 2)
        await settled()
        stopping = asyncio.create_task(made.stop())
        await settled()
        with pytest.raises(OverloadedError, match="stopping"):
            await made.answer([(3, 10)])
        engine.gate.set()
        await stopping
        assert await first == [0]
        assert await later == [10, 20]

    drive(scenario())


def test_a_drain_that_takes_too_long_refuses_what_is_left() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        made = batcher(engine)
        made.start()
        tasks = [await occupied(made, engine), ask(made, 1)]
        await settled()
        await made.stop(drain_seconds=0.02)
        for task in tasks:
            (left,) = await task
            assert isinstance(left, OverloadedError)
        engine.gate.set()
        await asyncio.sleep(0.02)

    drive(scenario())


def test_many_callers_that_come_go_and_expire_all_end_and_leave_nothing_behind() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        engine.pieces = 1
        async with batcher(engine, queue_rows=200) as made:
            tasks = []
            for row in range(300):
                timeout = 0.005 if row % 7 == 0 else 30
                tasks.append(ask(made, row, key=str(row % 5), tokens=1 + row % 60, timeout_seconds=timeout))
                if row % 10 == 0:
                    await asyncio.sleep(0.001)
                if row % 11 == 0:
                    tasks[row // 2].cancel()
            for row, task in enumerate(tasks):
                with suppress(asyncio.CancelledError, OverloadedError):
                    (found,) = await task
                    assert found == 10 * row or isinstance(found, OverloadedError | DeadlineError)
            counts = made.snapshot()
            assert (counts.queued_rows, counts.queued_tokens) == (0, 0)
        assert all(len(batch) <= 4 for batch in engine.batches)
        assert counts.answered > 100

    drive(scenario())
