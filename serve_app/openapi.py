"""The OpenAPI page: what FastAPI finds, and besides it keys, every refusal and an example of each request and answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from attempt_ray.config import HttpConfig
from serve_app.access import ROUTES
from serve_app.inference_protocol import InferenceFailure, ModelReady, Ready
from serve_app.problems import PROBLEMS
from serve_app.routing import NAMES
from serve_app.schema import ErrorBody, ErrorDetail

TITLE = "attempt-ray"
_ABOUT = (
    "Soft prompts of many tasks on one frozen language model, answered together, each with the source tasks that it drew "
    "on. Send the key as `Authorization: Bearer KEY`."
)
_TAGS = {
    "predict": "Answers to rows of any tasks.",
    "tasks": "What can be asked.",
    "administration": "What is served, for keys of the role `admin`.",
    "OpenAI": "Completions, for clients of OpenAI's API.",
    "Open Inference Protocol": "Version 2, for clients of KServe and Triton.",
    "operations": "For machines that watch.",
    "playground": "For people.",
}
_ANY = (400, 421, 431, 500, 503)
"""What any route may answer: the guard refuses, or something is broken."""
_KEYED = (401, 403, 429)
"""What a route with a role may answer besides."""
_WITH_BODY = (408, 413, 415)
"""What a route that takes a body may answer besides."""
_MEANING = {
    400: "The request cannot be read, or asks for what is not done.",
    401: "There is no key, or it is not valid.",
    403: "The key may not do this, or the page that asks may not.",
    404: "There is no such task, version or page.",
    408: "The body took too long to arrive.",
    409: "The bank refuses the change; what was served is served still.",
    413: "The body is too long.",
    415: "The body is no plain JSON.",
    421: "This deployment has another name.",
    422: "The request is JSON, but not what is wanted; `param` says where.",
    429: "Too much of one key; `Retry-After` says when to ask again.",
    431: "The headers are too long.",
    500: "A fault of the server.",
    503: "No room, or the version cannot be served; `Retry-After` says when to ask again, where that may help.",
    504: "No answer in the time that was given.",
}
_MESSAGE = "got ...; wanted ...; what to do"
_OWN, _PROTOCOLS, _NOT_READY, _MODEL_NOT_READY = (
    {"$ref": f"#/components/schemas/{model.__name__}"}
    for model in (ErrorBody, InferenceFailure, Ready, ModelReady)
)


@dataclass(frozen=True, kw_only=True)
class _Operation:
    """What FastAPI cannot know of a route."""

    answer: Any
    """An answer, as an example."""
    request: Any = None
    """A request's body, as an example."""
    failures: tuple[int, ...] = ()
    """Statuses of its own failures."""
    content: str = "application/json"
    """Media type of the answer."""


