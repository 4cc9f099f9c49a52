"""The engines as the HTTP side sees them: behind the limits of `http`, with deadlines, for callers that may leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from fastapi import Request, Response
from prometheus_client import Metric
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from attempt_ray.config import HttpConfig
from attempt_ray.errors import DeadlineError
from serve_app.access import CALLER, REQUEST_ID, Caller
from serve_app.failures import RequestError, change_error
from serve_app.gateway import Call, Change, Gateway, Reply
from serve_app.schema import Changed, ReplicaStatus, RowIn, RowOut, TaskInfo

logger = logging.getLogger(__name__)
T = TypeVar("T")

_GRACE_SECONDS = 1.0
"""How long after a request's time is over its engine may still say so itself; then it is taken for lost."""
_PROBE_SECONDS = 2.0
"""How long a question after readiness may take."""
_RECENT_SECONDS = 1.0
"""Age up to which what the engines said is told again, to those who may ask as often as they like."""


class Front:
    """A gateway for requests."""

    def __init__(self, gateway: Gateway, config: HttpConfig) -> None:
        self.config = config
        self._gateway = gateway
        self._recent_tasks = _Recent(gateway.tasks)
        self._recent_status = _Recent(gateway.status)

    async def predict(
        self,
        request: Request,
        rows: Sequence[RowIn],
        *,
        attention: bool = False,
        timeout_seconds: float | None = None,
    ) -> Reply:
        """Return the answers to rows, in order.

        Raises:
            RequestError: The rows or the time exceed a limit.
            ClientDisconnect: The caller left; the rows were cancelled.
            AttemptError: As `Gateway.predict`.
        """
        call = self._call(request, rows, attention=attention, timeout_seconds=timeout_seconds)
        return await self.ask(request, self._gateway.predict(call), timeout_seconds=call.timeout_seconds)

    async def stream(
        self, request: Request, row: RowIn, *, attention: bool = False, timeout_seconds: float | None = None
    ) -> AsyncGenerator[str | RowOut, None]:
        """Return the pieces of a row's answer as they come, and the answer last. Close it in the end.

        By then the first of them is there, so that most errors are raised here.

        Raises:
            RequestError: The row or the time exceeds a limit.
            ClientDisconnect: The caller left; the row was cancelled.
            AttemptError: As `Gateway.stream`.
        """
        call = self._call(request, [row], attention=attention, timeout_seconds=timeout_seconds)
        deadline = asyncio.get_running_loop().time() + call.timeout_seconds
        events = self._gateway.stream(call)
        try:
            first = await _while_connected(request, _next(events, deadline))
        except BaseException:
            await events.aclose()
            raise
        return _rest(first, events, deadline)

    async def tasks(self, request: Request) -> list[TaskInfo]:
        """Return all tasks that can be asked, by name."""
        return await self.ask(request, self._gateway.tasks())

    async def recent_tasks(self, request: Request) -> list[TaskInfo]:
        """Return the same as of at most a second ago, without asking for each request."""
        return await self.ask(request, self._recent_tasks.get())

    async def change(self, request: Request, change: Change) -> Changed:
        """Change what a task serves.

        Raises:
            RequestError: The bank refuses it.
            AttemptError: As `Gateway.change`, otherwise.
        """
        try:
            return await self.ask(request, self._gateway.change(change))
        except Exception as error:  # noqa: BLE001 - it is raised again
            raise change_error(error) from None

    async def status(self, request: Request) -> list[ReplicaStatus]:
        """Return what every engine replica says of itself."""
        return await self.ask(request, self._gateway.status())

    async def metrics(self, request: Request) -> dict[str, list[Metric]]:
        """Return the metrics of every engine replica, by its id; none where the engines cannot be asked."""
        try:
            return await self.ask(request, self._gateway.metrics())
        except ClientDisconnect:
            raise
        except Exception as error:  # noqa: BLE001 - this process has metrics of its own to tell
            logger.warning("the engines told no metrics: %s", error)
            return {}

    async def ready(self) -> bool:
        """Return whether an engine answers, as of at most a second ago."""
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                return any(one.healthy for one in await self._recent_status.get())
        except Exception:  # noqa: BLE001 - who cannot say that they are ready are not
            return False

    async def ask(self, request: Request, work: Awaitable[T], *, timeout_seconds: float | None = None) -> T:
        """Return what some work for a request comes to.

        Raises:
            ClientDisconnect: The caller left; the work was cancelled.
            DeadlineError: It took longer than it may.
        """
        seconds = (timeout_seconds or self.config.timeout_seconds) + _GRACE_SECONDS
        return await _while_connected(request, work, timeout_seconds=seconds)

    def _call(
        self, request: Request, rows: Sequence[RowIn], *, attention: bool, timeout_seconds: float | None
    ) -> Call:
        self._check(rows)
        most = self.config.max_timeout_seconds
        if timeout_seconds is not None and timeout_seconds > most:
            raise RequestError(
                "invalid_request",
                f"got {timeout_seconds:g}; wanted at most {most:g}",
                where="timeout_seconds",
            )
        caller: Caller | None = request.scope.get(CALLER)
        return Call(
            rows=rows,
            attention=attention,
            timeout_seconds=timeout_seconds or min(self.config.timeout_seconds, most),
            key="" if caller is None else caller.key,
        )

    def _check(self, rows: Sequence[RowIn]) -> None:
        most = self.config.max_rows
        if len(rows) > most:
            raise RequestError(
                "invalid_request",
                f"got {len(rows):,}; wanted at most {most:,}; send them in several requests",
                where="rows",
            )
        for index, row in enumerate(rows):
            chars = len(row.text) if row.text is not None else _chars(row.fields or {})
            if chars > self.config.max_text_chars:
                raise RequestError(
                    "invalid_row",
                    f"got {chars:,} characters; wanted at most {self.config.max_text_chars:,}; shorten it",
                    where=f"rows.{index}.{'fields' if row.text is None else 'text'}",
                )


