from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx2
import pytest
import uvicorn
from prometheus_client import generate_latest

from attempt_ray.config import HttpConfig
from serve_app.access import CALLER, REQUEST_ID, ROUTES, Caller
from serve_app.guard import SECURITY_HEADERS, Guard
from serve_app.keys import KeyFile, KeyRing
from serve_app.problems import PROBLEMS
from serve_app.schema import PROMPT_PATTERN, TASK_PATTERN, ErrorBody
from serve_app.traffic import ACCESS_LOG, AccessFormatter

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")
NAMES = {"task": "rte@v3", "model": "rte@candidate", "name": "app.js", "version": "3"}
LOCAL = ("127.0.0.1", 50_000)
REMOTE = ("192.0.2.7", 50_000)
Headers = Iterable[tuple[str, str]]


@dataclass
class Reply:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    raw_headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def code(self) -> str:
        page = json.loads(self.body)
        if isinstance(page["error"], str):  # the form of Open Inference clients
            return str(page["code"])
        error = ErrorBody.model_validate(page).error
        assert PROBLEMS[error.code] == (self.status, error.type)
        assert error.message and "\n" not in error.message
        return error.code


class App:
    """Answers everything, and keeps what it was asked."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        self.seen.append(scope)
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def lifespan(receive, send) -> None:
    for kind in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{kind}"
        await send({"type": f"lifespan.{kind}.complete"})


@dataclass(frozen=True)
class Keys:
    path: Path
    infer: str
    admin: str
    expired: str
    revoked: str
    wrong: str

    @property
    def texts(self) -> tuple[str, ...]:
        return self.infer, self.admin, self.expired, self.revoked, self.wrong


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    file = KeyFile(path)
    _, infer = file.add("ida")
    _, admin = file.add("ada", role="admin")
    old, expired = file.add("eve", role="admin")
    file.rotate(old.id, overlap_hours=0)
    gone, revoked = file.add("rob", role="admin")
    file.revoke(gone.id)
    return Keys(path, infer, admin, expired, revoked, infer[:-6] + "abcdef")


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def made(keys: Keys, app: App) -> Callable[..., Guard]:
    """Make a guard with keys in front of an application."""

    def make(inner: Any = None, **config: Any) -> Guard:
        config = {"requests_per_second": 1e6, "burst_requests": 10**6} | config
        return Guard(inner or app, config=HttpConfig(**config), keys=KeyRing(keys.path))

    return make


@pytest.fixture
def open_guard(app: App) -> Guard:
    """A guard without keys."""
    return Guard(app, config=HttpConfig(), keys=None)


async def ask(
    guard: Guard,
    method: str = "GET",
    target: str = "/v1/tasks",
    *,
    key: str | None = None,
    headers: Headers = (),
    body: bytes | list[bytes] | None = None,
    client: Any = LOCAL,
    receive: Any = None,
) -> Reply:
    """Send a request as a server does, and return the answer."""
    raw, _, query = target.encode("latin-1").partition(b"?")
    chunks = body if isinstance(body, list) else [body or b""]
    given = [(name.lower(), value) for name, value in headers]
    sent = {name for name, _ in given}
    if "host" not in sent:
        given.append(("host", "localhost:8000"))
    if key is not None:
        given.append(("authorization", f"Bearer {key}"))
    if body is not None:
        if "content-type" not in sent:
            given.append(("content-type", "application/json"))
        if isinstance(body, list):
            given.append(("transfer-encoding", "chunked"))
        elif "content-length" not in sent:
            given.append(("content-length", str(len(body))))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw.decode("latin-1")),
        "raw_path": raw,
        "query_string": query,
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given if value],
        "client": client,
        "server": ("127.0.0.1", 8000),
    }
    reply = Reply()
    left = iter(range(len(chunks)))

    async def give() -> dict[str, Any]:
        index = next(left, None)
        if index is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunks[index], "more_body": index + 1 < len(chunks)}

    async def take(message: dict[str, Any]) -> None:
        reply.messages.append(message)
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.raw_headers = message["headers"]
            reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            reply.body += message["body"]

    await guard(scope, receive or give, take)
    return reply


def asked(guard: Guard, *arguments: Any, **more: Any) -> Reply:
    return asyncio.run(ask(guard, *arguments, **more))


def filled(template: str) -> str:
    return template.format(**NAMES)


def value(guard: Guard, name: str, **labels: str) -> float:
    return guard.registry.get_sample_value(name, labels) or 0.0


# Who may ask what


def expected(template: str, method: str, role: str | None) -> int:
    """Return the status that the table of routes asks for."""
    access = ROUTES[template].get("GET" if method == "HEAD" else method)
    if access == "public":
        return 200
    if role is None:
        return 401
    if access is None:
        return 405
    return 403 if access == "admin" and role == "infer" else 200


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
@pytest.mark.parametrize("who", ["none", "wrong", "expired", "revoked", "infer", "admin"])
def test_every_route_and_method_answers_each_caller_as_the_table_says(made, keys, app, who, header):
    guard = made()
    role = who if who in ("infer", "admin") else None
    text = getattr(keys, who, "")
    headers = [(header, f"bearer {text}" if header == "authorization" else text)] if text else []

    async def go() -> None:
        for template in ROUTES:
            for method in METHODS:
                app.seen.clear()
                reply = await ask(guard, method, filled(template), headers=headers)
                wanted = expected(template, method, role)
                assert reply.status == wanted, (template, method, reply)
                assert len(app.seen) == (wanted == 200)
                if wanted == 401:
                    assert reply.headers["www-authenticate"] == "Bearer"
                if wanted == 405:
                    allowed = set(ROUTES[template]) | ({"HEAD"} if "GET" in ROUTES[template] else set())
                    assert set(reply.headers["allow"].split(", ")) == allowed
                if wanted != 200 and method != "HEAD":
                    codes = {401: "invalid_api_key", 403: "insufficient_role", 405: "method_not_allowed"}
                    if template.startswith("/v2"):
                        assert list(json.loads(reply.body)) == ["error", "code"]
                    else:
                        assert reply.code == codes[wanted]
                if wanted == 200 and ROUTES[template].get(method) not in (None, "public"):
                    caller = app.seen[0][CALLER]
                    assert caller == Caller(text.split("_")[1], role)

    asyncio.run(go())


def test_a_path_that_is_not_in_the_table_is_refused_before_anybody_learns_so(made, keys, app):
    guard = made()
    for path in ("/docs", "/v1", "/v1/nothing", "/-/routes", "/admin", "/.env"):
        for method in METHODS:
            assert asked(guard, method, path).status == 401
            assert asked(guard, method, path, key=keys.wrong).status == 401
            assert asked(guard, method, path, key=keys.infer).status == 404
    assert asked(guard, "GET", "/docs", key=keys.infer).code == "not_found"
    assert app.seen == []


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "{key}")],
        [("authorization", "Basic {key}")],
        [("authorization", "Bearer{key}")],
        [("authorization", "Bearer {key} x")],
        [("authorization", "Bearer")],
        [("x-api-key", "Bearer {key}")],
        [("cookie", "key={key}")],
        [("authorization", "Bearer nothing"), ("x-api-key", "{key}")],
    ],
)
def test_a_key_counts_only_where_it_belongs(made, keys, headers):
    given = [(name, text.format(key=keys.admin)) for name, text in headers]
    assert asked(made(), headers=given).code == "invalid_api_key"
    assert asked(made(), target=f"/v1/tasks?key={keys.admin}&api_key={keys.admin}").status == 401


def test_a_key_that_is_revoked_while_the_guard_runs_is_refused_within_two_seconds(tmp_path, app):
    file = KeyFile(tmp_path / "keys.json")
    key, text = file.add("alice")
    guard = Guard(app, config=HttpConfig(), keys=KeyRing(tmp_path / "keys.json"))
    assert asked(guard, key=text).status == 200
    file.revoke(key.id)
    deadline = time.monotonic() + 2
    while asked(guard, key=text).status == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_head_request_gets_the_headers_of_a_get_and_no_body(made, keys, app):
    reply = asked(made(), "HEAD", key=keys.infer)
    assert (reply.status, reply.body, app.seen[0]["method"]) == (200, b"", "GET")
    assert reply.headers["content-length"] == "2"
    assert asked(made(), "HEAD").body == b""


# Names and paths


def hostile_names() -> list[str]:
    """Return what people put in the place of a name to get elsewhere."""
    names = [
        *("..", ".", "...", "../", "../..", "..\\", "..\\..\\", "../" * 8 + "etc/passwd", "..;/", "..%00/", "....//"),
        *("/etc/passwd", "//etc/passwd", "/", "//", "\\", "\\\\", "~", "~root", "~/.ssh/id_rsa", "$HOME", "${HOME}"),
        *("C:\\Windows", "c:/windows", "\\\\host\\share", "//host/share", "\\\\?\\C:\\", "\\\\.\\pipe\\x", "\\??\\C:"),
        *("file:///etc/passwd", "file:", "http://192.0.2.1/", "s3://bucket/x", "gs://x", "hdfs://x", "data:,x", "ftp:x"),
        *("javascript:alert(1)", "jar:file:x!/", "php://filter", "zip:x", "local:x", "memory://x", "\x00file:"),
        *("rte\x00", "rte\x00.json", "\x00", "rte\n", "rte\r\nX: y", "rte\t", " rte", "rte ", "r te", "rte\x7f", "\x1b[2J"),
        *("#", "rte#", "rte#/../..", "?", "rte?x", "rte;x", "rte&x", "rte=x", "rte|ls", "`id`", "$(id)", "rte'--", 'rte"'),
        *("{{7*7}}", "${7*7}", "<script>", "%s%n", "%d", "*", "rte*", "[a]", "{a,b}", "rte!", "rte,mnli", "rte+x", "(rte)"),
        *("@", "@v3", "rte@", "rte@@v3", "rte@v3@v3", "rte@v3/..", "rte@../x", "rte@V3", "rte@-x", "rte@.x", "rte@ v3"),
        *("-rte", "--help", "-", "_rte", ".rte", ".env", ".git", ".", "._", "RTE", "Rte", "rtE", "NULL", "None", "rte/x"),
        *("target/rte", "source/mnli", "target/../rte", "attention/x", "target//rte", "/target/rte", "target\\rte"),
        *("CON", "PRN", "AUX", "NUL", "COM1", "LPT1", "CON.txt", "CLOCK$", "A:", "rte:", "rte::$DATA", "rte:x", "desktop.INI"),
        *("\uff52\uff54\uff45", "\uff0e\uff0e\uff0f", "\u2025\u2025", "\u2024", "\u2215", "\u29f8", "\uff3c", "r\u0442e"),
        *("\u202ertE", "\u200brte", "rte\u200d", "\ufeffrte", "r\u0301te", "rte\u2028", "rte\u0085", "\u00a0rte", "\U0001f600"),
        *("\u0660", "\u00b2", "\u2460", "\u0131", "\u017f", "\u212a", "\u00df", "\u0130", "ﬁ", "rte\U000e0001", "\ufffd", "\ufffe"),
        *("a" * 65, "a" * 128, "a" * 255, "a" * 256, "a" * 4096, "rte@" + "a" * 65, "rte@v" + "1" * 10 + "@", "é" * 200),
        *("0x7f", "__proto__", "constructor.", "rte.", "rte..", "a..b") ,
    ]  # fmt: skip
    for word in ("café", "Å", "ñandu", "Ω", "ệ", "가", "ガ", "naïve"):
        names += [unicodedata.normalize(form, word) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    return list(dict.fromkeys(names))


def hostile_targets() -> list[str]:
    """Return request targets, as they stand in a request line, with hostile names in every place."""
    places = (
        "/v1/tasks/{}",
        "/v1/models/{}",
        "/v2/models/{}/ready",
        "/v2/models/rte/versions/{}",
        "/static/{}",
    )
    targets = []
    for name in hostile_names():
        encoded = quote(name, safe="")
        twice = quote(encoded, safe="")
        every = "".join(f"%{byte:02x}" for byte in name.encode())
        forms = {encoded, twice, every, quote(name, safe="/@:;,()*!'$&+=~[]{}|\\`^<>\"")}
        forms |= {encoded.lower(), every.upper()}
        targets += [place.format(form) for form in sorted(forms) for place in places if form]
    overlong = (
        "%c0%ae%c0%ae",
        "%c0%af",
        "%e0%80%af",
        "%f0%80%80%af",
        "%c1%9c",
        "%fc%80%80%80%80%af",
        "%u002e",
        "%uff0e",
    )
    overlong += (
        "%ff",
        "%",
        "%%",
        "%2",
        "%zz",
        "%c0",
        "%ed%a0%80",
        "\x80",
        "\xff",
        "r\xe9te",
        "%f5%80%80%80",
        "%00",
    )
    targets += [place.format(form) for form in overlong for place in places]
    known = [filled(template) for template in ROUTES if template != "/"]
    for path in known:
        targets += [
            f"{path}/",
            f"{path}//",
            f"/{path}",
            f"{path}/.",
            f"{path}/..",
            f"{path}%2f",
            f"{path}%00",
        ]
        targets += [
            f"{path};x",
            f"{path}%20",
            f"{path}%23",
            f"{path}%3f",
            f"{path}%0a",
            f"{path}.",
            f"{path}%2e%2e",
        ]
        targets += [path.upper(), path.title(), path.replace("/", "//"), path.replace("/", "%2f"), path[1:]]
        targets += [
            path.replace("/", "\\"),
            path.replace("/", "/./"),
            f"/x/..{path}",
            f"/v2/health/live/..{path}",
        ]
        targets += [
            f"/%2e%2e{path}",
            f"http://localhost{path}",
            f"/static/..{path}",
            f"/static/..%2f..{path}",
        ]
        targets += ["/" + quote(path[1:2], safe="").replace(path[1], f"%{ord(path[1]):02x}") + path[2:]]
    return list(dict.fromkeys(targets))


def allowed(path: str) -> bool:
    """Return whether every name in a path is one that the schema knows."""
    task = TASK_PATTERN.removeprefix("^").removesuffix("$")
    plain = r"[a-z0-9][a-z0-9._-]{0,63}"
    shape = (
        rf"/v1/(tasks|models)/{task}|/v1/tasks/{task}/(promote|rollback|canary)|/static/{plain}"
        rf"|/v2/models/{task}(/versions/{plain})?(/ready|/infer)?"
    )
    return path in ROUTES or re.fullmatch(shape, path) is not None


def test_no_hostile_name_reaches_the_application(made, keys, app):
    targets = hostile_targets()
    assert len(hostile_names()) >= 180 and len(targets) >= 2500
    guard = made(max_header_bytes=100_000)
    statuses: dict[int, int] = {}

    async def go() -> None:
        for target in targets:
            for method in ("GET", "POST", "DELETE"):
                reply = await ask(guard, method, target, key=keys.admin)
                statuses[reply.status] = statuses.get(reply.status, 0) + 1
                assert (await ask(guard, method, target)).status in (200, 401)

    asyncio.run(go())
    assert set(statuses) <= {200, 404, 405}, statuses
    reached = {scope["path"] for scope in app.seen}
    assert all(allowed(path) for path in reached)
    assert statuses[404] > 0.9 * 3 * len(targets)


@pytest.mark.parametrize("path", ["/v1/tasks/rte@v3", "/v1/tasks/rte%40v3", "/v1/tasks/a..b", "/v1/tasks/0"])
def test_good_names_reach_it_as_they_are(made, keys, app, path):
    assert asked(made(), target=path, key=keys.infer).status == 200
    assert app.seen[0]["path"] == unquote(path)
    assert re.fullmatch(TASK_PATTERN, app.seen[0]["path"].removeprefix("/v1/tasks/"))
    assert not re.fullmatch(PROMPT_PATTERN, app.seen[0]["path"])


@pytest.mark.parametrize(
    "path",
    [
        "/v1/tasks/%72te",
        "/v1/%74asks",
        "/%76%31/tasks",
        "/v1%2ftasks",
        "/v1%2Ftasks%2Frte",
        "/v2/models/rte%2fready",
        "/v2/models/rte%2fversions%2f3",
        "/v1/tasks/rte%2Epromote",
        "/%2e/v1/tasks",
        "/v1/tasks/rte%2540v3",
    ],
)
def test_what_would_be_a_path_once_it_is_decoded_is_none(made, keys, app, path):
    assert asked(made(), target=path, key=keys.admin).status == 404
    assert app.seen == []


def test_a_template_with_a_name_that_nobody_checks_is_refused_at_the_start(app):
    with pytest.raises(KeyError, match="anything"):
        Guard(app, config=HttpConfig(), keys=None, routes={"/v1/{anything}": {"GET": "public"}})


# Where it comes from


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:80"]
)
def test_without_keys_the_names_of_this_machine_are_taken(open_guard, host):
    assert asked(open_guard, "GET", "/v1/status", headers=[("host", host)]).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:8000",
        "localhost:x",
        "localhost:",
        "localhost:123456",
        "::1",
        "user@localhost",
        "localhost/",
        "localhost evil",
        "127.1",
        "0.0.0.0",
        "localhost.",
    ],
)
@pytest.mark.parametrize("path", ["/", "/v2/health/live", "/v1/tasks", "/v1/nothing"])
def test_without_keys_a_name_that_a_page_may_have_pointed_here_is_refused(open_guard, app, host, path):
    reply = asked(open_guard, "GET", path, headers=[("host", host)])
    assert reply.status == 421 and (path.startswith("/v2") or reply.code == "foreign_host")
    assert app.seen == []


def test_with_keys_any_name_is_taken_unless_names_are_set(made, keys):
    guard = made(hosts=("serve.example", "[::2]"))
    for host, status in (
        ("serve.example", 200),
        ("Serve.Example:443", 200),
        ("[::2]:1", 200),
        ("localhost", 421),
    ):
        assert asked(guard, key=keys.infer, headers=[("host", host)]).status == status
        assert asked(made(), key=keys.infer, headers=[("host", host)]).status == 200


@pytest.mark.parametrize(
    ("client", "status"),
    [
        (("127.0.0.1", 1), 200),
        (("127.8.9.1", 1), 200),
        (("::1", 1), 200),
        (("::ffff:127.0.0.1", 1), 200),
        (["127.0.0.1", 1], 200),
        (("192.0.2.7", 1), 403),
        (("::ffff:192.0.2.7", 1), 403),
        (("10.0.0.1", 1), 403),
        (("localhost", 1), 403),
        (("", 0), 403),
        ((), 403),
        ("", 403),
        (None, 403),
    ],
)
def test_without_keys_other_machines_are_refused(open_guard, made, keys, client, status):
    for path in ("/", "/v2/health/ready", "/v1/tasks", "/v1/nothing"):
        reply = asked(open_guard, "GET", path, client=client, headers=[("x-forwarded-for", "127.0.0.1")])
        assert reply.status == (status if path != "/v1/nothing" or status == 403 else 404)
        if status == 403:
            assert path.startswith("/v2") or reply.code == "foreign_caller"
            assert b"attempt keys add" in reply.body
    assert asked(made(), key=keys.infer, client=client).status == 200


def test_without_keys_a_caller_of_this_machine_may_do_everything(open_guard, app):
    assert asked(open_guard, "POST", "/v1/tasks/rte/promote", body=b"{}").status == 200
    assert app.seen[0][CALLER] == Caller("", "admin")
    assert asked(open_guard, "GET", "/v1/nothing").code == "not_found"
    assert asked(open_guard, "OPTIONS", "/v1/predict").code == "method_not_allowed"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost:8000", 200),
        ("http://LOCALHOST:8000", 200),
        ("https://localhost:8000", 200),
        ("http://localhost", 403),
        ("http://localhost:8001", 403),
        ("http://evil.example", 403),
        ("http://localhost:8000.evil.example", 403),
        ("http://localhost:8000/", 403),
        ("http://evil.example@localhost:8000", 403),
        ("null", 403),
        ("localhost:8000", 403),
        ("file://", 403),
    ],
)
@pytest.mark.parametrize("with_keys", [True, False])
def test_what_a_page_of_another_site_sends_is_refused(open_guard, made, keys, app, origin, status, with_keys):
    guard = made() if with_keys else open_guard
    headers = [] if origin is None else [("origin", origin)]
    for method, path in (
        ("POST", "/v1/predict"),
        ("POST", "/v1/tasks/rte/rollback"),
        ("PUT", "/v1/tasks/rte/canary"),
        ("DELETE", "/v1/tasks/rte/canary"),
    ):
        reply = asked(guard, method, path, key=keys.admin, headers=headers)
        assert reply.status == status
        assert status == 200 or reply.code == "foreign_origin"
        app.seen.clear()
    assert asked(guard, "GET", "/v1/tasks", key=keys.admin, headers=headers).status == 200
    blank = [*headers, ("host", "")]
    assert origin is None or asked(made(), "POST", "/v1/predict", key=keys.admin, headers=blank).status == 403


# How much


@pytest.mark.parametrize("with_key", [True, False])
def test_a_long_head_is_refused(made, keys, app, with_key):
    guard = made(max_header_bytes=1000)
    key = keys.infer if with_key else None
    status = 200 if with_key else 401
    assert asked(guard, key=key, headers=[("x", "y" * 700)]).status == status
    assert asked(guard, key=key, headers=[("x", "y" * 1000)]).code == "head_too_long"
    assert asked(guard, target="/v1/tasks?" + "y" * 1000, key=key).code == "head_too_long"
    assert asked(guard, target="/v1/tasks/" + "y" * 1000, key=key).code == "head_too_long"
    assert asked(made(), key=key, headers=[(f"x{i}", "y") for i in range(98)]).status == status
    assert asked(made(), key=key, headers=[(f"x{i}", "y") for i in range(100)]).code == "head_too_long"


@pytest.mark.parametrize(
    "name",
    [
        "host",
        "origin",
        "authorization",
        "x-api-key",
        "content-length",
        "content-type",
        "content-encoding",
        "transfer-encoding",
    ],
)
def test_a_header_that_two_readers_may_take_differently_is_refused(made, keys, name):
    twice = [("authorization", f"Bearer {keys.infer}"), (name, "1"), (name, "1")]
    reply = asked(made(), headers=twice[1:] if name == "authorization" else twice)
    assert reply.code == "bad_request" and name.encode() in reply.body


def refuses_to_be_read() -> Any:
    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    return receive


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([("content-length", "1048577")], "body_too_long"),
        ([("content-length", "999999999999999999")], "body_too_long"),
        ([("content-length", "-1")], "bad_request"),
        ([("content-length", "+1")], "bad_request"),
        ([("content-length", "1_0")], "bad_request"),
        ([("content-length", "0x10")], "bad_request"),
        ([("content-length", "1.0")], "bad_request"),
        ([("content-length", "1, 1")], "bad_request"),
        ([("content-length", "\xb2")], "bad_request"),
        ([("content-length", "9" * 30)], "bad_request"),
        ([("content-length", "2"), ("transfer-encoding", "chunked")], "bad_request"),
        ([("content-encoding", "gzip")], "content_encoding"),
        ([("content-encoding", "identity, br")], "content_encoding"),
        ([("content-type", "text/plain")], "content_type"),
        ([("content-type", "application/x-www-form-urlencoded")], "content_type"),
        ([("content-type", "multipart/form-data; boundary=x")], "content_type"),
        ([("content-type", "application/json; charset=utf-16")], "content_type"),
        ([("content-type", "application/json; charset=latin1")], "content_type"),
        ([("content-type", "application/jsonx")], "content_type"),
        ([("content-type", "application/json, text/plain")], "content_type"),
        ([("content-type", "application/octet-stream")], "content_type"),
        (
            [("inference-header-content-length", "10"), ("content-type", "application/octet-stream")],
            "binary_tensors",
        ),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_body_is_refused_for_what_its_head_says_before_it_is_read(made, keys, app, headers, code, method):
    path = "/v1/predict" if method == "POST" else "/v1/tasks/rte/canary"
    given = dict([("content-type", "application/json"), ("content-length", "2"), *headers])
    reply = asked(made(), method, path, key=keys.admin, headers=given.items(), receive=refuses_to_be_read())
    assert reply.code == code and app.seen == []
    assert code != "binary_tensors" or b"binary_data=False" in reply.body
    assert code != "body_too_long" or reply.headers["connection"] == "close"


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json ;charset="UTF-8"',
    ],
)
def test_json_is_taken_however_it_is_named(made, keys, app, kind):
    headers = [("content-type", kind), ("content-encoding", "identity")]
    body = ' {"rows": ["é"]}\n'.encode()
    assert asked(made(), "POST", "/v1/predict", key=keys.infer, headers=headers, body=body).status == 200
    assert app.bodies == [body]


def test_a_body_of_no_named_type_is_json_or_refused(made, keys, app):
    guard, path, blank = made(), "/v1/tasks/rte/rollback", [("content-type", "")]
    assert asked(guard, "POST", path, key=keys.admin, headers=blank, body=b"a=b").code == "invalid_json"
    assert asked(guard, "POST", path, key=keys.admin, headers=blank, body=b"{}").status == 200
    assert (b"content-type", b"application/json") in app.seen[0]["headers"]
    assert asked(guard, "POST", path, key=keys.admin).status == 200
    assert app.bodies == [b"{}", b""]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_methods_that_take_no_body_get_none(made, keys, app, method):
    path = "/v1/tasks/rte/canary" if method == "DELETE" else "/v1/tasks"
    for body in (b"{}", [b"{}"]):
        reply = asked(made(), method, path, key=keys.admin, body=body, receive=refuses_to_be_read())
        assert reply.status == 400
    assert asked(made(), method, path, key=keys.admin, headers=[("content-length", "0")]).status == 200

    async def unannounced() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    assert asked(made(), method, path, key=keys.admin, receive=unannounced).status == 413
    assert asked(made(), method, "/v2/health/live", body=b"{}").status in (400, 401)
    assert len(app.seen) == 1


def test_a_body_is_refused_as_soon_as_it_is_too_long(made, keys, app):
    guard = made(max_body_bytes=100)
    chunks = iter([b"[" + b" " * 60, b" " * 60])

    async def receive() -> dict[str, Any]:
        chunk = next(chunks, None)
        assert chunk is not None, "more was read than had to be"
        return {"type": "http.request", "body": chunk, "more_body": True}

    headers = [("content-type", "application/json"), ("transfer-encoding", "chunked")]
    reply = asked(guard, "POST", "/v1/predict", key=keys.infer, headers=headers, receive=receive)
    assert reply.code == "body_too_long" and reply.headers["connection"] == "close" and app.seen == []
    assert asked(guard, "POST", "/v1/predict", key=keys.infer, body=[b"[", b" " * 98, b"]"]).status == 200
    assert app.bodies == [b"[" + b" " * 98 + b"]"]


def test_a_body_that_does_not_come_is_given_up(made, keys, app):
    guard = made(body_seconds=0.05)

    async def dribble() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def never() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    for receive in (dribble, never):
        began = time.monotonic()
        reply = asked(
            guard,
            "POST",
            "/v1/predict",
            key=keys.infer,
            headers=[("content-type", "application/json")],
            receive=receive,
        )
        assert reply.code == "body_too_slow" and reply.headers["connection"] == "close"
        assert time.monotonic() - began < 1
    assert app.seen == []


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b'["\\ud800"]',
        b"[" * 40 + b"]" * 40,
        b"[" * 100_000,
        b'{"a": "' + b"x" * 100_000 + b'", "a": 1}',
    ],
)
def test_the_application_never_sees_unsound_json(made, keys, app, body):
    assert asked(made(), "POST", "/v1/predict", key=keys.infer, body=body).code == "invalid_json"
    assert app.seen == []


def test_others_are_answered_while_a_long_body_is_checked(made, keys):
    guard = made()
    body = b"[" + b"[]," * 300_000 + b"[]]"

    async def go() -> float:
        long = asyncio.create_task(ask(guard, "POST", "/v1/predict", key=keys.infer, body=body))
        await asyncio.sleep(0.001)
        began = time.monotonic()
        assert (await ask(guard, "GET", "/v2/health/live")).status == 200
        waited = time.monotonic() - began
        assert not long.done()
        assert (await long).status == 200
        return waited

    assert asyncio.run(go()) < 1


# Limits


class Slow(App):
    """Answers once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["path"] != "/v2/health/live":
            await self.gate.wait()
        await super().__call__(scope, receive, send)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_key_is_refused_above_its_rate_and_taken_again_in_time(made, keys, monkeypatch):
    from serve_app import limits

    now = 1000.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: now)
    guard = made(requests_per_second=0.25, burst_requests=3)
    assert [asked_at(guard, keys.infer).status for _ in range(5)] == [200, 200, 200, 429, 429]
    refused = asked_at(guard, keys.infer, "POST", "/v1/predict")
    assert refused.code == "rate_limit_exceeded" and refused.headers["retry-after"] == "4"
    assert asked_at(guard, keys.admin).status == 200
    now += 3.0
    assert asked_at(guard, keys.infer).headers["retry-after"] == "1"
    now += 1.0
    assert [asked_at(guard, keys.infer).status for _ in range(2)] == [200, 429]
    now += 1e6
    assert [asked_at(guard, keys.infer).status for _ in range(4)] == [200, 200, 200, 429]


