"""Every error that attempt-ray raises on purpose, as one tree.

Each class carries one string (got; wanted; what to do) and at most a number, so that it survives the trip
through a Ray worker, and refines a standard exception, so that callers may catch either.

    AttemptError
    ├── ConfigError (ValueError)         a config key, value or name that cannot be used
    ├── DataError (ValueError)           rows, splits or labels that cannot be used
    ├── BackboneError (ValueError)       a backbone that cannot be loaded, or a prompt made for another
    ├── BankError (ValueError)           a prompt, version or alias that is not there or is refused
    │   ├── NotFoundError                no such task, prompt, alias or version to serve
    │   └── IntegrityError               a stored file does not hold what was written
    ├── StorageError (OSError)           the disk or object store refused: full, read-only, unreachable
    ├── NonFiniteError (ArithmeticError) training met NaN or infinity and stopped
    ├── StoppedError (RuntimeError)      a run was asked to stop; the same command goes on with it
    ├── DroppedError (RuntimeError)      a run whose result nobody wants any longer
    ├── ClusterError (RuntimeError)      the Ray cluster cannot run what was asked
    ├── OverloadedError (RuntimeError)   a request was refused for want of room; it may be sent again later
    ├── DeadlineError (TimeoutError)     a request was not answered in the time it had
    └── UnavailableError (ConnectionError) a deployment cannot be reached, or failed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AttemptError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(AttemptError, ValueError):
    """A config key, value or name cannot be used."""


class DataError(AttemptError, ValueError):
    """Rows, splits or labels cannot be used."""


class BackboneError(AttemptError, ValueError):
    """A backbone cannot be loaded, or a prompt was made for another one."""


class BankError(AttemptError, ValueError):
    """A prompt, version or alias is not in the bank, or a change to it is refused."""


class NotFoundError(BankError):
    """There is no such task, prompt, alias or version to serve."""


class IntegrityError(BankError):
    """A stored file does not hold what was written."""


class StorageError(AttemptError, OSError):
    """The disk or object store refused an operation."""


class NonFiniteError(AttemptError, ArithmeticError):
    """Training met NaN or infinity; the last good state was kept."""


class StoppedError(AttemptError, RuntimeError):
    """A run was asked to stop; what it had reached was kept."""


class DroppedError(AttemptError, RuntimeError):
    """A run's result is not wanted any longer, as when its trial is given up."""


class ClusterError(AttemptError, RuntimeError):
    """The Ray cluster cannot run what was asked."""


class OverloadedError(AttemptError, RuntimeError):
    """A request was refused for want of room; it may be sent again.

    Attributes:
        retry_after_seconds: Whole seconds after which there should be room.
    """

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message, retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return str(self.args[0])


class DeadlineError(AttemptError, TimeoutError):
    """A request was not answered in the time it had."""


class UnavailableError(AttemptError, ConnectionError):
    """A deployment cannot be reached, failed, or is none."""


def unknown_name(kind: str, got: str, known: Iterable[str]) -> str:
    """Return the message for a name that is not known, with the nearest known one.

    Args:
        kind: What the name stands for, such as ``"task"``.
        got: The name that was given.
        known: Every name that would have been accepted.
    """
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(names) or '(none)'}"
    return f"no {kind} '{got}'; {hint}"
