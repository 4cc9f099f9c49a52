"""One replica without its cluster: backbone, bank and queue behind the calls of the HTTP side.

It chooses the version that answers each row, keeps trials of canaries honest, compares candidates unseen, and says how it
is doing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric

from attempt_ray.bank import aliases as records
from attempt_ray.bank.names import Reference
from attempt_ray.bank.store import Bank
from attempt_ray.config import Config
from attempt_ray.errors import (
    AttemptError,
    BankError,
    ConfigError,
    DataError,
    DeadlineError,
    NotFoundError,
    OverloadedError,
    StorageError,
    unknown_name,
)
from attempt_ray.model.backbone import load_backbone
from serve_app.batcher import Batcher
from serve_app.catalogue import describe, example_fields
from serve_app.engine import Answer, Engine, PreparedRow, Row
from serve_app.follower import RETRY_SECONDS, Choice, Follower, Shelf, View
from serve_app.gateway import Call, Change, Reply
from serve_app.gauges import Gauges
from serve_app.schema import Canary, Changed, Problem, ReplicaStatus, RowIn, RowOut, TaskInfo

_log = logging.getLogger(__name__)

_CHARS_AT_ONCE = 20_000
"""Texts up to this length are tokenised on the event loop: a thread would cost more."""
_WARM_TASKS = 8
"""Tasks that are asked once before a replica says it is ready."""
_SHADOW = "shadow"
"""Key of rows that nobody waits for."""
_WAIT_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


@dataclass
class _Trial:
    """What this replica knows of a canary."""

    rows: int = 0
    failed: int = 0


@dataclass(frozen=True)
class _Asked:
    """A row on its way."""

    index: int
    task: str
    row: RowIn
    choice: Choice


class Host:
    """Answers calls from one backbone and one bank; a `Gateway` that needs no cluster.

    All methods but the constructor belong to one event loop. Use it as an async context manager, or call `start` and
    `stop`.
    """

    def __init__(self, config: Config, *, replica: str = "local") -> None:
        """Load the backbone.

        Args:
            config: Backbone, device, bank, template choices, decoding and sizes.
            replica: What to call it.

        Raises:
            BackboneError: The backbone cannot be loaded.
            BankError: The bank cannot be opened.
            ConfigError: A task file cannot be used.
        """
        self._config = config
        self._serving = config.serving
        self._replica = replica
        self._bank = Bank(config.bank)
        cache = None if self._serving.weights_cache is None else Path(self._serving.weights_cache)
        backbone = load_backbone(config.backbone, config.device, cache=cache)
        self._engine = Engine(backbone, self._bank, config)
        self._follower = Follower(self._bank, self._read)
        self._sources: dict[str, tuple[str, ...]] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._failed_loads: dict[str, tuple[AttemptError, float]] = {}
        self._trials: defaultdict[str, _Trial] = defaultdict(_Trial)
        self._background: set[asyncio.Task[None]] = set()
        self._draws = random.Random()
        self._batcher: Batcher[PreparedRow, Answer] = Batcher(self._engine, self._serving)
        self._following: asyncio.Task[None] | None = None
        self._registry = CollectorRegistry()
        self._registry.register(Gauges(self._engine, self._batcher, self._follower))
        self._rows = Counter(
            "attempt_rows",
            "Rows by task, version, why it was this version, and outcome",
            ["task", "prompt", "role", "outcome"],
            registry=self._registry,
        )
        self._shadows = Counter(
            "attempt_shadow_rows",
            "Rows that a candidate answered unseen, by whether it agreed with the champion",
            ["task", "prompt", "agreed"],
            registry=self._registry,
        )
        self._rollbacks = Counter(
            "attempt_canary_rollbacks", "Trials that this replica ended", registry=self._registry
        )
        self._waits = Histogram(
            "attempt_wait_seconds",
            "Time from a request's arrival at the replica to the start of its last batch",
            buckets=_WAIT_BUCKETS,
            registry=self._registry,
        )

    async def __aenter__(self) -> Host:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(drain_seconds=self._serving.drain_seconds)

    async def start(self) -> None:
        """Read the bank, warm up, and begin to answer.

        Raises:
            StorageError: The bank cannot be read.
        """
        await asyncio.to_thread(self._follower.poll)
        if self._follower.trouble is not None:
            raise StorageError(self._follower.trouble)
        await asyncio.to_thread(self._warm_up)
        self._batcher.start()
        self._following = asyncio.create_task(self._follow())

    async def stop(self, *, drain_seconds: float) -> None:
        """Answer what was accepted, refuse what comes from now on, and end.

        Args:
            drain_seconds: How long that may take.
        """
        tasks = [*self._background, *([] if self._following is None else [self._following])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._batcher.stop(drain_seconds=drain_seconds)

    def check(self) -> None:
        """Find out whether this replica can go on.

        Raises:
            RuntimeError: Its engine hangs, or a part of it has ended.
        """
        seconds = self._batcher.oldest_running_seconds()
        if seconds > self._serving.stall_seconds:
            raise RuntimeError(f"the engine has computed one batch for {seconds:.0f} s")
        if self._following is None or self._following.done() or not self._batcher.working:
            raise RuntimeError("the replica has stopped working")

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait or are computed."""
        counts = self._batcher.snapshot()
        return counts.queued_tokens + counts.running_tokens

    async def predict(self, call: Call) -> Reply:
        """Answer all rows from one view of the bank; see `Gateway.predict`."""
        view = self._follower.view
        draw = self._draws.random()
        asked = [self._chosen(index, row, view, draw=draw) for index, row in enumerate(call.rows)]
        reply, failures = await self._ask(asked, call)
        for one in asked:
            if one.choice.role == "canary":
                self._judge(one, failed=one.index in failures)
        again = [
            replace(one, choice=_champion(one.choice))
            for one in asked
            if one.index in failures and one.choice.champion is not None
        ]
        if again:
            # A row does not suffer from the version on trial.
            instead, failures_again = await self._ask(again, call)
            reply = replace(
                reply,
                rows={**reply.rows, **instead.rows},
                engine_seconds=reply.engine_seconds + instead.engine_seconds,
            )
            failures = {index: error for index, error in failures.items() if index not in instead.rows}
            failures |= failures_again
        if failures:
            index = min(failures)
            raise _of_row(index, failures[index])
        for one in asked:
            self._shadow(one, reply.rows[one.index], call)
        self._waits.observe(reply.wait_seconds)
        return Reply(
            rows=[reply.rows[one.index] for one in asked],
            wait_seconds=reply.wait_seconds,
            engine_seconds=reply.engine_seconds,
        )

    async def stream(self, call: Call) -> AsyncGenerator[str | RowOut, None]:
        """Yield the pieces of the one row's answer as they come, and the answer last; see `Gateway.stream`."""
        (row,) = call.rows
        asked = self._chosen(0, row, self._follower.view, draw=self._draws.random())
        told = False
        try:
            async for event in self._streamed(asked, call):
                told = True
                yield event
        except DataError:
            raise  # the row's own fault, and told with its place
        except AttemptError as error:
            if asked.choice.role == "canary":
                self._judge(asked, failed=not _is_ours(error))
            if told or asked.choice.champion is None or _is_ours(error):
                raise _of_row(0, error) from None
        else:
            if asked.choice.role == "canary":
                self._judge(asked, failed=False)
            return
        async for event in self._streamed(replace(asked, choice=_champion(asked.choice)), call):
            yield event

    async def tasks(self) -> list[TaskInfo]:
        """Return all tasks that can be asked, by name."""
        view = self._follower.view
        names = {shelf.name for shelf in view.shelves.values() if shelf.name in self._engine.tasks}
        shelves = [shelf for name in sorted(names) if (shelf := view.find(name)) is not None]
        return [self._described(shelf, view) for shelf in shelves]

    async def change(self, change: Change) -> Changed:
        """Change what a task serves, in the bank, and follow at once."""
        shelf = self._follower.view.find(change.task)
        if shelf is None:
            raise NotFoundError(self._unknown_task(change.task))
        await asyncio.to_thread(self._change, shelf, change)
        await asyncio.to_thread(self._follower.poll)
        after = self._follower.view.find(change.task) or shelf
        return Changed(prompt=after.reference(after.served[records.CHAMPION]), canary=_canary(after.canary))

    async def status(self) -> list[ReplicaStatus]:
        """Return what this replica says of itself."""
        counts = self._batcher.snapshot()
        view = self._follower.view
        healthy = True
        try:
            self.check()
        except RuntimeError:
            healthy = False
        return [
            ReplicaStatus(
                replica=self._replica,
                healthy=healthy,
                ready=healthy and self._follower.trouble is None and not view.refused,
                backbone=self._config.backbone.name,
                bank=self._bank.place,
                bank_revision=view.revision,
                bank_state=view.state,
                bank_age_seconds=self._follower.age_seconds,
                loaded_prompts=self._engine.loaded_prompts,
                loaded_bytes=self._engine.loaded_bytes,
                queued_rows=counts.queued_rows,
                queued_tokens=counts.queued_tokens,
                running_rows=counts.running_rows,
                oldest_batch_seconds=self._batcher.oldest_running_seconds(),
                problems=self._problems(view.refused),
            )
        ]

    async def metrics(self) -> dict[str, list[Metric]]:
        """Return this replica's metrics."""
        return {self._replica: list(self._registry.collect())}

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._serving.follow_seconds)
            await asyncio.to_thread(self._follower.poll)

    def _warm_up(self) -> None:
        """Answer examples of some tasks, so that the first caller does not wait for what only the first batch needs."""
        view = self._follower.view
        shelves = [shelf for shelf in view.shelves.values() if shelf.name in self._engine.tasks]
        rows = [
            Row(
                task=shelf.name,
                prompt=shelf.reference(shelf.served[records.CHAMPION]),
                fields=example_fields(self._engine.tasks[shelf.name]),
            )
            for shelf in shelves[:_WARM_TASKS]
        ]
        for found in self._engine.answer(rows):
            if isinstance(found, AttemptError):
                _log.warning("warming up: %s", found)

    def _read(self, prompt: str) -> None:
        """Read, check and load a version."""
        self._sources[prompt] = self._engine.load(prompt)

    def _chosen(self, index: int, row: RowIn, view: View, *, draw: float) -> _Asked:
        name, _, _ = row.task.partition("@")
        if name not in self._engine.tasks:
            raise _of_row(index, NotFoundError(self._unknown_task(name)))
        try:
            choice = view.resolve(row.task, row.prompt, draw=draw)
        except AttemptError as error:
            raise _of_row(index, error) from None
        return _Asked(index, name, row, choice)

    def _unknown_task(self, name: str) -> str:
        served = {shelf.name for shelf in self._follower.view.shelves.values()}
        return unknown_name("task served here", name, served & self._engine.tasks.keys())

    async def _ask(self, asked: Sequence[_Asked], call: Call) -> tuple[_Replies, dict[int, AttemptError]]:
        """Return answers by index, and errors of rows whose version cannot answer.

        Raises:
            OverloadedError, DeadlineError, DataError: As `Gateway.predict`: the call fails as a whole.
        """
        failures: dict[int, AttemptError] = {}
        loop = asyncio.get_running_loop()
        deadline = loop.time() + call.timeout_seconds
        for one in asked:
            try:
                await self._loaded(one.choice.prompt, call.timeout_seconds)
            except AttemptError as error:
                if _is_ours(error):
                    raise
                failures[one.index] = error
        usable = [one for one in asked if one.index not in failures]
        prepared = await self._prepared(usable, attention=call.attention)
        batched = await self._batcher.answer(
            [(row, row.tokens) for row in prepared],
            key=call.key,
            timeout_seconds=max(0.0, deadline - loop.time()),
        )
        rows: dict[int, RowOut] = {}
        for one, found in zip(usable, batched.found, strict=True):
            if isinstance(found, Answer):
                rows[one.index] = _out(one, found)
            elif isinstance(found, AttemptError) and not _is_ours(found):
                failures[one.index] = found
            else:
                self._count(one, "failed")
                raise _of_row(one.index, found) if isinstance(found, AttemptError) else found
            self._count(one, "answered" if one.index in rows else "failed")
        return _Replies(rows, batched.wait_seconds, batched.engine_seconds), failures

    async def _streamed(self, asked: _Asked, call: Call) -> AsyncGenerator[str | RowOut, None]:
        await self._loaded(asked.choice.prompt, call.timeout_seconds)
        (prepared,) = await self._prepared([asked], attention=call.attention, stream=True)
        events = self._batcher.stream(
            prepared, tokens=prepared.tokens, key=call.key, timeout_seconds=call.timeout_seconds
        )
        outcome = "failed"
        try:
            async for event in events:
                if isinstance(event, Answer):
                    outcome = "answered"
                    yield _out(asked, event)
                else:
                    yield event
        finally:
            await events.aclose()
            self._count(asked, outcome)

    async def _loaded(self, prompt: str, timeout_seconds: float) -> None:
        """Wait until a version is on the device; those who ask at once wait for one reading of it.

        Raises:
            BankError, BackboneError: It cannot be used; for a while it is not read again.
            StorageError: The store refused.
            DeadlineError: It took too long.
        """
        if self._engine.has(prompt):
            return
        now = asyncio.get_running_loop().time()
        error, since = self._failed_loads.get(prompt, (None, 0.0))
        if error is not None and now - since < RETRY_SECONDS:
            raise error
        task = self._loading.get(prompt)
        if task is None:
            task = self._loading[prompt] = asyncio.create_task(self._load(prompt))
            task.add_done_callback(lambda _: self._loading.pop(prompt, None))
        try:
            async with asyncio.timeout(timeout_seconds):
                await asyncio.shield(task)
        except TimeoutError:
            raise DeadlineError(f"{prompt} was not loaded in the time that was given; give more") from None

    async def _load(self, prompt: str) -> None:
        self._failed_loads.pop(prompt, None)
        try:
            await asyncio.to_thread(self._read, prompt)
        except StorageError:
            raise
        except AttemptError as error:
            told = BankError(str(error)) if isinstance(error, ConfigError) else error
            self._failed_loads[prompt] = told, asyncio.get_running_loop().time()
            raise told from None

    async def _prepared(
        self, asked: Sequence[_Asked], *, attention: bool, stream: bool = False
    ) -> list[PreparedRow]:
        def prepare() -> list[PreparedRow]:
            return [self._prepare(one, attention=attention, stream=stream) for one in asked]

        if sum(_length(one.row) for one in asked) <= _CHARS_AT_ONCE:
            return prepare()
        return await asyncio.to_thread(prepare)

    def _prepare(self, asked: _Asked, *, attention: bool, stream: bool) -> PreparedRow:
        row = Row(
            task=asked.task,
            prompt=asked.choice.prompt,
            fields=asked.row.fields,
            text=asked.row.text,
            attention=attention,
            max_new_tokens=asked.row.max_new_tokens,
            stream=stream,
        )
        try:
            return self._engine.prepare(row)
        except AttemptError as error:
            raise _of_row(asked.index, error) from None

    def _count(self, asked: _Asked, outcome: str) -> None:
        self._rows.labels(asked.task, asked.choice.prompt, asked.choice.role, outcome).inc()

    def _judge(self, asked: _Asked, *, failed: bool) -> None:
        """Note how a canary's row ended, and end the trial where too many have failed."""
        trial = self._trials[asked.choice.prompt]
        trial.rows += 1
        trial.failed += failed
        wanted = Reference.parse(asked.choice.prompt)
        shelf = self._follower.view.shelves.get(f"{wanted.kind}/{wanted.name}")
        limits = None if shelf is None else shelf.canary
        if shelf is None or limits is None or limits.state != "running" or limits.version != wanted.number:
            return
        if trial.rows >= limits.min_rows and trial.failed > limits.max_error_rate * trial.rows:
            reason = f"{trial.failed} of {trial.rows} rows failed on replica {self._replica}"
            self._trials.pop(asked.choice.prompt)
            self._rollbacks.inc()
            _log.warning("%s is rolled back: %s", asked.choice.prompt, reason)
            self._follower.forget_canary(shelf.kind, shelf.name, limits.version)
            self._in_background(self._roll_back(shelf, limits.version, reason))

    async def _roll_back(self, shelf: Shelf, version: int, reason: str) -> None:
        with suppress(AttemptError):  # other replicas judge for themselves, and this one asks it no more
            await asyncio.to_thread(
                self._bank.end_canary,
                shelf.kind,
                shelf.name,
                version=version,
                state="rolled back",
                reason=reason,
            )

    def _shadow(self, asked: _Asked, answer: RowOut, call: Call) -> None:
        candidate = asked.choice.candidate
        if candidate is None or self._draws.random() * 100 >= self._serving.shadow_percent:
            return
        if self._batcher.snapshot().queued_rows >= self._serving.batch_rows:
            return
        choice = replace(asked.choice, prompt=candidate, role="alias", candidate=None)
        self._in_background(self._compare(replace(asked, choice=choice), answer, call))

    async def _compare(self, asked: _Asked, answer: RowOut, call: Call) -> None:
        agreed = "failed"
        with suppress(AttemptError):
            shadow = replace(call, key=_SHADOW, attention=False)
            replies, _ = await self._ask([asked], shadow)
            if asked.index in replies.rows:
                agreed = "yes" if replies.rows[asked.index].answer == answer.answer else "no"
        self._shadows.labels(asked.task, asked.choice.prompt, agreed).inc()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _change(self, shelf: Shelf, change: Change) -> None:
        bank, kind, name = self._bank, shelf.kind, shelf.name
        wanted = change.version if change.canary is None else change.canary.version
        if wanted is not None and wanted not in bank.numbers(kind, name):
            raise NotFoundError(f"no version v{wanted} of {kind}/{name}; it has: {_listed(shelf.numbers)}")
        if change.action == "promote":
            named = f"{kind}/{name}" if wanted is None else shelf.reference(wanted)
            reference = bank.to_promote(named).reference
            self._read(reference)
            bank.promote(reference, expected=change.expected or "any")
        elif change.action == "rollback":
            bank.rollback(kind, name)
        elif change.canary is not None:
            self._read(shelf.reference(change.canary.version))
            bank.start_canary(kind, name, records.Canary(**change.canary.model_dump()))
        else:
            bank.end_canary(kind, name)

    def _described(self, shelf: Shelf, view: View) -> TaskInfo:
        task = self._engine.tasks[shelf.name]
        prompt = shelf.reference(shelf.served[records.CHAMPION])
        refused = {
            reference: reason
            for reference, reason in view.refused.items()
            if reference.partition("@")[0] == f"{shelf.kind}/{shelf.name}"
        }
        return describe(
            task,
            words=self._engine.label_words(task),
            prompt=prompt,
            versions=shelf.numbers,
            aliases=shelf.served,
            canary=_canary(shelf.canary),
            sources=self._sources.get(prompt, ()),
            problems=self._problems(refused),
        )

    def _problems(self, refused: Mapping[str, str]) -> list[Problem]:
        return [
            Problem(prompt=prompt, reason=reason, replica=self._replica)
            for prompt, reason in sorted(refused.items())
        ]


