"""What a client sends and what it makes of the answers: requests, errors, retries. It does no I/O.

Each call is a generator that yields a request to be sent, or seconds to be slept, and is sent what came of it. So the
two clients share every decision.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from attempt_ray import __version__
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
from attempt_ray.hosts import is_loopback
from serve_app.schema import (
    TASK_PATTERN,
    CanaryIn,
    Changed,
    ErrorBody,
    ErrorDetail,
    PredictRequest,
    PredictResponse,
    PromoteIn,
    RowIn,
    Status,
    TaskInfo,
    TaskList,
)

DEFAULT_URL = "http://127.0.0.1:8000"
RETRIES = 8
TIMEOUT_SECONDS = 60.0

_CONNECT_SECONDS = 5.0
_NO_ROUTE = b"/-/routes"
"""In what Ray's proxy says of a path that no application has."""
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 4.0

_CODES: Mapping[str, type[AttemptError]] = {
    "not_found": NotFoundError,
    "unknown_task": NotFoundError,
    "model_not_found": NotFoundError,
    "conflict": BankError,
    "version_refused": BankError,
    "prompt_unavailable": BankError,
    "body_too_slow": DeadlineError,
    "storage_unavailable": StorageError,
}
_KINDS: Mapping[str, type[AttemptError]] = {
    "authentication_error": ConfigError,
    "permission_error": ConfigError,
    "rate_limit_error": OverloadedError,
    "overloaded_error": OverloadedError,
    "timeout_error": DeadlineError,
    "server_error": UnavailableError,
}
"""Error of an answer's `code`, else of its `type`; what is in neither is a DataError."""

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)
Outcome = httpx2.Response | httpx2.RequestError | None
"""What came of a request; None after a pause."""
Steps = Generator[httpx2.Request | float, Outcome, T]
"""A call: yields requests and pauses in seconds, returns the result."""


