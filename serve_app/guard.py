"""What stands in front of the HTTP side: who may ask what, and how much of it.

A request that reaches the application came from a caller who may send it, in a body that is small, whole and sound. The
order of the checks is that of `Guard._admit`: what costs least and tells a stranger nothing comes first.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attempt_ray.config import HttpConfig
from attempt_ray.errors import DataError
from attempt_ray.hosts import is_loopback_address
from serve_app.access import CALLER, REQUEST_ID, ROUTES, Access, Caller
from serve_app.keys import KeyRing
from serve_app.limits import Limits
from serve_app.problems import problem, told_under
from serve_app.routing import Router
from serve_app.strict_json import check_json
from serve_app.traffic import LEFT, UNKNOWN, Traffic, Visit

MAX_HEADERS = 100
"""Most headers of a request."""
SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""Headers of every answer; `Cache-Control: no-store` is one more, where the application sets none."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_ONCE = frozenset(
    (
        b"host",
        b"origin",
        b"authorization",
        b"x-api-key",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"transfer-encoding",
    )
)
"""Headers of which two would let each reader choose his own."""
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(:[0-9]{1,5})?")
_REQUEST_ID = re.compile(r"(?!atk_)[A-Za-z0-9._-]{1,64}")
"""Ids that callers may choose: they are logged, so that a key is none."""
_JSON = re.compile(r'application/json(\s*;\s*charset="?utf-8"?)?', re.IGNORECASE)
_SMALL_BYTES = 65_536
"""Longest rest of a body that is read for nothing, so that the connection can be used again."""

_log = logging.getLogger(__name__)


class _RefusedError(Exception):
    """A request is not to reach the application."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.headers = headers
        self.close = close

    def answer(self, path: str) -> Response:
        """Return the answer, in the form of the protocol that the path is of."""
        answer = problem(self.code, self.message, retry_after=self.retry_after, headers=self.headers)
        return told_under(path, answer)


class _LeftError(Exception):
    """The caller went away."""


