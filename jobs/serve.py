"""Serve prompts of a bank over HTTP: on this machine, or on a cluster from a `serve_config.yaml`."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from attempt_ray.config import ClusterConfig, Config
from attempt_ray.errors import AttemptError, ClusterError, ConfigError
from jobs.edge import tell
from serve_app.arguments import IMPORT_PATH, check_host, parse_arguments, read_file
from serve_app.keys import KeyRing

NAME = "attempt"
"""Name of the application."""
_ENVIRONMENT = {
    # A proxy that dies is replaced after seconds, not after half a minute.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "5",
    # Ray's workers stand back for all other processes; those that answer should not.
    "RAY_worker_niceness": "0",
    # Calls between replicas without Ray's object store: milliseconds less each.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
}
_DEPLOY_SECONDS = 30.0
_PASS_ON_SECONDS = 1.0
"""What answers take from the engine to their callers."""
_HTTP_GRACE_SECONDS = 10.0
"""What the proxy has beyond the longest time a request may name."""


def serve_here(config: Config, *, host: str, port: int) -> None:
    """Serve on this machine, in a cluster of its own or the one of `cluster.address`, until a signal says to leave.

    Raises:
        AttemptError: Something cannot be used; nothing was started.
        ClusterError: The port is taken, or the engine did not start.
    """
    check_host(host, config)
    if config.http.keys is not None:
        KeyRing(Path(config.http.keys))
    _check_bank(config)
    leave = threading.Event()
    with _signals(leave), _serving(config, host=host, port=port) as url:
        tell(f"ready at {url}  (Ctrl-C leaves)")
        leave.wait()
        tell("leaving: what was accepted is answered first")


@contextmanager
def _serving(config: Config, *, host: str, port: int) -> Iterator[str]:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from attempt_ray.orchestration.cluster import connected

    serving = config.serving
    wanted = ClusterConfig(
        address=config.cluster.address,
        workers=serving.min_replicas,
        cpus_per_worker=max(serving.cpus_per_replica, 0.1),
        gpus_per_worker=serving.gpus_per_replica,
    )
    _check_port(host, port)
    with connected(wanted):
        from ray import serve
        from ray.serve.config import HTTPOptions

        from serve_app.app import make

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            try:
                serve.start(
                    http_options=HTTPOptions(
                        host=host,
                        port=port,
                        request_timeout_s=config.http.max_timeout_seconds + _HTTP_GRACE_SECONDS,
                    )
                )
                serve.run(make(config), name=NAME, route_prefix="/")
            except RuntimeError as error:
                raise ClusterError(f"the deployment did not start: {_last_line(error)}") from None
            yield f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104 - shown only
            _drain(serve.get_deployment_handle("engine", NAME), serving.drain_seconds)
        finally:
            serve.shutdown()


def check_file(path: Path) -> dict[str, Any]:
    """Read a `serve_config.yaml` strictly, and return what it deploys.

    Raises:
        ConfigError: A key or value cannot be used.
    """
    _, config = read_file(path)
    return {
        "file": str(path),
        "backbone": config.backbone.name,
        "bank": config.bank,
        "replicas": [config.serving.min_replicas, config.serving.max_replicas],
        "keys": config.http.keys,
    }


def deploy(
    path: Path, *, address: str | None, token_file: Path | None = None, without_token: bool = False
) -> dict[str, Any]:
    """Send a `serve_config.yaml` to a cluster, after a strict look at it.

    Args:
        path: The file.
        address: The cluster's dashboard; None is RAY_API_SERVER_ADDRESS, or this machine's.
        token_file: File with the cluster's token; None is where Ray looks.
        without_token: Send no token, even to another machine.

    Raises:
        ConfigError: A key or value cannot be used; nothing was sent.
        ClusterError: The cluster cannot be reached, or refuses.
    """
    import httpx2

    from attempt_ray.orchestration.submission import DEFAULT_ADDRESS, check_address, find_token

    page, _ = read_file(path)
    token = None if without_token else find_token(token_file)
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    url = check_address(named, token=token, without_token=without_token)
    try:
        answer = httpx2.put(
            f"{url.rstrip('/')}/api/serve/applications/",
            json=page,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=_DEPLOY_SECONDS,
        )
    except httpx2.HTTPError as error:
        raise ClusterError(f"cannot reach {url}: {error}") from None
    if answer.status_code != 200:
        raise ClusterError(f"{url} refused with {answer.status_code}: {answer.text.strip()[:300]}")
    return {"deployed": NAME, "address": url}


def file_of(configs: list[str], settings: list[str], *, host: str, port: int) -> str:
    """Return a `serve_config.yaml` for presets, files and settings; the text that `serve deploy` takes.

    Raises:
        ConfigError: Something cannot be used.
    """
    from attempt_ray.config import config_paths, load, load_layers

    config = load(config_paths(configs), settings)
    check_host(host, config)
    arguments: dict[str, Any] = {"config": configs} if configs else {}
    for layer in load_layers([], settings):
        _merge(arguments, layer)
    parse_arguments(arguments)
    page = {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [{"name": NAME, "route_prefix": "/", "import_path": IMPORT_PATH, "args": arguments}],
    }
    return str(yaml.safe_dump(page, sort_keys=False))


def _merge(page: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(page.get(key), dict):
            _merge(page[key], value)
        else:
            page[key] = dict(value) if isinstance(value, Mapping) else value


def _drain(engine: Any, seconds: float) -> None:
    """Have the engines answer what they have accepted while ingress and proxy are still there to pass it on."""
    with suppress(TimeoutError):
        engine.broadcast("drain").results(timeout_s=seconds + _PASS_ON_SECONDS, return_exceptions=True)
    time.sleep(_PASS_ON_SECONDS)


def _check_bank(config: Config) -> None:
    from attempt_ray.bank.store import Bank

    bank = Bank(config.bank)
    if not any(version.kind != "attention" for version in bank.list()):
        raise ConfigError(
            f"no prompt in the bank {bank.place}; train some ('attempt pipeline'), or name another with --set bank=PLACE"
        )


def _check_port(host: str, port: int) -> None:
    import socket

    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            raise ClusterError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
            ) from None


@contextmanager
def _signals(leave: threading.Event) -> Iterator[None]:
    """Set the event when a signal says to leave."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: leave.set())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(error: BaseException) -> str:
    if isinstance(error, AttemptError):
        return str(error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
