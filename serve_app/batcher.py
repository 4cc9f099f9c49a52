"""What the engine is given together: a queue that makes batches, on the event loop.

A batch is made when the engine is free and not before, so while one is computed the next one gathers; no timer cuts
batches short. Inside a batch keys take turns, row by row, so one that floods the queue delays itself. The model runs in a
thread of its own, and the loop goes on answering.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from attempt_ray.config import ServingConfig
from attempt_ray.errors import AttemptError, DeadlineError, OverloadedError

RowT = TypeVar("RowT")
RowT_contra = TypeVar("RowT_contra", contravariant=True)
AnswerT = TypeVar("AnswerT")
AnswerT_co = TypeVar("AnswerT_co", covariant=True)

_SMOOTHING = 0.2
"""Weight of the latest batch in the mean rate behind Retry-After."""
_MOST_RETRY_SECONDS = 60


class Engine(Protocol[RowT_contra, AnswerT_co]):
    """What a batcher feeds."""

    def run(
        self, rows: Sequence[RowT_contra]
    ) -> Generator[tuple[int, str | AnswerT_co | AttemptError], None, None]:
        """Yield (index of the row, what came of it): texts are pieces of an answer, anything else ends its row."""
        ...


@dataclass(kw_only=True)
class Snapshot:
    """Counts since the batcher was made, and what waits and runs now."""

    queued_rows: int = 0
    """Rows that wait."""
    queued_tokens: int = 0
    """Their tokens."""
    running_rows: int = 0
    """Rows of the batch that the engine computes."""
    running_tokens: int = 0
    """Their tokens."""
    answered: int = 0
    """Rows that got an answer."""
    failed: int = 0
    """Rows that got an error from the engine."""
    refused: int = 0
    """Rows that found no room, or had to give theirs up."""
    expired: int = 0
    """Rows whose time was over before their answer."""
    cancelled: int = 0
    """Rows whose caller went away."""
    batches: int = 0
    """Batches that the engine has finished."""
    batch_rows: int = 0
    """Rows of all of them."""
    batch_tokens: int = 0
    """Tokens of all of them."""
    batch_fill: float = 0.0
    """Sum over them of the share of the budget that was used, of tokens or of rows, whichever was more."""
    wait_seconds: float = 0.0
    """Sum over their rows of the time from arrival to the start of the batch."""
    busy_seconds: float = 0.0
    """Time that the engine has computed."""
    tokens_per_second: float = 0.0
    """Mean rate of late, of the engine when it computes."""


@dataclass(frozen=True, kw_only=True)
class Batched(Generic[AnswerT_co]):
    """What came of rows that were asked together."""

    found: Sequence[AnswerT_co | Exception]
    """Of each row, in order."""
    wait_seconds: float
    """From arrival to the start of the batch, of the row that waited longest."""
    engine_seconds: float
    """From the first start of a batch to the last answer."""


@dataclass(eq=False)
class _Request(Generic[RowT, AnswerT]):
    row: RowT
    tokens: int
    key: str
    arrived: float
    deadline: float
    """On the clock of the event loop."""
    events: asyncio.Queue[str | AnswerT | Exception]
    """Pieces, then the one thing that ends it."""
    open: bool = True
    """Whether anybody waits for it; the engine's thread reads it."""
    queued: bool = True
    """Whether it is in its key's queue."""
    started: float | None = None
    """When its batch was made."""