def asked_at(guard: Guard, key: str, method: str = "GET", path: str = "/v1/tasks") -> Reply:
    """Ask where the clock stands still: the body is given at once, or it is a bug."""

    async def go() -> Reply:
        receive = None if method == "GET" else refuses_to_be_read()
        return await ask(guard, method, path, key=key, receive=receive)

    return asyncio.run(go())


def test_a_key_may_have_only_so_many_requests_under_way(made, keys):
    async def go() -> None:
        slow = Slow()
        guard = made(slow, concurrent_requests=2, concurrent_requests_in_all=3)
        running = [asyncio.create_task(ask(guard, key=keys.infer)) for _ in range(2)]
        await settled()
        third = await ask(guard, "POST", "/v1/predict", key=keys.infer, receive=refuses_to_be_read())
        assert (third.status, third.code) == (429, "too_many_requests_at_once")
        running.append(asyncio.create_task(ask(guard, key=keys.admin)))
        await settled()
        fourth = await ask(guard, "POST", "/v1/predict", key=keys.admin, receive=refuses_to_be_read())
        assert (fourth.status, fourth.code) == (503, "overloaded")
        assert {third.headers["retry-after"], fourth.headers["retry-after"]} == {"1"}
        assert (await ask(guard, "GET", "/v2/health/live")).status == 200
        assert value(guard, "attempt_http_requests_in_flight") == 3
        running[0].cancel()
        await settled()
        slow.gate.set()
        assert [reply.status for reply in await asyncio.gather(*running[1:])] == [200, 200]
        assert value(guard, "attempt_http_requests_in_flight") == 0
        assert [(await ask(guard, key=keys.infer)).status for _ in range(5)] == [200] * 5

    asyncio.run(go())


