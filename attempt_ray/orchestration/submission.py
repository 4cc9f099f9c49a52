"""Jobs of a Ray cluster, through its dashboard: submit once, follow, list, stop.

Ray's client waits without end where nothing answers, takes an address of the environment over the one it is given, and
shows a traceback for a wrong token. Here an address is what was named, every request has a limit, and whatever fails
is one line.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import ray.exceptions
from ray.job_submission import JobSubmissionClient

from attempt_ray.config import ClusterConfig
from attempt_ray.errors import ClusterError
from attempt_ray.hosts import is_loopback
from attempt_ray.orchestration.cluster import check_fits

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where Ray's dashboard listens by default."""
RUNS_ON, WORKED = ("PENDING", "RUNNING"), "SUCCEEDED"
"""Ray's states of a job that has not ended, and of one that ended well; FAILED and STOPPED are the others."""

_CONNECT_SECONDS = 4.0
_ANSWER_SECONDS = 60.0
"""Longest wait for an answer, once connected; the first request of a client has `_CONNECT_SECONDS`."""
_AGENT_SECONDS = 30.0
"""A cluster that has just started takes some seconds until it accepts jobs."""
_STOP_SECONDS = 30.0
"""Longest wait for a job that was asked to stop; Ray kills it before."""
_POLL_SECONDS = 1.0
_WATCH_SECONDS = 5.0
"""Time between two looks whether a job whose log is silent has ended."""
_TALKERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)
_LOST_SECONDS = 120.0
"""Longest that a cluster may not answer while its job is followed."""


@dataclass(frozen=True, kw_only=True)
class RayJob:
    """A job that was submitted to a cluster."""

    id: str
    """Its submission id."""
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    entrypoint: str
    """The shell command."""
    message: str
    """Ray's words on the state."""
    started: float | None
    """Seconds since the epoch."""
    ended: float | None
    """Seconds since the epoch; None while it goes on."""
    exit_code: int | None
    """Of the shell command; None before its end, or where it never started."""

    @property
    def goes_on(self) -> bool:
        """Whether the job has not ended."""
        return self.status in RUNS_ON

    def as_dict(self) -> dict[str, Any]:
        """Return the job, JSON-able."""
        return asdict(self)


def find_token(token_file: Path | None = None) -> str | None:
    """Return the token to show to a cluster, looked for where Ray looks; None where there is none.

    The first of: `token_file`; nothing with RAY_AUTH_MODE=disabled; RAY_AUTH_TOKEN; the file RAY_AUTH_TOKEN_PATH;
    ~/.ray/auth_token. Unlike Ray, a token that is found is used whether or not RAY_AUTH_MODE says so.

    Raises:
        ClusterError: A file that is named cannot be read or holds no token, or RAY_AUTH_MODE wants one and there is none.
    """
    if token_file is not None:
        return _read_token(token_file)
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return None
    if os.environ.get("RAY_AUTH_TOKEN"):
        return _checked_token(os.environ["RAY_AUTH_TOKEN"], "RAY_AUTH_TOKEN")
    if os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _read_token(Path(os.environ["RAY_AUTH_TOKEN_PATH"]))
    usual = Path("~/.ray/auth_token").expanduser()
    if usual.is_file():
        return _read_token(usual)
    if mode == "token":
        raise ClusterError(
            f"RAY_AUTH_MODE is token, but there is no token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or {usual}; "
            "give one with --token-file"
        )
    return None


def _read_token(path: Path) -> str:
    try:
        return _checked_token(path.expanduser().read_text(encoding="ascii"), str(path))
    except OSError as error:
        raise ClusterError(f"cannot read a token from {path}: {error.strerror}; name another file") from None
    except UnicodeDecodeError:
        raise ClusterError(f"{path} holds no token; wanted one line of ASCII") from None


def _checked_token(text: str, place: str) -> str:
    token = text.strip()
    # A header with a line break is refused with words that repeat it.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ClusterError(f"{place} holds no token; wanted one line of ASCII without spaces")
    return token


