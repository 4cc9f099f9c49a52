"""Every way to say no over HTTP: the code, status and kind of each, and the answer that carries it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

from serve_app.schema import ErrorBody, ErrorDetail

PROBLEMS: Mapping[str, tuple[int, str]] = {
    # The request itself.
    "bad_request": (400, "invalid_request_error"),
    "invalid_json": (400, "invalid_request_error"),
    "invalid_request": (422, "invalid_request_error"),
    "invalid_row": (422, "invalid_request_error"),
    "body_not_taken": (400, "invalid_request_error"),
    "not_found": (404, "invalid_request_error"),
    "unknown_task": (404, "invalid_request_error"),
    "model_not_found": (404, "invalid_request_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "body_too_slow": (408, "invalid_request_error"),
    "body_too_long": (413, "invalid_request_error"),
    "content_encoding": (415, "invalid_request_error"),
    "content_type": (415, "invalid_request_error"),
    "binary_tensors": (415, "invalid_request_error"),
    "head_too_long": (431, "invalid_request_error"),
    # Who asks, and from where.
    "invalid_api_key": (401, "authentication_error"),
    "insufficient_role": (403, "permission_error"),
    "foreign_caller": (403, "permission_error"),
    "foreign_origin": (403, "permission_error"),
    "foreign_host": (421, "permission_error"),
    # What the bank refuses.
    "conflict": (409, "invalid_request_error"),
    "version_refused": (409, "invalid_request_error"),
    # Too much at once.
    "rate_limit_exceeded": (429, "rate_limit_error"),
    "too_many_requests_at_once": (429, "rate_limit_error"),
    "overloaded": (503, "overloaded_error"),
    "deadline_exceeded": (504, "timeout_error"),
    # Our side.
    "internal_error": (500, "server_error"),
    "not_ready": (503, "server_error"),
    "prompt_unavailable": (503, "server_error"),
    "storage_unavailable": (503, "server_error"),
}
"""HTTP status and `type` (as OpenAI's API names kinds of errors) of each `code`."""


def problem(
    code: str,
    message: str,
    *,
    param: str | None = None,
    retry_after: int | None = None,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the answer for a problem: its status, and an `ErrorBody` as JSON.

    Args:
        code: One of `PROBLEMS`.
        message: Got; wanted; what to do. It reaches the caller.
        param: Where in the request, such as `rows.3.fields`.
        retry_after: Whole seconds after which the same request may do, for `Retry-After`.
        status: Status in place of the code's, where a protocol wants another.
        headers: Further headers.
    """
    usual, kind = PROBLEMS[code]
    body = ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))
    more: dict[str, str] = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Response(
        body.model_dump_json(),
        status or usual,
        media_type="application/json",
        headers={**(headers or {}), **more},
    )


def told_under(path: str, answer: Response) -> Response:
    """Return the answer for a problem in the form that callers of a path read.

    Under `/v2` the error is a text: Open Inference clients make an exception of it, and Triton's breaks where it is an
    object.
    """
    if path.split("/")[1:2] != ["v2"]:
        return answer
    error = ErrorBody.model_validate_json(bytes(answer.body)).error
    body = json.dumps({"error": error.message, "code": error.code})
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    return Response(body, answer.status_code, headers=headers)
