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


def is_stop_asked() -> bool:
    """Return whether runs of this process are asked to stop."""
    return _asked.is_set()


def stopped() -> StoppedError:
    """Return the error with which a run ends that is asked to stop."""
    return StoppedError("asked to stop; run the same command again to go on")


def heed_stop() -> None:
    """Return, unless runs are asked to stop.

    Raises:
        StoppedError: They are.
    """
    if _asked.is_set():
        raise stopped()
