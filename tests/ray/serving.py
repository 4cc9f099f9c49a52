"""A deployment in a process of its own, load from clients with retries, and what kills its parts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attempt_ray.bank import Bank, Facts, Version
from attempt_ray.config import BackboneConfig
from attempt_ray.errors import AttemptError, DataError
from attempt_ray.model.backbone import load_backbone
from attempt_ray.model.published import backbone_record
from serve_app.client import AsyncClient, Client
from serve_app.follower import Follower, View
from serve_app.schema import RowIn
from tests.conftest import heed_signals
from tests.ray.killing import titled

ROOT = Path(__file__).parents[2]
ENGINE, INGRESS = "ServeReplica:attempt:engine", "ServeReplica:attempt:ingress"
CONTROLLER, PROXY = "ServeController", "ProxyActor"
ROW = RowIn(task="rte", fields={"sentence1": "ruth found the hat .", "sentence2": "the hat was found ."})


@dataclass
class Prompts:
    """A bank of noise for the shipped nano; a bad version is for another backbone."""

    bank: Bank
    facts: Facts
    seed: int = 0

    @classmethod
    def make(cls, place: Path) -> Prompts:
        backbone = load_backbone(BackboneConfig(name="nano", dtype="float32"))
        facts = Facts(backbone=backbone_record(backbone), tasks=("rte",), config_digest="0123456789ab")
        made = cls(Bank(str(place)), facts)
        for name in ("rte", "cb"):
            made.publish(name)
            made.bank.promote(f"target/{name}@v1")
        made.publish("squad", kind="source")
        return made

    def publish(self, name: str, *, kind: Any = "target", bad: bool = False) -> Version:
        self.seed += 1
        facts = self.facts
        if bad:
            record = facts.backbone.model_copy(update={"weights_sha256": "0" * 64})
            facts = facts.model_copy(update={"backbone": record})
        prompt = np.random.default_rng(self.seed).normal(size=(4, facts.backbone.width), scale=0.5)
        return self.bank.publish(kind, name, {"prompt": prompt.astype(np.float32)}, facts)


@dataclass
class Deployment:
    url: str
    process: subprocess.Popen[str]
    lines: list[str]
    key: str | None = None
    """An admin's key, where one is needed."""

    def client(self, **more: Any) -> Client:
        return Client(self.url, **{"key": self.key, **more})

    def kill(self, title: str, *, which: int = 0) -> int:
        """SIGKILL a process whose title holds `title`, and return its id."""
        (pid, *_) = titled(self.process.pid, title)[which:]
        os.kill(pid, signal.SIGKILL)
        return pid

    def alive(self, title: str) -> list[int]:
        return titled(self.process.pid, title)


@contextmanager
def deployed(
    bank: Path, *, port: int, settings: Sequence[str] = (), key: str | None = None
) -> Iterator[Deployment]:
    """Run `attempt serve` on the nano until the block ends."""
    argv = [sys.executable, "-c", "from jobs.cli import main; main()", "serve", "--port", str(port)]
    for each in (
        "backbone.name=nano",
        "backbone.dtype=float32",
        "data.origin=embedded",
        f"bank={bank}",
        *settings,
    ):
        argv += ["--set", each]
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,  # noqa: PLW1509 - no thread runs yet
    )
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        for line in process.stderr or ():
            lines.append(line)
            if "ready at" in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(120) and process.poll() is None, "".join(lines)
        yield Deployment(f"http://127.0.0.1:{port}", process, lines, key)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(10)
        if process.stderr is not None:
            process.stderr.close()


@dataclass
class Load:
    """What became of requests that were sent at a fixed rate, each by a client that retries."""

    answered: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    versions: Counter[int] = field(default_factory=Counter)
    log: list[tuple[float, float, int]] = field(default_factory=list)
    """Start, end and version of every answer."""

    def percentile(self, share: float) -> float:
        return float(np.quantile(self.seconds, share)) if self.seconds else float("nan")


@contextmanager
def load(deployment: Deployment, *, rate: float, retries: int = 20) -> Iterator[Load]:
    """Send requests at a rate while the block runs, and wait for all their answers at its end."""
    found = Load()
    stop = threading.Event()

    async def one(client: AsyncClient) -> None:
        began = time.monotonic()
        try:
            response = await client.predict([ROW], timeout=30.0)
        except Exception as error:  # noqa: BLE001 - whatever it is, the request has failed
            found.failed.append(f"{type(error).__name__}: {error}")
            return
        ended = time.monotonic()
        found.answered += 1
        found.seconds.append(ended - began)
        found.versions[response.rows[0].version] += 1
        found.log.append((began, ended, response.rows[0].version))

    async def send() -> None:
        async with AsyncClient(deployment.url, key=deployment.key, retries=retries) as client:
            under_way: set[asyncio.Task[None]] = set()
            due = time.monotonic()
            while not stop.is_set():
                task = asyncio.create_task(one(client))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                due += 1 / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await asyncio.gather(*under_way)

    sender = threading.Thread(target=lambda: asyncio.run(send()))
    sender.start()
    try:
        yield found
    finally:
        stop.set()
        sender.join()