_EVENT = {
    "type": "object",
    "description": "One event of the stream; the last one says `[DONE]`.",
    "properties": {
        "data": {
            "type": "string",
            "description": "A `Completion` as JSON, whose choice has a piece of the text.",
        },
        "event": {"type": "string", "const": "message"},
    },
    "required": ["data"],
}
_ATTENTION = {"mnli": 0.41, "sst2": 0.07, "target": 0.52}
_ROW = {"task": "rte", "fields": {"sentence1": "A dog runs.", "sentence2": "An animal moves."}}
_ANSWER = {
    "task": "rte",
    "prompt": "target/rte@v3",
    "version": 3,
    "role": "champion",
    "answer": "0",
    "label": "entailment",
    "probabilities": {"entailment": 0.93, "not_entailment": 0.07},
    "attention": _ATTENTION,
    "truncated": False,
    "input_tokens": 15,
    "output_tokens": 2,
    "finished": True,
}
_TASK = {
    "task": "rte",
    "kind": "classification",
    "fields": ["sentence1", "sentence2"],
    "labels": ["entailment", "not_entailment"],
    "prompt": "target/rte@v3",
    "versions": [1, 2, 3, 4],
    "aliases": {"champion": 3, "candidate": 4},
    "canary": None,
    "sources": ["mnli", "sst2", "target"],
    "example": {**_ROW, "prompt": None, "text": None, "max_new_tokens": None},
    "problems": [],
}
_CANARY = {"version": 4, "percent": 10.0, "max_error_rate": 0.05, "min_rows": 20}
_CHANGED = {"prompt": "target/rte@v4", "canary": None}
_STATUS = {
    "ready": True,
    "replicas": [
        {
            "replica": "engine-1",
            "healthy": True,
            "ready": True,
            "backbone": "nano",
            "bank": "bank",
            "bank_revision": 7,
            "bank_state": "5d41402abc4b",
            "bank_age_seconds": 0.2,
            "loaded_prompts": 12,
            "loaded_bytes": 614400,
            "queued_rows": 0,
            "queued_tokens": 0,
            "running_rows": 0,
            "oldest_batch_seconds": 0.0,
            "problems": [],
        }
    ],
}
_MODEL = {
    "id": "rte@v3",
    "object": "model",
    "created": 0,
    "owned_by": "attempt-ray",
    "metadata": {"task": "rte", "prompt": "target/rte@v3"},
}
_TEXT = "rte sentence1: A dog runs. sentence2: An animal moves."
_COMPLETION = {
    "id": "cmpl-5f1c",
    "object": "text_completion",
    "created": 1_790_000_000,
    "model": "rte",
    "choices": [
        {
            "text": "0",
            "index": 0,
            "logprobs": None,
            "finish_reason": "stop",
            "attempt": {
                "prompt": "target/rte@v3",
                "version": 3,
                "role": "champion",
                "label": "entailment",
                "probabilities": {"entailment": 0.93, "not_entailment": 0.07},
                "attention": None,
                "truncated": False,
            },
        }
    ],
    "usage": {"prompt_tokens": 15, "completion_tokens": 2, "total_tokens": 17},
}
_METADATA = {
    "name": "rte",
    "versions": ["1", "2", "3", "4"],
    "platform": "attempt-ray",
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [
        {"name": "answer", "datatype": "BYTES", "shape": [-1]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "prompt", "datatype": "BYTES", "shape": [-1]},
        {"name": "attention", "datatype": "FP32", "shape": [-1, -1]},
    ],
    "parameters": {
        "prompt": "target/rte@v3",
        "fields": ["sentence1", "sentence2"],
        "labels": ["entailment", "not_entailment"],
    },
}
_INFER = {
    "id": "7",
    "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [_TEXT]}],
    "outputs": [{"name": "label"}, {"name": "probabilities"}],
}
_INFERRED = {
    "model_name": "rte",
    "model_version": "3",
    "id": "7",
    "outputs": [
        {"name": "label", "shape": [1], "datatype": "BYTES", "data": ["entailment"]},
        {
            "name": "probabilities",
            "shape": [1, 2],
            "datatype": "FP32",
            "parameters": {"labels": '["entailment", "not_entailment"]'},
            "data": [0.93, 0.07],
        },
    ],
}
_METADATA_OF = _Operation(answer=_METADATA, failures=(404, 504))
_READY_OF = _Operation(answer={"ready": True, "name": "rte"}, failures=(404, 504))
_INFER_OF = _Operation(request=_INFER, answer=_INFERRED, failures=(404, 504))

_OPERATIONS: Mapping[str, _Operation] = {
    "playground": _Operation(answer=None, failures=(404,), content="text/html"),
    "static": _Operation(answer=None, failures=(404,), content="*/*"),
    "openapi": _Operation(answer={"openapi": "3.1.0"}),
    "metrics": _Operation(
        answer='attempt_engine_replicas{ingress="0"} 1.0\n', failures=(504,), content="text/plain"
    ),
    "predict": _Operation(
        request={"rows": [_ROW], "attention": True},
        answer={"id": "5f1c", "rows": [_ANSWER]},
        failures=(404, 422, 504),
    ),
    "list_tasks": _Operation(answer={"tasks": [_TASK]}, failures=(504,)),
    "get_task": _Operation(answer=_TASK, failures=(404, 504)),
    "promote": _Operation(request={"version": 4}, answer=_CHANGED, failures=(404, 409, 422, 504)),
    "roll_back": _Operation(answer=_CHANGED, failures=(404, 409, 422, 504)),
    "start_canary": _Operation(
        request=_CANARY,
        answer={"prompt": "target/rte@v3", "canary": {**_CANARY, "state": "running", "reason": None}},
        failures=(404, 409, 422, 504),
    ),
    "stop_canary": _Operation(answer=_CHANGED, failures=(404, 409, 422, 504)),
    "status": _Operation(answer=_STATUS, failures=(504,)),
    "list_models": _Operation(answer={"object": "list", "data": [_MODEL]}, failures=(504,)),
    "get_model": _Operation(answer=_MODEL, failures=(404, 504)),
    "create_completion": _Operation(
        request={"model": "rte", "prompt": _TEXT}, answer=_COMPLETION, failures=(404, 504)
    ),
    "server_metadata": _Operation(answer={"name": "attempt-ray", "version": "0.1.0", "extensions": []}),
    "server_live": _Operation(answer={"live": True}),
    "server_ready": _Operation(answer={"ready": True}),
    "model_metadata": _METADATA_OF,
    "model_version_metadata": _METADATA_OF,
    "model_ready": _READY_OF,
    "model_version_ready": _READY_OF,
    "model_infer": _INFER_OF,
    "model_version_infer": _INFER_OF,
}
"""By the operation's id."""


