"""What the bank serves now, as one replica sees it: immutable views, each replaced whole by the next.

A version is read and checked before any name leads to it. One that cannot be used is refused, the name keeps the version
it had, and the view says so.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from attempt_ray.bank.aliases import CANDIDATE, CHAMPION, Aliases, Canary
from attempt_ray.bank.names import Kind, Reference, Version
from attempt_ray.bank.store import Bank
from attempt_ray.errors import (
    AttemptError,
    BankError,
    IntegrityError,
    NotFoundError,
    StorageError,
    unknown_name,
)
from serve_app.schema import Role

_log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""How long a version that was refused stays refused before it is read again."""
_SERVED: tuple[Kind, ...] = ("target", "source")
"""Kinds that answer; a task's target is preferred to its source."""


@dataclass(frozen=True)
class Choice:
    """The version that answers a row."""

    prompt: str
    """Reference with its number."""
    version: int
    """The number."""
    role: Role
    """Why it is this one."""
    champion: str | None = None
    """What the task serves besides, where the version is on trial."""
    candidate: str | None = None
    """The version to be compared with, where the version is the champion and another is the candidate."""


@dataclass(frozen=True)
class Shelf:
    """What one prompt serves."""

    kind: Kind
    name: str
    numbers: tuple[int, ...]
    """Versions, rising."""
    served: Mapping[str, int]
    """Version of each alias, all checked; the champion is always among them."""
    canary: Canary | None
    """The trial under way, or the last one."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Versions that cannot be used, with reasons."""
    trouble: str | None = None
    """Why its aliases cannot be read; what they were is served still."""

    def reference(self, number: int) -> str:
        """Return the text that always means this version."""
        return Version(self.kind, self.name, number).reference


@dataclass(frozen=True)
class View:
    """The bank at one moment."""

    revision: int = 0
    """Counts the views of a follower."""
    shelves: Mapping[str, Shelf] = field(default_factory=dict)
    """By `kind/name`; prompts of which no version can be used are not there."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Versions that some name should lead to and that cannot be used, with reasons."""

    @cached_property
    def state(self) -> str:
        """Digest of which versions are served: equal where two followers serve the same."""
        served = [
            (
                key,
                sorted(shelf.served.items()),
                shelf.numbers,
                shelf.canary and shelf.canary.model_dump_json(),
            )
            for key, shelf in sorted(self.shelves.items())
        ]
        return hashlib.sha256(repr(served).encode()).hexdigest()[:12]

    def find(self, task: str) -> Shelf | None:
        """Return the prompt of a task: its target, else its source."""
        for kind in _SERVED:
            if shelf := self.shelves.get(f"{kind}/{task}"):
                return shelf
        return None

    def choose(self, shelf: Shelf, *, alias: str | None, number: int | None, draw: float) -> Choice:
        """Return the version that answers.

        Args:
            shelf: The prompt.
            alias: The alias that was asked for.
            number: The version that was asked for.
            draw: From [0, 1): decides between champion and canary where neither was asked for.

        Raises:
            NotFoundError: There is no such alias or version.
        """
        if number is not None:
            if number not in shelf.numbers:
                newest = shelf.numbers[-1]
                raise NotFoundError(
                    f"no version v{number} of {shelf.kind}/{shelf.name}; the newest is v{newest}"
                )
            return Choice(shelf.reference(number), number, "pinned")
        if alias is not None:
            if alias not in shelf.served:
                raise NotFoundError(unknown_name(f"alias of {shelf.kind}/{shelf.name}", alias, shelf.served))
            return Choice(shelf.reference(shelf.served[alias]), shelf.served[alias], "alias")
        champion = shelf.served[CHAMPION]
        trial = shelf.canary
        if (
            trial is not None
            and trial.state == "running"
            and trial.version not in shelf.refused
            and draw * 100 < trial.percent
        ):
            reference = shelf.reference(trial.version)
            return Choice(reference, trial.version, "canary", champion=shelf.reference(champion))
        candidate = shelf.served.get(CANDIDATE, champion)
        return Choice(
            shelf.reference(champion),
            champion,
            "champion",
            candidate=None if candidate == champion else shelf.reference(candidate),
        )

    def resolve(self, task: str, prompt: str | None, *, draw: float) -> Choice:
        """Return the version that answers, for a task with or without alias or version.

        Args:
            task: `rte`, `rte@candidate` or `rte@v3`.
            prompt: A prompt by its own name, in place of the task's.
            draw: As for `choose`.

        Raises:
            NotFoundError: There is no such prompt, alias or version.
        """
        try:
            wanted = Reference.parse(prompt or f"target/{task}")
        except BankError as error:
            raise NotFoundError(str(error)) from None
        if prompt is None:
            shelf = self.find(wanted.name)
            if shelf is None:
                raise NotFoundError(
                    unknown_name("task served here", wanted.name, {one.name for one in self.shelves.values()})
                )
        else:
            found = self.shelves.get(f"{wanted.kind}/{wanted.name}")
            if found is None:
                raise NotFoundError(unknown_name("prompt", f"{wanted.kind}/{wanted.name}", self.shelves))
            shelf = found
        return self.choose(shelf, alias=wanted.alias, number=wanted.number, draw=draw)


