"""The Open Inference Protocol, version 2, over HTTP with JSON tensors, as KServe and Triton's clients speak it.

Tensors are texts and figures of answers; none that a caller sends reaches the model. Failures are told as the protocol has
it, `{"error": "..."}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, ValidationError

from attempt_ray import __version__
from attempt_ray.errors import unknown_name
from serve_app.failures import RequestError, Route, shown
from serve_app.front import Front, answer, server_timing
from serve_app.problems import problem, told_under
from serve_app.schema import Input, Message, RowIn, RowOut, TaskInfo

PLATFORM = "attempt-ray"
OUTPUTS = ("answer", "label", "probabilities", "prompt", "attention")
"""Every output; those that apply to the task, `attention` apart, are told unless others are named."""
_BINARY = frozenset({"binary_data", "binary_data_output"})
"""Requests for tensors beside the JSON, which are answered in it."""

Parameters = dict[str, str | int | float | bool]


class InferInput(Input):
    """Texts, one for each row."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """`text`, the ready input; or a field of the task."""
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=2)]
    """[n] or [n, 1]."""
    datatype: Annotated[str, Field(json_schema_extra={"enum": ["BYTES"]})]
    """BYTES."""
    parameters: Parameters = Field(default_factory=dict)
    """None are known."""
    data: Annotated[list[str | list[str]], Field(min_length=1)]
    """The texts, flat or in the shape."""


class InferRequestedOutput(Input):
    """An output that is wanted."""

    name: Annotated[str, Field(json_schema_extra={"enum": [*OUTPUTS]})]
    """Its name."""
    parameters: Parameters = Field(default_factory=dict)
    """`binary_data` is not done: data are told as JSON."""


class InferRequest(Input):
    """Rows of one task."""

    id: Annotated[str, Field(max_length=200)] | None = None
    """Comes back in the answer."""
    parameters: Parameters = Field(default_factory=dict)
    """`timeout`: how long the answer is of use, in microseconds; `max_new_tokens`: longest answer of an open task."""
    inputs: Annotated[list[InferInput], Field(min_length=1)]
    """`text`, or each field of the task."""
    outputs: list[InferRequestedOutput] = Field(default_factory=list)
    """What is wanted; nothing named is everything but `attention`."""


class InferOutput(Message):
    """A tensor, its data flat."""

    name: str
    """One of the outputs."""
    shape: list[int]
    """n rows, then labels or candidates."""
    datatype: Literal["BYTES", "FP32"]
    """BYTES for texts."""
    parameters: Parameters | None = None
    """`labels` of the probabilities, `candidates` of the attention: what the columns stand for, as a JSON list."""
    data: list[str] | list[float]
    """Row by row. A label is empty where the answer is none."""


class InferResponse(Message):
    """Answers."""

    model_name: str
    """As it was asked for."""
    model_version: str | None = None
    """Number of the version, where one answered all rows; `prompt` has it for each."""
    id: str | None = None
    """As in the request."""
    outputs: list[InferOutput]
    """The tensors."""


class TensorMetadata(Message):
    """What a tensor is like."""

    name: str
    """Its name."""
    datatype: Literal["BYTES", "FP32"]
    """Of its elements."""
    shape: list[int]
    """Its sizes; -1 is any."""


class ModelMetadata(Message):
    """What a task takes and tells."""

    name: str
    """As it was asked for."""
    versions: list[str]
    """Numbers of all versions."""
    platform: str = PLATFORM
    """Always the same."""
    inputs: list[TensorMetadata]
    """What has to be sent."""
    outputs: list[TensorMetadata]
    """What can be asked for."""
    parameters: dict[str, str | list[str]]
    """`prompt`, the version; `fields`, inputs that may be sent in place of `text`; `labels`."""


class ServerMetadata(Message):
    """What answers here."""

    name: str = PLATFORM
    """The program."""
    version: str = __version__
    """Its version."""
    extensions: list[str] = Field(default_factory=list)
    """None."""


class Live(Message):
    """Whether this process answers."""

    live: bool
    """True."""


class Ready(Message):
    """Whether rows can be answered."""

    ready: bool
    """Status 400 goes with false, as the protocol has it."""


class ModelReady(Ready):
    """Whether rows of a task can be answered."""

    name: str
    """As it was asked for."""


class InferenceFailure(Message):
    """A failure, as the protocol tells it."""

    error: str
    """Got; wanted; what to do."""
    code: str
    """Name of the error for programs."""


class InferenceRoute(Route):
    """Failures as the protocol tells them."""

    def refuse(self, error: RequestError) -> Response:
        """Return the answer for a failure."""
        status = 400 if error.status == 422 else None
        found = problem(error.code, error.message, retry_after=error.retry_after_seconds, status=status)
        return told_under("/v2", found)


def routes(front: Front) -> APIRouter:
    """Return the protocol's routes."""
    router = APIRouter(route_class=InferenceRoute, tags=["Open Inference Protocol"])

    @router.get("/v2", operation_id="server_metadata", response_model=ServerMetadata)
    async def server_metadata() -> Response:
        """Tell what answers here."""
        return answer(ServerMetadata())

    @router.get("/v2/health/live", operation_id="server_live", response_model=Live)
    async def server_live() -> Response:
        """Tell whether this process answers."""
        return answer(Live(live=True))

    @router.get("/v2/health/ready", operation_id="server_ready", response_model=Ready)
    async def server_ready() -> Response:
        """Tell whether an engine answers, as of at most a second ago."""
        return _readiness(Ready(ready=await front.ready()))

    _add_models(router, front)
    return router


