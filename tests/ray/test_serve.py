"""A deployment under Ray: answers, promotions, kills and drain, seen through HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from attempt_ray.config import parse
from attempt_ray.errors import AttemptError, ConfigError
from serve_app.gateway import Call, Reply
from serve_app.host import Host
from serve_app.keys import KeyFile
from serve_app.schema import RowIn
from tests.ray.serving import (
    CONTROLLER,
    ENGINE,
    INGRESS,
    PROXY,
    ROW,
    TWO,
    Deployment,
    Prompts,
    deployed,
    kills,
    promotions,
    until,
)
from tests.ray.test_submit import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
KILLS = int(os.environ.get("ATTEMPT_RAY_KILLS", "1"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    return Prompts.make(tmp_path_factory.mktemp("serve") / "bank")


@pytest.fixture(scope="module")
def deployment(prompts: Prompts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    _, key = KeyFile(path).add("ops", role="admin")
    settings = [*TWO, f"http.keys={path}"]
    with deployed(Path(prompts.bank.place), port=free_ports(1)[0], settings=settings, key=key) as made:
        yield made


def test_answers_are_those_of_one_process(deployment: Deployment, prompts: Prompts) -> None:
    rows = [
        ROW,
        RowIn(task="cb", text="cb premise: x hypothesis: y"),
        RowIn(task="squad", text="who took it ?"),
    ]
    config = parse(
        [
            {
                "backbone": {"name": "nano", "dtype": "float32"},
                "data": {"origin": "embedded"},
                "bank": prompts.bank.place,
            }
        ]
    )

    async def here() -> Reply:
        async with Host(config) as host:
            return await host.predict(Call(rows=rows, timeout_seconds=30))

    expected = asyncio.run(here()).rows
    with deployment.client() as client:
        found = client.predict(rows).rows
        pieces = list(client.stream("squad", "who took it ?"))
    assert [row.answer for row in found] == [row.answer for row in expected]
    for one, other in zip(found, expected, strict=True):
        if other.probabilities is not None:
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert "".join(pieces) == expected[2].answer


def test_both_replicas_are_seen(deployment: Deployment) -> None:
    with deployment.client() as client:
        status = client.status()
        assert status.ready and len(status.replicas) == 2
        assert len({one.bank_state for one in status.replicas}) == 1
        metrics = client.metrics()
    for one in status.replicas:
        assert f'attempt_loaded_prompts{{replica="{one.replica}"}}' in metrics
    assert "attempt_http" in metrics


def test_promotions_are_seen_within_two_seconds_and_bad_ones_hurt_nobody(
    deployment: Deployment, prompts: Prompts
) -> None:
    found = promotions(deployment, prompts, count=4, bad=1, rate=10)
    assert (found["failed"], found["errors"]) == (0, [])
    assert found["requests"] > 10
    assert found["seen_p99_s"] <= 2.0


def test_no_request_is_lost_with_an_engine_that_is_killed(deployment: Deployment) -> None:
    found = kills(deployment, ENGINE, count=KILLS, rate=5, pause=1.0)
    assert (found["failed"], found["errors"]) == (0, [])
    assert found["requests"] > 5


@pytest.mark.skipif("ATTEMPT_RAY_KILLS" not in os.environ, reason="a minute each: make kills")
@pytest.mark.parametrize("title", [INGRESS, CONTROLLER, PROXY])
def test_no_request_is_lost_with_another_part_that_is_killed(deployment: Deployment, title: str) -> None:
    found = kills(deployment, title, count=KILLS, rate=5, pause=1.0)
    assert (found["failed"], found["errors"]) == (0, [])


def test_without_its_key_nothing_is_answered(deployment: Deployment) -> None:
    with deployment.client(key=None) as client, pytest.raises(ConfigError, match="key"):
        client.predict([ROW])


def test_a_signal_lets_it_answer_what_it_has_accepted(deployment: Deployment) -> None:
    outcomes: list[object] = []

    def ask() -> None:
        rows = [RowIn(task="rte", text="word " * 120) for _ in range(60)]
        with deployment.client(retries=0) as client:
            try:
                outcomes.append(len(client.predict(rows, timeout=60).rows))
            except AttemptError as error:
                outcomes.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    with deployment.client() as client:
        until(lambda: any(one.running_rows for one in client.status().replicas))
    deployment.process.send_signal(signal.SIGTERM)
    asking.join(60)
    assert outcomes == [60]
    assert deployment.process.wait(60) == 0
    assert str(deployment.key) not in "".join(deployment.lines)