def test_places_are_given_back_whatever_becomes_of_a_request(made, keys):
    async def failing(scope, receive, send):
        raise ZeroDivisionError

    async def go() -> None:
        guard = made(failing, concurrent_requests=1, concurrent_requests_in_all=1)
        for _ in range(3):
            assert (await ask(guard, key=keys.infer)).status == 500
            assert (await ask(guard, "POST", "/v1/predict", key=keys.infer, body=b"{")).status == 400
            assert (await ask(guard, "POST", "/v1/predict", key=keys.infer, body=[])).status == 0

    asyncio.run(go())


def test_health_and_pages_are_never_limited(made, keys):
    guard = made(requests_per_second=0.001, burst_requests=1)
    assert asked(guard, key=keys.infer).status == 200
    assert asked(guard, key=keys.infer).status == 429
    for path in ("/v2/health/live", "/v2/health/ready", "/", "/static/app.js"):
        assert [asked(guard, "GET", path, key=keys.infer).status for _ in range(5)] == [200] * 5


def test_without_keys_all_callers_share_one_limit(app):
    guard = Guard(app, config=HttpConfig(requests_per_second=0.001, burst_requests=2), keys=None)
    assert [asked(guard).status for _ in range(3)] == [200, 200, 429]


# Answers


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-DEF_1.2", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        ("a b", False),
        ("a\nb", False),
        ("é", False),
        ("a/b", False),
        ("atk_0123456789ab_" + "x" * 43, False),
    ],
)
def test_a_request_has_one_id_everywhere(made, keys, app, given, kept, caplog):
    caplog.set_level(logging.INFO, logger=ACCESS_LOG)
    guard = made()
    for path, key in (("/v1/tasks", keys.infer), ("/v1/tasks", None), ("/", None)):
        reply = asked(guard, "GET", path, key=key, headers=[("x-request-id", given)])
        name = reply.headers["x-request-id"]
        assert (name == given) is kept
        assert kept or re.fullmatch("[0-9a-f]{32}", name)
        assert caplog.records[-1].visit.request_id == name
    assert app.seen[-1][REQUEST_ID] == name