def _add_models(router: APIRouter, front: Front) -> None:
    @router.get("/v2/models/{model}", operation_id="model_metadata", response_model=ModelMetadata)
    async def model_metadata(model: str, request: Request) -> Response:
        """Tell what a task takes and tells."""
        return await metadata(request, model)

    @router.get(
        "/v2/models/{model}/versions/{version}",
        operation_id="model_version_metadata",
        response_model=ModelMetadata,
    )
    async def model_version_metadata(model: str, version: str, request: Request) -> Response:
        """Tell the same of a version of its prompt."""
        return await metadata(request, model, version)

    @router.get("/v2/models/{model}/ready", operation_id="model_ready", response_model=ModelReady)
    async def model_ready(model: str, request: Request) -> Response:
        """Tell whether a task's rows can be answered."""
        return await readiness(request, model)

    @router.get(
        "/v2/models/{model}/versions/{version}/ready",
        operation_id="model_version_ready",
        response_model=ModelReady,
    )
    async def model_version_ready(model: str, version: str, request: Request) -> Response:
        """Tell the same of a version of its prompt."""
        return await readiness(request, model, version)

    @router.post("/v2/models/{model}/infer", operation_id="model_infer", response_model=InferResponse)
    async def model_infer(model: str, body: InferRequest, request: Request) -> Response:
        """Answer rows of a task."""
        return await infer(request, body, model)

    @router.post(
        "/v2/models/{model}/versions/{version}/infer",
        operation_id="model_version_infer",
        response_model=InferResponse,
    )
    async def model_version_infer(model: str, version: str, body: InferRequest, request: Request) -> Response:
        """Answer rows of a task with a version of its prompt."""
        return await infer(request, body, model, version)

    async def metadata(request: Request, model: str, version: str | None = None) -> Response:
        return answer(_metadata(model, *_find(await front.tasks(request), _reference(model, version))))

    async def readiness(request: Request, model: str, version: str | None = None) -> Response:
        task, prompt = _find(await front.tasks(request), _reference(model, version))
        return _readiness(ModelReady(name=model, ready=prompt not in {one.prompt for one in task.problems}))

    async def infer(request: Request, body: InferRequest, model: str, version: str | None = None) -> Response:
        reference = _reference(model, version)
        wanted = _wanted(body.outputs)
        timeout_seconds, max_new_tokens = _parameters(body.parameters)
        columns = _columns(body.inputs)
        ready = list(columns) == ["text"] and not await reads_text(request, reference)
        reply = await front.predict(
            request,
            _rows(reference, columns, ready=ready, max_new_tokens=max_new_tokens),
            attention="attention" in wanted,
            timeout_seconds=timeout_seconds,
        )
        versions = {row.version for row in reply.rows}
        found = InferResponse(
            model_name=model,
            model_version=str(versions.pop()) if len(versions) == 1 else None,
            id=body.id,
            outputs=_outputs(reply.rows, wanted),
        )
        return Response(
            found.model_dump_json(exclude_none=True),
            media_type="application/json",
            headers=server_timing(reply),
        )

    async def reads_text(request: Request, reference: str) -> bool:
        """Whether the task has a field of the name that the ready text has here."""
        task = reference.partition("@")[0]
        return any("text" in one.fields for one in await front.recent_tasks(request) if one.task == task)


