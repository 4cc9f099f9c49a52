"""The HTTP side: an ASGI application of every route in `access.ROUTES`, in front of a gateway.

It stands behind the guard, which knows callers, roles and limits of bytes; what needs a parsed request is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, FastAPI, Path, Request, Response
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from attempt_ray import __version__
from attempt_ray.config import HttpConfig
from serve_app import inference_protocol, openai
from serve_app.exposition import MEDIA_TYPE, exposition
from serve_app.failures import RequestError, Route, request_error
from serve_app.front import Front, answer, request_id, server_timing
from serve_app.gateway import Change, Gateway
from serve_app.openapi import TITLE, description
from serve_app.pages import Page, page
from serve_app.problems import problem
from serve_app.schema import (
    CanaryIn,
    Changed,
    PredictRequest,
    PredictResponse,
    PromoteIn,
    Status,
    TaskInfo,
    TaskList,
)

_NOTHING = PromoteIn()
TaskPath = Annotated[
    str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="Name of the task, without version.")
]


def make_app(
    gateway: Gateway,
    *,
    config: HttpConfig,
    pages: Mapping[str, Page],
    registries: Sequence[CollectorRegistry] = (),
    ingress: str = "0",
) -> FastAPI:
    """Return the application.

    Args:
        gateway: The engines.
        config: What is taken from callers.
        pages: Files of the playground by name; `index.html` is the page at `/`.
        registries: Metrics of this process.
        ingress: Its name in their label.
    """
    front = Front(gateway, config)
    app = FastAPI(
        title=TITLE,
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(HTTPException, _refuse)
    app.include_router(_own_routes(front))
    app.include_router(openai.routes(front))
    app.include_router(inference_protocol.routes(front))
    app.include_router(_pages(pages))
    router = APIRouter(route_class=Route, tags=["operations"])

    @router.get("/metrics", operation_id="metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """Metrics of all engine replicas and of this process, as Prometheus reads them."""
        found = await front.metrics(request)
        return Response(exposition(found, registries, ingress=ingress), media_type=MEDIA_TYPE)

    @router.get("/openapi.json", operation_id="openapi")
    async def openapi(request: Request) -> Response:
        """This description, for programs."""
        return described.response(request)

    app.include_router(router)
    described = page(description(app, config), media_type="application/json")
    return app


def _own_routes(front: Front) -> APIRouter:
    router = APIRouter(route_class=Route)

    @router.post("/v1/predict", operation_id="predict", response_model=PredictResponse, tags=["predict"])
    async def predict(body: PredictRequest, request: Request) -> Response:
        """Answer rows of one or several tasks, all from one state of the bank."""
        reply = await front.predict(
            request, body.rows, attention=body.attention, timeout_seconds=body.timeout_seconds
        )
        found = PredictResponse(id=request_id(request), rows=list(reply.rows))
        return answer(found, headers=server_timing(reply))

    @router.get("/v1/tasks", operation_id="list_tasks", response_model=TaskList, tags=["tasks"])
    async def list_tasks(request: Request) -> Response:
        """List the tasks that can be asked, by name."""
        return answer(TaskList(tasks=await front.tasks(request)))

    @router.get("/v1/tasks/{task}", operation_id="get_task", response_model=TaskInfo, tags=["tasks"])
    async def get_task(task: TaskPath, request: Request) -> Response:
        """Tell a task's fields, labels, versions and aliases, and a row that it understands."""
        found = next((one for one in await front.tasks(request) if one.task == task), None)
        if found is None:
            raise RequestError("unknown_task", f"got the task '{task}'; wanted one of those at /v1/tasks")
        return answer(found)

    @router.post(
        "/v1/tasks/{task}/promote", operation_id="promote", response_model=Changed, tags=["administration"]
    )
    async def promote(task: TaskPath, request: Request, body: PromoteIn = _NOTHING) -> Response:
        """Serve another version of a task's prompt: the one that is named, else the candidate, else the newest."""
        change = Change(action="promote", task=task, version=body.version, expected=body.expected)
        return answer(await front.change(request, change))

    @router.post(
        "/v1/tasks/{task}/rollback", operation_id="roll_back", response_model=Changed, tags=["administration"]
    )
    async def roll_back(task: TaskPath, request: Request) -> Response:
        """Serve what the task served before."""
        return answer(await front.change(request, Change(action="rollback", task=task)))

    @router.put(
        "/v1/tasks/{task}/canary",
        operation_id="start_canary",
        response_model=Changed,
        tags=["administration"],
    )
    async def start_canary(task: TaskPath, body: CanaryIn, request: Request) -> Response:
        """Let another version answer a share of a task's rows, until it is promoted, stopped, or fails too often."""
        return answer(await front.change(request, Change(action="start canary", task=task, canary=body)))

    @router.delete(
        "/v1/tasks/{task}/canary", operation_id="stop_canary", response_model=Changed, tags=["administration"]
    )
    async def stop_canary(task: TaskPath, request: Request) -> Response:
        """End a trial: what the task serves answers all its rows again."""
        return answer(await front.change(request, Change(action="stop canary", task=task)))

    @router.get("/v1/status", operation_id="status", response_model=Status, tags=["administration"])
    async def status(request: Request) -> Response:
        """Tell how every engine replica does."""
        found = await front.status(request)
        return answer(Status(ready=any(one.healthy for one in found), replicas=found))

    return router


def _pages(pages: Mapping[str, Page]) -> APIRouter:
    router = APIRouter(route_class=Route, tags=["playground"])

    @router.get("/", operation_id="playground", response_class=Response)
    async def playground(request: Request) -> Response:
        """The playground."""
        return find("index.html").response(request)

    @router.get("/static/{name}", operation_id="static", response_class=Response)
    async def static(name: str, request: Request) -> Response:
        """A file of the playground."""
        return find(name).response(request)

    def find(name: str) -> Page:
        if name not in pages:
            raise RequestError("not_found", "there is no such page")
        return pages[name]

    return router


def _refuse(_: Request, error: Exception) -> Response:
    found = request_error(error)
    return problem(found.code, found.message)
