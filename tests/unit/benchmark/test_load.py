from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.benchmark.load import (
    HttpSender,
    Outcome,
    bodies,
    closed_loop,
    find_peak,
    ladder,
    open_loop,
    rows,
    table,
)


@asynccontextmanager
async def server(*, seconds: float, at_once: int, told: bool = True) -> AsyncIterator[str]:
    """Answer so many requests at once, each after so many seconds; refuse the others."""
    under_way = 0

    async def predict(request: web.Request) -> web.Response:
        nonlocal under_way
        assert (await request.json())["rows"]
        if under_way >= at_once:
            return web.Response(status=503, headers={"Retry-After": "1"} if told else {})
        under_way += 1
        await asyncio.sleep(seconds)
        under_way -= 1
        return web.json_response(
            {"rows": []}, headers={"Server-Timing": f"queue;dur=0.0, engine;dur={1e3 * seconds}"}
        )

    app = web.Application()
    app.router.add_post("/v1/predict", predict)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def test_overload_shows_as_goodput_and_refusals() -> None:
    async def scenario() -> None:
        async with (
            server(seconds=0.02, at_once=4) as url,
            HttpSender(url, bodies(rows(Path("absent")))) as send,
        ):
            calm = await open_loop(send, rate=20, seconds=1.0, limit=1.0, seed=1)
            assert calm.statuses["200"] > calm.requests / 2
            assert calm.answered_p50 is not None and calm.answered_p50 >= 20
            assert calm.outside_p50 is not None and 0 < calm.outside_p50 < calm.answered_p50
            assert calm.offered_rate == pytest.approx(20, rel=0.5)
            busy = await open_loop(send, rate=500, seconds=1.0, limit=1.0, seed=1)
            assert busy.statuses["503"] > busy.statuses["200"] > 0
            assert busy.refused_p99 is not None
            assert busy.refusals_without_retry_after == 0
            assert busy.goodput <= 4 / 0.02 * 1.1
        async with (
            server(seconds=0.5, at_once=1, told=False) as url,
            HttpSender(url, [b'{"rows": [1]}']) as send,
        ):
            rude = await open_loop(send, rate=20, seconds=0.5, limit=0.1, seed=1)
            assert rude.goodput == 0
            assert rude.refusals_without_retry_after == rude.statuses["503"]

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_time_in_which_the_server_stands_still_is_counted_from_when_a_request_was_due() -> None:
    async def scenario() -> None:
        busy = asyncio.Lock()

        async def send(number: int) -> Outcome:
            async with busy:
                await asyncio.sleep(0.02)
            return Outcome("200")

        step = await open_loop(send, rate=200, seconds=0.5, limit=10.0, seed=0)
        # 50 a second are answered of 200, so the last ones wait for all before them.
        assert step.answered_p99 is not None and step.answered_p99 > 1000
        assert step.late_p99 is not None and step.late_p99 < step.answered_p99 / 2

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_the_peak_is_what_more_callers_do_not_raise() -> None:
    async def scenario() -> None:
        places = asyncio.Semaphore(8)

        async def send(number: int) -> Outcome:
            async with places:
                await asyncio.sleep(0.02)
            return Outcome("200")

        assert 0 < await closed_loop(send, callers=1, seconds=0.5) <= 51
        peak, callers = await find_peak(send, seconds=0.5, callers=2)
        assert 51 < peak <= 410
        assert callers >= 4
        found = await ladder(send, seconds=0.3, limit=1.0, peak=100, shares=(0.5, 2.0), settle=0)
        assert list(found["steps"]) == ["50%", "200%"]
        assert table(found["steps"]).count("\n") == 3

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_failures_to_connect_are_outcomes() -> None:
    async def scenario() -> None:
        async with HttpSender("http://127.0.0.1:9", [b"{}"]) as send:
            step = await open_loop(send, rate=50, seconds=0.1, limit=1.0)
        assert set(step.statuses) == {"ClientConnectorError"}

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_requests_hold_rows_as_the_api_takes_them() -> None:
    (first, *_) = given = rows(Path("absent"), tasks=["rte", "sst2"])
    assert set(first) == {"task", "fields"}
    assert {row["task"] for row in given} == {"rte", "sst2"}
    assert all(len(json.loads(body)["rows"]) == 3 for body in bodies(given, rows_each=3))
