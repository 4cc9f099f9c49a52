from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.routing import iter_route_contexts

from attempt_ray.config import HttpConfig
from attempt_ray.errors import (
    BackboneError,
    BankError,
    DataError,
    DeadlineError,
    IntegrityError,
    NotFoundError,
    OverloadedError,
    StorageError,
)
from serve_app import front
from serve_app.access import CALLER, REQUEST_ID, ROUTES, Caller
from serve_app.gateway import Change, Reply
from serve_app.http import make_app
from serve_app.pages import read_pages
from serve_app.schema import Changed, RowOut
from tests.unit.serve_app.api.conftest import Scripted

OnHost = Callable[..., Any]
ROW = {"task": "rte", "text": "rte sentence1: a dog"}
OUT = RowOut(
    task="rte",
    prompt="target/rte@v3",
    version=3,
    role="champion",
    answer="0",
    label="entailment",
    probabilities={"entailment": 0.75, "not_entailment": 0.25},
    attention=None,
    truncated=False,
    input_tokens=5,
    output_tokens=2,
)
REPLY = Reply(rows=[OUT], wait_seconds=0.0015, engine_seconds=0.02)


def post(path: str, body: Any) -> Callable[[httpx2.AsyncClient], Any]:
    return lambda client: client.post(path, json=body)


def test_every_route_has_a_role_and_every_role_a_route() -> None:
    app = make_app(Scripted(), config=HttpConfig(), pages={})
    found: dict[str, set[str]] = {}
    for one in iter_route_contexts(app.routes):
        found.setdefault(one.path, set()).update(one.methods or ())
    assert found == {path: set(methods) for path, methods in ROUTES.items()}


def test_rows_of_several_tasks_are_answered_together(on_host: OnHost) -> None:
    rows = [
        {"task": "rte", "fields": {"sentence1": "a dog runs .", "sentence2": "a dog moves ."}},
        {"task": "newsqa", "text": "newsqa question: who", "max_new_tokens": 3},
        {"task": "rte@candidate", "text": "rte sentence1: a dog"},
        {"task": "cb", "prompt": "target/rte@v2", "text": "cb"},
    ]
    found = on_host(post("/v1/predict", {"rows": rows, "attention": True}))
    assert found.status_code == 200, found.text
    body = found.json()
    assert body["id"] == found.headers["x-request-id"]
    assert [row["prompt"] for row in body["rows"]] == [
        "target/rte@v1",
        "target/newsqa@v1",
        "target/rte@v2",
        "target/rte@v2",
    ]
    mixed, open_, _, _ = body["rows"]
    assert sum(mixed["probabilities"].values()) == pytest.approx(1)
    assert list(mixed["attention"]) == ["mnli", "squad", "target"]
    assert (open_["probabilities"], open_["label"], open_["attention"]) == (None, None, None)


def test_the_answer_says_where_the_time_went(on_script: OnHost) -> None:
    found = on_script(post("/v1/predict", {"rows": [ROW]}), Scripted(REPLY))
    assert found.headers["server-timing"] == "queue;dur=1.5, engine;dur=20.0"


