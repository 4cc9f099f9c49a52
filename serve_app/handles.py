"""The engine replicas of a cluster as a `Gateway`: a request outlives the replica that it was sent to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar, cast

from prometheus_client import Metric
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from attempt_ray.errors import AttemptError, DeadlineError, OverloadedError
from serve_app.gateway import Call, Change, Reply
from serve_app.schema import Changed, ReplicaStatus, RowOut, TaskInfo

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_GRACE_SECONDS = 1.0
"""What a replica has beyond the caller's time to say itself that it is over."""
_LOOK_SECONDS = 5.0
"""How long replicas may take to say how they are."""
_GONE = (RayActorError, DeploymentUnavailableError)

T = TypeVar("T")


class HandleGateway:
    """Sends calls to the replicas of the engine deployment; a replica that dies is replaced by another, asked again."""

    def __init__(self, engine: DeploymentHandle) -> None:
        self._engine = engine
        self._streaming = engine.options(stream=True)

    async def predict(self, call: Call) -> Reply:
        """Answer all rows; see `Gateway.predict`. Answers have no effects, so that they may be asked for again."""
        return await self._asked(lambda: self._engine.predict.remote(call), call.timeout_seconds)

    async def stream(self, call: Call) -> AsyncGenerator[str | RowOut, None]:
        """Yield the pieces of the one row's answer, and the answer last; see `Gateway.stream`.

        Raises:
            OverloadedError: The replica died after the first piece was told.
        """
        pause = _FIRST_PAUSE_SECONDS
        told = False
        try:
            async with asyncio.timeout(call.timeout_seconds + _GRACE_SECONDS):
                while True:
                    try:
                        async for event in self._streaming.stream.remote(call):
                            told = True
                            yield cast("str | RowOut", event)
                    except _GONE:
                        if told:
                            raise OverloadedError(
                                "the replica that answered has died; ask again from the start"
                            ) from None
                        await asyncio.sleep(pause)
                        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                    else:
                        return
        except TimeoutError:
            raise _too_late() from None
        except (RayTaskError, BackPressureError) as error:
            raise _own(error) from None

    async def tasks(self) -> list[TaskInfo]:
        """Return all tasks that can be asked, by name."""
        return await self._asked(self._engine.tasks.remote, _LOOK_SECONDS)

    async def change(self, change: Change) -> Changed:
        """Change what a task serves, in the bank; see `Gateway.change`.

        Raises:
            OverloadedError: The replica that was to do it died; it may have done it.
        """
        try:
            return cast("Changed", await self._engine.change.remote(change))
        except _GONE:
            raise OverloadedError(
                "the replica that was to change the bank has died; look at what the task serves before you try again"
            ) from None
        except (RayTaskError, BackPressureError) as error:
            raise _own(error) from None

    async def status(self) -> list[ReplicaStatus]:
        """Return what every engine replica says of itself; empty where none answers."""
        found: list[list[ReplicaStatus]] = await self._all("status")
        return [one for several in found for one in several]

    async def metrics(self) -> dict[str, list[Metric]]:
        """Return the metrics of every engine replica, by its id."""
        found: list[dict[str, list[Metric]]] = await self._all("metrics")
        return {name: families for one in found for name, families in one.items()}

    async def _all(self, method: str) -> list[Any]:
        """Return what every replica answers; those that do not answer are left out."""
        try:
            found = await self._engine.broadcast(method).results_async(
                timeout_s=_LOOK_SECONDS, return_exceptions=True
            )
        except (TimeoutError, *_GONE):
            return []
        return [one for one in found if not isinstance(one, BaseException)]

    async def _asked(self, ask: Callable[[], Awaitable[T]], timeout_seconds: float) -> T:
        """Return the answer of whichever replica lives."""
        pause = _FIRST_PAUSE_SECONDS
        try:
            async with asyncio.timeout(timeout_seconds + _GRACE_SECONDS):
                while True:
                    try:
                        return await ask()
                    except _GONE:
                        await asyncio.sleep(pause)
                        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        except TimeoutError:
            raise _too_late() from None
        except (RayTaskError, BackPressureError) as error:
            raise _own(error) from None


def _too_late() -> DeadlineError:
    return DeadlineError("no replica answered in the time that was given; give more, or ask again later")


def _own(error: Exception) -> Exception:
    """Return the error as the engine raised it."""
    if isinstance(error, BackPressureError):
        return OverloadedError("every replica has all the requests it takes; send it again later")
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, AttemptError) else error