class Follower:
    """Keeps the view of a bank up to date.

    Attributes:
        view: The latest; replaced, never changed.
    """

    def __init__(self, bank: Bank, load: Callable[[str], None]) -> None:
        """Start with an empty view.

        Args:
            bank: What is followed.
            load: Reads and checks a version, and raises AttemptError where it cannot be used.
        """
        self._bank = bank
        self._load = load
        self._stamps: dict[str, object] = {}
        self._usable: set[str] = set()
        self._refusals: dict[str, tuple[str, float]] = {}
        self._forgotten: set[str] = set()
        self._read_at: float | None = None
        self._trouble: str | None = None
        self._lock = threading.Lock()
        self.view = View()

    @property
    def trouble(self) -> str | None:
        """Why the bank could not be read the last time; None where it could."""
        return self._trouble

    @property
    def age_seconds(self) -> float:
        """Time since the bank was read successfully; infinite where it never was."""
        return float("inf") if self._read_at is None else time.monotonic() - self._read_at

    def poll(self) -> bool:
        """Look at the bank once; whether the view changed. It never raises: what is served stays served."""
        with self._lock:
            try:
                shelves = self._look()
            except (AttemptError, OSError) as error:
                if self._trouble is None:
                    _log.warning("the bank cannot be read; what was served is served still: %s", error)
                self._trouble = str(error)
                return False
            self._read_at, self._trouble = time.monotonic(), None
            return self._replace(shelves)

    def forget_canary(self, kind: Kind, name: str, version: int) -> None:
        """Serve no row with a canary any longer, before the bank says so."""
        with self._lock:
            key = f"{kind}/{name}"
            shelf = self.view.shelves.get(key)
            if shelf is not None and shelf.canary is not None and shelf.canary.version == version:
                self._forgotten.add(shelf.reference(version))
                canary = self._trial_of(shelf.canary, kind, name)
                self._replace({**self.view.shelves, key: replace(shelf, canary=canary)})

    def _replace(self, shelves: Mapping[str, Shelf]) -> bool:
        refused = {
            Version(shelf.kind, shelf.name, number).reference: reason
            for shelf in shelves.values()
            for number, reason in shelf.refused.items()
        }
        refused |= {key: shelf.trouble for key, shelf in shelves.items() if shelf.trouble is not None}
        # A prompt none of whose versions can be used is told, not served.
        usable = {key: shelf for key, shelf in shelves.items() if CHAMPION in shelf.served}
        if (usable, refused) == (self.view.shelves, self.view.refused):
            return False
        self.view = View(self.view.revision + 1, usable, refused)
        return True

    def _look(self) -> dict[str, Shelf]:
        stamps = self._bank.stamps()
        shelves: dict[str, Shelf] = {}
        for key, stamp in stamps.items():
            kind, _, name = key.partition("/")
            if kind not in _SERVED:
                continue
            before = self.view.shelves.get(key)
            unchanged = stamp is not None and stamp == self._stamps.get(key)
            if before is not None and unchanged and not self._due(before):
                shelves[key] = before
                continue
            served_kind = Reference.parse(key).kind
            try:
                shelf = self._shelf(served_kind, name, before)
            except IntegrityError as error:
                kept = before or Shelf(served_kind, name, (), {}, None)
                shelf = replace(kept, trouble=str(error))
            if shelf is not None:
                shelves[key] = shelf
            self._stamps[key] = stamp
        for key in self._stamps.keys() - stamps.keys():
            del self._stamps[key]
        return shelves

    def _due(self, shelf: Shelf) -> bool:
        now = time.monotonic()
        return any(
            now - self._refusals[reference][1] >= RETRY_SECONDS
            for reference in map(shelf.reference, shelf.refused)
            if reference in self._refusals
        )

    def _shelf(self, kind: Kind, name: str, before: Shelf | None) -> Shelf | None:
        # Before the versions are listed: an alias moves only to a version that is there already.
        try:
            aliases = self._bank.aliases(kind, name)
            numbers = self._bank.numbers(kind, name)
        except IntegrityError:
            raise
        except BankError:
            return None
        wanted = {CHAMPION: numbers[-1], **aliases.current}
        refused: dict[int, str] = {}
        served: dict[str, int] = {}
        for alias, number in wanted.items():
            usable = self._first_usable(
                kind, name, self._fallbacks(alias, number, aliases, numbers, before), refused
            )
            if usable is not None:
                served[alias] = usable
        if aliases.trial is not None:
            self._first_usable(kind, name, [aliases.trial.version], refused)
        canary = self._trial_of(aliases.canary, kind, name)
        return Shelf(kind, name, tuple(numbers), served, canary, refused)

    def _trial_of(self, canary: Canary | None, kind: Kind, name: str) -> Canary | None:
        """Return a trial as it is served: one that was forgotten is over, until the bank knows that, too."""
        if canary is None:
            return None
        reference = Version(kind, name, canary.version).reference
        if canary.state != "running":
            self._forgotten.discard(reference)
        elif reference in self._forgotten:
            return canary.model_copy(update={"state": "rolled back"})
        return canary

    def _fallbacks(
        self, alias: str, number: int, aliases: Aliases, numbers: Sequence[int], before: Shelf | None
    ) -> list[int]:
        """Return the versions an alias may lead to, best first: where it points, what it served, where it pointed before.

        A champion that nobody has chosen is the newest version that can be used.
        """
        found = [number]
        if before is not None and alias in before.served:
            found.append(before.served[alias])
        if alias in aliases.current:
            earlier = aliases.previous(alias)
            found += [] if earlier is None else [earlier]
        else:
            found += reversed(numbers)
        return list(dict.fromkeys(found))

    def _first_usable(
        self, kind: Kind, name: str, numbers: Sequence[int], refused: dict[int, str]
    ) -> int | None:
        for number in numbers:
            reason = self._reason_against(Version(kind, name, number).reference)
            if reason is None:
                return number
            refused[number] = reason
        return None

    def _reason_against(self, reference: str) -> str | None:
        """Return why a version cannot be used; None where it can."""
        if reference in self._usable:
            return None
        known = self._refusals.get(reference)
        if known is not None and time.monotonic() - known[1] < RETRY_SECONDS:
            return known[0]
        try:
            self._load(reference)
        except AttemptError as error:
            if known is None:
                _log.warning("%s is refused: %s", reference, error)
            # A store that refuses may give it at the next look.
            since = -math.inf if isinstance(error, StorageError) else time.monotonic()
            self._refusals[reference] = str(error), since
            return str(error)
        self._refusals.pop(reference, None)
        self._usable.add(reference)
        return None
