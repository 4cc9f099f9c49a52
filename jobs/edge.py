"""Where the jobs meet the person who types: exit codes, one line of JSON, one line of error.

Nothing heavy is imported at the top, so that `attempt --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from attempt_ray.config import Config

DONE, FAILED, MISTAKE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes: all done; something broke; the user can mend it; Ctrl-C; SIGTERM."""
_LEAVE_SECONDS = 4.8
"""Longest that a process which got SIGTERM takes to keep its state; then it is gone."""

Result = Mapping[str, Any]
"""What a job prints as JSON. Under `failed`, a list of `{"run", "error", "user_error"}` for what was set aside."""


def load_config(names: Sequence[str], settings: Sequence[str] = ()) -> Config:
    """Return the config of presets or files, later ones winning, and of `section.key=value` settings.

    Raises:
        ConfigError: A name, key or value cannot be used.
        ClusterError: This is a job on a cluster, and what it writes would be lost with its working directory.
    """
    from attempt_ray import config
    from attempt_ray.orchestration.ray_job import check_places

    page = config.load(config.config_paths(names), settings)
    check_places(page)
    return page


def perform(call: Callable[[], Result | None]) -> NoReturn:
    """Call a job, print its result as one line of JSON on stdout, and exit.

    Exits with 2 and one line on stderr where the user can mend it (`AttemptError`, or a disk that refuses), with 1
    after a traceback for anything else, with 130 for Ctrl-C, and within 5 s with 143 for SIGTERM, runs having kept what
    they had reached.
    """
    from attempt_ray.training.stopping import leave_on_sigterm

    code = DONE
    leave_on_sigterm(_LEAVE_SECONDS)
    if not sys.stderr.isatty():
        # Libraries draw bars of their own, which are no lines.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with one_line_errors():
            result = call()
            if result is not None:
                sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
                sys.stdout.flush()
                code = _code(result.get("failed", ()))
    except KeyboardInterrupt:
        tell("interrupted; run the same command again to go on from the last checkpoint")
        code = INTERRUPTED
    except SystemExit:
        raise
    except BaseException:  # noqa: BLE001 - the outermost edge
        traceback.print_exc()
        code = FAILED
    raise SystemExit(code)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with 2 and one line on stderr when the block raises what the user can mend."""
    from attempt_ray.bank.durable import storage_errors
    from attempt_ray.errors import AttemptError, StoppedError

    try:
        with storage_errors("go on"):
            yield
    except StoppedError as error:
        tell(one_line(error))
        raise SystemExit(TERMINATED) from None
    except AttemptError as error:
        tell(f"error: {one_line(error)}")
        raise SystemExit(MISTAKE) from None


def one_line(error: object) -> str:
    """Return a text on one line."""
    return " ".join(str(error).split())


def tell(text: str) -> None:
    """Print a line for people."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _code(failed: Sequence[Mapping[str, Any]]) -> int:
    if not failed:
        return DONE
    return MISTAKE if all(item["user_error"] for item in failed) else FAILED