def test_a_call_has_the_callers_key_and_time(on_script: OnHost) -> None:
    gateway = Scripted(REPLY)
    on_script(post("/v1/predict", {"rows": [ROW], "timeout_seconds": 7.5}), gateway)
    on_script(post("/v1/predict", {"rows": [ROW], "attention": True}), gateway)
    first, second = gateway.calls
    assert (first.timeout_seconds, first.attention, first.key) == (7.5, False, "")
    assert (second.timeout_seconds, second.attention) == (30.0, True)
    app = make_app(gateway, config=HttpConfig(), pages={})
    scope_of: dict[str, Any] = {CALLER: Caller("k7", "infer"), REQUEST_ID: "r9"}
    answer = asyncio.run(asgi(app, "POST", "/v1/predict", {"rows": [ROW]}, scope_of=scope_of))
    assert gateway.calls[-1].key == "k7"
    assert json.loads(answer[1]["body"])["id"] == "r9"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "rows", "rows: got nothing; it has to be there"),
        ([], None, "got no JSON object"),
        ({"rows": []}, "rows", "rows: got []; wanted 1 or more"),
        ({"rows": [ROW] * 5}, "rows", "rows: got 5; wanted at most 4; send them in several requests"),
        ({"rows": [ROW, {**ROW, "text": "x" * 51}]}, "rows.1.text", "got 51 characters; wanted at most 50"),
        (
            {"rows": [{"task": "rte", "fields": {"a": "x" * 40, "b": ["y" * 9, "z"]}}]},
            "rows.0.fields",
            "rows.0.fields: got 52 characters; wanted at most 50",
        ),
        ({"rows": [{**ROW, "fields": {}}]}, "rows.0", "rows.0: got both of fields and text; give one"),
        (
            {"rows": [ROW, {**ROW, "task": "R TE"}]},
            "rows.1.task",
            'got "R TE"; wanted a name of small letters',
        ),
        ({"rows": [{**ROW, "txt": "x"}]}, "rows.0.txt", "got a field that is not known"),
        (
            {"rows": [{**ROW, "max_new_tokens": "5"}]},
            "rows.0.max_new_tokens",
            'got "5"; wanted a whole number',
        ),
        (
            {"rows": [{"task": "rte", "fields": {"a": {"b": 1}}}]},
            "rows.0.fields.a",
            'got {"b": 1}; wanted a string or a whole number or a number or true or false or a list',
        ),
        ({"rows": [ROW], "timeout_seconds": 301}, "timeout_seconds", "got 301; wanted at most 300"),
        ({"rows": [ROW], "timeout_seconds": 0}, "timeout_seconds", "got 0; wanted greater than 0"),
        ({"rows": [ROW], "attention": "yes"}, "attention", 'got "yes"; wanted true or false'),
        ({"rows": [{**ROW, "text": [1] * 100}]}, "rows.0.text", "1, 1,...; wanted a string"),
    ],
)
def test_what_is_wrong_with_a_request_is_named_with_its_place(
    on_script: OnHost, body: Any, param: str | None, message: str
) -> None:
    gateway = Scripted(REPLY)
    found = on_script(post("/v1/predict", body), gateway, max_rows=4, max_text_chars=50)
    error = found.json()["error"]
    assert (found.status_code, error["type"], error["param"]) == (422, "invalid_request_error", param)
    assert message in error["message"]
    assert not gateway.calls