def _reference(model: str, version: str | None) -> str:
    """Return `task`, `task@alias` or `task@v3`.

    Raises:
        RequestError: No version can have the name.
    """
    if version is None:
        return model
    if "@" in model or re.fullmatch(r"[1-9][0-9]{0,8}", version) is None:
        raise RequestError("unknown_task", f"there is no version {shown(version)} of {shown(model)}")
    return f"{model}@v{version}"


def _find(tasks: Sequence[TaskInfo], reference: str) -> tuple[TaskInfo, str]:
    """Return a task and the version of its prompt that a reference means.

    Raises:
        RequestError: There is none.
    """
    name, _, suffix = reference.partition("@")
    for task in tasks:
        if task.task == name:
            numbers = {f"v{number}": number for number in task.versions} | dict(task.aliases)
            if reference == name:
                return task, task.prompt
            if suffix in numbers:
                return task, f"{task.prompt.partition('@')[0]}@v{numbers[suffix]}"
    raise RequestError("unknown_task", f"there is no {shown(reference)}; /v1/models lists what there is")


def _metadata(model: str, task: TaskInfo, prompt: str) -> ModelMetadata:
    outputs: list[tuple[str, Literal["BYTES", "FP32"], list[int]]] = [("answer", "BYTES", [-1])]
    if task.labels:
        outputs += [("label", "BYTES", [-1]), ("probabilities", "FP32", [-1, len(task.labels)])]
    outputs += [("prompt", "BYTES", [-1]), ("attention", "FP32", [-1, -1])]
    inputs = task.fields if "text" in task.fields else ["text"]
    return ModelMetadata(
        name=model,
        versions=[str(number) for number in task.versions],
        inputs=[TensorMetadata(name=name, datatype="BYTES", shape=[-1]) for name in inputs],
        outputs=[TensorMetadata(name=name, datatype=kind, shape=shape) for name, kind, shape in outputs],
        parameters={"prompt": prompt, "fields": task.fields, "labels": task.labels},
    )


def _readiness(found: Ready) -> Response:
    response = answer(found)
    response.status_code = 200 if found.ready else 400
    return response


def _wanted(outputs: Sequence[InferRequestedOutput]) -> list[str]:
    """Return the names of the outputs that are asked for.

    Raises:
        RequestError: There is no such output, or it is wanted in a form that is not done.
    """
    for index, one in enumerate(outputs):
        if one.name not in OUTPUTS:
            raise RequestError(
                "invalid_request", unknown_name("output", one.name, OUTPUTS), where=f"outputs.{index}.name"
            )
        _known(one.parameters, _BINARY, where=f"outputs.{index}.parameters")
    return list(dict.fromkeys(one.name for one in outputs))


def _parameters(parameters: Parameters) -> tuple[float | None, int | None]:
    """Return how long the answer is of use, in seconds, and the longest answer in tokens.

    Raises:
        RequestError: A parameter is not known or not usable.
    """
    _known(parameters, {"timeout", "max_new_tokens", *_BINARY}, where="parameters")
    for name, most in (("timeout", 10**12), ("max_new_tokens", 4096)):
        value = parameters.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise RequestError(
                "invalid_request",
                f"got {shown(value)}; wanted a whole number from 1 to {most:,}",
                where=f"parameters.{name}",
            )
    timeout, longest = parameters.get("timeout"), parameters.get("max_new_tokens")
    return None if timeout is None else float(timeout) / 1e6, None if longest is None else int(longest)