class Wire:
    """The calls of one deployment."""

    def __init__(
        self, url: str | None, *, key: str | None, retries: int, timeout: float, insecure: bool
    ) -> None:
        """Check everything that can be checked before a request.

        Raises:
            ConfigError: URL, key or limits cannot be used, or the key would go to another machine unencrypted.
        """
        key = os.environ.get("ATTEMPT_API_KEY") or None if key is None else key
        self.url, self.local = _checked_url(url or os.environ.get("ATTEMPT_URL") or DEFAULT_URL)
        if key is not None and not re.fullmatch(r"[!-~]+", key):
            # A header that cannot be sent is refused with words that repeat it.
            raise ConfigError(
                "the API key has spaces, line breaks or non-ASCII characters; give it as it was made"
            )
        if key is not None and not insecure and not self.local and self.url.startswith("http:"):
            raise ConfigError(
                f"{self.url} is another machine, and the API key would go there unencrypted; use https, or allow it "
                "with insecure=True"
            )
        if retries < 0 or timeout <= 0:
            raise ConfigError(f"got {retries} retries and {timeout} s; wanted 0 or more, and more than 0")
        self._has_key = key is not None
        self._retries, self._timeout = retries, timeout
        self._headers = {"accept": "application/json", "user-agent": f"attempt-ray/{__version__}"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"

    def describe(self, name: str) -> str:
        """Return how a client shows itself."""
        return f"{name}({self.url!r}, {'with' if self._has_key else 'without'} key)"

    def predict(
        self, rows: Sequence[RowIn | Mapping[str, Any]], *, attention: bool, timeout: float | None
    ) -> Steps[PredictResponse]:
        """Ask for answers."""
        body = _made(PredictRequest, rows=list(rows), attention=attention, timeout_seconds=timeout)
        return (
            yield from self._ask("POST", "/v1/predict", _model(PredictResponse), body=body, timeout=timeout)
        )

    def tasks(self) -> Steps[list[TaskInfo]]:
        """Ask what can be asked."""
        return (yield from self._ask("GET", "/v1/tasks", _model(TaskList))).tasks

    def task(self, name: str) -> Steps[TaskInfo]:
        """Ask for one task."""
        return (yield from self._ask("GET", _place(name), _model(TaskInfo)))

    def promote(self, task: str, *, version: int | None, expected: int | None) -> Steps[Changed]:
        """Change what a task serves."""
        body = _made(PromoteIn, version=version, expected=expected)
        return self._change("POST", _place(task, "/promote"), body)

    def rollback(self, task: str) -> Steps[Changed]:
        """Change it back."""
        return self._change("POST", _place(task, "/rollback"))

    def start_canary(self, task: str, **given: float | None) -> Steps[Changed]:
        """Put a version on trial."""
        body = _made(CanaryIn, **{name: value for name, value in given.items() if value is not None})
        return self._change("PUT", _place(task, "/canary"), body)

    def stop_canary(self, task: str) -> Steps[Changed]:
        """End the trial."""
        return self._change("DELETE", _place(task, "/canary"))

    def status(self) -> Steps[Status]:
        """Ask how the replicas are."""
        return (yield from self._ask("GET", "/v1/status", _model(Status)))

    def metrics(self) -> Steps[str]:
        """Ask for the metrics."""
        return (yield from self._ask("GET", "/metrics", lambda response: response.text))

    def ready(self) -> Steps[bool]:
        """Ask once whether anything answers."""
        outcome = yield self._request("GET", "/v2/health/ready", min(_CONNECT_SECONDS, self._timeout))
        return isinstance(outcome, httpx2.Response) and outcome.status_code == 200

    def stream(
        self, model: str, text: str, *, max_tokens: int | None, timeout: float | None
    ) -> Steps[httpx2.Response]:
        """Begin an answer; the response's events go through `piece`."""
        page: dict[str, Any] = {"model": model, "prompt": text, "stream": True}
        body = page if max_tokens is None else {**page, "max_tokens": max_tokens}
        return (
            yield from self._ask("POST", "/v1/completions", lambda found: found, body=body, timeout=timeout)
        )

    def _change(self, method: str, path: str, body: BaseModel | None = None) -> Steps[Changed]:
        return (yield from self._ask(method, path, _model(Changed), body=body, repeat=False))

    def _ask(
        self,
        method: str,
        path: str,
        read: Callable[[httpx2.Response], T],
        *,
        body: BaseModel | Mapping[str, Any] | None = None,
        timeout: float | None = None,
        repeat: bool = True,
    ) -> Steps[T]:
        """Send a request until it succeeds, fails for good, or there is no time left.

        Args:
            method: The HTTP method.
            path: Below the deployment's URL.
            read: Makes the result.
            body: What is sent, if anything.
            timeout: Seconds for all of it.
            repeat: Whether the same request may be carried out twice.
        """
        timeout = self._timeout if timeout is None else timeout
        ends = time.monotonic() + timeout
        attempt = 0
        while True:
            left = ends - time.monotonic()
            outcome = yield self._request(method, path, left, body)
            if isinstance(outcome, httpx2.Response):
                if outcome.is_success:
                    return read(outcome)
                error, again, pause = _refusal(outcome, self.url, repeat=repeat)
            else:
                error, again = _breakdown(outcome, self.url, timeout, repeat=repeat)
                pause = 0.0
            spread = random.random()
            backoff = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**attempt) * (1 + spread) / 2
            # Those who are told the same second shall not all come back in it.
            pause = pause * (1 + spread / 4) if pause else backoff
            attempt += 1
            if not again or attempt > self._retries or time.monotonic() + pause >= ends:
                raise error
            yield pause

    def _request(
        self, method: str, path: str, left: float, body: BaseModel | Mapping[str, Any] | None = None
    ) -> httpx2.Request:
        headers, content = self._headers, None
        if isinstance(body, PredictRequest) and body.timeout_seconds is not None:
            body = body.model_copy(update={"timeout_seconds": max(left, 0.001)})
        if body is not None:
            headers = {**headers, "content-type": "application/json"}
            sent = body.model_dump(exclude_none=True) if isinstance(body, BaseModel) else body
            content = json.dumps(sent, ensure_ascii=False, allow_nan=False).encode("utf-8")
        left = max(left, 0.001)
        limits = httpx2.Timeout(left, connect=min(_CONNECT_SECONDS, left))
        return httpx2.Request(
            method,
            self.url + path,
            headers=headers,
            content=content,
            extensions={"timeout": limits.as_dict()},
        )


def checked_rows(given: Sequence[RowIn | Mapping[str, Any]]) -> list[RowIn]:
    """Return rows as messages.

    Raises:
        DataError: There is none, or one cannot be used.
    """
    return _made(PredictRequest, rows=list(given)).rows


