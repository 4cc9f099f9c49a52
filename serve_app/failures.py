"""What a request that cannot be answered is told: from an exception to code, place and reason, for all three APIs."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from attempt_ray.errors import (
    AttemptError,
    BackboneError,
    BankError,
    DataError,
    DeadlineError,
    NotFoundError,
    OverloadedError,
    StorageError,
)
from serve_app.problems import PROBLEMS, problem

logger = logging.getLogger(__name__)

STORAGE_RETRY_SECONDS = 5
"""When a request is worth sending again after the bank could not be read."""
_GONE = 499
"""Status of an answer that nobody reads any longer."""
_CODES: Mapping[type[AttemptError], str] = {
    NotFoundError: "unknown_task",
    DataError: "invalid_row",
    OverloadedError: "overloaded",
    DeadlineError: "deadline_exceeded",
    BankError: "prompt_unavailable",
    BackboneError: "prompt_unavailable",
    StorageError: "storage_unavailable",
}
"""The code of each error of a gateway; the first class that fits counts."""
_ROW = re.compile(r"(rows\.\d+[\w.]*): (.*)", re.DOTALL)
_WANTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "too_short": "{min_length} or more",
    "too_long": "{max_length} at most",
    "string_too_short": "{min_length} characters or more",
    "string_too_long": "{max_length} characters at most",
    "string_pattern_mismatch": "a name of small letters, digits, '.', '_' and '-', as in rte, rte@candidate or rte@v3",
}
"""What should have been there, by pydantic's types of errors."""
_SHOWN = 60
"""Most characters of a value that an error repeats."""


class RequestError(Exception):
    """A request that gets no answer, and what its sender is told.

    Attributes:
        code: One of `PROBLEMS`.
        reason: Got; wanted; what to do.
        where: The part of the request, such as `rows.3.text`; None where it is no part.
        retry_after_seconds: When it may be sent again.
    """

    def __init__(
        self, code: str, reason: str, *, where: str | None = None, retry_after_seconds: int | None = None
    ) -> None:
        super().__init__(code, reason, where, retry_after_seconds)
        self.code, self.reason, self.where = code, reason, where
        self.retry_after_seconds = retry_after_seconds

    @property
    def message(self) -> str:
        """The reason with its place in front."""
        return self.reason if self.where is None else f"{self.where}: {self.reason}"

    @property
    def status(self) -> int:
        """The HTTP status of its code."""
        return PROBLEMS[self.code][0]


def request_error(error: Exception) -> RequestError:
    """Return what the sender of a request is told about an exception; what nobody expects is logged and kept from him."""
    error = original(error)
    if isinstance(error, RequestError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        codes = {404: "not_found", 405: "method_not_allowed"}
        return RequestError(codes.get(error.status_code, "bad_request"), str(error.detail))
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)
    if code is None:
        logger.error("a request failed", exc_info=error)
        return RequestError("internal_error", "this is a fault of the server; its log has the details")
    retry = {
        "overloaded": getattr(error, "retry_after_seconds", 1),
        "storage_unavailable": STORAGE_RETRY_SECONDS,
    }
    found = _ROW.fullmatch(str(error))
    where, reason = found.groups() if found else (None, str(error))
    return RequestError(code, reason, where=where, retry_after_seconds=retry.get(code))


def change_error(error: Exception) -> Exception:
    """Return what is raised for a change of the bank that failed: what the bank or a replica refuses is a conflict."""
    error = original(error)
    if isinstance(error, BankError | BackboneError) and not isinstance(error, NotFoundError):
        code = "conflict" if type(error) is BankError else "version_refused"
        return RequestError(code, str(error))
    return error


def original(error: Exception) -> Exception:
    """Return the error that a remote replica raised, out of what a cluster's handle wraps it in."""
    cause = getattr(error, "cause", None)
    return original(cause) if isinstance(cause, Exception) and cause is not error else error


def shown(value: object) -> str:
    """Return a value of a request as an error repeats it: as JSON, on one line, and short."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class Route(APIRoute):
    """A route whose failures are answered in the form of its API."""

    def refuse(self, error: RequestError) -> Response:
        """Return the answer for a failure."""
        return problem(error.code, error.message, param=error.where, retry_after=error.retry_after_seconds)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, which raises nothing."""
        handle = super().get_route_handler()

        async def handle_all(request: Request) -> Response:
            try:
                return await handle(request)
            except ClientDisconnect:
                return Response(status_code=_GONE)
            except Exception as error:  # noqa: BLE001 - every failure has an answer
                return self.refuse(request_error(error))

        return handle_all


def _invalid(error: RequestValidationError) -> RequestError:
    """Return the first thing that is wrong with a request."""
    found = error.errors()
    first = found[0]
    if first["type"] == "json_invalid":
        return RequestError(
            "invalid_json", f"the body is no JSON: {first['ctx']['error']}, at byte {first['loc'][1]}"
        )
    source, *path = first["loc"]
    if source == "path":
        return RequestError("unknown_task", f"no task can have the name {shown(first['input'])}")
    if not path:
        return RequestError(
            "invalid_request", "got no JSON object; send one, with Content-Type: application/json"
        )
    place = _place(path, error.body, missing=first["type"] == "missing")
    alike = [one for one in found if _place(one["loc"][1:], error.body) == place]
    where = ".".join(map(str, place))
    return RequestError("invalid_request", _reason(first, alike), where=where or None)


def _place(path: Sequence[int | str], body: Any, *, missing: bool = False) -> list[int | str]:
    """Return the part of a place that is in the body; members of unions, which pydantic names too, are not."""
    place: list[int | str] = []
    for key in path:
        inside = key in body if isinstance(body, dict) else isinstance(body, list) and isinstance(key, int)
        if not inside:
            break
        body = body[key]
        place.append(key)
    return [*place, path[-1]] if missing else place


def _reason(first: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> str:
    if first["type"] == "missing":
        return "got nothing; it has to be there"
    if first["type"] == "extra_forbidden":
        return "got a field that is not known; leave it out, or see /openapi.json for its name"
    if first["type"] == "value_error":
        reason = str(first["ctx"]["error"])
        return f"got {shown(first['input'])}; {reason}" if reason.startswith("wanted") else reason
    wanted = dict.fromkeys(_wanted(one) for one in alike)
    return f"got {shown(first['input'])}; wanted {' or '.join(wanted)}"


def _wanted(error: Mapping[str, Any]) -> str:
    usual = str(error["msg"]).removeprefix("Input should be ")
    return _WANTED.get(error["type"], usual).format(**error.get("ctx", {}))
