from __future__ import annotations

import email.utils
import json
import ssl
import time
from typing import Any

import httpx2
import pytest

from attempt_ray.errors import (
    AttemptError,
    BankError,
    ConfigError,
    DataError,
    DeadlineError,
    NotFoundError,
    OverloadedError,
    StorageError,
    UnavailableError,
)
from serve_app.problems import PROBLEMS
from serve_app.wire import Wire, piece

ROW = {"task": "rte", "text": "a day"}
ANSWER = {
    "task": "rte",
    "prompt": "target/rte@v1",
    "version": 1,
    "role": "champion",
    "answer": "yes",
    "truncated": False,
    "input_tokens": 3,
    "output_tokens": 2,
}
GOOD = {"id": "x", "rows": [ANSWER]}
REQUEST = httpx2.Request("POST", "http://127.0.0.1:8000/v1/predict")


def wire(url: str = "http://127.0.0.1:8000", **given: Any) -> Wire:
    return Wire(url, **{"key": None, "retries": 3, "timeout": 60.0, "insecure": False, **given})


def said(status: int, content: Any = None, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, headers=named, json=content, request=REQUEST)


def refused(status: int, code: str, kind: str, **headers: str) -> httpx2.Response:
    error = {"message": "got this; wanted that", "type": kind, "param": None, "code": code}
    return said(status, {"error": error}, **headers)


UNROUTED = said(404, "Path '/v1/predict' not found. Ping http://.../-/routes for available routes.")
OVERLOADED = refused(503, "overloaded", "overloaded_error")


def run(steps: Any, *outcomes: Any) -> tuple[Any, list[httpx2.Request], list[float]]:
    """Return what comes of a call (or its error), its requests and its pauses."""
    given = iter(outcomes)
    requests, pauses, outcome = [], [], None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as done:
            found = done.value
            break
        except AttemptError as error:
            found = error
            break
        if isinstance(step, float):
            pauses.append(step)
            outcome = None
        else:
            requests.append(step)
            outcome = next(given)
    assert next(given, None) is None, "not all outcomes were asked for"
    return found, requests, pauses


def ask(one: Wire, *, timeout: float | None = None) -> Any:
    return one.predict([ROW], attention=False, timeout=timeout)


def test_a_question_and_its_answer() -> None:
    found, (request,), pauses = run(
        wire(key="secret").predict([ROW], attention=True, timeout=None), said(200, GOOD)
    )
    assert (found.rows[0].answer, pauses) == ("yes", [])
    assert (request.method, str(request.url)) == ("POST", "http://127.0.0.1:8000/v1/predict")
    assert json.loads(request.content) == {"rows": [ROW], "attention": True}
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["content-type"] == "application/json"


def test_without_a_key_none_is_sent() -> None:
    _, (request,), _ = run(ask(wire()), said(200, GOOD))
    assert "authorization" not in request.headers


def test_the_deployment_is_told_what_is_left_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 100.0, 100.5, 102.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    _, requests, _ = run(ask(wire(), timeout=10), OVERLOADED, said(200, GOOD))
    assert [json.loads(request.content)["timeout_seconds"] for request in requests] == [10.0, 8.0]
    assert [request.extensions["timeout"]["read"] for request in requests] == [10.0, 8.0]


@pytest.mark.parametrize(
    "outcome",
    [
        OVERLOADED,
        refused(429, "rate_limit_exceeded", "rate_limit_error"),
        refused(503, "not_ready", "server_error"),
        UNROUTED,
        said(502),
        said(500),
        said(503),
        httpx2.ConnectError("refused"),
        httpx2.ConnectTimeout("slow"),
        httpx2.ReadError("reset"),
        httpx2.RemoteProtocolError("disconnected"),
    ],
)
def test_a_question_is_asked_again(outcome: Any) -> None:
    found, requests, pauses = run(ask(wire()), outcome, outcome, said(200, GOOD))
    assert found.rows[0].answer == "yes"
    assert len(requests) == 3
    assert 0.05 <= pauses[0] <= 0.1 <= pauses[1] <= 0.2


@pytest.mark.parametrize(
    "outcome",
    [
        refused(504, "deadline_exceeded", "timeout_error"),
        refused(500, "internal_error", "server_error"),
        refused(503, "prompt_unavailable", "server_error"),
        refused(400, "invalid_row", "invalid_request_error"),
        said(504),
        said(404),
        said(302, location="https://elsewhere.example.com"),
        httpx2.ReadTimeout("slow"),
    ],
)
def test_what_another_try_does_not_mend_is_not_tried_again(outcome: Any) -> None:
    found, requests, _ = run(ask(wire()), outcome)
    assert isinstance(found, AttemptError)
    assert len(requests) == 1


def test_a_certificate_that_is_refused_is_told_at_once() -> None:
    error = httpx2.ConnectError("certificate verify failed")
    error.__cause__ = ssl.SSLCertVerificationError()
    found, requests, _ = run(ask(wire("https://prompts.example.com")), error)
    assert "certificate verify failed" in str(found)
    assert len(requests) == 1