def piece(event: httpx2.ServerSentEvent) -> str | None:
    """Return the text of an event of a streamed answer; None for its end.

    Raises:
        AttemptError: The event tells of an error, or is none of ours.
    """
    if event.data.strip() == "[DONE]":
        return None
    try:
        page = json.loads(event.data)
        if "error" in page:
            raise _error(ErrorBody.model_validate(page, extra="ignore").error)
        return "".join(choice["text"] for choice in page["choices"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, AttemptError):
            raise
        raise UnavailableError(f"got an event that is no piece of an answer: {event.data[:100]!r}") from None


def cut_short(error: httpx2.RequestError | None = None) -> AttemptError:
    """Return the error of a streamed answer that broke off."""
    if isinstance(error, httpx2.TimeoutException):
        return DeadlineError("the answer did not go on in the time that was given; give more")
    why = f": {error}" if error is not None and str(error) else ""
    return UnavailableError(f"the answer broke off before its end{why}; send it again")


def _checked_url(url: str) -> tuple[str, bool]:
    """Return a deployment's URL, and whether it is on this machine."""
    try:
        parts = urllib.parse.urlsplit(url.rstrip("/"))
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        parts, usable = urllib.parse.SplitResult("", "", "", "", ""), False
    if "@" in parts.netloc:
        raise ConfigError("url: got one with a user or password in it; give the API key apart from it")
    if not usable or parts.query or parts.fragment:
        raise ConfigError(
            f"url: got '{url.rpartition('@')[2]}'; wanted the deployment's, such as {DEFAULT_URL}"
        )
    return urllib.parse.urlunsplit(parts), is_loopback(parts.hostname or "")


def _place(task: str, below: str = "") -> str:
    if not re.fullmatch(TASK_PATTERN, task):
        raise DataError(f"task: got '{task}'; wanted a name such as rte")
    return f"/v1/tasks/{urllib.parse.quote(task, safe='@')}{below}"


def _made(model: type[ModelT], **given: Any) -> ModelT:
    try:
        return model(**given)
    except ValidationError as error:
        raise DataError(_first(error)) from None


def _first(error: ValidationError) -> str:
    """Return the first thing that is wrong, in one line."""
    found = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, found["loc"]))
    return f"{place}: {found['msg'].removeprefix('Value error, ')}" if place else found["msg"]


def _model(model: type[ModelT]) -> Callable[[httpx2.Response], ModelT]:
    """Return what reads a message; fields that a later server has added are left out."""

    def read(response: httpx2.Response) -> ModelT:
        try:
            return model.model_validate_json(response.content, extra="ignore")
        except ValidationError as error:
            raise UnavailableError(
                f"{response.request.url} answered with what is no {model.__name__} ({_first(error)}); is it a deployment "
                "of attempt-ray?"
            ) from None

    return read


def _breakdown(
    outcome: httpx2.RequestError | None, url: str, timeout: float, *, repeat: bool
) -> tuple[AttemptError, bool]:
    """Return the error of a request without an answer, and whether it may be sent again."""
    if isinstance(outcome, httpx2.ReadTimeout | httpx2.WriteTimeout | httpx2.PoolTimeout):
        return DeadlineError(
            f"{url} gave no answer in {timeout:g} s; give more, or send fewer rows at a time"
        ), False
    why = str(outcome) or type(outcome).__name__
    if isinstance(outcome, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        error = UnavailableError(f"cannot reach {url}: {why}; is the deployment up, and the URL right?")
        return error, not _is_tls(outcome)
    if repeat:
        return UnavailableError(f"the connection to {url} broke: {why}; is the deployment up?"), True
    return UnavailableError(
        f"the connection to {url} broke: {why}; the change may have been made: look at the task before another try"
    ), False


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _refusal(response: httpx2.Response, url: str, *, repeat: bool) -> tuple[AttemptError, bool, float]:
    """Return the error of an answer that is no success, whether to send again, and the seconds it asks to wait."""
    status = response.status_code
    try:
        detail = ErrorBody.model_validate_json(response.content, extra="ignore").error
    except ValidationError:
        detail = None
    pause = _retry_after(response.headers) if status in (429, 503) else 0.0
    if detail is None:
        late = status in (408, 504)
        error: AttemptError = (DeadlineError if late else UnavailableError)(
            f"{url} answered {status} {response.reason_phrase} without a reason of ours; is it a deployment of attempt-ray?"
        )
        # Ray's proxy, in front of a replica that died, or of a deployment that leaves or has not come yet.
        gone = status in (500, 502) or (status == 404 and _NO_ROUTE in response.content)
        return error, status in (429, 503) or (repeat and gone), pause
    # A version that is refused is so until somebody mends it.
    again = status in (429, 503) and detail.code != "prompt_unavailable"
    return _error(detail, pause), again or (repeat and status == 502), pause


def _error(detail: ErrorDetail, pause: float = 0.0) -> AttemptError:
    kind = _CODES.get(detail.code) or _KINDS.get(detail.type, DataError)
    if issubclass(kind, OverloadedError):
        return kind(detail.message, max(1, math.ceil(pause)))
    if detail.code == "invalid_api_key":
        return kind(f"{detail.message}; give this deployment's key as key=, --key-file or ATTEMPT_API_KEY")
    return kind(detail.message)


def _retry_after(headers: httpx2.Headers) -> float:
    """Return the seconds that `Retry-After` asks for, by the server's own clock where it is a date; 0 where it is not."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        then = email.utils.parsedate_to_datetime(text).timestamp()
    except ValueError:
        return 0.0
    try:
        now = email.utils.parsedate_to_datetime(headers.get("date", "")).timestamp()
    except ValueError:
        now = time.time()
    return max(0.0, then - now)
