"""A deployment on ports of this machine: uvicorn, guard, application, host, the nano backbone, a bank on disk."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from attempt_ray.bank.aliases import CANDIDATE, CHAMPION
from attempt_ray.bank.manifest import Facts, MixtureRecord
from attempt_ray.bank.names import Kind
from attempt_ray.bank.store import Bank
from attempt_ray.config import Config, parse
from attempt_ray.model.backbone import load_backbone
from attempt_ray.model.published import backbone_record
from serve_app.guard import Guard
from serve_app.host import Host
from serve_app.http import make_app
from serve_app.keys import KeyFile, KeyRing
from serve_app.pages import read_pages


@dataclass(frozen=True)
class Deployment:
    """One bank behind two addresses."""

    url: str
    """Takes callers of this machine without a key."""
    guarded_url: str
    """Takes callers with a key."""
    key: str
    """One of role infer."""
    admin_key: str
    """One of role admin."""
    config: Config
    """What is served."""


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment of `rte` (v1 alone, v2 served, v3 the candidate), `mrpc`, `squad`, and `cb`, whose label may be HTML."""
    root = tmp_path_factory.mktemp("deployment")
    (root / "hostile.yaml").write_text(_HOSTILE)
    layers = {
        "backbone": {"name": "nano", "dtype": "float32"},
        "bank": str(root / "bank"),
        "data": {"user_tasks": [str(root / "hostile.yaml")]},
        "serving": {"follow_seconds": 0.05},
        "http": {"requests_per_second": 1000, "burst_requests": 1000},
    }
    config = parse([layers])
    bank = Bank(config.bank)
    _fill(bank, config)
    file = KeyFile(root / "keys.json")
    keys = [file.add(role, role=role)[1] for role in ("infer", "admin")]  # type: ignore[arg-type]
    server = _Server(config, root / "keys.json")
    try:
        url, guarded_url = server.start()
        yield Deployment(url, guarded_url, *keys, config)
    finally:
        server.stop()


_HOSTILE = """
name: hostile
template: "{text}"
fields: [text]
answer: label
labels: {"<img src=x onerror=document.title='hacked'>": <img src=x onerror=document.title='hacked'>, "<b>": "<script>document.title='hacked'</script>"}
metrics: [accuracy]
"""


class _Server:
    """Two uvicorn servers on one event loop, in a thread, in front of one host."""

    def __init__(self, config: Config, keys: Path) -> None:
        self._config, self._keys = config, keys
        self._servers: list[uvicorn.Server] = []
        self._urls: Future[list[str]] = Future()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> list[str]:
        self._thread.start()
        return self._urls.result(timeout=60)

    def stop(self) -> None:
        for server in self._servers:
            server.should_exit = True
        self._thread.join(timeout=60)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._urls.done():
                raise
            self._urls.set_exception(error)

    async def _serve(self) -> None:
        async with Host(self._config) as host:
            for ring in (None, KeyRing(self._keys)):
                app = make_app(host, config=self._config.http, pages=read_pages())
                guard = Guard(app, config=self._config.http, keys=ring)
                settings = uvicorn.Config(guard, log_config=None, ws="none", timeout_graceful_shutdown=1)
                self._servers.append(uvicorn.Server(settings))
            sockets = [socket.create_server(("127.0.0.1", 0)) for _ in self._servers]
            running = [
                asyncio.create_task(server.serve([one]))
                for server, one in zip(self._servers, sockets, strict=True)
            ]
            while not all(server.started for server in self._servers):
                await asyncio.sleep(0.01)
            self._urls.set_result([f"http://127.0.0.1:{one.getsockname()[1]}" for one in sockets])
            await asyncio.gather(*running)


def _fill(bank: Bank, config: Config) -> None:
    backbone = load_backbone(config.backbone)
    facts = Facts(backbone=backbone_record(backbone), tasks=("rte",), config_digest="0" * 12)
    rng = np.random.default_rng(0)
    width = backbone.width

    def publish(kind: Kind, name: str, mixture: MixtureRecord | None = None, **shapes: Sequence[int]) -> str:
        tensors = {
            key.replace("_", "."): rng.normal(scale=0.5, size=shape).astype(np.float32)
            for key, shape in (shapes or {"prompt": (4, width)}).items()
        }
        return bank.publish(kind, name, tensors, facts.model_copy(update={"mixture": mixture})).reference

    sources = tuple(publish("source", name) for name in ("mnli", "qqp", "squad"))
    attention = publish(
        "attention",
        "g",
        down_weight=(4, width),
        up_weight=(width, 4),
        norm_weight=(width,),
        norm_bias=(width,),
    )
    mixture = MixtureRecord(
        sources=sources,
        attention=attention,
        divisor=16.0,
        pooling="masked",
        authors_width=64,
        weights="learned",
        target="trained",
    )
    publish("target", "rte")
    for name in ("rte", "rte", "mrpc", "squad"):
        publish("target", name, mixture)
    publish("target", "hostile")
    bank.set_alias("target", "rte", CHAMPION, 2)
    bank.set_alias("target", "rte", CANDIDATE, 3)
    for name in ("mrpc", "squad", "hostile"):
        bank.set_alias("target", name, CHAMPION, 1)
