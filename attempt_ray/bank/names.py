"""What is in the bank has a kind, a name and a number; this module is the only one that accepts them from outside.

A reference is the text people write: ``kind/name@v3``, ``kind/name@alias``, or ``kind/name`` for the champion.
Every path below the bank's root is built from names checked here, so that none can leave it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from attempt_ray.errors import BankError, unknown_name

Kind = Literal["source", "target", "attention"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NUMBER = re.compile(r"v([0-9]{1,9})")
_WANTED = "1 to 64 of a-z 0-9 . _ - that start with a letter or digit, without '..'"


@dataclass(frozen=True, order=True)
class Version:
    """One immutable entry of the bank."""

    kind: Kind
    name: str
    number: int

    @property
    def reference(self) -> str:
        """The text that always means this version: ``kind/name@v3``."""
        return f"{self.kind}/{self.name}@v{self.number}"

    @property
    def directory(self) -> str:
        """Its path below the bank's root."""
        return f"{self.kind}/{self.name}/{directory_name(self.number)}"

    def __str__(self) -> str:
        return self.reference


@dataclass(frozen=True)
class Reference:
    """What a reference text says: at most one of `alias` and `number` is set."""

    kind: Kind
    name: str
    alias: str | None = None
    number: int | None = None

    @classmethod
    def parse(cls, text: Any) -> Reference:
        """Read a reference text.

        Raises:
            BankError: It is not of the form, its kind is unknown, or a name could leave the bank.
        """
        path, at, selector = text.partition("@") if isinstance(text, str) else ("", "", "")
        kind, slash, name = path.partition("/")
        if not slash or (at and not selector):
            raise BankError(
                f"got the reference {_shown(text)}; wanted kind/name, kind/name@alias or kind/name@v3"
            )
        kind, name = check_kind(kind), check_name(name)
        if not at:
            return cls(kind, name)
        number = _NUMBER.fullmatch(selector)
        if number is None:
            return cls(kind, name, alias=check_alias(selector))
        if int(number[1]) < 1:
            raise BankError(f"got the reference {_shown(text)}; versions count from v1")
        return cls(kind, name, number=int(number[1]))


def check_kind(kind: Any) -> Kind:
    """Return `kind` if it is one of `KINDS`.

    Raises:
        BankError: It is not.
    """
    if kind not in KINDS:
        raise BankError(unknown_name("kind of prompt", _shown(kind).strip("'"), KINDS))
    return cast("Kind", kind)


def is_name(text: str) -> bool:
    """Return whether `text` can name a prompt."""
    return _NAME.fullmatch(text) is not None and ".." not in text


def check_name(name: Any) -> str:
    """Return `name` if it can name a prompt.

    Raises:
        BankError: It has characters outside the allow-list, or could leave the bank's root.
    """
    if not isinstance(name, str) or not is_name(name):
        raise BankError(f"got the name {_shown(name)}; wanted {_WANTED}")
    return name


def check_alias(alias: Any) -> str:
    """Return `alias` if it can name an alias: as `check_name`, but not of the form of a version number.

    Raises:
        BankError: It cannot.
    """
    if not isinstance(alias, str) or not is_name(alias):
        raise BankError(f"got the alias {_shown(alias)}; wanted {_WANTED}")
    if _NUMBER.fullmatch(alias) is not None:
        raise BankError(f"got the alias '{alias}', which reads as a version number; choose another word")
    return alias


def directory_name(number: int) -> str:
    """Return the directory of version `number`: ``v000003``."""
    return f"v{number:06d}"


def number_of(directory: str) -> int | None:
    """Return the number of a version's directory, or None for any other name."""
    match = _NUMBER.fullmatch(directory)
    number = int(match[1]) if match else 0
    return number if number > 0 and directory == directory_name(number) else None


def _shown(text: Any) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
