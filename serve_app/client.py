"""The Python client of a deployment: `Client`, and `AsyncClient` for asyncio.

    with Client("https://prompts.example.com") as client:
        print(client.predict_one("rte", fields={"sentence1": "...", "sentence2": "..."}).label)

Both try again where that is safe and can help: when no connection was made, and on 429 and 503, after as long as
`Retry-After` says; what only asks also when the connection breaks, and on 502. They load neither torch nor Ray nor FastAPI.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any, TypeVar

import httpx2

from serve_app import wire
from serve_app.schema import Changed, PredictResponse, RowIn, RowOut, Status, TaskInfo

T = TypeVar("T")


class Client:
    """A deployment. Safe to share among threads; a context manager, or to be closed.

    Every call may raise ConfigError (no or the wrong key), DataError (what was asked cannot be used), NotFoundError,
    BankError (the bank refuses), OverloadedError, DeadlineError, StorageError and UnavailableError (nothing that answers),
    with the deployment's own words.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        retries: int = wire.RETRIES,
        timeout: float = wire.TIMEOUT_SECONDS,
        insecure: bool = False,
    ) -> None:
        """Send nothing yet.

        Args:
            url: Where the deployment is; None is ATTEMPT_URL, else `http://127.0.0.1:8000`.
            key: API key; None is ATTEMPT_API_KEY, where that is set.
            retries: How often a request is sent again at most.
            timeout: Seconds that a call may take, all its tries included.
            insecure: Whether the key may go to another machine over plain http.

        Raises:
            ConfigError: URL, key or limits cannot be used, or the key would go to another machine unencrypted.
        """
        self._wire = wire.Wire(url, key=key, retries=retries, timeout=timeout, insecure=insecure)
        # A proxy of the environment has no business between this machine and itself.
        self._http = httpx2.Client(trust_env=not self._wire.local)

    def __repr__(self) -> str:
        return self._wire.describe(type(self).__name__)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self,
        rows: Sequence[RowIn | Mapping[str, Any]],
        *,
        attention: bool = False,
        timeout: float | None = None,
    ) -> PredictResponse:
        """Return the answers to rows of one or several tasks, in order.

        Args:
            rows: `RowIn`, or mappings with its fields.
            attention: Whether the mixing weights are wanted.
            timeout: Seconds that the answer is of use, in place of the client's; the deployment is told.
        """
        return self._run(self._wire.predict(rows, attention=attention, timeout=timeout))

    def predict_one(
        self,
        task: str,
        *,
        fields: Mapping[str, Any] | None = None,
        text: str | None = None,
        attention: bool = False,
        timeout: float | None = None,
    ) -> RowOut:
        """Return the answer to one row, given by fields or as text; the task may be `rte@v3` or `rte@candidate`."""
        row = {"task": task, "fields": fields, "text": text}
        return self.predict([row], attention=attention, timeout=timeout).rows[0]

    def stream(
        self, model: str, text: str, *, max_tokens: int | None = None, timeout: float | None = None
    ) -> Generator[str, None, None]:
        """Yield the pieces of an answer as they come.

        Args:
            model: A task, `rte`, `rte@v3` or `rte@candidate`.
            text: The input as it is.
            max_tokens: Longest answer.
            timeout: Seconds until the answer begins, and from piece to piece, in place of the client's.
        """
        response = self._run(
            self._wire.stream(model, text, max_tokens=max_tokens, timeout=timeout), stream=True
        )
        try:
            for event in httpx2.EventSource(response):
                found = wire.piece(event)
                if found is None:
                    return
                yield found
        except httpx2.RequestError as error:
            raise wire.cut_short(error) from None
        finally:
            response.close()
        raise wire.cut_short()

    def tasks(self) -> list[TaskInfo]:
        """Return all tasks that can be asked, by name."""
        return self._run(self._wire.tasks())

    def task(self, name: str) -> TaskInfo:
        """Return one task."""
        return self._run(self._wire.task(name))

    def promote(self, task: str, *, version: int | None = None, expected: int | None = None) -> Changed:
        """Let a task serve another version.

        A change is not sent again once it may have arrived.

        Args:
            task: The task.
            version: Number of the version; None is the candidate, else the newest.
            expected: Version that it must serve now; None: whatever it serves.
        """
        return self._run(self._wire.promote(task, version=version, expected=expected))

    def rollback(self, task: str) -> Changed:
        """Let a task serve what it served before."""
        return self._run(self._wire.rollback(task))

    def start_canary(
        self,
        task: str,
        version: int,
        *,
        percent: float | None = None,
        max_error_rate: float | None = None,
        min_rows: int | None = None,
    ) -> Changed:
        """Put a version on trial.

        Args:
            task: The task.
            version: Number of the version.
            percent: Share of the task's rows that it answers; None is the deployment's default, as below.
            max_error_rate: Share of its rows that may fail.
            min_rows: Rows it has answered before its errors are judged.
        """
        return self._run(
            self._wire.start_canary(
                task, version=version, percent=percent, max_error_rate=max_error_rate, min_rows=min_rows
            )
        )

    def stop_canary(self, task: str) -> Changed:
        """End the trial; the champion answers everything again."""
        return self._run(self._wire.stop_canary(task))

    def status(self) -> Status:
        """Return how the replicas are."""
        return self._run(self._wire.status())

    def metrics(self) -> str:
        """Return the metrics in Prometheus's text format."""
        return self._run(self._wire.metrics())

    def ready(self) -> bool:
        """Return whether the deployment answers, after one try of at most 5 s."""
        return self._run(self._wire.ready())

    def _run(self, steps: wire.Steps[T], *, stream: bool = False) -> T:
        outcome: wire.Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                found: T = done.value
                return found
            outcome = None
            if isinstance(step, float):
                time.sleep(step)
                continue
            try:
                outcome = self._http.send(step, stream=stream)
                if stream and not outcome.is_success:
                    outcome.read()
            except httpx2.RequestError as error:
                outcome = error


