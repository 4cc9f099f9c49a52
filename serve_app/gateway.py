"""What the HTTP side needs of the engines behind it, whether they are replicas of a cluster or one in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from prometheus_client import Metric

from serve_app.schema import CanaryIn, Changed, ReplicaStatus, RowIn, RowOut, TaskInfo


@dataclass(frozen=True, kw_only=True)
class Call:
    """Rows of one request."""

    rows: Sequence[RowIn]
    """What is asked; all are resolved against one state of the bank."""
    attention: bool = False
    """Whether mixing weights are wanted."""
    timeout_seconds: float
    """How long the answer is of use."""
    key: str = ""
    """Who asks: the id of the API key. Keys take turns."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Answers to a call, in the order of its rows, and where the time went."""

    rows: Sequence[RowOut]
    wait_seconds: float = 0.0
    """From arrival at the engine to the start of the batch, of the row that waited longest."""
    engine_seconds: float = 0.0
    """From there to the last answer."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of what a task serves."""

    action: Literal["promote", "rollback", "start canary", "stop canary"]
    task: str
    version: int | None = None
    expected: int | None = None
    canary: CanaryIn | None = field(default=None)


class Gateway(Protocol):
    """The engines. Every method raises AttemptError for what the caller or an operator can mend.

    NotFoundError for an unknown task, prompt, alias or version; DataError for a row that cannot be used; OverloadedError;
    DeadlineError; BankError (IntegrityError among them) and BackboneError for a version that is there but refused, and for
    a change that the bank refuses; StorageError. The message of a row's error starts with ``rows.INDEX: ``.
    """

    async def predict(self, call: Call) -> Reply:
        """Answer all rows, or raise the error of the first that failed."""
        ...

    def stream(self, call: Call) -> AsyncGenerator[str | RowOut, None]:
        """Yield the pieces of the one row's answer as they come, and the answer last."""
        ...

    async def tasks(self) -> list[TaskInfo]:
        """Return all tasks that can be asked, by name."""
        ...

    async def change(self, change: Change) -> Changed:
        """Change what a task serves, in the bank."""
        ...

    async def status(self) -> list[ReplicaStatus]:
        """Return what every engine replica says of itself; empty where none answers."""
        ...

    async def metrics(self) -> dict[str, list[Metric]]:
        """Return the metrics of every engine replica, by its id."""
        ...
