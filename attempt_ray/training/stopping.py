"""A request to stop the runs of this process, heard between two steps and between two batches of an evaluation."""

from __future__ import annotations

import threading

from attempt_ray.errors import StoppedError

_asked = threading.Event()


def ask_to_stop() -> None:
    """Ask all runs of this process to keep their state and end with a StoppedError; safe in a signal handler."""
    _asked.set()


def withdraw_stop() -> None:
    """Let runs go on again."""
    _asked.clear()


def stop_asked() -> StoppedError | None:
    """Return the error that runs shall end with where they are asked to stop, else None."""
    return StoppedError("asked to stop; run the same command again to go on") if _asked.is_set() else None


def heed_stop() -> None:
    """Return, unless runs are asked to stop.

    Raises:
        StoppedError: They are.
    """
    if (error := stop_asked()) is not None:
        raise error
