"""Whether this process is a job that was submitted to a Ray cluster; told from its environment, without Ray."""

from __future__ import annotations

import json
import os
from pathlib import Path

from attempt_ray.config import Config
from attempt_ray.errors import ClusterError

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray's supervisor of a job sets this variable for the job's own process, and nobody else does."""


def job_address() -> str | None:
    """Return the address of the cluster whose job this process is; None outside of a job.

    `RAY_ADDRESS` alone makes no job: it may stand in anybody's shell.
    """
    return os.environ.get("RAY_ADDRESS") if _JOB_CONFIG in os.environ else None


def in_upload() -> bool:
    """Whether this process is a job that works in an upload, which Ray deletes some time after the job."""
    try:
        found = json.loads(os.environ.get(_JOB_CONFIG, "{}"))
    except ValueError:
        return False
    return bool((found.get("runtime_env") or {}).get("working_dir"))


def check_places(
    config: Config, *, uploaded: bool | None = None, search: bool = False, study: bool = False
) -> None:
    """Refuse a bank, runs, searches or studies that would be lost with the upload a job works in.

    Args:
        config: What the job is going to do.
        uploaded: Whether the job works in an upload; None asks this process's environment.
        search: Whether it searches.
        study: Whether it does a study.

    Raises:
        ClusterError: One of them is a relative path.
    """
    if not (in_upload() if uploaded is None else uploaded):
        return
    places = {"bank": config.bank, "runs": config.runs}
    if search:
        places["search.directory"] = config.search.directory
        places["search.storage"] = config.search.storage or "/"
    if study:
        places["study.directory"] = config.study.directory
    relative = {name: place for name, place in places.items() if _is_relative(place)}
    if relative:
        named = " and ".join(f"{name} '{place}'" for name, place in relative.items())
        fix = " ".join(f"--set {name}=/shared/{name.rpartition('.')[2]}" for name in relative)
        raise ClusterError(
            f"{named} would be lost: a submitted job works in an upload, which Ray deletes; name a directory that all "
            f"nodes share, or a URI, such as {fix}"
        )


def _is_relative(place: str) -> bool:
    return "://" not in place and not Path(place).expanduser().is_absolute()
