from __future__ import annotations

import asyncio
import inspect
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from attempt_ray.errors import (
    AttemptError,
    ConfigError,
    DataError,
    DeadlineError,
    OverloadedError,
    UnavailableError,
)
from serve_app.client import AsyncClient, Client

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
GOOD = (200, {}, json.dumps({"id": "x", "rows": [ANSWER]}).encode())


def refusal(status: int, code: str, kind: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    error = {"message": "got this; wanted that", "type": kind, "param": None, "code": code}
    return status, headers, json.dumps({"error": error}).encode()


BUSY = refusal(503, "overloaded", "overloaded_error", **{"Retry-After": "1"})
DROP = "hangs up without an answer"
SILENCE = "never answers"


@dataclass
class Server:
    """Gives the answers it was told, in order, and keeps what it was asked."""

    url: str
    answers: list[Any] = field(default_factory=list)
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("content-length", 0))
            told.asked.append((self.command, self.path, dict(self.headers), self.rfile.read(length)))
            answer = told.answers.pop(0)
            if answer is SILENCE:
                told.ending.wait(30)
            if isinstance(answer, str):
                self.close_connection = True
                return
            status, headers, content = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Type" in headers:  # a stream ends with its connection
                self.send_header("Connection", "close")
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - what http.server looks for

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        told = Server(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield told
        told.ending.set()
        http.shutdown()
        thread.join()


Call = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    """Return a function that gives a client of either kind to another function, and returns what that makes."""

    def sync(url: str | None, do: Callable[[Any], Any], **given: Any) -> Any:
        with Client(url, **given) as client:
            found = do(client)
            return list(found) if inspect.isgenerator(found) else found

    def asynchronous(url: str | None, do: Callable[[Any], Any], **given: Any) -> Any:
        async def main() -> Any:
            async with AsyncClient(url, **given) as client:
                found = do(client)
                return [piece async for piece in found] if inspect.isasyncgen(found) else await found

        return asyncio.run(main())

    return sync if request.param == "sync" else asynchronous


def predict(client: Any) -> Any:
    return client.predict([ROW])


def test_the_client_loads_no_torch_no_ray_and_no_server() -> None:
    code = "import sys, serve_app.client; print(sorted({'torch', 'ray', 'fastapi', 'starlette', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_an_answer_comes_after_a_busy_moment_and_a_broken_connection(server: Server, call: Call) -> None:
    server.answers = [BUSY, DROP, GOOD]
    start = time.monotonic()
    assert call(server.url, predict, key="secret").rows[0].answer == "yes"
    assert time.monotonic() - start >= 1
    assert [(method, path) for method, path, _, _ in server.asked] == [("POST", "/v1/predict")] * 3
    assert all(headers["authorization"] == "Bearer secret" for _, _, headers, _ in server.asked)


def test_a_change_is_not_made_twice(server: Server, call: Call) -> None:
    server.answers = [DROP, GOOD]
    with pytest.raises(UnavailableError, match="the change may have been made"):
        call(server.url, lambda client: client.rollback("rte"))
    assert len(server.asked) == 1


def test_one_row_by_fields_or_text(server: Server, call: Call) -> None:
    server.answers = [GOOD, GOOD]
    assert call(server.url, lambda client: client.predict_one("rte", text="a")).answer == "yes"
    assert call(server.url, lambda client: client.predict_one("rte@v2", fields={"a": "b"})).answer == "yes"
    assert [json.loads(body)["rows"] for *_, body in server.asked] == [
        [{"task": "rte", "text": "a"}],
        [{"task": "rte@v2", "fields": {"a": "b"}}],
    ]
    with pytest.raises(DataError, match="got both of fields and text"):
        call(server.url, lambda client: client.predict_one("rte", text="a", fields={"a": "b"}))


def test_a_deadline_holds_where_nothing_answers(server: Server, call: Call) -> None:
    server.answers = [SILENCE]
    start = time.monotonic()
    with pytest.raises(DeadlineError, match=r"no answer in 0\.3 s"):
        call(server.url, lambda client: client.predict([ROW], timeout=0.3))
    assert time.monotonic() - start < 2


def test_nothing_there_is_told_with_the_place(unused_port: int, call: Call) -> None:
    url = f"http://127.0.0.1:{unused_port}"
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=f"cannot reach {url}: "):
        call(url, predict, retries=2)
    assert time.monotonic() - start >= 0.15
    assert call(url, lambda client: client.ready()) is False