def until(condition: Callable[[], Any], *, seconds: float = 60.0) -> float:
    """Wait until a condition holds, and return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come"
        time.sleep(0.05)
    return time.monotonic() - began


def kill_and_wait(deployment: Deployment, title: str) -> float:
    """Kill a part, wait until there are as many of it as before and all replicas answer, and return how long that took."""
    with deployment.client(retries=0, timeout=5) as client:
        before, engines = len(deployment.alive(title)), len(client.status().replicas)
        ingresses = len(deployment.alive(INGRESS))
        killed = deployment.kill(title)
        answered: set[str] = set()

        def whole() -> bool:
            if len(set(deployment.alive(title)) - {killed}) < before:
                return False
            try:
                # A replica has its title before it takes requests.
                answered.update(re.findall(r'ingress="([^"]+)"', client.metrics()))
                healthy = sum(one.healthy for one in client.status().replicas)
            except AttemptError:
                return False
            return len(answered) >= ingresses and healthy >= engines

        time.sleep(0.5)  # who was killed may be among the replicas for a moment
        return until(whole, seconds=120)


def kills(
    deployment: Deployment, title: str, *, count: int, rate: float, pause: float = 2.0
) -> dict[str, Any]:
    """Kill a part `count` times under load, each time once it is back; return what requests saw."""
    outages: list[float] = []
    with load(deployment, rate=rate) as found:
        time.sleep(1.0)
        for _ in range(count):
            outages.append(kill_and_wait(deployment, title))
            time.sleep(pause)
    return {
        "killed": title,
        "kills": count,
        "requests": found.answered + len(found.failed),
        "failed": len(found.failed),
        "errors": found.failed[:3],
        "p50_ms": round(1e3 * found.percentile(0.5), 1),
        "p99_ms": round(1e3 * found.percentile(0.99), 1),
        "max_ms": round(1e3 * found.percentile(1.0), 1),
        "back_after_s": round(float(np.median(outages)), 2),
    }


def promotions(
    deployment: Deployment, prompts: Prompts, *, count: int, bad: int, rate: float, pause: float = 0.0
) -> dict[str, Any]:
    """Promote `count` versions under load, `bad` of them unusable; return how soon each was seen and what failed."""
    chosen = set(np.random.default_rng(0).choice(count, size=bad, replace=False).tolist())
    seen: list[float] = []
    unusable: set[str] = set()

    def refuse(reference: str) -> None:
        if reference in unusable:
            raise DataError(f"{reference} is of another backbone")

    wanted = Follower(prompts.bank, refuse)
    with load(deployment, rate=rate) as found, deployment.client() as client:
        time.sleep(1.0)
        for place in range(count):
            version = prompts.publish("rte", bad=place in chosen)
            before = client.task("rte").prompt
            if place in chosen:
                unusable.add(version.reference)
            prompts.bank.promote(version.reference)
            moved = time.monotonic()
            if place in chosen:
                until(lambda: all(one.problems for one in client.status().replicas), seconds=10)
            else:
                wanted.poll()
                until(partial(_all_serve, client, wanted.view), seconds=10)
            seen.append(time.monotonic() - moved)
            assert client.task("rte").prompt == (before if place in chosen else version.reference)
            if place in chosen:
                prompts.bank.rollback("target", "rte")
                until(lambda: not any(one.problems for one in client.status().replicas), seconds=10)
            time.sleep(pause)
    return {
        "promotions": count,
        "bad": bad,
        "requests": found.answered + len(found.failed),
        "failed": len(found.failed),
        "errors": found.failed[:3],
        "versions": len(found.versions),
        "seen_p50_s": round(float(np.quantile(seen, 0.5)), 2),
        "seen_p99_s": round(float(np.quantile(seen, 0.99)), 2),
    }


def _all_serve(client: Client, view: View) -> bool:
    return {one.bank_state for one in client.status().replicas} == {view.state}


def main() -> None:
    """Kill and promote many times; the figures go to stdout."""
    import argparse
    import tempfile

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--promotions", type=int, default=100)
    parser.add_argument("--bad", type=int, default=30)
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between promotions")
    parser.add_argument("--port", type=int, default=8765)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        prompts = Prompts.make(Path(scratch) / "bank")
        with deployed(
            Path(scratch) / "bank", port=given.port, settings=[*TWO, "serving.ingress_replicas=2"]
        ) as deployment:
            for title in (ENGINE, INGRESS, CONTROLLER, PROXY) if given.kills else ():
                print(json.dumps(kills(deployment, title, count=given.kills, rate=given.rate)), flush=True)  # noqa: T201
            found = promotions(
                deployment,
                prompts,
                count=given.promotions,
                bad=given.bad,
                rate=given.rate,
                pause=given.pause,
            )
            print(json.dumps(found), flush=True)  # noqa: T201


TWO = ("serving.min_replicas=2", "serving.max_replicas=2", "serving.cpus_per_replica=0.5")
"""Settings of two engine replicas."""

if __name__ == "__main__":
    main()
