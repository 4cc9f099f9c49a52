"""The Ray cluster a pool runs on: the one whose job this process is, one that is named, or a private local one.

Nothing else in the library starts, joins or stops Ray.
"""

from __future__ import annotations

import fcntl
import functools
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from attempt_ray.bank.durable import temporary_name
from attempt_ray.bank.local import LocalStorage
from attempt_ray.bank.places import check_reachable, open_storage
from attempt_ray.config import ClusterConfig
from attempt_ray.errors import AttemptError, ClusterError
from attempt_ray.orchestration.ray_job import job_address

_OBJECT_STORE_BYTES = 100 * 2**20
"""The pool sends configs and reports only; Ray's default is a third of the memory."""

_AUTH_MODE = "RAY_AUTH_MODE"
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A Train controller looks after its workers every 2 s by default; a pool of short runs should not wait for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # How long a controller waits for all workers of a group before it looks again at what the cluster has.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # What Tune would restore from is never read.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
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
    """Refuse what the connected cluster does not give: Ray itself would wait for it without end.

    Raises:
        ClusterError: The nodes have no room for `cluster.workers` workers, or `min_workers` where that is set, within
            `cluster.wait_seconds`.
    """
    wanted = cluster.min_workers or cluster.workers
    if _room(cluster, _alive()) < wanted and cluster.wait_seconds:
        bundles = [cluster.bundle()] * cluster.workers
        request_resources(bundles=bundles, bundle_label_selectors=[cluster.labels] * cluster.workers)
        deadline = time.monotonic() + cluster.wait_seconds
        while _room(cluster, _alive()) < wanted and time.monotonic() < deadline:
            time.sleep(1.0)
    check_fits(cluster, _alive())