def test_ready_is_whether_it_says_so(server: Server, call: Call) -> None:
    server.answers = [(200, {}, b""), (503, {}, b"")]
    assert call(server.url, lambda client: client.ready()) is True
    assert call(server.url, lambda client: client.ready()) is False


def test_metrics_are_text(server: Server, call: Call) -> None:
    server.answers = [(200, {}, b"rows_total 1\n")]
    assert call(server.url, lambda client: client.metrics()) == "rows_total 1\n"


def events(*data: Any) -> tuple[int, dict[str, str], bytes]:
    lines = [each if isinstance(each, str) else json.dumps(each) for each in data]
    content = "".join(f"data: {line}\n\n" for line in lines).encode()
    return 200, {"Content-Type": "text/event-stream"}, content


def test_pieces_come_in_order_after_a_busy_moment(server: Server, call: Call) -> None:
    pieces = [{"choices": [{"text": text}]} for text in ("a ", "dög")]
    server.answers = [BUSY, events(*pieces, "[DONE]")]
    found = call(server.url, lambda client: client.stream("squad@v2", "a text", max_tokens=9))
    assert found == ["a ", "dög"]
    assert json.loads(server.asked[1][3]) == {
        "model": "squad@v2",
        "prompt": "a text",
        "stream": True,
        "max_tokens": 9,
    }


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (events({"choices": [{"text": "a"}]}), UnavailableError),
        (
            events({"error": {"message": "late", "type": "timeout_error", "code": "deadline_exceeded"}}),
            DeadlineError,
        ),
        (refusal(503, "overloaded", "overloaded_error", **{"Retry-After": "99"}), OverloadedError),
        ((200, {}, b"{}"), UnavailableError),
    ],
)
def test_an_answer_that_breaks_off_is_no_answer(
    answer: Any, error: type[AttemptError], server: Server, call: Call
) -> None:
    server.answers = [answer]
    with pytest.raises(error):
        call(server.url, lambda client: client.stream("squad", "a text"))


def test_who_leaves_a_stream_closes_it(server: Server) -> None:
    server.answers = [events({"choices": [{"text": "a"}]}, "[DONE]"), GOOD]
    with Client(server.url) as client:
        pieces = client.stream("squad", "a text")
        assert next(pieces) == "a"
        pieces.close()
        assert predict(client).rows[0].answer == "yes"


def test_the_key_is_shown_nowhere(
    server: Server, call: Call, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    server.answers = [DROP, refusal(401, "invalid_api_key", "authentication_error")]
    with pytest.raises(ConfigError) as raised:
        call(server.url, predict, key="sesame")
    assert repr(Client(server.url, key="sesame")) == f"Client('{server.url}', with key)"
    assert repr(AsyncClient(server.url)) == f"AsyncClient('{server.url}', without key)"
    shown = [str(raised.value), repr(raised.value), caplog.text, *capfd.readouterr()]
    assert not any("sesame" in text for text in shown)


def test_another_place_is_not_followed_with_the_key(server: Server, call: Call) -> None:
    server.answers = [(307, {"Location": f"{server.url}/elsewhere"}, b""), GOOD]
    with pytest.raises(UnavailableError, match="answered 307"):
        call(server.url, predict, key="sesame")
    assert len(server.asked) == 1


def test_a_proxy_of_the_environment_does_not_see_what_stays_on_this_machine(
    server: Server, call: Call, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{unused_port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    server.answers = [GOOD]
    assert call(server.url, predict, retries=0).rows[0].answer == "yes"


def test_both_clients_have_the_same_calls() -> None:
    def calls(kind: type) -> dict[str, Any]:
        return {
            name: list(inspect.signature(found).parameters.values())
            for name, found in vars(kind).items()
            if inspect.isfunction(found) and not name.startswith("_")
        }

    assert calls(Client) == calls(AsyncClient)
