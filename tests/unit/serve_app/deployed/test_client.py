"""The clients and `attempt predict --url` on the real application: uvicorn, guard, host and the nano backbone."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.errors import BankError, ConfigError, DataError, NotFoundError
from jobs.predict import predict, predict_remotely
from serve_app.client import AsyncClient, Client
from serve_app.schema import RowIn

NAMES = ["hostile", "mnli", "mrpc", "qqp", "rte", "squad"]
PAIRS = [
    {"sentence1": "ana saw a red dog .", "sentence2": "ana saw a dog ."},
    {"sentence1": "bob ran .", "sentence2": "bob sat ."},
    {"sentence1": "a car was sold .", "sentence2": "bob has a car ."},
]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, deployment: Any) -> Callable[..., Any]:
    """Return a function that gives a client with the admin key to another function, and returns what that makes."""

    def sync(do: Callable[[Any], Any], key: str = deployment.admin_key) -> Any:
        with Client(deployment.guarded_url, key=key) as client:
            found = do(client)
            return list(found) if inspect.isgenerator(found) else found

    def asynchronous(do: Callable[[Any], Any], key: str = deployment.admin_key) -> Any:
        async def main() -> Any:
            async with AsyncClient(deployment.guarded_url, key=key) as client:
                found = do(client)
                return [piece async for piece in found] if inspect.isasyncgen(found) else await found

        return asyncio.run(main())

    return sync if request.param == "sync" else asynchronous


def served(call: Callable[..., Any], prompt: str) -> None:
    """Wait until `rte` is served from a version."""
    ends = time.monotonic() + 10
    while call(lambda client: client.task("rte")).prompt != prompt:
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_rows_of_several_tasks_and_versions(call: Callable[..., Any]) -> None:
    rows = [
        RowIn(task="rte", fields=PAIRS[0]),
        {"task": "rte@v1", "fields": PAIRS[0]},
        {"task": "mrpc", "text": "mrpc sentence1: a sentence2: b"},
    ]
    found = call(lambda client: client.predict(rows, attention=True, timeout=20)).rows
    assert [(row.prompt, row.role) for row in found] == [
        ("target/rte@v2", "champion"),
        ("target/rte@v1", "pinned"),
        ("target/mrpc@v1", "champion"),
    ]
    assert [sorted(row.attention or ()) for row in found] == [
        ["mnli", "qqp", "squad", "target"],
        [],
        ["mnli", "qqp", "squad", "target"],
    ]
    assert sum(found[0].probabilities.values()) == pytest.approx(1)
    one = call(lambda client: client.predict_one("rte@candidate", fields=PAIRS[0]))
    assert (one.prompt, one.attention) == ("target/rte@v3", None)


def test_pieces_joined_are_the_answer(call: Callable[..., Any]) -> None:
    text = "squad question: who ran ? context: bob ran ."
    whole = call(lambda client: client.predict_one("squad", text=text)).answer
    pieces = call(lambda client: client.stream("squad@v1", text))
    assert "".join(pieces) == whole


def test_what_there_is_and_how_it_does(call: Callable[..., Any]) -> None:
    assert [task.task for task in call(lambda client: client.tasks())] == NAMES
    task = call(lambda client: client.task("rte"))
    assert (task.versions, task.aliases) == ([1, 2, 3], {"champion": 2, "candidate": 3})
    assert call(lambda client: client.predict([task.example])).rows[0].task == "rte"
    assert call(lambda client: client.status()).replicas[0].healthy
    assert "attempt_rows_total" in call(lambda client: client.metrics())
    assert call(lambda client: client.ready()) is True


def test_what_is_served_can_be_changed(call: Callable[..., Any]) -> None:
    assert call(lambda client: client.promote("rte", version=3, expected=2)).prompt == "target/rte@v3"
    served(call, "target/rte@v3")
    with pytest.raises(BankError, match="expected"):
        call(lambda client: client.promote("rte", version=1, expected=2))
    assert call(lambda client: client.rollback("rte")).prompt == "target/rte@v2"
    served(call, "target/rte@v2")
    canary = call(lambda client: client.start_canary("rte", 1, percent=50)).canary
    assert (canary.version, canary.percent, canary.state) == (1, 50, "running")
    assert call(lambda client: client.stop_canary("rte")).canary.state == "stopped"


def test_refusals_are_our_errors_with_the_deployments_words(
    call: Callable[..., Any], deployment: Any
) -> None:
    for do, error, words in (
        (lambda client: client.predict_one("rtee", text="x"), NotFoundError, "rte"),
        (lambda client: client.predict_one("rte@v9", text="x"), NotFoundError, "v9"),
        (lambda client: client.task("rtee"), NotFoundError, "rtee"),
        (lambda client: client.predict_one("rte", fields={"sentence1": "x"}), DataError, "sentence2"),
        (lambda client: client.predict([{"task": "rte", "text": "x"}] * 65), DataError, "64"),
        (lambda client: client.promote("rte", version=9), NotFoundError, "9"),
    ):
        with pytest.raises(error, match=words):
            call(do)
    with pytest.raises(ConfigError, match="ATTEMPT_API_KEY"):
        call(lambda client: client.tasks(), key="wrong")
    with pytest.raises(ConfigError, match="role admin"):
        call(lambda client: client.rollback("rte"), key=deployment.key)


def test_a_deployment_answers_rows_as_the_job_does_here(deployment: Any) -> None:
    here = predict(deployment.config, "rte", PAIRS)
    there = predict_remotely(
        "rte", [{**row, "idx": None, "spans": {}} for row in PAIRS], url=deployment.url, batch_rows=2
    )
    assert there["prompt"] == here["prompt"] == "target/rte@v2"
    for ours, theirs in zip(here["answers"], there["answers"], strict=True):
        assert (ours["answer"], ours["meaning"]) == (theirs["answer"], theirs["meaning"])
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)
        assert ours["attention"] == pytest.approx(theirs["attention"], abs=1e-5)
    assert [each["fields"] for each in there["answers"]] == PAIRS


def test_the_command_asks_a_deployment_without_torch(deployment: Any, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(deployment.key + "\n")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    code = "import sys\nfrom jobs.cli import main\ntry: main()\nfinally: print(sorted({'torch', 'ray', 'fastapi'} & set(sys.modules)))"
    arguments = ["predict", "rte@candidate", "--url", deployment.guarded_url, "--batch-rows", "2"]
    arguments += ["--key-file", str(tmp_path / "key"), "--rows", str(tmp_path / "rows.jsonl")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    told, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    found = json.loads(told)
    assert (found["task"], found["prompt"], len(found["answers"])) == ("rte", "target/rte@v3", 3)
    assert "attends to" in done.stderr


def test_a_mistake_in_a_later_request_says_of_which_rows(deployment: Any) -> None:
    with pytest.raises(DataError, match=r"of rows 2 to 2, rows\.0.*sentence2"):
        predict_remotely("rte", [*PAIRS[:2], {"sentence1": "x"}], url=deployment.url, batch_rows=2)


def test_a_prompt_by_its_own_name(deployment: Any) -> None:
    found = predict_remotely("rte", PAIRS[:1], url=deployment.url, prompt="target/mrpc@v1")
    assert found["prompt"] == "target/mrpc@v1"