def check_fits(cluster: ClusterConfig, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what these nodes have no room for.

    Args:
        cluster: What is asked for.
        nodes: For every living node `Resources`, its total resources by Ray's names, and `Labels`.

    Raises:
        ClusterError: There is no room for `cluster.workers` workers, or `min_workers` where that is set.
    """
    room = _room(cluster, nodes)
    if room < (cluster.min_workers or cluster.workers):
        raise ClusterError(_too_few(cluster, nodes, room=room))


def _alive() -> list[Mapping[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _room(cluster: ClusterConfig, nodes: Sequence[Mapping[str, Any]]) -> int:
    """Return how many workers the nodes could hold if nothing else ran."""
    return sum(_fits(node["Resources"], cluster.bundle()) for node in _eligible(nodes, cluster.labels))


def _eligible(nodes: Iterable[Mapping[str, Any]], labels: Mapping[str, str]) -> list[Mapping[str, Any]]:
    return [
        node
        for node in nodes
        if all(_selects(rule, node.get("Labels", {}).get(key)) for key, rule in labels.items())
    ]


def _selects(rule: str, value: str | None) -> bool:
    """Whether a label selector takes a node with this value; None where the node lacks the label."""
    negated, rule = rule.startswith("!"), rule.removeprefix("!")
    values = rule[3:-1].split(",") if rule.startswith("in(") and rule.endswith(")") else [rule]
    return (value in [one.strip() for one in values]) != negated


def check_shared(place: str) -> None:
    """Refuse a directory or store that some node of the connected cluster does not share with this process.

    Each node reads a file of this process, writes one back, and, on a disk, finds a file locked that this process has
    locked. A private disk of the only node needs no check.

    Args:
        place: Path or pyarrow filesystem URI; it is made if it is not there.

    Raises:
        BankError: `place` is neither.
        ClusterError: A node cannot see it, write to it, or is not kept out by a lock.
        StorageError: This process cannot write to it.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    storage = open_storage(place, what="runs or bank")
    local = isinstance(storage, LocalStorage)
    if local and len(alive) == 1:
        return
    # Nodes do not share what a relative path means.
    shared = storage.place() if isinstance(storage, LocalStorage) else place
    marker, answers = temporary_name("seen"), [temporary_name("heard") for _ in alive]
    if not local:
        check_reachable(storage)
    storage.replace(marker, b"seen")
    try:
        with _locked_file(Path(storage.place(marker))) if local else nullcontext():
            tasks = [
                ray.remote(_share)
                .options(
                    num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                )
                .remote(shared, marker, answer)
                for node, answer in zip(alive, answers, strict=True)
            ]
            told = ray.get(tasks)
        heard = {entry.name for entry in storage.entries("")}
    finally:
        for name in (marker, *answers):
            storage.remove(name)
    problems = [
        f"{node['NodeManagerAddress']}: {problem or 'this process cannot see what it writes'}"
        for node, answer, problem in zip(alive, answers, told, strict=True)
        if problem is not None or answer not in heard
    ]
    if problems:
        raise ClusterError(
            f"{storage.place()} is not shared by every node: {'; '.join(problems)}; set runs and bank to a directory or store that all "
            "nodes share"
        )


def draining_nodes() -> list[str]:
    """Return the ids of the connected cluster's nodes that are about to be taken away, as of preempted machines."""
    # Ray has no public way to ask this that does not need its dashboard.
    return list(ray._private.state.state.get_draining_nodes())  # noqa: SLF001


def _share(place: str, marker: str, answer: str) -> str | None:
    """Read the marker and write an answer beside it; return what went wrong, or None. Executed on each node."""
    try:
        storage = open_storage(place)
        if isinstance(storage, LocalStorage):
            if not storage.root.is_dir():
                return "it cannot see it"
            with _locked_file(Path(storage.place(marker))) as locked:
                if locked:
                    return "locks of other nodes do not bind it (mount it without nolock and local_lock)"
        else:
            check_reachable(storage)
        if storage.read(marker, limit=64) != b"seen":
            return "it reads something else than was written"
        storage.replace(answer, b"heard")
    except FileNotFoundError:
        return "it cannot see it"
    except AttemptError as error:
        return str(error)
    return None


@contextmanager
def _locked_file(path: Path) -> Iterator[bool]:
    """Lock a file for the time of the block; yield whether that was possible."""
    with path.open("r+b") as file:  # NFS locks for writing what is open for writing alone
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


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
    check_fits(
        cluster.model_copy(update={"gpus_per_worker": 0.0, "resources_per_worker": {}, "labels": {}}),
        [{"Resources": {"CPU": float(cores)}}],
    )
    return cores


def _fits(resources: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    return min(int(resources.get(kind, 0.0) / each + 1e-9) for kind, each in bundle.items())


def _too_few(cluster: ClusterConfig, nodes: Sequence[Mapping[str, Any]], *, room: int) -> str:
    """Return what is missing, named by the resource or label that is."""
    bundle = cluster.bundle()
    asked = ", ".join(f"{each:g} {kind}" for kind, each in bundle.items())
    where = "".join(f" on nodes with {key}={rule}" for key, rule in cluster.labels.items())
    eligible = _eligible(nodes, cluster.labels)
    most = {
        kind: max((node["Resources"].get(kind, 0.0) for node in eligible), default=0.0) for kind in bundle
    }
    if room:
        fix = f"--set cluster.workers={room}"
    elif not eligible:
        fix = "change cluster.labels, or join nodes that have them"
    else:
        short = next((kind for kind, each in bundle.items() if most[kind] < each), "CPU")
        knob = {"CPU": "cluster.cpus_per_worker", "GPU": "cluster.gpus_per_worker"}.get(
            short, f"cluster.resources_per_worker.{short}"
        )
        fix = f"the largest node has {most[short]:g} {short}; lower {knob} or join larger nodes"
    return (
        f"{cluster.min_workers or cluster.workers} workers of {asked} each{where} do not fit: there is room for "
        f"{room}; {fix}"
    )


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