class EventStream(Response):
    """Server-sent events whose source is closed when the caller leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events."""

        async def send_all() -> None:
            async with aclosing(self._events):
                async for event in self._events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await _while_connected(Request(scope, receive), send_all())
        except (ClientDisconnect, OSError):
            return


def answer(model: BaseModel, *, headers: Mapping[str, str] | None = None) -> Response:
    """Return a model as JSON."""
    return Response(model.model_dump_json(), media_type="application/json", headers=headers)


def server_timing(reply: Reply) -> dict[str, str]:
    """Return the header that says where a reply's time went, in milliseconds."""
    queue, engine = (1000 * seconds for seconds in (reply.wait_seconds, reply.engine_seconds))
    return {"Server-Timing": f"queue;dur={queue:.1f}, engine;dur={engine:.1f}"}


def request_id(request: Request) -> str:
    """Return the id that the guard gave to a request."""
    return str(request.scope.get(REQUEST_ID, ""))


class _Recent(Generic[T]):
    """What was last said in answer to a question, which is asked again once that is old; by one at a time."""

    def __init__(self, question: Callable[[], Awaitable[T]]) -> None:
        self._question = question
        self._lock = asyncio.Lock()
        self._said: tuple[float, T] | None = None

    async def get(self) -> T:
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if self._said is None or now - self._said[0] > _RECENT_SECONDS:
                self._said = now, await self._question()
            return self._said[1]


async def _while_connected(
    request: Request, work: Awaitable[T], *, timeout_seconds: float | None = None
) -> T:
    """Return what some work comes to, in this task; it is cancelled when the caller leaves.

    Raises:
        ClientDisconnect: The caller left.
        DeadlineError: It took longer than it may.
    """
    left = False
    limit = asyncio.timeout(timeout_seconds)

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        limit.reschedule(asyncio.get_running_loop().time())

    try:
        async with limit:
            watcher = asyncio.create_task(watch())
            try:
                return await work
            finally:
                watcher.cancel()
    except TimeoutError:
        if left:
            raise ClientDisconnect from None
        if limit.expired():
            raise _late() from None
        raise


async def _next(events: AsyncGenerator[T, None], deadline: float) -> T:
    limit = asyncio.timeout_at(deadline + _GRACE_SECONDS)
    try:
        async with limit:
            return await anext(events)
    except TimeoutError:
        if limit.expired():
            raise _late() from None
        raise


async def _rest(
    first: str | RowOut, events: AsyncGenerator[str | RowOut, None], deadline: float
) -> AsyncGenerator[str | RowOut, None]:
    async with aclosing(events):
        event = first
        yield event
        while isinstance(event, str):
            event = await _next(events, deadline)
            yield event


def _late() -> DeadlineError:
    return DeadlineError("no answer in the time that was given; give more, or send fewer rows at a time")


def _chars(fields: Mapping[str, Any]) -> int:
    return sum(
        len(name) + (sum(map(len, value)) if isinstance(value, list) else len(str(value)))
        for name, value in fields.items()
    )
