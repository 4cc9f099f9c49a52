"""The HTTP side as it is deployed, guard and all, in front of a real engine on the shipped nano, without a cluster."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import httpx2
import pytest
import uvicorn
from prometheus_client import Metric
from starlette.types import ASGIApp

from attempt_ray.bank import Bank
from attempt_ray.config import Config, HttpConfig
from serve_app.gateway import Call, Change, Gateway, Reply
from serve_app.guard import Guard
from serve_app.host import Host
from serve_app.http import make_app
from serve_app.pages import page
from serve_app.schema import Changed, ReplicaStatus, RowOut, TaskInfo

T = TypeVar("T")
Scenario = Callable[[httpx2.AsyncClient], Awaitable[T]]
PAGES = {
    "index.html": page(b"<!doctype html><title>play</title>", media_type="text/html"),
    "app.js": page(b"'use strict';", media_type="text/javascript"),
}


def guarded(gateway: Gateway, **limits: Any) -> ASGIApp:
    config = HttpConfig(requests_per_second=1e6, burst_requests=1_000_000, **limits)
    registries: list[Any] = []
    guard = Guard(
        make_app(gateway, config=config, pages=PAGES, registries=registries, ingress="here"),
        config=config,
        keys=None,
    )
    registries.append(guard.registry)
    return guard


class Scripted:
    """A gateway that answers as it is told; what it is told to raise, it raises."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[Any] = []
        self.cancelled = 0
        self.closed = 0

    async def predict(self, call: Call) -> Reply:
        return await self._next(call)

    async def stream(self, call: Call) -> AsyncGenerator[str | RowOut, None]:
        try:
            while self.outcomes:
                yield await self._next(call)
        finally:
            self.closed += 1

    async def tasks(self) -> list[TaskInfo]:
        return await self._next("tasks")

    async def change(self, change: Change) -> Changed:
        return await self._next(change)

    async def status(self) -> list[ReplicaStatus]:
        return await self._next("status")

    async def metrics(self) -> dict[str, list[Metric]]:
        return await self._next("metrics")

    async def _next(self, call: Any) -> Any:
        self.calls.append(call)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if outcome is Ellipsis:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


@pytest.fixture
def bank(served: Bank, publish: Callable[..., Any]) -> Bank:
    """Besides: a second version of rte as its candidate, and an open task."""
    publish("rte", seed=6, sources=("source/mnli@v1", "source/squad@v1"))
    served.set_alias("target", "rte", "candidate", 2)
    publish("newsqa", seed=7)
    served.promote("target/newsqa@v1")
    return served


@pytest.fixture
def config(bank: Bank, nano_config: Callable[..., Config]) -> Config:
    return nano_config()


@pytest.fixture
def on_host(config: Config) -> Callable[..., Any]:
    """Return a function that runs a scenario against a real engine."""

    def run(scenario: Scenario[T], **limits: Any) -> T:
        async def main() -> T:
            async with Host(config) as host:
                return await _with_client(guarded(host, **limits), scenario)

        return asyncio.run(main())

    return run


@pytest.fixture
def on_script() -> Callable[..., Any]:
    """Return a function that runs a scenario against a scripted gateway."""

    def run(scenario: Scenario[T], gateway: Scripted, **limits: Any) -> T:
        return asyncio.run(_with_client(guarded(gateway, **limits), scenario))

    return run


async def _with_client(app: ASGIApp, scenario: Scenario[T]) -> T:
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await scenario(client)


@pytest.fixture
def server(config: Config) -> Iterator[str]:
    """URL of a real server in front of a real engine."""

    async def serve(running: Callable[[ASGIApp], Awaitable[None]]) -> None:
        async with Host(config) as host:
            await running(guarded(host))

    with _serving(serve) as url:
        yield url


@pytest.fixture
def serve_script() -> Callable[..., AbstractContextManager[str]]:
    """Return a context manager around a real server in front of a scripted gateway; it gives the URL."""

    def start(gateway: Gateway, *, wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app) -> Any:
        async def serve(running: Callable[[ASGIApp], Awaitable[None]]) -> None:
            await running(wrap(guarded(gateway)))

        return _serving(serve)

    return start


@contextmanager
def _serving(serve: Callable[[Callable[[ASGIApp], Awaitable[None]]], Awaitable[None]]) -> Iterator[str]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    servers: list[uvicorn.Server] = []
    started = threading.Event()

    async def running(app: ASGIApp) -> None:
        options = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off")
        servers.append(uvicorn.Server(options))
        started.set()
        await servers[0].serve(sockets=[listening])

    thread = threading.Thread(target=lambda: asyncio.run(serve(running)))  # type: ignore[arg-type]
    thread.start()
    try:
        assert started.wait(30)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        servers[0].should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()