def check_address(address: str, *, token: str | None, without_token: bool = False) -> str:
    """Return the dashboard's URL.

    Args:
        address: `http(s)://host:port`, or `host:port`.
        token: The token that will be shown.
        without_token: That a cluster which anybody can use is meant, wherever it is.

    Raises:
        ClusterError: It is no such URL, or another machine would be spoken to without a token.
    """
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urllib.parse.SplitResult("", "", "", "", ""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = address.rpartition("@")[2]
        raise ClusterError(f"address: got '{shown}'; wanted the dashboard's, such as {DEFAULT_ADDRESS}")
    if parts.username is not None or parts.password is not None:
        raise ClusterError("address: got one with a user or password in it; give the token with --token-file")
    if token is None and not without_token and not is_loopback(parts.hostname):
        where = f"{parts.hostname}{f':{port}' if port else ''}"
        raise ClusterError(
            f"there is no token for {where}, which is another machine; give --token-file, or --without-token for a "
            "cluster on which anybody in its network may run code"
        )
    return url


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client of a cluster's jobs, with limits to its patience."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        patience = _CONNECT_SECONDS if endpoint == "/api/version" else _ANSWER_SECONDS
        return super()._do_request(method, endpoint, timeout=(_CONNECT_SECONDS, patience), **options)

    def nodes(self) -> list[Mapping[str, Any]]:
        """Return resources and labels of every living node."""
        # What `ray list nodes` asks; Ray's own function for it takes no token.
        answer = self._do_request("GET", "/api/v0/nodes?detail=true&limit=10000")
        answer.raise_for_status()
        found = answer.json()["data"]["result"]["result"]
        return [
            {"Resources": node["resources_total"], "Labels": node.get("labels") or {}}
            for node in found
            if node["state"] == "ALIVE"
        ]


class Jobs:
    """The jobs of one cluster.

    Args:
        address: The dashboard's URL, as `check_address` returns it.
        token: The token of the cluster; None sends none.

    Raises:
        ClusterError: There is no Ray dashboard, or it refuses the token.
    """

    def __init__(self, address: str, *, token: str | None) -> None:
        self.address = address
        self._with_token = token is not None
        _quieten()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with self._explained(), _only(address):
            try:
                self._client = _Client(address, headers=headers)
            except RuntimeError as error:  # an answer, but not Ray's
                raise ConnectionError from error

    def check_fits(self, cluster: ClusterConfig) -> None:
        """Refuse what the cluster's nodes can never give; where the job is to wait for nodes, it finds out itself.

        Raises:
            ClusterError: They have too few CPUs or GPUs, or do not answer.
        """
        if cluster.wait_seconds:
            return
        deadline = time.monotonic() + _CONNECT_SECONDS
        while True:
            with self._explained():
                nodes = self._client.nodes()
            if nodes or time.monotonic() > deadline:  # a cluster that has just started knows of none yet
                break
            time.sleep(_POLL_SECONDS / 4)
        check_fits(cluster, nodes)

    def known(self) -> list[RayJob]:
        """Return every job that was submitted to the cluster, the latest first.

        Raises:
            ClusterError: The cluster does not answer.
        """
        with self._explained():
            found = [job for job in self._client.list_jobs() if job.submission_id]
        return [_record(job) for job in sorted(found, key=lambda job: job.start_time or 0, reverse=True)]

    def find(self, name: str) -> RayJob:
        """Return a job.

        Raises:
            ClusterError: There is none of that id, or the cluster does not answer.
        """
        known = {job.id: job for job in self.known()}
        if name not in known:
            raise ClusterError(
                f"no job '{name}' on {self.address}; `attempt jobs list` shows those that are there"
            )
        return known[name]

    def present(self, name: str, *, again: bool = False) -> tuple[str, RayJob | None]:
        """Return the id under which work of this name is, or shall be, submitted, and the job that is there.

        The first of `name`, `name-2`, `name-3` and so on under which no job has failed or was stopped.

        Args:
            name: What derives from the work alone.
            again: Pass over jobs that have succeeded, too.
        """
        known = {job.id: job for job in self.known()}
        number, found = 1, name
        while found in known and not known[found].goes_on and (again or known[found].status != WORKED):
            number += 1
            found = f"{name}-{number}"
        return found, known.get(found)

    def submit(
        self,
        name: str,
        *,
        entrypoint: str,
        runtime_env: Mapping[str, Any],
        resources: Mapping[str, float],
    ) -> bool:
        """Submit a job under an id; return whether it was, not having been there before.

        Args:
            name: The id.
            entrypoint: A shell command.
            runtime_env: Working directory and variables; a local directory is uploaded.
            resources: What the command itself takes: CPU, GPU.

        Raises:
            ClusterError: The upload is too large, or the cluster accepts no jobs.
        """
        deadline = time.monotonic() + _AGENT_SECONDS
        while True:
            try:
                with self._explained():
                    self._client.submit_job(
                        submission_id=name,
                        entrypoint=entrypoint,
                        runtime_env=dict(runtime_env),
                        entrypoint_num_cpus=resources.get("CPU"),
                        entrypoint_num_gpus=resources.get("GPU"),
                    )
            except ClusterError as error:
                if "already exists" in str(error):
                    return False
                if "No available agent" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"{self.address} accepts no jobs: its head node has no agent; where clusters share a machine, "
                        "each needs a free port of its own: ray start --dashboard-agent-listen-port"
                    ) from None
                time.sleep(_POLL_SECONDS)
            else:
                return True

    def stop(self, name: str) -> RayJob:
        """Ask a job to stop and return it once it has, or as it is after half a minute.

        Raises:
            ClusterError: There is no such job, or the cluster does not answer.
        """
        self.find(name)
        with self._explained():
            self._client.stop_job(name)
        deadline = time.monotonic() + _STOP_SECONDS
        while (job := self.find(name)).goes_on and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS / 4)
        return job

    def log(self, name: str) -> str:
        """Return what a job has printed, stdout and stderr together.

        Raises:
            ClusterError: There is no such job, or the cluster does not answer.
        """
        self.find(name)
        with self._explained():
            return str(self._client.get_job_logs(name))

    def follow(self, name: str, write: Callable[[str], None]) -> RayJob:
        """Pass on what a job prints, from its start until it ends, and return it.

        A connection that is lost is made again; the job knows nothing of it.

        Raises:
            ClusterError: There is no such job, or the cluster has not answered for two minutes.
        """
        job = self.find(name)
        if not job.goes_on:
            write(self.log(name))
            return job
        return asyncio.run(self._follow(name, _Written(write)))

    async def _follow(self, name: str, written: _Written) -> RayJob:
        last_answer = time.monotonic()
        while True:
            tail = asyncio.create_task(self._tail(name, written))
            try:
                while not tail.done():
                    await asyncio.wait([tail], timeout=_WATCH_SECONDS)
                    try:
                        job = await asyncio.to_thread(self.find, name)
                    except ClusterError:
                        if time.monotonic() - last_answer > _LOST_SECONDS:
                            raise
                        continue
                    last_answer = time.monotonic()
                    if not job.goes_on:
                        # A tail reads on for about a second, and one whose connection is dead never ends.
                        await asyncio.wait([tail], timeout=_WATCH_SECONDS)
                        written.whole(await asyncio.to_thread(self.log, name))
                        return job
            finally:
                tail.cancel()
                # Unlike awaiting the tail, this cannot take Ctrl-C for the tail's own end.
                await asyncio.wait([tail])
            if not tail.cancelled() and (error := tail.exception()) is not None:
                raise error
            await asyncio.sleep(_POLL_SECONDS)

    async def _tail(self, name: str, written: _Written) -> None:
        written.rewind()
        with suppress(RuntimeError, OSError, aiohttp.ClientError):
            async for text in self._client.tail_job_logs(name):
                written.more(text)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what Ray's client raises into one line."""
        try:
            yield
        except ray.exceptions.AuthenticationError:
            what = "the token" if self._with_token else "requests without a token"
            raise ClusterError(
                f"{self.address} refuses {what}; give the file with the cluster's token: --token-file "
                "(on its head node: ~/.ray/auth_token, or what RAY_AUTH_TOKEN_PATH names)"
            ) from None
        except (OSError, KeyError, TypeError) as error:
            reason = type(error).__name__
            raise ClusterError(
                f"no Ray dashboard answers at {self.address} ({reason}); give --address http://host:8265 as printed by "
                "`ray start --head`, or bring the port here: ssh -L 8265:127.0.0.1:8265 HEAD"
            ) from None
        except (RuntimeError, ValueError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
            raise ClusterError(f"{self.address}: {lines[-1][:300] if lines else 'no reason given'}") from None


class _Written:
    """What has been shown of a text that is sent from its start again whenever the connection was lost."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._shown = 0
        self._read = 0

    def rewind(self) -> None:
        self._read = 0

    def more(self, text: str) -> None:
        fresh = text[max(0, self._shown - self._read) :]
        self._read += len(text)
        if fresh:
            self._shown = self._read
            self._write(fresh)

    def whole(self, text: str) -> None:
        self.rewind()
        self.more(text)


def _record(job: Any) -> RayJob:
    def seconds(milliseconds: int | None) -> float | None:
        return milliseconds / 1000 if milliseconds else None

    return RayJob(
        id=job.submission_id,
        status=str(job.status),
        entrypoint=job.entrypoint,
        message=job.message or "",
        started=seconds(job.start_time),
        ended=seconds(job.end_time),
        exit_code=job.driver_exit_code,
    )


def _quieten() -> None:
    """Keep the client's talk of uploads and connections off the terminal."""
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Hold the environment variable that Ray's client prefers to the address it is given."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before