class AsyncClient:
    """`Client` for asyncio: the same calls, to be awaited, and the same errors. Belongs to one event loop."""

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        retries: int = wire.RETRIES,
        timeout: float = wire.TIMEOUT_SECONDS,
        insecure: bool = False,
    ) -> None:
        """Send nothing yet; see `Client`.

        Raises:
            ConfigError: URL, key or limits cannot be used, or the key would go to another machine unencrypted.
        """
        self._wire = wire.Wire(url, key=key, retries=retries, timeout=timeout, insecure=insecure)
        self._http = httpx2.AsyncClient(trust_env=not self._wire.local)

    def __repr__(self) -> str:
        return self._wire.describe(type(self).__name__)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self,
        rows: Sequence[RowIn | Mapping[str, Any]],
        *,
        attention: bool = False,
        timeout: float | None = None,
    ) -> PredictResponse:
        """See `Client.predict`."""
        return await self._run(self._wire.predict(rows, attention=attention, timeout=timeout))

    async def predict_one(
        self,
        task: str,
        *,
        fields: Mapping[str, Any] | None = None,
        text: str | None = None,
        attention: bool = False,
        timeout: float | None = None,
    ) -> RowOut:
        """See `Client.predict_one`."""
        row = {"task": task, "fields": fields, "text": text}
        return (await self.predict([row], attention=attention, timeout=timeout)).rows[0]

    async def stream(
        self,
        model: str,
        text: str,
        *,
        max_tokens: int | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[str, None]:
        """See `Client.stream`."""
        response = await self._run(
            self._wire.stream(model, text, max_tokens=max_tokens, timeout=timeout), stream=True
        )
        try:
            async for event in httpx2.EventSource(response):
                found = wire.piece(event)
                if found is None:
                    return
                yield found
        except httpx2.RequestError as error:
            raise wire.cut_short(error) from None
        finally:
            await response.aclose()
        raise wire.cut_short()

    async def tasks(self) -> list[TaskInfo]:
        """See `Client.tasks`."""
        return await self._run(self._wire.tasks())

    async def task(self, name: str) -> TaskInfo:
        """See `Client.task`."""
        return await self._run(self._wire.task(name))

    async def promote(self, task: str, *, version: int | None = None, expected: int | None = None) -> Changed:
        """See `Client.promote`."""
        return await self._run(self._wire.promote(task, version=version, expected=expected))

    async def rollback(self, task: str) -> Changed:
        """See `Client.rollback`."""
        return await self._run(self._wire.rollback(task))

    async def start_canary(
        self,
        task: str,
        version: int,
        *,
        percent: float | None = None,
        max_error_rate: float | None = None,
        min_rows: int | None = None,
    ) -> Changed:
        """See `Client.start_canary`."""
        return await self._run(
            self._wire.start_canary(
                task, version=version, percent=percent, max_error_rate=max_error_rate, min_rows=min_rows
            )
        )

    async def stop_canary(self, task: str) -> Changed:
        """See `Client.stop_canary`."""
        return await self._run(self._wire.stop_canary(task))

    async def status(self) -> Status:
        """See `Client.status`."""
        return await self._run(self._wire.status())

    async def metrics(self) -> str:
        """See `Client.metrics`."""
        return await self._run(self._wire.metrics())

    async def ready(self) -> bool:
        """See `Client.ready`."""
        return await self._run(self._wire.ready())

    async def _run(self, steps: wire.Steps[T], *, stream: bool = False) -> T:
        import asyncio

        outcome: wire.Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                found: T = done.value
                return found
            outcome = None
            if isinstance(step, float):
                await asyncio.sleep(step)
                continue
            try:
                outcome = await self._http.send(step, stream=stream)
                if stream and not outcome.is_success:
                    await outcome.aread()
            except httpx2.RequestError as error:
                outcome = error