class Batcher(Generic[RowT, AnswerT]):
    """A bounded queue in front of an engine.

    Use it as an async context manager, or call `start` and `stop`. All methods belong to the event loop that started it.
    """

    def __init__(self, engine: Engine[RowT, AnswerT], config: ServingConfig) -> None:
        self._engine = engine
        self._config = config
        self._queues: OrderedDict[str, deque[_Request[RowT, AnswerT]]] = OrderedDict()
        self._counts = Snapshot()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._running_since: float | None = None
        self._batch: list[_Request[RowT, AnswerT]] = []
        self._loop_task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def __aenter__(self) -> Batcher[RowT, AnswerT]:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self) -> None:
        """Begin to make batches."""
        self._loop_task = asyncio.create_task(self._work())

    async def stop(self, *, drain_seconds: float = math.inf) -> None:
        """Refuse what comes from now on, answer what is there, and end.

        Args:
            drain_seconds: How long that may take; what is left then is refused. A batch that runs then is left to itself.
        """
        self._stopping = True
        try:
            async with asyncio.timeout(None if math.isinf(drain_seconds) else drain_seconds):
                await self._idle.wait()
        except TimeoutError:
            waiting = [request for queue in self._queues.values() for request in queue]
            self._queues.clear()
            for request in waiting:
                self._left_queue(request)
            for request in [*self._batch, *waiting]:
                self._refuse(request, "this replica is stopping; ask another")
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def answer(
        self, rows: Sequence[tuple[RowT, int]], *, key: str = "", timeout_seconds: float = math.inf
    ) -> Batched[AnswerT]:
        """Return what came of each row; the error of one does not disturb the others.

        Args:
            rows: Each with its tokens.
            key: Who asks; keys take turns.
            timeout_seconds: How long the answers are of use; rows that take longer get a DeadlineError.

        Raises:
            OverloadedError: There is no room for all of them; none was taken.
        """
        requests = self._admit(rows, key=key, timeout_seconds=timeout_seconds)
        try:
            found = [await self._ended(request) for request in requests]
        finally:
            self._leave(requests)
        now = _now()
        starts = [request.started for request in requests if request.started is not None]
        waits = [(request.started or now) - request.arrived for request in requests]
        return Batched(
            found=found,
            wait_seconds=max(waits, default=0.0),
            engine_seconds=now - min(starts, default=now),
        )

    async def stream(
        self, row: RowT, *, tokens: int, key: str = "", timeout_seconds: float = math.inf
    ) -> AsyncGenerator[str | AnswerT, None]:
        """Yield the pieces of a row's answer as they come, and the answer last.

        Args:
            row: The row.
            tokens: Its tokens.
            key: Who asks; keys take turns.
            timeout_seconds: How long the answer is of use.

        Raises:
            OverloadedError: There is no room.
            DeadlineError: It took longer than `timeout_seconds`.
            AttemptError: The row or its prompt cannot be used.
        """
        (request,) = self._admit([(row, tokens)], key=key, timeout_seconds=timeout_seconds)
        try:
            while True:
                event = await self._next_event(request)
                if isinstance(event, Exception):
                    raise event
                yield event
                if not isinstance(event, str):
                    return
        finally:
            self._leave([request])

    @property
    def working(self) -> bool:
        """Whether batches are being made."""
        return self._loop_task is not None and not self._loop_task.done()

    def oldest_running_seconds(self) -> float:
        """Return how long the engine has been computing the batch it has; 0 where it has none."""
        return 0.0 if self._running_since is None else _now() - self._running_since

    def snapshot(self) -> Snapshot:
        """Return the counts of this moment."""
        tokens = sum(request.tokens for request in self._batch)
        return replace(self._counts, running_rows=len(self._batch), running_tokens=tokens)

    def _admit(
        self, rows: Sequence[tuple[RowT, int]], *, key: str, timeout_seconds: float
    ) -> list[_Request[RowT, AnswerT]]:
        if self._stopping:
            self._counts.refused += len(rows)
            raise OverloadedError("this replica is stopping; ask another", 1)
        self._check_wait(len(rows), key=key, timeout_seconds=timeout_seconds)
        self._shed(len(rows), key=key)
        now = _now()
        requests = [
            _Request[RowT, AnswerT](row, tokens, key, now, now + timeout_seconds, asyncio.Queue())
            for row, tokens in rows
        ]
        self._queues.setdefault(key, deque()).extend(requests)
        self._counts.queued_rows += len(rows)
        self._counts.queued_tokens += sum(tokens for _, tokens in rows)
        self._arrived.set()
        self._idle.clear()
        return requests

    def _check_wait(self, rows: int, *, key: str, timeout_seconds: float) -> None:
        """Refuse what would wait so long that nobody would read the answer.

        Raises:
            OverloadedError: The wait that this key's next row may expect is too long.
        """
        if not self._counts.tokens_per_second:
            return
        own = sum(request.tokens for request in self._queues.get(key, ()))
        # Keys take turns: others' rows come between this key's own, and no more of them than wait.
        before = min(self._counts.queued_tokens, own * max(1, len(self._queues)))
        wait = before / self._counts.tokens_per_second
        if wait > min(self._config.queue_seconds, timeout_seconds):
            self._counts.refused += rows
            raise OverloadedError(
                f"an answer would have to wait {wait:.0f} s; send the request again later",
                self._retry_after_seconds(),
            )

    def _shed(self, rows: int, *, key: str) -> None:
        """Make room for `rows` of a key: the key with the longest queue gives up its latest, unless that is this one.

        Raises:
            OverloadedError: There is none to be had.
        """
        lacking = self._counts.queued_rows + rows - self._config.queue_rows
        waiting = {name: len(queue) for name, queue in self._queues.items()}
        own = waiting.pop(key, 0) + rows
        losses: dict[str, int] = {}
        while lacking > 0:
            longest = max(waiting, key=waiting.__getitem__, default=key)
            if waiting.get(longest, 0) <= own:
                self._counts.refused += rows
                raise OverloadedError(
                    f"{self._counts.queued_rows:,} rows wait and {rows:,} more do not fit; send them again later",
                    self._retry_after_seconds(),
                )
            waiting[longest] -= 1
            losses[longest] = losses.get(longest, 0) + 1
            lacking -= 1
        for name, count in losses.items():
            for _ in range(count):
                request = self._queues[name].pop()
                self._left_queue(request)
                self._refuse(request, "the queue is full, mostly of your rows; send fewer at a time")

    def _refuse(self, request: _Request[RowT, AnswerT], reason: str) -> None:
        if request.open:
            self._counts.refused += 1
            self._end(request, OverloadedError(reason, self._retry_after_seconds()))

    def _retry_after_seconds(self) -> int:
        """Return about how long it takes until what waits now has been computed."""
        rate = self._counts.tokens_per_second
        seconds = self._counts.queued_tokens / rate if rate else 1.0
        return min(_MOST_RETRY_SECONDS, max(1, math.ceil(seconds)))

    async def _next_event(self, request: _Request[RowT, AnswerT]) -> str | AnswerT | Exception:
        timeout = None if math.isinf(request.deadline) else request.deadline
        try:
            async with asyncio.timeout_at(timeout):
                return await request.events.get()
        except TimeoutError:
            if not request.events.empty():
                return request.events.get_nowait()
            if request.open:
                self._counts.expired += 1
                request.open = False
            return DeadlineError(
                "no answer in the time that was given; give more, or send fewer rows at a time"
            )

    async def _ended(self, request: _Request[RowT, AnswerT]) -> AnswerT | Exception:
        while isinstance(event := await self._next_event(request), str):
            pass
        return event

    def _leave(self, requests: Sequence[_Request[RowT, AnswerT]]) -> None:
        """Forget requests that nobody waits for any longer."""
        for request in requests:
            if request.open:
                self._counts.cancelled += 1
                request.open = False
            if request.queued:
                queue = self._queues[request.key]
                queue.remove(request)
                self._left_queue(request)
                if not queue:
                    del self._queues[request.key]

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            # Whoever is ready to ask at this moment joins the batch.
            await asyncio.sleep(0)
            self._batch = self._form()
            if self._batch:
                self._running_since = _now()
                await loop.run_in_executor(self._thread, self._compute, loop, self._batch)
                self._finish(_now() - self._running_since)
                self._running_since, self._batch = None, []
            if not self._queues:
                self._arrived.clear()
                self._idle.set()

    def _form(self) -> list[_Request[RowT, AnswerT]]:
        """Take the next batch off the queue: one row of each key in turn, until the budget is used.

        A row that does not fit is overtaken by later ones that do, but by none once it is `max_age_seconds` old. A row that
        exceeds the budget alone makes a batch of one.
        """
        now = _now()
        batch: list[_Request[RowT, AnswerT]] = []
        tokens = 0
        turns = deque(self._queues)
        while turns and len(batch) < self._config.batch_rows:
            key = turns.popleft()
            queue = self._queues[key]
            while queue and not self._usable(queue[0], now):
                self._take(queue)
            if queue:
                request = queue[0]
                if batch and tokens + request.tokens > self._config.batch_tokens:
                    if now - request.arrived >= self._config.max_age_seconds:
                        self._queues.move_to_end(key, last=False)
                        break
                    continue
                batch.append(self._take(queue))
                tokens += request.tokens
            if queue:
                turns.append(key)
                self._queues.move_to_end(key)
            else:
                del self._queues[key]
        for request in batch:
            request.started = now
            self._counts.wait_seconds += now - request.arrived
        return batch

    def _usable(self, request: _Request[RowT, AnswerT], now: float) -> bool:
        if request.open and request.deadline <= now:
            self._counts.expired += 1
            self._end(
                request, DeadlineError("waited longer than the time that was given; send it again later")
            )
        return request.open

    def _take(self, queue: deque[_Request[RowT, AnswerT]]) -> _Request[RowT, AnswerT]:
        request = queue.popleft()
        self._left_queue(request)
        return request

    def _left_queue(self, request: _Request[RowT, AnswerT]) -> None:
        request.queued = False
        self._counts.queued_rows -= 1
        self._counts.queued_tokens -= request.tokens

    def _compute(self, loop: asyncio.AbstractEventLoop, batch: Sequence[_Request[RowT, AnswerT]]) -> None:
        """Run the engine, in its thread; it is left as soon as nobody waits for the batch."""
        try:
            with closing(self._engine.run([request.row for request in batch])) as found:
                for index, event in found:
                    loop.call_soon_threadsafe(self._deliver, batch[index], event)
                    if not any(request.open for request in batch):
                        break
        except Exception as error:  # noqa: BLE001 - it is told to those who wait
            loop.call_soon_threadsafe(self._fail, batch, error)

    def _deliver(self, request: _Request[RowT, AnswerT], event: str | AnswerT | AttemptError) -> None:
        if not request.open:
            return
        if isinstance(event, str):
            request.events.put_nowait(event)
            return
        if isinstance(event, AttemptError):
            self._counts.failed += 1
        else:
            self._counts.answered += 1
        self._end(request, event)

    def _fail(self, batch: Sequence[_Request[RowT, AnswerT]], error: Exception) -> None:
        for request in batch:
            if request.open:
                self._counts.failed += 1
                self._end(request, error)

    def _finish(self, seconds: float) -> None:
        self._fail(self._batch, RuntimeError("the engine left the row without an answer"))
        tokens = sum(request.tokens for request in self._batch)
        counts, rate = self._counts, tokens / max(seconds, 1e-6)
        counts.tokens_per_second += (rate - counts.tokens_per_second) * (_SMOOTHING if counts.batches else 1)
        counts.batches += 1
        counts.batch_rows += len(self._batch)
        counts.batch_tokens += tokens
        counts.batch_fill += max(
            tokens / self._config.batch_tokens, len(self._batch) / self._config.batch_rows
        )
        counts.busy_seconds += seconds

    def _end(self, request: _Request[RowT, AnswerT], event: AnswerT | Exception) -> None:
        request.open = False
        request.events.put_nowait(event)


def _now() -> float:
    return asyncio.get_running_loop().time()