class WrappedError(Exception):
    """What a cluster's handle makes of a replica's error."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("ray::Engine.predict() and a traceback")
        self.cause = cause


@pytest.mark.parametrize("wrap", [lambda error: error, WrappedError])
@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (NotFoundError("rows.0: no task 'rt'; did you mean 'rte'?"), 404, "unknown_task", None),
        (DataError("rows.0: no row field 'a'"), 422, "invalid_row", None),
        (OverloadedError("rows.0: full", 7), 503, "overloaded", "7"),
        (DeadlineError("rows.0: late"), 504, "deadline_exceeded", None),
        (BankError("rows.0: refused"), 503, "prompt_unavailable", None),
        (IntegrityError("rows.0: damaged"), 503, "prompt_unavailable", None),
        (BackboneError("rows.0: another"), 503, "prompt_unavailable", None),
        (StorageError("rows.0: disk"), 503, "storage_unavailable", "5"),
    ],
)
def test_errors_of_the_engines_are_answered_by_their_class(
    on_script: OnHost, wrap: Any, error: Exception, status: int, code: str, retry: str | None
) -> None:
    found = on_script(post("/v1/predict", {"rows": [ROW]}), Scripted(wrap(error)))
    told = found.json()["error"]
    assert (found.status_code, told["code"], told["param"]) == (status, code, "rows.0")
    assert told["message"] == str(error)
    assert found.headers.get("retry-after") == retry


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BankError("it serves v2 already"), 409, "conflict"),
        (IntegrityError("damaged"), 409, "version_refused"),
        (BackboneError("another"), 409, "version_refused"),
        (NotFoundError("no version 9"), 404, "unknown_task"),
        (DataError("percent"), 422, "invalid_row"),
        (StorageError("disk"), 503, "storage_unavailable"),
        (WrappedError(BankError("it serves v2 already")), 409, "conflict"),
    ],
)
def test_what_the_bank_refuses_is_a_conflict(
    on_script: OnHost, error: Exception, status: int, code: str
) -> None:
    found = on_script(post("/v1/tasks/rte/promote", {"version": 9}), Scripted(error))
    assert (found.status_code, found.json()["error"]["code"]) == (status, code)


def test_what_nobody_expected_is_logged_and_not_told(
    on_script: OnHost, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        found = on_script(post("/v1/predict", {"rows": [ROW]}), Scripted(ZeroDivisionError("secret")))
    assert (found.status_code, found.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in found.text
    assert "ZeroDivisionError: secret" in caplog.text


async def asgi(
    app: Any,
    method: str,
    path: str,
    body: Any,
    *,
    leave: bool = False,
    scope_of: dict[str, Any] | None = None,
) -> list[Any]:
    """Send a request and return what was sent back; `leave` goes away right after it."""
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.sleep(0.05 if leave else 30)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": headers}
    scope |= {"query_string": b"", "client": ("127.0.0.1", 1), "asgi": {"spec_version": "2.3"}}
    await asyncio.wait_for(app({**scope, **(scope_of or {})}, receive, send), 5)
    return sent


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/predict", {"rows": [ROW]}),
        ("GET", "/v1/tasks", None),
        ("POST", "/v1/completions", {"model": "rte", "prompt": "x"}),
        ("POST", "/v1/completions", {"model": "rte", "prompt": "x", "stream": True}),
        (
            "POST",
            "/v2/models/rte/infer",
            {"inputs": [{"name": "a", "shape": [1], "datatype": "BYTES", "data": ["x"]}]},
        ),
        ("GET", "/metrics", None),
    ],
)
def test_work_for_a_caller_that_leaves_is_cancelled(method: str, path: str, body: Any) -> None:
    gateway = Scripted(...)
    app = make_app(gateway, config=HttpConfig(), pages={})
    asyncio.run(asgi(app, method, path, body, leave=True))
    assert (len(gateway.calls), gateway.cancelled) == (1, 1)


def test_a_stream_that_nobody_reads_any_longer_is_closed() -> None:
    gateway = Scripted("some ", ...)
    body = {"model": "rte", "prompt": "x", "stream": True}
    sent = asyncio.run(
        asgi(make_app(gateway, config=HttpConfig(), pages={}), "POST", "/v1/completions", body, leave=True)
    )
    assert b'"text":"some "' in sent[1]["body"]
    assert (gateway.cancelled, gateway.closed) == (1, 1)


def test_an_engine_that_says_nothing_is_given_up(on_script: OnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "_GRACE_SECONDS", 0.05)
    gateway = Scripted(...)
    found = on_script(post("/v1/predict", {"rows": [ROW], "timeout_seconds": 0.05}), gateway)
    assert (found.status_code, found.json()["error"]["code"], gateway.cancelled) == (
        504,
        "deadline_exceeded",
        1,
    )


def test_readiness_is_asked_once_a_second_whoever_asks(on_script: OnHost) -> None:
    gateway = Scripted([])

    async def scenario(client: httpx2.AsyncClient) -> list[int]:
        return [(await client.get("/v2/health/ready")).status_code for _ in range(20)]

    assert set(on_script(scenario, gateway)) == {400}
    assert gateway.calls == ["status"]
    assert set(on_script(scenario, Scripted(RuntimeError("no cluster")))) == {400}


def test_tasks_versions_and_trials_through_the_api(on_host: OnHost) -> None:
    async def scenario(client: httpx2.AsyncClient) -> None:
        names = [task["task"] for task in (await client.get("/v1/tasks")).json()["tasks"]]
        assert {"cb", "newsqa", "rte"} <= set(names)
        task = (await client.get("/v1/tasks/rte")).json()
        assert (task["prompt"], task["versions"], task["aliases"]["candidate"]) == (
            "target/rte@v1",
            [1, 2],
            2,
        )
        assert (await client.post("/v1/predict", json={"rows": [task["example"]]})).status_code == 200
        assert (await client.get("/v1/tasks/rt")).status_code == 404
        promoted = await client.post("/v1/tasks/rte/promote", json={"version": 2, "expected": 1})
        assert promoted.json() == {"prompt": "target/rte@v2", "canary": None}
        found = await client.post("/v1/predict", json={"rows": [ROW]})
        assert found.json()["rows"][0]["version"] == 2
        assert (
            await client.post("/v1/tasks/rte/promote", json={"version": 2, "expected": 1})
        ).status_code == 409
        assert (await client.post("/v1/tasks/rte/promote", json={"version": 99})).status_code == 404
        rolled_back = await client.post("/v1/tasks/rte/rollback")
        assert rolled_back.json()["prompt"] == "target/rte@v1"
        trial = await client.put("/v1/tasks/rte/canary", json={"version": 2, "percent": 100})
        assert trial.json()["canary"]["state"] == "running"
        row = (await client.post("/v1/predict", json={"rows": [ROW]})).json()["rows"][0]
        assert (row["version"], row["role"]) == (2, "canary")
        ended = await client.delete("/v1/tasks/rte/canary")
        assert ended.json()["canary"]["state"] == "stopped"
        status = (await client.get("/v1/status")).json()
        assert (status["ready"], len(status["replicas"])) == (True, 1)

    on_host(scenario)


def test_changes_reach_the_gateway_as_they_were_asked(on_script: OnHost) -> None:
    gateway = Scripted(Changed(prompt="target/rte@v2"))

    async def scenario(client: httpx2.AsyncClient) -> None:
        await client.post("/v1/tasks/rte/promote")
        await client.post("/v1/tasks/rte/promote", json={"version": 2, "expected": 1})
        await client.post("/v1/tasks/rte/rollback")
        await client.put("/v1/tasks/rte/canary", json={"version": 3})
        await client.delete("/v1/tasks/rte/canary")

    on_script(scenario, gateway)
    canary = gateway.calls[3].canary
    assert (canary.version, canary.percent) == (3, 10.0)
    assert gateway.calls == [
        Change(action="promote", task="rte"),
        Change(action="promote", task="rte", version=2, expected=1),
        Change(action="rollback", task="rte"),
        Change(action="start canary", task="rte", canary=canary),
        Change(action="stop canary", task="rte"),
    ]


def test_the_playground_comes_from_a_fixed_list(on_script: OnHost, tmp_path: Path) -> None:
    async def scenario(client: httpx2.AsyncClient) -> None:
        first = await client.get("/")
        assert (first.status_code, first.headers["content-type"]) == (200, "text/html; charset=utf-8")
        script = await client.get("/static/app.js")
        assert (script.text, script.headers["content-type"]) == (
            "'use strict';",
            "text/javascript; charset=utf-8",
        )
        known = await client.get(
            "/static/app.js", headers={"If-None-Match": f'"x", W/{script.headers["etag"]}'}
        )
        assert (known.status_code, known.content) == (304, b"")
        head = await client.head("/static/app.js")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(script.content))
        for path in ("/static/secret.txt", "/static/index.htm", "/static/..%2fhttp.py", "/static/"):
            assert (await client.get(path)).status_code in (401, 404), path

    on_script(scenario, Scripted())
    for name in ("index.html", "style.css", ".hidden", "_private.js", "__init__.py"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder").mkdir()
    pages = read_pages(tmp_path)
    assert {name: found.media_type for name, found in pages.items()} == {
        "index.html": "text/html",
        "style.css": "text/css",
    }
    assert read_pages(tmp_path / "absent") == {}


def test_without_the_guard_unknown_paths_and_broken_bodies_are_told_in_our_form() -> None:
    async def scenario() -> list[tuple[int, str]]:
        app = make_app(Scripted(), config=HttpConfig(), pages={})
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://x") as client:
            json_of = {"Content-Type": "application/json"}
            found = [
                await client.get("/docs"),
                await client.get("/redoc"),
                await client.put("/v1/predict"),
                await client.post("/v1/predict", content=b"{", headers=json_of),
                await client.post("/v1/predict", content=b"\xff", headers=json_of),
            ]
        return [(one.status_code, one.json()["error"]["code"]) for one in found]

    assert asyncio.run(scenario()) == [
        (404, "not_found"),
        (404, "not_found"),
        (405, "method_not_allowed"),
        (400, "invalid_json"),
        (400, "bad_request"),
    ]
