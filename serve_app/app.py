"""The deployment: `serve_app.app:build` makes the Ray Serve application of a `serve_config.yaml`.

Two deployments: `engine`, the frozen language model with the bank behind a queue of its own, and `ingress`, the HTTP side.
The task of a row travels in the request and never as a model id of Serve's, which would cut batches by task.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attempt_ray.config import Config, parse
from serve_app.arguments import ServeArguments
from serve_app.gateway import Call, Change, Reply
from serve_app.guard import Guard
from serve_app.handles import HandleGateway
from serve_app.host import Host
from serve_app.http import make_app
from serve_app.keys import KeyRing
from serve_app.pages import read_pages
from serve_app.scaling import QUEUED_TOKENS, QueuedTokens
from serve_app.schema import Changed, ReplicaStatus, RowOut, TaskInfo
from serve_app.traffic import ACCESS_LOG, AccessFormatter

_CALM_SECONDS = 300.0
"""How long fewer replicas must have been enough before one leaves."""
_HEALTH_SECONDS = 5.0
"""How often replicas are asked for their health."""
_INGRESS_CPUS = 0.1
"""What Ray sets aside for the HTTP side."""
_MOST_ONGOING = 100_000
"""Requests that Serve lets through to a replica: the guard and the queue refuse what is too much, and say so."""


class Engine:
    """An engine replica."""

    async def __init__(self, page: dict[str, Any]) -> None:  # type: ignore[misc] # Serve awaits it
        config = parse([page])
        self._drain_seconds = config.serving.drain_seconds
        self._host = await asyncio.to_thread(Host, config, replica=serve.get_replica_context().replica_tag)
        await self._host.start()

    async def predict(self, call: Call) -> Reply:
        """Answer all rows; see `Gateway.predict`."""
        return await self._host.predict(call)

    async def stream(self, call: Call) -> AsyncGenerator[str | RowOut, None]:
        """Yield the pieces of the one row's answer, and the answer last."""
        async for event in self._host.stream(call):
            yield event

    async def tasks(self) -> list[TaskInfo]:
        """Return all tasks that can be asked."""
        return await self._host.tasks()

    async def change(self, change: Change) -> Changed:
        """Change what a task serves."""
        return await self._host.change(change)

    async def status(self) -> list[ReplicaStatus]:
        """Return what this replica says of itself."""
        return await self._host.status()

    async def metrics(self) -> dict[str, list[Metric]]:
        """Return this replica's metrics."""
        return await self._host.metrics()

    async def drain(self) -> None:
        """Answer what was accepted, and refuse what comes from now on."""
        await self._host.stop(drain_seconds=self._drain_seconds)

    async def check_health(self) -> None:
        """Find out whether this replica can go on.

        Raises:
            RuntimeError: It hangs or has stopped; Serve replaces it.
        """
        self._host.check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what the number of replicas is decided by."""
        return {QUEUED_TOKENS: float(self._host.queued_tokens)}


class Ingress:
    """A replica of the HTTP side."""

    def __init__(self, engine: DeploymentHandle, page: dict[str, Any]) -> None:
        self._engine = engine
        self._config = parse([page])

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the guarded application; Serve asks for it once the replica is made."""
        http = self._config.http
        keys = None if http.keys is None else KeyRing(Path(http.keys))
        _log_access()
        registries: list[Any] = []
        app = make_app(
            HandleGateway(self._engine),
            config=http,
            pages=read_pages(),
            registries=registries,
            ingress=serve.get_replica_context().replica_tag,
        )
        guard = Guard(app, config=http, keys=keys)
        registries.append(guard.registry)
        return _BehindProxy(guard)


def build(arguments: ServeArguments) -> Application:
    """Return the application of a `serve_config.yaml`.

    Raises:
        ConfigError: An argument cannot be used.
    """
    return make(arguments.to_config())


def make(config: Config) -> Application:
    """Return the application that a config describes."""
    page = config.model_dump(mode="json")
    serving = config.serving
    common = {
        "max_ongoing_requests": _MOST_ONGOING,
        "graceful_shutdown_timeout_s": serving.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": _HEALTH_SECONDS,
        "health_check_timeout_s": max(_HEALTH_SECONDS, serving.stall_seconds),
        "max_surge_percent": serving.surge_percent,
    }
    engine = serve.deployment(Engine, name="engine").options(
        **common,
        **_replicas(config),
        ray_actor_options={
            "num_cpus": serving.cpus_per_replica,
            "num_gpus": serving.gpus_per_replica,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(max(1, round(serving.cpus_per_replica)))}},
        },
    )
    ingress = serve.deployment(serve.ingress()(Ingress), name="ingress").options(
        **common,
        num_replicas=serving.ingress_replicas,
        ray_actor_options={"num_cpus": _INGRESS_CPUS},
    )
    return ingress.bind(engine.bind(page), page)


def _replicas(config: Config) -> dict[str, Any]:
    serving = config.serving
    if serving.min_replicas == serving.max_replicas:
        return {"num_replicas": serving.min_replicas}
    policy = AutoscalingPolicy(
        policy_function=QueuedTokens,
        policy_kwargs={"target_tokens": serving.target_queued_tokens, "calm_seconds": _CALM_SECONDS},
    )
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=serving.min_replicas, max_replicas=serving.max_replicas, policy=policy
        )
    }


class _BehindProxy:
    """Leaves the request's id to Serve's proxy, which adds the header itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [one for one in message.get("headers", ()) if one[0].lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_on)


def _log_access() -> None:
    """Write one line of JSON for each request to the replica's standard error, where Ray keeps its workers' logs."""
    handler = logging.StreamHandler()
    handler.setFormatter(AccessFormatter())
    logger = logging.getLogger(ACCESS_LOG)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