@dataclass(frozen=True)
class _Replies:
    """Answers by index of their row."""

    rows: Mapping[int, RowOut]
    wait_seconds: float
    engine_seconds: float


def _champion(choice: Choice) -> Choice:
    prompt = choice.champion or choice.prompt
    return Choice(prompt, Reference.parse(prompt).number or 0, "champion")


def _is_ours(error: AttemptError) -> bool:
    """Return whether an error is the deployment's or the caller's, and not of the version that was asked."""
    return isinstance(error, OverloadedError | DeadlineError | StorageError)


def _of_row(index: int, error: AttemptError) -> AttemptError:
    """Return an error that names the row it came from."""
    text = f"rows.{index}: {error}"
    if isinstance(error, OverloadedError):
        return OverloadedError(text, error.retry_after_seconds)
    return type(error)(text)


def _length(row: RowIn) -> int:
    if row.text is not None:
        return len(row.text)
    return sum(len(value) for value in (row.fields or {}).values() if isinstance(value, str))


def _out(asked: _Asked, answer: Answer) -> RowOut:
    return RowOut(
        task=asked.task,
        prompt=asked.choice.prompt,
        version=asked.choice.version,
        role=asked.choice.role,
        answer=answer.answer,
        label=answer.meaning,
        probabilities=None if answer.probabilities is None else dict(answer.probabilities),
        attention=None if answer.attention is None else dict(answer.attention),
        truncated=answer.truncated,
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
    )


def _canary(canary: records.Canary | None) -> Canary | None:
    return None if canary is None else Canary(**canary.model_dump())


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(f"v{number}" for number in numbers)