class Guard:
    """An ASGI application in front of another one.

    The application finds the `Caller` under `CALLER` in its scope, but for public routes, and the request's id under
    `REQUEST_ID`. It gets the body in one piece and named as JSON, HEAD as GET, and none but the paths and methods of `routes`.

    Args:
        app: The application, as it stands at `/`.
        config: The limits.
        keys: The API keys; None takes callers of this machine alone and lets them do everything.
        routes: Path templates, with the access of each method.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: HttpConfig,
        keys: KeyRing | None,
        routes: Mapping[str, Mapping[str, Access]] = ROUTES,
    ) -> None:
        self._app = app
        self._config = config
        self._keys = keys
        self._routes = routes
        self._router = Router(routes)
        self._limits = Limits(config)
        self._traffic = Traffic()
        names = config.hosts or (() if keys else _LOOPBACK_NAMES)
        self._hosts = frozenset(name.lower() for name in names)

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics of the requests that came."""
        return self._traffic.registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have the application answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._take(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _take(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = _Head(scope)
        method = scope["method"] if scope["method"] in _METHODS else UNKNOWN
        visit = Visit(request_id=head.request_id(), method=method)
        answer = _Answer(send, visit)
        scope = {
            **scope,
            REQUEST_ID: visit.request_id,
            "method": "GET" if method == "HEAD" else method,
            "headers": head.for_application(),
        }
        self._traffic.began()
        try:
            with self._admit(scope, head, visit):
                body = await self._read(receive, visit)
                await self._call(scope, _Replay(body, receive, answer), answer)
        except _RefusedError as refusal:
            self._traffic.refused(refusal.code)
            response = refusal.answer(scope["path"])
            if refusal.close or head.declared_bytes() > _SMALL_BYTES:
                response.headers["Connection"] = "close"
            await response(scope, receive, answer)
        except _LeftError:
            pass
        finally:
            self._traffic.ended(visit)

    @contextmanager
    def _admit(self, scope: Scope, head: _Head, visit: Visit) -> Iterator[None]:
        """Check all that can be known before the body, and count the request while the block runs."""
        head.check_size(self._config.max_header_bytes)
        head.check_repeats()
        self._check_host(head)
        self._check_neighbour(scope)
        self._check_origin(head, visit.method)
        route = self._router.match(scope)
        visit.route = route or UNKNOWN
        methods = self._routes[route] if route else {}
        access = methods.get(scope["method"])
        if access == "public":
            self._check_body_head(head, visit.method)
            yield
            return
        caller = self._caller(head)
        visit.key = caller.key
        if route is None:
            raise _RefusedError("not_found", "there is no such path; GET /openapi.json lists all of them")
        if access is None:
            allowed = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
            raise _RefusedError(
                "method_not_allowed", f"{route} takes {allowed} alone", headers={"Allow": allowed}
            )
        if access == "admin" and caller.role != "admin":
            raise _RefusedError(
                "insufficient_role", "got a key of role infer; this takes a key of role admin"
            )
        self._check_body_head(head, visit.method)
        scope[CALLER] = caller
        with self._limits.admitted(caller.key) as excess:
            if excess is not None:
                raise _RefusedError(excess.code, excess.message, retry_after=excess.retry_after)
            yield

    def _check_host(self, head: _Head) -> None:
        """Refuse a name that is not ours: a page may have pointed its own at this machine (DNS rebinding)."""
        if not self._hosts:
            return
        matched = _HOST.fullmatch(head.get("host") or "")
        if matched is None or matched[1].lower() not in self._hosts:
            raise _RefusedError(
                "foreign_host",
                "got a Host that this deployment does not go by; call it by its name, or add the name to http.hosts",
            )

    def _check_neighbour(self, scope: Scope) -> None:
        """Without keys, refuse whoever is not on this machine."""
        if self._keys is None and not _is_this_machine(scope.get("client")):
            raise _RefusedError(
                "foreign_caller",
                "without API keys, only callers of this machine are answered; make one (attempt keys add NAME), and start "
                "the deployment with http.keys",
            )

    def _check_origin(self, head: _Head, method: str) -> None:
        """Refuse what a page of another site sends through its reader's browser."""
        origin = head.get("origin")
        if origin is None or method in ("GET", "HEAD"):
            return
        site = origin.lower().partition("://")[2]
        if not site or site != (head.get("host") or "").lower():
            raise _RefusedError(
                "foreign_origin",
                "got a request of a page of another site; send it from a program, or from our own page",
            )

    def _caller(self, head: _Head) -> Caller:
        if self._keys is None:
            return Caller("", "admin")
        text = head.key_text()
        caller = None if text is None else self._keys.authenticate(text)
        if caller is None:
            raise _RefusedError(
                "invalid_api_key",
                "got no valid API key; send one in the header 'Authorization: Bearer KEY'",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return caller

    def _check_body_head(self, head: _Head, method: str) -> None:
        """Refuse a body for what its headers say of it."""
        declared = head.get("content-length")
        if declared is not None and (
            not re.fullmatch("[0-9]{1,18}", declared) or head.get("transfer-encoding") is not None
        ):
            raise _RefusedError("bad_request", "got a Content-Length that is no length, or not the only one")
        if method not in _WITH_BODY:
            if head.declared_bytes():
                raise _RefusedError("body_not_taken", f"{method} takes no body; send it without")
            return
        if declared is not None and int(declared) > self._config.max_body_bytes:
            raise self._too_long()
        if head.get("inference-header-content-length") is not None:
            raise _RefusedError(
                "binary_tensors", "binary tensors are not taken; send their data as JSON (binary_data=False)"
            )
        if (head.get("content-encoding") or "identity").strip().lower() != "identity":
            raise _RefusedError(
                "content_encoding", "got an encoded body; send it as it is, without Content-Encoding"
            )
        kind = head.get("content-type")
        if kind is not None and not _JSON.fullmatch(kind.strip()):
            raise _RefusedError(
                "content_type", "got a body that is not application/json in UTF-8; send JSON, and say so"
            )

    async def _read(self, receive: Receive, visit: Visit) -> bytes:
        """Return the body, once it is known to be sound."""
        takes = visit.method in _WITH_BODY
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _LeftError
                    body += message.get("body", b"")
                    visit.bytes_in = len(body)
                    if len(body) > (self._config.max_body_bytes if takes else 0):
                        raise self._too_long()
                    more = message.get("more_body", False)
        except TimeoutError:
            raise _RefusedError(
                "body_too_slow",
                f"the body was not here after {self._config.body_seconds:g} s; send it faster, or less of it",
                close=True,
            ) from None
        whole = bytes(body)
        if whole:
            await self._check_json(whole)
        return whole

    async def _check_json(self, body: bytes) -> None:
        try:
            if len(body) > _SMALL_BYTES:  # up to 0.2 s for 1 MiB, in which others are answered
                await asyncio.to_thread(check_json, body, max_depth=self._config.max_json_depth)
            else:
                check_json(body, max_depth=self._config.max_json_depth)
        except DataError as error:
            raise _RefusedError("invalid_json", str(error)) from None

    async def _call(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            await self._app(scope, receive, answer)
        except Exception:
            _log.exception("request %s failed", scope[REQUEST_ID])
            if answer.begun and not answer.ended:
                raise  # the server cuts the connection, so that half an answer is not taken for a whole one
            if not answer.begun:
                text = "something broke on our side; the log has it under this request's id"
                await _RefusedError("internal_error", text).answer(scope["path"])(scope, receive, answer)

    def _too_long(self) -> _RefusedError:
        return _RefusedError(
            "body_too_long",
            f"got a body of more than {self._config.max_body_bytes:,} bytes; send fewer rows at once",
            close=True,
        )


class _Head:
    """The headers of a request."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self._values = {name: value.decode("latin-1") for name, value in self._headers}

    def get(self, name: str) -> str | None:
        """Return a header, or None where it was not sent."""
        return self._values.get(name.encode())

    def for_application(self) -> list[tuple[bytes, bytes]]:
        """Return the headers, JSON named as such where nothing was said: Open Inference clients leave it out."""
        if self.get("content-type") is not None:
            return self._headers
        return [*self._headers, (b"content-type", b"application/json")]

    def request_id(self) -> str:
        """Return the id that the caller chose, or a new one."""
        given = self.get("x-request-id") or ""
        return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex

    def key_text(self) -> str | None:
        """Return the text of the API key, or None where none was sent."""
        scheme, _, text = (self.get("authorization") or "").partition(" ")
        return text.strip() if scheme.lower() == "bearer" else self.get("x-api-key")

    def declared_bytes(self) -> float:
        """Return how long the body is said to be; infinity where it does not say, 0 where there is none."""
        if self.get("transfer-encoding") is not None:
            return float("inf")
        declared = self.get("content-length") or "0"
        return int(declared) if re.fullmatch("[0-9]{1,18}", declared) else float("inf")

    def check_size(self, limit: int) -> None:
        """Refuse a head that is too long."""
        size = sum(len(name) + len(value) for name, value in self._headers)
        size += len(self._scope.get("raw_path") or b"") + len(self._scope.get("query_string") or b"")
        if size > limit:
            raise _RefusedError("head_too_long", f"got a head of {size:,} bytes; the longest is {limit:,}")
        if len(self._headers) > MAX_HEADERS:
            raise _RefusedError(
                "head_too_long", f"got {len(self._headers)} headers; at most {MAX_HEADERS} are taken"
            )

    def check_repeats(self) -> None:
        """Refuse two headers of which one was to be meant."""
        names = [name for name, _ in self._headers if name in _ONCE]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise _RefusedError("bad_request", f"got the header {twice.decode()} twice; send it once")


class _Answer:
    """Sends an answer on: adds the headers that all have, and counts."""

    def __init__(self, send: Send, visit: Visit) -> None:
        self._send = send
        self._visit = visit
        self.begun = False
        self.ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self._visit.status = message["status"]
            message = {**message, "headers": self._headers(message)}
        elif message["type"] == "http.response.body":
            body = b"" if self._visit.method == "HEAD" else message.get("body", b"")
            self._visit.bytes_out += len(body)
            self.ended = not message.get("more_body", False)
            message = {**message, "body": body}
        await self._send(message)

    def left(self) -> None:
        """Note that the caller went away, unless he has his answer."""
        if not self.ended:
            self._visit.status = LEFT

    def _headers(self, message: Message) -> list[tuple[bytes, bytes]]:
        ours = {**SECURITY_HEADERS, "x-request-id": self._visit.request_id}
        given = [(name.lower(), value) for name, value in message.get("headers", ())]
        if not any(name == b"cache-control" for name, _ in given):
            ours["cache-control"] = "no-store"
        kept = [(name, value) for name, value in given if name.decode("latin-1") not in ours]
        return [*kept, *((name.encode(), value.encode()) for name, value in ours.items())]


class _Replay:
    """Gives the application a body that has been read already, and then whatever the server has to tell."""

    def __init__(self, body: bytes, receive: Receive, answer: _Answer) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self._answer = answer

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._answer.left()
        return message


def _is_this_machine(client: object) -> bool:
    """Return whether an ASGI scope's client is this machine."""
    return isinstance(client, tuple | list) and len(client) > 0 and is_loopback_address(str(client[0]))
