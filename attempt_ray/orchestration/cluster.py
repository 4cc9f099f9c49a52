"""The Ray cluster a pool runs on: the one whose job this process is, one that is named, or a private local one.

Nothing else in the library starts, joins or stops Ray.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from attempt_ray.config import ClusterConfig
from attempt_ray.errors import ClusterError
from attempt_ray.orchestration.ray_job import job_address

_OBJECT_STORE_BYTES = 100 * 2**20
"""The pool sends configs and reports only; Ray's default is a third of the memory."""

_AUTH_MODE = "RAY_AUTH_MODE"
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A Train controller looks after its workers every 2 s by default; a pool of short runs should not wait for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}


@contextmanager
def connected(cluster: ClusterConfig) -> Iterator[Path]:
    """Hold a connection to the cluster that `cluster` describes, and yield a directory for Ray Train's own files.

    A private cluster listens with a token that only this process and its children know, writes below a temporary
    directory, and is gone with both when the block ends. Where Ray is already connected, that connection is used
    and left as it is. A process that was submitted to a cluster as a job joins that cluster, unless the config names
    another one.

    Raises:
        ClusterError: The cluster cannot be reached, or can never give what is asked.
    """
    # Unix sockets live below this directory and their paths may have 107 bytes: keep it short.
    scratch = Path(tempfile.mkdtemp(prefix="att-", dir="/tmp" if Path("/tmp").is_dir() else None))  # noqa: S108
    ours = not ray.is_initialized()
    address = cluster.address or job_address()
    try:
        with _environment(_QUIET | (_locked() if ours and address is None else {})):
            if ours:
                _connect(cluster, scratch, address=address)
            try:
                check_resources(cluster)
                yield scratch
            finally:
                if ours:
                    ray.shutdown()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_resources(cluster: ClusterConfig) -> None:
    """Refuse what the connected cluster can never give: Ray itself would wait for it without end.

    Raises:
        ClusterError: The nodes together have too few CPUs or GPUs for `cluster.workers` workers.
    """
    check_fits(cluster, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def check_fits(cluster: ClusterConfig, nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse what nodes of these total resources can never give.

    Args:
        cluster: What is asked for.
        nodes: Resources of every living node by Ray's names: CPU, GPU.

    Raises:
        ClusterError: The nodes together have too few CPUs or GPUs for `cluster.workers` workers.
    """
    for kind, each in (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker)):
        if each:
            fits = sum(_fits(resources, kind, each) for resources in nodes)
            if fits < cluster.workers:
                raise ClusterError(_too_few(kind, each, cluster.workers, fits))


def check_shared(directory: Path) -> None:
    """Refuse a directory that some node of the connected cluster does not see.

    Raises:
        ClusterError: A node would write its runs to a disk of its own.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) == 1:
        return
    directory.mkdir(parents=True, exist_ok=True)
    marker = directory.absolute() / f".seen-{secrets.token_hex(4)}"
    marker.touch()
    try:
        seen = {
            node["NodeManagerAddress"]: ray.remote(_exists)
            .options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            )
            .remote(str(marker))
            for node in alive
        }
        blind = [address for address, answer in seen.items() if not ray.get(answer)]
    finally:
        marker.unlink(missing_ok=True)
    if blind:
        raise ClusterError(
            f"{directory} is not on a disk that every node shares: {', '.join(blind)} cannot see it; "
            "set runs and bank to a shared directory"
        )


def draining_nodes() -> list[str]:
    """Return the ids of the connected cluster's nodes that are about to be taken away, as of preempted machines."""
    # Ray has no public way to ask this that does not need its dashboard.
    return list(ray._private.state.state.get_draining_nodes())  # noqa: SLF001


def _exists(path: str) -> bool:
    return Path(path).exists()


def _connect(cluster: ClusterConfig, scratch: Path, *, address: str | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        # "local" matters: without it Ray joins any cluster that happens to run on the machine.
        options |= {
            "address": "local",
            "num_cpus": _cores(cluster),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_temp_dir": str(scratch),
        }
    else:
        options["address"] = address
    try:
        with _signals_kept():
            ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:
        where = address or "a private local cluster"
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(f"cannot reach Ray at {where}: {reason}; check cluster.address") from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep this process's way with SIGTERM, which Ray would replace by an exit at once."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and callable(handler):
            signal.signal(signal.SIGTERM, handler)


def _cores(cluster: ClusterConfig) -> int:
    """Return the CPUs of this machine that the process may use, refusing what cannot fit before Ray is started."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fits = _fits({"CPU": cores}, "CPU", cluster.cpus_per_worker)
    if fits < cluster.workers:
        raise ClusterError(_too_few("CPU", cluster.cpus_per_worker, cluster.workers, fits))
    return cores


def _fits(resources: Mapping[str, float], kind: str, each: float) -> int:
    return int(resources.get(kind, 0.0) / each + 1e-9)


def _too_few(kind: str, each: float, workers: int, fits: int) -> str:
    fix = (
        f"--set cluster.workers={fits}"
        if fits
        else f"lower cluster.{kind.lower()}s_per_worker or join more nodes"
    )
    return f"{workers} workers of {each:g} {kind} each do not fit: there is room for {fits}; {fix}"


@functools.cache
def _token() -> str:
    """Return the token of this process's private clusters: one, since Ray remembers the first it has seen."""
    return secrets.token_hex(32)


def _locked() -> dict[str, str]:
    """Return the settings that keep other users of the machine out of a private cluster.

    Ray itself turns to `token` mode when the mode is not set; a token in the environment keeps it from writing a
    readable one to the home directory.
    """
    return {} if _AUTH_MODE in os.environ else {"RAY_AUTH_TOKEN": _token()}


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Hold environment variables, leaving those that are already set as they are."""
    added = [name for name in (*settings, _AUTH_MODE) if name not in os.environ]
    os.environ.update({name: value for name, value in settings.items() if name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