@pytest.mark.parametrize("outcome", [UNROUTED, said(502), said(500), httpx2.ReadError("reset")])
def test_a_change_that_may_have_arrived_is_not_sent_again(outcome: Any) -> None:
    for steps in (
        wire().promote("rte", version=2, expected=None),
        wire().rollback("rte"),
        wire().start_canary("rte", version=2, percent=None),
        wire().stop_canary("rte"),
    ):
        found, requests, _ = run(steps, outcome)
        assert isinstance(found, UnavailableError)
        assert len(requests) == 1


@pytest.mark.parametrize("outcome", [OVERLOADED, httpx2.ConnectError("refused")])
def test_a_change_that_was_not_made_is_sent_again(outcome: Any) -> None:
    changed = {"prompt": "target/rte@v2", "canary": None}
    found, requests, _ = run(wire().rollback("rte"), outcome, said(200, changed))
    assert found.prompt == "target/rte@v2"
    assert len(requests) == 2


def test_changes_go_to_their_routes() -> None:
    changed = said(200, {"prompt": "target/rte@v2"})
    canary = {"version": 2, "percent": 5.0}
    for steps, method, path, body in (
        (wire().promote("rte", version=2, expected=1), "POST", "promote", {"version": 2, "expected": 1}),
        (wire().promote("rte", version=None, expected=None), "POST", "promote", {}),
        (wire().rollback("rte"), "POST", "rollback", None),
        (wire().start_canary("rte", version=2, percent=5.0, min_rows=None), "PUT", "canary", canary),
        (wire().stop_canary("rte"), "DELETE", "canary", None),
    ):
        _, (request,), _ = run(steps, changed)
        assert (request.method, request.url.path) == (method, f"/v1/tasks/rte/{path}")
        sent = json.loads(request.content) if request.content else None
        assert sent == body or (method == "PUT" and canary.items() <= sent.items())


def test_retry_after_is_honoured_in_seconds_and_as_a_date() -> None:
    for header in ("7", email.utils.formatdate(1_800_000_007, usegmt=True)):
        # The date is one of the server's clock, which is not ours.
        date = email.utils.formatdate(1_800_000_000, usegmt=True)
        answer = refused(429, "rate_limit_exceeded", "rate_limit_error", retry_after=header, date=date)
        _, _, (pause,) = run(ask(wire()), answer, said(200, GOOD))
        assert 7 <= pause <= 7 * 1.25
    soon = email.utils.formatdate(time.time() + 7, usegmt=True)
    answer = refused(503, "overloaded", "overloaded_error", retry_after=soon)
    _, _, (pause,) = run(ask(wire()), answer, said(200, GOOD))
    assert 5 <= pause <= 7 * 1.25


@pytest.mark.parametrize("header", ["soon", "-3", "", "1e9", "Mon, 99 Foo 2026"])
def test_a_retry_after_that_says_nothing_is_passed_over(header: str) -> None:
    answer = refused(503, "overloaded", "overloaded_error", retry_after=header)
    _, _, (pause,) = run(ask(wire()), answer, said(200, GOOD))
    assert pause <= 0.1


def test_waiting_longer_than_there_is_time_is_not_begun() -> None:
    answer = refused(503, "overloaded", "overloaded_error", retry_after="9")
    found, requests, pauses = run(ask(wire(timeout=5.0)), answer)
    assert isinstance(found, OverloadedError)
    assert (found.retry_after_seconds, len(requests), pauses) == (9, 1, [])


def test_tries_come_to_an_end_and_pauses_to_a_limit() -> None:
    found, requests, pauses = run(ask(wire(retries=10, timeout=1e6)), *[OVERLOADED] * 11)
    assert str(found) == "got this; wanted that"
    assert len(requests) == 11
    assert max(pauses) <= 4.0
    assert pauses[-1] >= 2.0


@pytest.mark.parametrize(
    ("status", "code", "kind", "error"),
    [
        (401, "invalid_api_key", "authentication_error", ConfigError),
        (403, "insufficient_role", "permission_error", ConfigError),
        (421, "foreign_host", "permission_error", ConfigError),
        (400, "invalid_row", "invalid_request_error", DataError),
        (413, "body_too_long", "invalid_request_error", DataError),
        (404, "unknown_task", "invalid_request_error", NotFoundError),
        (404, "model_not_found", "invalid_request_error", NotFoundError),
        (409, "conflict", "invalid_request_error", BankError),
        (409, "version_refused", "invalid_request_error", BankError),
        (429, "too_many_requests_at_once", "rate_limit_error", OverloadedError),
        (503, "overloaded", "overloaded_error", OverloadedError),
        (503, "not_ready", "server_error", UnavailableError),
        (503, "storage_unavailable", "server_error", StorageError),
        (504, "deadline_exceeded", "timeout_error", DeadlineError),
        (500, "internal_error", "server_error", UnavailableError),
    ],
)
def test_errors_are_ours_with_the_deployments_words(
    status: int, code: str, kind: str, error: type[AttemptError]
) -> None:
    found, _, _ = run(ask(wire(retries=0)), refused(status, code, kind))
    assert type(found) is error
    assert str(found).startswith("got this; wanted that")
    assert ("ATTEMPT_API_KEY" in str(found)) == (status == 401)


