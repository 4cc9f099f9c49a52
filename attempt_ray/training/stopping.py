"""A request to stop the runs of this process, heard between two steps and between two batches of an evaluation."""

from __future__ import annotations

import os
import signal
import threading

from attempt_ray.errors import StoppedError

SIGTERM_CODE = 128 + signal.SIGTERM
"""Exit code of a process that left because of SIGTERM."""

_asked = threading.Event()
_terminated = threading.Event()


def ask_to_stop() -> None:
    """Ask all runs of this process to keep their state and end with a StoppedError; safe in a signal handler."""
    _asked.set()


def withdraw_stop() -> None:
    """Let runs go on again."""
    _asked.clear()


def is_stop_asked() -> bool:
    """Return whether runs of this process are asked to stop."""
    return _asked.is_set()


def leave_on_sigterm(seconds: float) -> None:
    """Let SIGTERM ask the runs of this process to stop, and end it after `seconds` whatever it then does.

    Called in the main thread.
    """

    def leave(*_: object) -> None:
        _terminated.set()
        ask_to_stop()
        last = threading.Timer(seconds, os._exit, args=(SIGTERM_CODE,))
        last.daemon = True
        last.start()

    signal.signal(signal.SIGTERM, leave)


def is_terminated() -> bool:
    """Return whether this process got SIGTERM."""
    return _terminated.is_set()


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