def description(app: FastAPI, config: HttpConfig) -> bytes:
    """Return the OpenAPI page of an application, as JSON."""
    tags = [{"name": name, "description": about} for name, about in _TAGS.items()]
    page = get_openapi(
        title=TITLE,
        version=app.version,
        description=_ABOUT,
        routes=app.routes,
        tags=tags,
        separate_input_output_schemas=False,
    )
    schemas = page["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    _, found = models_json_schema(
        [(ErrorBody, "serialization"), (InferenceFailure, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    schemas |= found["$defs"]
    refusals: dict[str, Any] = {}
    page["components"]["responses"] = refusals
    keyed: list[dict[str, list[str]]] = [{"key": []}]
    page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in page["paths"].items():
        for method, operation in methods.items():
            role = ROUTES[path][method.upper()]
            operation["security"] = [] if role == "public" else keyed if config.keys else [*keyed, {}]
            operation["summary"] = operation["description"].partition(".")[0]
            if role != "public":
                operation["description"] += f" Role: `{role}`."
            _complete(operation, path, refusals, public=role == "public")
    return json.dumps(page).encode()


def _complete(operation: dict[str, Any], path: str, refusals: dict[str, Any], *, public: bool) -> None:
    """Add examples and failures to an operation; what the latter are goes to `refusals`, by their names."""
    known = _OPERATIONS[operation["operationId"]]
    if known.request is not None:
        operation["requestBody"]["content"]["application/json"]["example"] = known.request
    for parameter in operation.get("parameters", ()):
        parameter["schema"].setdefault("pattern", NAMES[parameter["name"]])
    responses = operation["responses"]
    responses.pop("422", None)
    content = responses["200"].setdefault("content", {})
    if known.content != "application/json":
        content = responses["200"]["content"] = {known.content: {"schema": {"type": "string"}}}
    if known.answer is not None:
        content[known.content]["example"] = known.answer
    if operation["operationId"] == "create_completion":
        content["text/event-stream"] = {"schema": _EVENT}
    if operation["operationId"] in ("playground", "static", "openapi"):
        responses["304"] = {"description": "The browser has it already."}
    statuses = {*_ANY, *known.failures, *(() if public else _KEYED)}
    if "requestBody" in operation:
        statuses |= {*_WITH_BODY}
    for status in sorted(statuses):
        name, refusal = _refusal(status, path)
        refusals[name] = refusal
        responses[str(status)] = {"$ref": f"#/components/responses/{name}"}


def _refusal(status: int, path: str) -> tuple[str, dict[str, Any]]:
    """Return name and form of a failure."""
    if not path.startswith("/v2"):
        return f"Error{status}", _failure(status, _OWN)
    if status == 400 and path.endswith("/ready"):
        found = _failure(status, _PROTOCOLS, _NOT_READY, _MODEL_NOT_READY)
        found["description"] += " Or it is not ready."
        return "NotReady", found
    return f"InferenceError{status}", _failure(status, _PROTOCOLS)


def _failure(status: int, *schemas: Mapping[str, str]) -> dict[str, Any]:
    codes = [code for code, (its, _) in PROBLEMS.items() if its == status]
    detail = ErrorDetail(message=_MESSAGE, type=PROBLEMS[codes[0]][1], param=None, code=codes[0])
    example: BaseModel = ErrorBody(error=detail)
    if schemas[0] is _PROTOCOLS:
        example = InferenceFailure(error=_MESSAGE, code=codes[0])
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
    failure: dict[str, Any] = {
        "description": f"{_MEANING[status]} `code`: {', '.join(f'`{code}`' for code in codes)}.",
        "content": {"application/json": {"schema": schema, "example": example.model_dump()}},
    }
    if status in (429, 503):
        about = {
            "description": "Whole seconds until it is worth asking again.",
            "schema": {"type": "integer"},
        }
        failure["headers"] = {"Retry-After": about}
    return failure