def test_every_answer_has_the_security_headers_once(made, keys):
    async def careless(scope, receive, send):
        headers = [
            (b"Content-Security-Policy", b"default-src *"),
            (b"X-Request-Id", b"other"),
            (b"x-a", b"1"),
        ]
        if scope["path"].startswith("/static/"):
            headers.append((b"Cache-Control", b"max-age=3600"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    guard = made(careless)
    replies = [
        asked(guard, key=keys.infer),
        asked(guard, "GET", "/static/app.js"),
        asked(guard),
        asked(guard, "POST", "/v1/predict", key=keys.infer, body=b"{"),
        asked(guard, "GET", "/nothing", key=keys.infer),
    ]
    for reply in replies:
        assert SECURITY_HEADERS.items() <= reply.headers.items()
        assert len(reply.raw_headers) == len(reply.headers)
    assert "unsafe" not in str(SECURITY_HEADERS) and "default-src 'none'" in str(SECURITY_HEADERS)
    assert [reply.headers["cache-control"] for reply in replies] == [
        "no-store",
        "max-age=3600",
        *["no-store"] * 3,
    ]
    assert replies[0].headers["x-a"] == "1" and replies[0].headers["x-request-id"] != "other"


def test_an_application_that_breaks_before_it_answers_is_a_500_without_its_reasons(made, keys, caplog):
    async def broken(scope, receive, send):
        raise RuntimeError("inner workings")

    reply = asked(made(broken), key=keys.infer)
    assert reply.code == "internal_error" and b"inner" not in reply.body
    assert "inner workings" in caplog.text and reply.headers["x-request-id"] in caplog.text
    assert SECURITY_HEADERS.items() <= reply.headers.items()


def test_refusals_have_the_form_of_the_protocol_of_their_path(made, keys):
    async def broken(scope, receive, send):
        raise RuntimeError

    guard = made(broken, requests_per_second=0.1, burst_requests=1)
    replies = [asked(guard, "GET", "/v2/models/rte", key=keys.infer) for _ in range(2)]
    assert [reply.status for reply in replies] == [500, 429]
    assert replies[1].headers["retry-after"] == "10"
    for reply in replies:
        assert list(json.loads(reply.body)) == ["error", "code"] and json.loads(reply.body)["error"]
        assert reply.headers["content-type"] == "application/json"
        assert int(reply.headers["content-length"]) == len(reply.body)
    assert asked(guard, "GET", "/v2", headers=[]).headers["www-authenticate"] == "Bearer"
    assert asked(guard, "GET", "/v20", key=keys.admin).code == "not_found"


def test_an_application_that_breaks_in_the_middle_leaves_the_answer_cut(made, keys, caplog):
    async def broken(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("inner workings")

    with pytest.raises(RuntimeError):
        asked(made(broken), key=keys.infer)

    async def late(scope, receive, send):
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"whole"})
        raise RuntimeError("inner workings")

    assert asked(made(late), key=keys.infer).body == b"whole"


def test_a_stream_is_passed_on_piece_by_piece(made, keys):
    async def go() -> None:
        heard = asyncio.Event()

        async def stream(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            await asyncio.wait_for(heard.wait(), 5)
            await send({"type": "http.response.body", "body": b"data: 2\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        sent: list[dict[str, Any]] = []

        async def take(message: dict[str, Any]) -> None:
            sent.append(message)
            if message.get("body") == b"data: 1\n\n":
                heard.set()

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/v1/tasks",
            "query_string": b"",
            "headers": [(b"x-api-key", keys.infer.encode())],
            "client": LOCAL,
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        await made(stream)(scope, receive, take)
        assert [message.get("body") for message in sent] == [None, b"data: 1\n\n", b"data: 2\n\n", b""]

    asyncio.run(go())


def test_a_caller_who_leaves_is_noticed_by_the_application(made, keys, caplog):
    caplog.set_level(logging.INFO, logger=ACCESS_LOG)
    heard: list[str] = []

    async def stream(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        heard.append((await receive())["type"])

    guard = made(stream)
    asked(guard, "POST", "/v1/completions", key=keys.infer, body=b"{}")
    assert heard == ["http.disconnect"]
    assert caplog.records[-1].visit.status == 499
    reply = asked(guard, "POST", "/v1/completions", key=keys.infer, body=[])
    assert reply.messages == [] and len(heard) == 1
    assert (
        value(guard, "attempt_http_requests_total", route="/v1/completions", method="POST", status="499") == 2
    )


def test_lifespan_passes_and_websockets_do_not(made):
    async def go() -> None:
        sent: list[dict[str, Any]] = []

        async def take(message: dict[str, Any]) -> None:
            sent.append(message)

        events = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> dict[str, Any]:
            return {"type": next(events)}

        guard = made()
        await guard({"type": "lifespan"}, receive, take)
        assert [message["type"] for message in sent] == [
            "lifespan.startup.complete",
            "lifespan.shutdown.complete",
        ]
        await guard({"type": "websocket", "path": "/v1/tasks", "headers": []}, receive, take)
        assert sent[-1]["type"] == "websocket.close"

    asyncio.run(go())


# What is kept


def test_a_request_is_one_line_of_json_without_anything_it_carried(made, keys, caplog):
    caplog.set_level(logging.INFO, logger=ACCESS_LOG)
    asked(made(), "POST", "/v2/models/rte@v3/infer?a=b", key=keys.infer, body=b'{"a": 1}')
    asked(made(), "BREW", "/pot")
    lines = [json.loads(AccessFormatter().format(record)) for record in caplog.records]
    first = lines[0]
    assert set(first) == {
        "time",
        "request_id",
        "key",
        "method",
        "route",
        "status",
        "duration_ms",
        "bytes_in",
        "bytes_out",
    }
    assert first["time"].endswith("+00:00") and 0 < first["duration_ms"] < 1000
    assert (first["method"], first["route"], first["status"]) == ("POST", "/v2/models/{model}/infer", 200)
    assert (first["key"], first["bytes_in"], first["bytes_out"]) == (keys.infer.split("_")[1], 8, 2)
    assert (lines[1]["method"], lines[1]["route"], lines[1]["status"]) == ("unknown", "unknown", 401)
    assert lines[1]["key"] == ""
    assert "\n" not in AccessFormatter().format(caplog.records[0])


def test_no_secret_and_nothing_of_a_request_is_in_any_log_or_metric(made, keys, caplog):
    caplog.set_level(logging.DEBUG)

    async def broken(scope, receive, send):
        await receive()
        raise RuntimeError("broken")

    canary = "CANARY-7f3a"
    for inner in (None, broken):
        guard = made(inner)
        for key in keys.texts:
            for method, path in (
                ("POST", "/v1/predict"),
                ("GET", f"/v1/tasks/{canary.lower()}"),
                ("GET", "/"),
            ):
                for headers in ([("authorization", f"Bearer {key}")], [("x-api-key", key)]):
                    more = [
                        *headers,
                        ("x-request-id", key),
                        ("user-agent", canary),
                        ("cookie", canary),
                        ("referer", key),
                    ]
                    for body in (None, json.dumps({canary: canary}).encode(), b'{"%s":' % canary.encode()):
                        reply = asked(guard, method, f"{path}?{canary}={key}", headers=more, body=body)
                        assert key not in str(reply.headers) and key.encode() not in reply.body
        text = generate_latest(guard.registry).decode()
        kept = caplog.text + text + "".join(str(record.__dict__) for record in caplog.records)
        access = [AccessFormatter().format(each) for each in caplog.records if each.name == ACCESS_LOG]
        assert len(access) >= 90
        kept += "".join(access)
        assert canary not in kept and canary.lower() not in kept
        assert not any(key.split("_", 2)[2] in kept for key in keys.texts)


def test_metrics_count_requests_refusals_and_time(made, keys):
    guard = made()
    for _ in range(3):
        asked(guard, "GET", "/v1/tasks/rte", key=keys.infer)
    asked(guard, "GET", "/v1/tasks/rte")
    asked(guard, "GET", "/nothing", key=keys.infer)
    asked(guard, "GET", "/else", key=keys.infer)
    route = "/v1/tasks/{task}"
    assert value(guard, "attempt_http_requests_total", route=route, method="GET", status="200") == 3
    assert value(guard, "attempt_http_requests_total", route=route, method="GET", status="401") == 1
    assert value(guard, "attempt_http_requests_total", route="unknown", method="GET", status="404") == 2
    assert value(guard, "attempt_http_refusals_total", code="not_found") == 2
    assert value(guard, "attempt_http_refusals_total", code="invalid_api_key") == 1
    assert value(guard, "attempt_http_request_seconds_count", route=route) == 4
    assert value(guard, "attempt_http_requests_in_flight") == 0


def test_it_stands_in_front_of_an_application_for_httpx(made, keys, app):
    async def go() -> None:
        transport = httpx2.ASGITransport(app=made())
        headers = {"authorization": f"Bearer {keys.infer}"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://serve.example") as client:
            good = await client.post("/v1/predict", json={"rows": []}, headers=headers)
            assert (good.status_code, good.text) == (200, "ok")
            assert (await client.get("/v1/tasks/rte@v3", headers=headers)).status_code == 200
            bad = await client.post("/v1/predict", content=b"{", headers=headers)
            assert (bad.status_code, bad.json()["error"]["code"]) == (400, "invalid_json")

    asyncio.run(go())


# Under a real server


@contextmanager
def served(guard: Guard, http: str) -> Iterator[int]:
    """Run uvicorn on a free port of this machine, and give the port."""
    server = uvicorn.Server(
        uvicorn.Config(
            guard, host="127.0.0.1", port=0, http=http, log_config=None, access_log=False, loop="asyncio"
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline and thread.is_alive()
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)


def talk(port: int, *pieces: bytes, pause: float = 0.0, most: int = 100) -> tuple[bytes, int]:
    """Send pieces until the server closes or all are sent; return what it answered, and how many bytes were sent."""
    sent = 0
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            for piece in pieces[:most]:
                connection.sendall(piece)
                sent += len(piece)
                if pause:
                    time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            while part := connection.recv(65_536):
                answer += part
        except ConnectionResetError:
            pass
    return answer, sent


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_server_in_front_cuts_what_is_slow_or_long(made, keys, app, http):
    guard = made(body_seconds=0.5)
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {keys.infer}\r\n"
        "Content-Type: application/json\r\n"
    ).encode()
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    with served(guard, http) as port:
        whole = head + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}"
        assert talk(port, whole)[0].startswith(b"HTTP/1.1 200")

        began = time.monotonic()
        answer, _ = talk(port, head + b"Content-Length: 100\r\n\r\n{", *[b" "] * 20, pause=0.1)
        assert b"408" in answer.split(b"\r\n")[0] and b"body_too_slow" in answer
        assert time.monotonic() - began < 5

        began = time.monotonic()
        answer, _ = talk(port, head + b"Content-Length: 100\r\n\r\n")
        assert b"body_too_slow" in answer and 0.4 < time.monotonic() - began < 2

        started = value(guard, "attempt_http_requests_in_flight")
        answer, _ = talk(port, head + b"Content-Length: 1048577\r\n\r\n")
        assert b"413" in answer.split(b"\r\n")[0] and b"body_too_long" in answer and started == 0

        answer, sent = talk(
            port, head + b"Content-Length: 300000000\r\n\r\n", *[b" " * 2**20] * 300, most=300
        )
        assert b"body_too_long" in answer and sent < 50 * 2**20

        answer, sent = talk(port, head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 4000, most=4000)
        assert b"body_too_long" in answer and sent < 50 * 2**20

        for bad in (
            b"GET /v1/tasks/..%2f..%2fetc HTTP/1.1",
            b"GET /v1/tasks/%2e%2e HTTP/1.1",
            b"GET //v1/tasks HTTP/1.1",
        ):
            lines = bad + f"\r\nHost: x\r\nX-Api-Key: {keys.admin}\r\nConnection: close\r\n\r\n".encode()
            assert talk(port, lines)[0].startswith(b"HTTP/1.1 404")
        assert talk(port, whole.replace(b"Content-Length: 2", b"Content-Length: x"))[0].startswith(
            b"HTTP/1.1 400"
        )
    assert app.bodies == [b"{}"]


def test_unmodified_clients_of_other_servers_come_through(made, keys, app):
    import numpy as np
    import openai
    from tritonclient.http import InferenceServerClient, InferInput
    from tritonclient.utils import InferenceServerException

    with served(made(), "httptools") as port:
        triton = InferenceServerClient(f"127.0.0.1:{port}")
        bearer = {"Authorization": f"Bearer {keys.infer}"}
        assert triton.is_server_live() and triton.is_server_ready()
        assert triton.is_model_ready("rte@v3", headers=bearer)
        assert not triton.is_model_ready("rte@v3")
        text = InferInput("text", [1], "BYTES")
        for binary in (False, True):
            text.set_data_from_numpy(np.array([b"is it so"], dtype=object), binary_data=binary)
            # The application answers "ok", which is no tensor.
            with pytest.raises(InferenceServerException if binary else ValueError) as caught:
                triton.infer("rte@v3", [text], headers=bearer)
        assert "binary_data=False" in str(caught.value)
        triton.close()

        with openai.OpenAI(
            api_key=keys.infer, base_url=f"http://127.0.0.1:{port}/v1", max_retries=0
        ) as client:
            assert client.models.with_raw_response.retrieve("rte@v3").status_code == 200
            answered = client.completions.with_raw_response.create(model="rte@v3", prompt="is it so")
            assert answered.status_code == 200
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("../tasks")
        with (
            openai.OpenAI(
                api_key=keys.wrong, base_url=f"http://127.0.0.1:{port}/v1", max_retries=0
            ) as client,
            pytest.raises(openai.AuthenticationError, match="no valid API key"),
        ):
            client.models.list()
    assert [scope["path"] for scope in app.seen[2:]] == [
        "/v2/models/rte@v3/ready",
        "/v2/models/rte@v3/infer",
        "/v1/models/rte@v3",
        "/v1/completions",
    ]