def _known(parameters: Parameters, known: Collection[str], *, where: str) -> None:
    for name in parameters:
        if name not in known:
            raise RequestError("invalid_request", unknown_name("parameter", name, known), where=where)


def _columns(inputs: Sequence[InferInput]) -> dict[str, list[str]]:
    """Return the texts of each input.

    Raises:
        RequestError: They are no texts, not in their shape, or not as many in all inputs.
    """
    columns: dict[str, list[str]] = {}
    for index, one in enumerate(inputs):
        where = f"inputs.{index}"
        _known(one.parameters, (), where=f"{where}.parameters")
        if one.datatype != "BYTES":
            raise RequestError(
                "invalid_request",
                f"got {shown(one.datatype)}; wanted BYTES: texts are taken, and no figures",
                where=f"{where}.datatype",
            )
        texts = [text for item in one.data for text in ([item] if isinstance(item, str) else item)]
        if [len(texts), 1][: len(one.shape)] != one.shape:
            raise RequestError(
                "invalid_request",
                f"got the shape {one.shape} and {len(texts):,} texts; wanted [n] or [n, 1] and n texts",
                where=where,
            )
        if one.name in columns:
            raise RequestError("invalid_request", f"got {shown(one.name)} twice", where=f"{where}.name")
        columns[one.name] = texts
    if len({len(texts) for texts in columns.values()}) > 1:
        raise RequestError("invalid_request", "got inputs of several lengths; wanted one", where="inputs")
    return columns


def _rows(
    reference: str, columns: Mapping[str, Sequence[str]], *, ready: bool, max_new_tokens: int | None
) -> list[RowIn]:
    """Return the rows of a request: their ready text, or their fields.

    Raises:
        RequestError: No task can have the name.
    """
    try:
        return [
            RowIn(task=reference, text=texts[0], max_new_tokens=max_new_tokens)
            if ready
            else RowIn(
                task=reference, fields=dict(zip(columns, texts, strict=True)), max_new_tokens=max_new_tokens
            )
            for texts in zip(*columns.values(), strict=True)
        ]
    except ValidationError:
        raise RequestError(
            "unknown_task", f"there is no {shown(reference)}; /v1/models lists what there is"
        ) from None


def _outputs(rows: Sequence[RowOut], wanted: Sequence[str]) -> list[InferOutput]:
    """Return the tensors that are wanted of some answers.

    Raises:
        RequestError: The task has no such output.
    """
    closed = all(row.probabilities is not None for row in rows)
    usual = ["answer", "label", "probabilities", "prompt"] if closed else ["answer", "prompt"]
    found: list[InferOutput] = []
    for name in wanted or usual:
        if name in ("probabilities", "attention"):
            found.append(_figures(name, [getattr(row, name) or {} for row in rows]))
        elif name == "label" and not closed:
            raise _no_output(name)
        else:
            texts = [getattr(row, name) or "" for row in rows]
            found.append(InferOutput(name=name, shape=[len(rows)], datatype="BYTES", data=texts))
    return found


def _figures(name: str, rows: Sequence[Mapping[str, float]]) -> InferOutput:
    """Return a tensor of named figures. Rows of several versions may have several candidates; what one lacks weighs 0."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        raise _no_output(name)
    return InferOutput(
        name=name,
        shape=[len(rows), len(columns)],
        datatype="FP32",
        parameters={"labels" if name == "probabilities" else "candidates": json.dumps(columns)},
        data=[row.get(column, 0.0) for row in rows for column in columns],
    )


def _no_output(name: str) -> RequestError:
    why = "its prompt mixes nothing" if name == "attention" else "it is no closed task"
    return RequestError(
        "invalid_request", f"the task has no '{name}': {why}; ask without it", where="outputs"
    )