def test_every_way_to_say_no_is_the_error_of_its_status() -> None:
    by_status = {
        401: ConfigError,
        403: ConfigError,
        404: NotFoundError,
        408: DeadlineError,
        409: BankError,
        421: ConfigError,
        429: OverloadedError,
        500: UnavailableError,
        504: DeadlineError,
    }
    by_code = {
        "overloaded": OverloadedError,
        "storage_unavailable": StorageError,
        "not_ready": UnavailableError,
        "prompt_unavailable": BankError,
    }
    for code, (status, kind) in PROBLEMS.items():
        found, _, _ = run(ask(wire(retries=0)), refused(status, code, kind))
        assert type(found) is by_code.get(code, by_status.get(status, DataError)), code


def test_what_is_no_deployment_is_told() -> None:
    late, _, _ = run(ask(wire()), said(504))
    assert isinstance(late, DeadlineError)
    for answer in (said(404), said(200, {"rows": "none"}), said(200, [1])):
        found, _, _ = run(ask(wire()), answer)
        assert isinstance(found, UnavailableError)
        assert "is it a deployment of attempt-ray?" in str(found)


def test_what_a_later_deployment_adds_is_passed_over() -> None:
    later = {**GOOD, "new": 1, "rows": [{**ANSWER, "colour": "red"}]}
    found, _, _ = run(ask(wire()), said(200, later))
    assert found.rows[0].answer == "yes"


def test_rows_that_cannot_be_are_refused_before_anything_is_sent() -> None:
    for rows, message in (
        ([], "rows: List should have at least 1 item"),
        ([ROW, {"task": "rte"}], "rows.1: got neither of fields and text; give one of them"),
        ([{"task": "../rte", "text": "x"}], "rows.0.task: "),
    ):
        found, requests, _ = run(wire().predict(rows, attention=False, timeout=None))
        assert isinstance(found, DataError)
        assert str(found).startswith(message)
        assert requests == []


@pytest.mark.parametrize("name", ["../status", "a/b", "", "rte?x", "RTE"])
def test_a_name_leads_to_no_other_route(name: str) -> None:
    with pytest.raises(DataError, match="wanted a name such as rte"):
        wire().rollback(name)


def test_the_key_goes_to_no_other_machine_unencrypted() -> None:
    with pytest.raises(ConfigError, match="unencrypted; use https") as raised:
        wire("http://prompts.example.com", key="secret")
    assert "secret" not in str(raised.value)
    for url in ("https://prompts.example.com", "http://localhost:1", "http://[::1]:1", "http://127.0.0.9"):
        wire(url, key="secret")
    wire("http://prompts.example.com")
    wire("http://prompts.example.com", key="secret", insecure=True)


@pytest.mark.parametrize(
    "url",
    [
        "prompts.example.com",
        "ftp://x",
        "http://",
        "http://x:99999",
        "http://x?a=1",
        "http://x#a",
        "http://a:b@x",
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="url: got") as raised:
        wire(url)
    assert "a:b" not in str(raised.value)


@pytest.mark.parametrize("key", ["", "se cret", "secret\n", "sécret"])
def test_a_key_that_is_none_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError, match="the API key has") as raised:
        wire(key=key)
    assert "cret" not in str(raised.value)


def test_limits_that_are_none_are_refused() -> None:
    for limits in ({"retries": -1}, {"timeout": 0.0}):
        with pytest.raises(ConfigError, match="retries and"):
            wire(**limits)


def test_url_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTEMPT_URL", "http://localhost:9000/prompts/")
    monkeypatch.setenv("ATTEMPT_API_KEY", "secret")
    one = Wire(None, key=None, retries=0, timeout=1.0, insecure=False)
    _, (request,), _ = run(one.tasks(), said(200, {"tasks": []}))
    assert str(request.url) == "http://localhost:9000/prompts/v1/tasks"
    assert request.headers["authorization"] == "Bearer secret"


def test_pieces_of_an_answer() -> None:
    def event(data: Any) -> httpx2.ServerSentEvent:
        return httpx2.ServerSentEvent(data=data if isinstance(data, str) else json.dumps(data))

    assert piece(event({"choices": [{"text": "a "}]})) == "a "
    assert piece(event("[DONE]")) is None
    error = {"message": "too late", "type": "timeout_error", "code": "deadline_exceeded"}
    with pytest.raises(DeadlineError, match="too late"):
        piece(event({"error": error}))
    for data in ("[1]", "x", '{"choices": [{}]}', '{"error": 1}', "1"):
        with pytest.raises(UnavailableError, match="no piece of an answer"):
            piece(event(data))
