"""Who may call what: every route of the HTTP side with its role. A route that is not here does not exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["infer", "admin"]
"""`infer` asks, `admin` also changes what is served."""
Access = Literal["public", "infer", "admin"]
"""Least role that a route takes; `public` takes callers without a key."""

ROUTES: Mapping[str, Mapping[str, Access]] = {
    "/": {"GET": "public"},
    "/static/{name}": {"GET": "public"},
    "/openapi.json": {"GET": "infer"},
    "/metrics": {"GET": "infer"},
    "/v1/predict": {"POST": "infer"},
    "/v1/tasks": {"GET": "infer"},
    "/v1/tasks/{task}": {"GET": "infer"},
    "/v1/tasks/{task}/promote": {"POST": "admin"},
    "/v1/tasks/{task}/rollback": {"POST": "admin"},
    "/v1/tasks/{task}/canary": {"PUT": "admin", "DELETE": "admin"},
    "/v1/status": {"GET": "admin"},
    "/v1/models": {"GET": "infer"},
    "/v1/models/{model}": {"GET": "infer"},
    "/v1/completions": {"POST": "infer"},
    "/v2": {"GET": "infer"},
    "/v2/health/live": {"GET": "public"},
    "/v2/health/ready": {"GET": "public"},
    "/v2/models/{model}": {"GET": "infer"},
    "/v2/models/{model}/ready": {"GET": "infer"},
    "/v2/models/{model}/infer": {"POST": "infer"},
    "/v2/models/{model}/versions/{version}": {"GET": "infer"},
    "/v2/models/{model}/versions/{version}/ready": {"GET": "infer"},
    "/v2/models/{model}/versions/{version}/infer": {"POST": "infer"},
}
"""Path templates, methods, and the role each takes. HEAD goes with GET."""


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    key: str
    """Id of the API key; empty where none is needed."""
    role: Role
    """What it may do."""


CALLER = "attempt.caller"
"""Where an ASGI scope has its `Caller`, once the guard has let it through."""
REQUEST_ID = "attempt.request_id"
"""Where an ASGI scope has the request's id."""
