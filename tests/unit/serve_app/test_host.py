from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.bank import Bank
from attempt_ray.bank.aliases import Canary
from attempt_ray.config import Config
from attempt_ray.errors import (
    AttemptError,
    BankError,
    DataError,
    DeadlineError,
    NotFoundError,
    OverloadedError,
    StorageError,
)
from serve_app.gateway import Call, Change, Reply
from serve_app.host import Host
from serve_app.schema import CanaryIn, RowIn, RowOut

MakeConfig = Callable[..., Config]
Publish = Callable[..., Any]
RTE = {"sentence1": "ruth found the hat .", "sentence2": "the hat was found ."}


def run(config: Config, scenario: Callable[[Host], Coroutine[Any, Any, None]]) -> None:
    async def hosted() -> None:
        async with Host(config) as host:
            await scenario(host)

    asyncio.run(hosted())


def call(*rows: RowIn, attention: bool = False, timeout_seconds: float = 20.0, key: str = "") -> Call:
    return Call(rows=rows, attention=attention, timeout_seconds=timeout_seconds, key=key)


def rte(task: str = "rte", **more: Any) -> RowIn:
    return RowIn(task=task, fields=RTE, **more)


async def versions(host: Host, *rows: RowIn) -> list[int]:
    return [row.version for row in (await host.predict(call(*rows))).rows]


async def until(condition: Callable[[], Any], *, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        await asyncio.sleep(0.005)


def sample(host: Host, name: str, **labels: str) -> float:
    return host._registry.get_sample_value(name, labels) or 0.0


def test_rows_of_several_tasks_are_answered_in_order(served: Bank, nano_config: MakeConfig) -> None:
    async def scenario(host: Host) -> None:
        rows = [
            rte(),
            RowIn(task="squad", fields={"question": "who took it ?", "context": "paul took it ."}),
            RowIn(task="cb", text="cb premise: x hypothesis: y"),
            rte("rte@v1"),
        ]
        reply = await host.predict(call(*rows, attention=True))
        assert [row.task for row in reply.rows] == ["rte", "squad", "cb", "rte"]
        assert [row.role for row in reply.rows] == ["champion", "champion", "champion", "pinned"]
        assert [row.prompt for row in reply.rows] == [
            "target/rte@v1",
            "source/squad@v1",
            "target/cb@v1",
            "target/rte@v1",
        ]
        first, second, third, _ = reply.rows
        assert first.attention is not None and set(first.attention) == {"mnli", "squad", "target"}
        assert sum(first.attention.values()) == pytest.approx(1, abs=1e-6)
        assert first.probabilities is not None and sum(first.probabilities.values()) == pytest.approx(1)
        assert (second.probabilities, third.attention) == (None, None)
        assert reply.engine_seconds > 0
        assert (await host.predict(call(rte()))).rows[0].attention is None

    run(nano_config(), scenario)


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (rte("rtf"), NotFoundError, r"^rows\.1: no task served here 'rtf'"),
        (rte("mrpc"), NotFoundError, r"^rows\.1: no task served here 'mrpc'"),
        (rte("rte@v9"), NotFoundError, r"^rows\.1: no version v9"),
        (rte(prompt="target/nothing"), NotFoundError, r"^rows\.1: no prompt"),
        (RowIn(task="rte", fields={"sentence1": "x"}), DataError, r"^rows\.1: .*sentence2"),
    ],
)
def test_a_row_that_cannot_be_used_fails_the_call_before_any_work(
    served: Bank, nano_config: MakeConfig, row: RowIn, error: type[AttemptError], message: str
) -> None:
    async def scenario(host: Host) -> None:
        before = host._batcher.snapshot().batches
        with pytest.raises(error, match=message):
            await host.predict(call(rte(), row))
        assert host._batcher.snapshot().batches == before

    run(nano_config(), scenario)


def test_a_promotion_is_seen_without_restart_and_at_once_where_it_was_asked_for(
    served: Bank, nano_config: MakeConfig, publish: Publish
) -> None:
    async def scenario(host: Host) -> None:
        publish("rte", seed=11)
        served.promote("target/rte@v2")
        await until(lambda: host._follower.view.shelves["target/rte"].served["champion"] == 2)
        assert await versions(host, rte(), rte("rte@v1")) == [2, 1]
        changed = await host.change(Change(action="rollback", task="rte"))
        assert changed.prompt == "target/rte@v1"
        assert await versions(host, rte()) == [1]
        changed = await host.change(Change(action="promote", task="rte", version=2, expected=1))
        assert changed.prompt == "target/rte@v2"
        with pytest.raises(BankError, match="points to v2, expected v1"):
            await host.change(Change(action="promote", task="rte", version=1, expected=1))
        with pytest.raises(NotFoundError, match="no version v9"):
            await host.change(Change(action="promote", task="rte", version=9))
        with pytest.raises(NotFoundError, match="no task served here 'rtf'"):
            await host.change(Change(action="rollback", task="rtf"))

    run(nano_config(), scenario)


