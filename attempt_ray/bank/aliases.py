"""Aliases: the names of a prompt that move, such as ``champion``, and every move they made."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from attempt_ray.bank.manifest import SCHEMA, Name, decode_json, encode_json
from attempt_ray.bank.names import Kind, check_alias
from attempt_ray.bank.storage import Storage
from attempt_ray.bank.versions import sha256
from attempt_ray.config import Section
from attempt_ray.errors import BankError, IntegrityError

ALIASES = "aliases.json"
CHAMPION = "champion"
CANDIDATE = "candidate"

MAX_MOVES = 1000
"""Moves that are kept; older ones can no longer be rolled back."""
_MAX_BYTES = 2**20
_FIX = "no alias was read or moved; restore the file, or remove it and set the aliases again"

Alias = Annotated[str, AfterValidator(check_alias)]
Number = Annotated[int, Field(ge=1, le=999_999_999)]


class Move(Section):
    """One move of one alias."""

    revision: int = Field(ge=1)
    """Counts the moves of all aliases of the prompt."""
    alias: Alias
    """What moved."""
    before: Number | None
    """Version it pointed to; None when it was new."""
    after: Number
    """Version it points to since."""
    action: Literal["set", "rollback"]
    """Whether it moved on or back."""
    at: str
    """When, UTC."""


class Canary(Section):
    """A version that answers a share of what the champion would."""

    version: Number
    """The version on trial."""
    percent: float = Field(default=10.0, gt=0, le=100)
    """Share of the rows that it answers."""
    max_error_rate: float = Field(default=0.05, ge=0, le=1)
    """Share of its rows that may fail; above it, the trial is rolled back."""
    min_rows: int = Field(default=20, ge=1)
    """Rows it has answered before its errors are judged."""
    state: Literal["running", "rolled back", "promoted", "stopped"] = "running"
    """Where the trial stands."""
    reason: str | None = Field(default=None, max_length=500)
    """Why it was rolled back."""


class Aliases(Section):
    """The aliases of one prompt, and which of its versions are on trial or gone."""

    model_config = ConfigDict(populate_by_name=True)

    schema_number: int = Field(default=SCHEMA, alias="schema")
    """Layout of the file."""
    kind: Kind
    """Kind of the prompt."""
    name: Name
    """Name of the prompt."""
    revision: int = Field(default=0, ge=0)
    """Moves so far."""
    current: dict[Alias, Number] = Field(default_factory=dict)
    """Version that each alias points to."""
    history: tuple[Move, ...] = ()
    """The latest moves, oldest first."""
    canary: Canary | None = None
    """The trial under way, or the last one."""
    removed: tuple[Number, ...] = ()
    """Numbers of versions that were removed; they are not given again."""

    @property
    def trial(self) -> Canary | None:
        """The trial under way."""
        return self.canary if self.canary is not None and self.canary.state == "running" else None

    def moved(self, alias: str, number: int, *, action: Literal["set", "rollback"]) -> Aliases:
        """Return the aliases after one more move."""
        move = Move(
            revision=self.revision + 1,
            alias=alias,
            before=self.current.get(alias),
            after=number,
            action=action,
            at=timestamp(),
        )
        return self.model_copy(
            update={
                "revision": move.revision,
                "current": {**self.current, alias: number},
                "history": (*self.history, move)[-MAX_MOVES:],
                "canary": self._after(number) if alias == CHAMPION else self.canary,
            }
        )

    def with_canary(self, canary: Canary) -> Aliases:
        """Return the aliases with a trial begun, changed or ended."""
        return self.model_copy(update={"canary": canary})

    def without(self, number: int) -> Aliases:
        """Return the aliases after a version was removed."""
        return self.model_copy(update={"removed": tuple(sorted({*self.removed, number}))})

    def _after(self, champion: int) -> Canary | None:
        """Return the trial after the champion moved: it is over, since what it was compared with is."""
        if self.trial is None:
            return self.canary
        ended = "promoted" if self.trial.version == champion else "stopped"
        return self.trial.model_copy(update={"state": ended})

    def previous(self, alias: str) -> int | None:
        """Return the version `alias` pointed to before the latest move that was not rolled back."""
        trail: list[int | None] = []
        for move in self.history:
            if move.alias != alias:
                continue
            if not trail:
                trail.append(move.before)
            if move.action == "set":
                trail.append(move.after)
            else:
                # A move whose own "set" fell out of the history leaves nothing to take back.
                trail = trail[:-1] if len(trail) > 1 and trail[-2] == move.after else [move.after]
        return trail[-2] if len(trail) > 1 else None


def read_aliases(storage: Storage, kind: Kind, name: str) -> Aliases:
    """Return the aliases of a prompt; none where they were never set.

    Raises:
        IntegrityError: The file was changed, or is another prompt's.
        StorageError: The store refused.
    """
    path = f"{kind}/{name}/{ALIASES}"
    try:
        data = storage.read(path, limit=_MAX_BYTES)
    except FileNotFoundError:
        return Aliases(kind=kind, name=name)
    place = storage.place(path)
    try:
        content = decode_json(data)
        expected = content.pop("sha256")
        found = sha256(encode_json(content))
        if data != _encode(content) or expected != found:
            raise BankError(f"expected sha256 {ascii(expected)[1:-1][:64]}, found {found}")
        aliases = Aliases.model_validate(content)
    except (AttributeError, KeyError, TypeError):
        raise IntegrityError(f"{place}: not a file of aliases; {_FIX}") from None
    except ValidationError as error:
        raise IntegrityError(f"{place}: {error.errors()[0]['msg']}; {_FIX}") from None
    except BankError as error:
        raise IntegrityError(f"{place}: {error}; {_FIX}") from None
    if (aliases.kind, aliases.name) != (kind, name):
        raise IntegrityError(f"{place}: expected {kind}/{name}, found {aliases.kind}/{aliases.name}; {_FIX}")
    return aliases


def write_aliases(storage: Storage, aliases: Aliases) -> None:
    """Replace the file of aliases; its own digest is part of it.

    Raises:
        StorageError: The store refused.
    """
    content = aliases.model_dump(mode="json", by_alias=True)
    storage.replace(f"{aliases.kind}/{aliases.name}/{ALIASES}", _encode(content))


def timestamp() -> str:
    """Return the time now, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _encode(content: dict[str, Any]) -> bytes:
    return encode_json({**content, "sha256": sha256(encode_json(content))})