def test_all_rows_of_a_call_are_answered_from_one_state_of_the_bank(
    served: Bank, nano_config: MakeConfig, publish: Publish
) -> None:
    publish("rte", seed=11)
    publish("cb", seed=12)

    async def scenario(host: Host) -> None:
        # Both move together: no call may see one of them moved.
        stop = threading.Event()

        def move() -> None:
            number = 1
            while not stop.is_set():
                number = 3 - number
                view = host._follower.view
                shelves = dict(view.shelves)
                for name in ("rte", "cb"):
                    shelf = shelves[f"target/{name}"]
                    shelves[f"target/{name}"] = type(shelf)(
                        shelf.kind, shelf.name, shelf.numbers, {"champion": number}, None
                    )
                host._follower.view = type(view)(view.revision + 1, shelves)
                time.sleep(0.001)

        mover = threading.Thread(target=move)
        mover.start()
        try:
            for _ in range(60):
                first, second = await versions(host, rte(), RowIn(task="cb", text="cb x"))
                assert first == second
        finally:
            stop.set()
            mover.join()

    run(nano_config(follow_seconds=1000), scenario)


def test_a_version_for_another_backbone_is_refused_and_told(
    served: Bank, nano_config: MakeConfig, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(host: Host) -> None:
        publish("rte", seed=11)
        path = Path(served.place) / "target" / "rte" / "v000002" / "tensors.safetensors"
        served.promote("target/rte@v2")
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
        host._engine.has = lambda prompt: prompt != "target/rte@v2"  # type: ignore[method-assign]
        await until(lambda: host._follower.view.refused)
        assert await versions(host, rte()) == [1]
        (status,) = await host.status()
        assert (status.healthy, status.ready) == (True, False)
        assert status.problems[0].prompt == "target/rte@v2"
        (info,) = [one for one in await host.tasks() if one.task == "rte"]
        assert [problem.prompt for problem in info.problems] == ["target/rte@v2"]
        assert sample(host, "attempt_refused_versions") == 1
        with pytest.raises(BankError, match=r"rows\.0: .*expected"):
            await host.predict(call(rte("rte@v2")))

    run(nano_config(), scenario)


def test_a_damaged_version_is_not_read_for_every_request(
    served: Bank, nano_config: MakeConfig, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("rte", seed=11)
    path = Path(served.place) / "target" / "rte" / "v000002" / "tensors.safetensors"
    path.write_bytes(b"")

    async def scenario(host: Host) -> None:
        reads: list[str] = []
        read = host._read
        monkeypatch.setattr(host, "_read", lambda prompt: (reads.append(prompt), read(prompt)))
        for _ in range(5):
            with pytest.raises(BankError):
                await host.predict(call(rte("rte@v2")))
        assert reads == ["target/rte@v2"]

    run(nano_config(), scenario)


def test_many_that_ask_for_a_cold_version_wait_for_one_reading(
    served: Bank, nano_config: MakeConfig, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("rte", seed=11)

    async def scenario(host: Host) -> None:
        reads: list[str] = []
        read = host._read

        def slowly(prompt: str) -> None:
            reads.append(prompt)
            time.sleep(0.05)
            read(prompt)

        monkeypatch.setattr(host, "_read", slowly)
        await asyncio.gather(*(versions(host, rte("rte@v2")) for _ in range(8)))
        assert reads == ["target/rte@v2"]
        publish("rte", seed=12)
        await until(lambda: 3 in host._follower.view.shelves["target/rte"].numbers)
        with pytest.raises(DeadlineError, match="not loaded in the time"):
            await host.predict(call(rte("rte@v3"), timeout_seconds=0.01))

    run(nano_config(), scenario)


def test_a_canary_takes_its_share_and_is_promoted(
    served: Bank, nano_config: MakeConfig, publish: Publish
) -> None:
    publish("rte", seed=11)

    async def scenario(host: Host) -> None:
        changed = await host.change(
            Change(action="start canary", task="rte", canary=CanaryIn(version=2, percent=40))
        )
        assert changed.canary is not None and changed.canary.state == "running"
        host._draws.seed(0)
        found = [(await host.predict(call(rte()))).rows[0] for _ in range(100)]
        share = sum(row.role == "canary" for row in found)
        assert 25 <= share <= 55
        assert {row.version for row in found if row.role == "canary"} == {2}
        changed = await host.change(Change(action="promote", task="rte", version=2))
        assert changed.canary is not None and changed.canary.state == "promoted"
        changed = await host.change(Change(action="start canary", task="rte", canary=CanaryIn(version=1)))
        changed = await host.change(Change(action="stop canary", task="rte"))
        assert changed.canary is not None and changed.canary.state == "stopped"

    run(nano_config(), scenario)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_canary_that_fails_hurts_no_row_and_is_rolled_back(
    served: Bank, nano_config: MakeConfig, publish: Publish, streamed: bool
) -> None:
    publish("rte", seed=11, overflows=True)
    served.start_canary("target", "rte", Canary(version=2, percent=100, min_rows=5, max_error_rate=0.1))

    async def scenario(host: Host) -> None:
        for _ in range(8):
            if streamed:
                *_, row = [event async for event in host.stream(call(rte()))]
                assert isinstance(row, RowOut)
            else:
                (row,) = (await host.predict(call(rte()))).rows
            assert (row.version, row.role) == (1, "champion")
        await until(lambda: served.aliases("target", "rte").canary.state == "rolled back")  # type: ignore[union-attr]
        assert "5 of 5 rows failed" in str(served.aliases("target", "rte").canary)
        assert sample(host, "attempt_canary_rollbacks_total") == 1
        assert (
            sample(
                host,
                "attempt_rows_total",
                task="rte",
                prompt="target/rte@v2",
                role="canary",
                outcome="failed",
            )
            == 5
        )
        (info,) = [one for one in await host.tasks() if one.task == "rte"]
        assert info.canary is not None and info.canary.state == "rolled back"

    run(nano_config(), scenario)


def test_a_row_that_cannot_be_used_is_no_failure_of_a_canary(
    served: Bank, nano_config: MakeConfig, publish: Publish
) -> None:
    publish("rte", seed=11)
    served.start_canary("target", "rte", Canary(version=2, percent=100, min_rows=1, max_error_rate=0))

    async def scenario(host: Host) -> None:
        row = RowIn(task="rte", fields={"sentence1": "x"})
        with pytest.raises(DataError, match=r"^rows\.0: task 'rte': .*sentence2"):
            async for _ in host.stream(call(row)):
                pass
        with pytest.raises(DataError, match=r"^rows\.0: task 'rte': .*sentence2"):
            await host.predict(call(row))
        assert served.aliases("target", "rte").trial is not None
        assert await versions(host, rte()) == [2]

    run(nano_config(), scenario)


def test_a_champion_that_cannot_answer_is_an_error_of_its_rows(
    served: Bank, nano_config: MakeConfig, publish: Publish
) -> None:
    publish("rte", seed=11, overflows=True)
    served.promote("target/rte@v2")

    async def scenario(host: Host) -> None:
        with pytest.raises(BankError, match=r"^rows\.0: target/rte@v2 made the backbone compute NaN"):
            await host.predict(call(rte(), RowIn(task="cb", text="cb x")))
        assert await versions(host, RowIn(task="cb", text="cb x")) == [1]

    run(nano_config(), scenario)


def test_a_candidate_is_compared_unseen(served: Bank, nano_config: MakeConfig, publish: Publish) -> None:
    publish("rte", seed=10)
    publish("rte", seed=11, overflows=True)
    served.set_alias("target", "rte", "candidate", 2)

    async def scenario(host: Host) -> None:
        for _ in range(5):
            assert await versions(host, rte()) == [1]
        prompts = {"task": "rte", "prompt": "target/rte@v2"}

        def compared() -> float:
            return sum(
                sample(host, "attempt_shadow_rows_total", agreed=agreed, **prompts)
                for agreed in ("yes", "no")
            )

        await until(lambda: compared() == 5)
        served.set_alias("target", "rte", "candidate", 3)
        await until(lambda: host._follower.view.shelves["target/rte"].served.get("candidate") == 3)
        assert await versions(host, rte()) == [1]
        await until(
            lambda: sample(
                host, "attempt_shadow_rows_total", agreed="failed", task="rte", prompt="target/rte@v3"
            )
        )

    run(nano_config(shadow_percent=100), scenario)


def test_streams_end_with_the_answer(served: Bank, nano_config: MakeConfig) -> None:
    row = RowIn(
        task="squad", fields={"question": "who took it ?", "context": "paul took it ."}, max_new_tokens=8
    )

    async def scenario(host: Host) -> None:
        *pieces, whole = [event async for event in host.stream(call(row))]
        assert isinstance(whole, RowOut)
        assert "".join(map(str, pieces)) == whole.answer
        with pytest.raises(NotFoundError, match=r"^rows\.0: "):
            async for _ in host.stream(call(rte("rte@v9"))):
                pass

    run(nano_config(), scenario)


def test_a_bank_that_goes_away_does_not_stop_the_answers(served: Bank, nano_config: MakeConfig) -> None:
    async def scenario(host: Host) -> None:
        root = Path(served.place)
        root.rename(root.with_name("away"))
        root.write_text("no directory")
        await until(lambda: host._follower.trouble is not None)
        assert await versions(host, rte(), RowIn(task="cb", text="cb x")) == [1, 1]
        (status,) = await host.status()
        assert (status.healthy, status.ready) == (True, False)
        root.unlink()
        root.with_name("away").rename(root)
        await until(lambda: host._follower.trouble is None)

    run(nano_config(), scenario)


def test_a_bank_that_cannot_be_read_at_the_start_is_told(nano_config: MakeConfig, nano_bank: Bank) -> None:
    Path(nano_bank.place).write_text("no directory")

    async def scenario() -> None:
        with pytest.raises(StorageError):
            await Host(nano_config()).start()

    asyncio.run(scenario())


def test_a_hung_engine_is_unhealthy(
    served: Bank, nano_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    async def scenario(host: Host) -> None:
        host.check()
        answer = host._engine.run

        def hang(rows: Any) -> Any:
            release.wait(10)
            yield from answer(rows)

        monkeypatch.setattr(host._engine, "run", hang)
        asked = asyncio.create_task(host.predict(call(rte())))
        await until(lambda: host._batcher.oldest_running_seconds() > 0.1)
        with pytest.raises(RuntimeError, match="has computed one batch for"):
            host.check()
        assert not (await host.status())[0].healthy
        release.set()
        assert isinstance(await asked, Reply)
        await until(lambda: not host._batcher.oldest_running_seconds())
        host.check()

    run(nano_config(stall_seconds=0.1), scenario)


def test_a_full_queue_refuses_and_says_when_to_come_back(served: Bank, nano_config: MakeConfig) -> None:
    async def scenario(host: Host) -> None:
        with pytest.raises(OverloadedError) as found:
            await host.predict(call(*[rte() for _ in range(5)]))
        assert found.value.retry_after_seconds >= 1
        assert await versions(host, rte()) == [1]

    run(nano_config(queue_rows=4), scenario)


def test_a_host_that_leaves_answers_what_it_has_accepted(served: Bank, nano_config: MakeConfig) -> None:
    async def scenario() -> None:
        host = Host(nano_config())
        await host.start()
        asked = [asyncio.create_task(host.predict(call(rte()))) for _ in range(20)]
        await until(lambda: host._batcher.snapshot().queued_rows + host._batcher.snapshot().running_rows)
        await host.stop(drain_seconds=10)
        assert {reply.rows[0].version for reply in await asyncio.gather(*asked)} == {1}
        with pytest.raises(OverloadedError, match="stopping"):
            await host.predict(call(rte()))
        with pytest.raises(RuntimeError):
            host.check()

    asyncio.run(scenario())


def test_tasks_are_told_with_an_example_that_works(served: Bank, nano_config: MakeConfig) -> None:
    async def scenario(host: Host) -> None:
        infos = await host.tasks()
        assert [info.task for info in infos] == ["cb", "mnli", "rte", "squad"]
        reply = await host.predict(call(*(info.example for info in infos)))
        assert [row.prompt for row in reply.rows] == [info.prompt for info in infos]
        rte_info = infos[2]
        assert rte_info.sources == ["mnli", "squad", "target"]
        assert rte_info.labels == ["entailment", "not_entailment"]
        assert rte_info.fields == ["sentence1", "sentence2"]
        assert infos[3].labels == []

    run(nano_config(), scenario)
