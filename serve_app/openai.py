"""OpenAI's completions API: tasks, aliases and versions are models, and what cannot be done is refused by its name."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from serve_app.failures import RequestError, Route, request_error
from serve_app.front import EventStream, Front, answer, request_id, server_timing
from serve_app.problems import problem
from serve_app.schema import Input, Message, Role, RowIn, RowOut, TaskInfo

OWNER = "attempt-ray"


class _Only:
    """Annotation of a parameter of which some values are served, null among them."""

    def __init__(self, *served: Any, why: str) -> None:
        self._served, self._why = served, why

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, _: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [*self._served, None]}

    def _check(self, value: Any) -> Any:
        if value is None or value in self._served:
            return value
        raise ValueError(f"wanted {' or '.join(map(json.dumps, [*self._served, None]))}: {self._why}")


def _no_tokens(prompt: object) -> object:
    if isinstance(prompt, list) and any(isinstance(one, int | list) for one in prompt):
        raise ValueError("wanted a string or a list of strings; token ids are not taken")
    return prompt


class StreamOptions(Input):
    """What a stream tells besides the answer."""

    include_usage: bool | None = None
    """Whether a last event counts the tokens."""
    include_obfuscation: Annotated[bool | None, _Only(False, why="events are not padded")] = None
    """Served: false."""


class CompletionIn(Input):
    """A request for completions. Parameters that ask for what greedy answers do not have are refused."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    """`task`, `task@alias` or `task@v3`."""
    prompt: Annotated[str | Annotated[list[str], Field(min_length=1)], BeforeValidator(_no_tokens)]
    """The ready input text of a row, or of several."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Longest answer of an open task; the deployment's limit holds besides."""
    stream: bool | None = None
    """Whether the answer is wanted in pieces, as server-sent events; of one prompt."""
    stream_options: StreamOptions | None = None
    """What the stream tells besides."""
    attention: bool = False
    """Whether the mixing weights behind each answer are wanted. Not OpenAI's: give it in the client's `extra_body`."""
    timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """How long the answer is of use. Not OpenAI's."""
    temperature: Annotated[float | None, _Only(0, why="answers are greedy, and sampling is not done")] = None
    """Served: 0."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Greedy answers are the same for every value."""
    seed: int | None = None
    """Greedy answers are the same for every value."""
    user: str | None = None
    """Not used."""
    n: Annotated[int | None, _Only(1, why="greedy decoding has one answer")] = None
    """Served: 1."""
    best_of: Annotated[int | None, _Only(1, why="greedy decoding has one answer")] = None
    """Served: 1."""
    echo: Annotated[
        bool | None, _Only(False, why="an encoder-decoder's answer does not go on from its input")
    ] = None
    """Served: false."""
    suffix: Annotated[str | None, _Only("", why="text is not inserted")] = None
    """Served: the empty text."""
    logprobs: Annotated[
        int | None,
        _Only(
            why="none are kept of tokens; `attempt.probabilities` in each choice has those of a closed task's labels"
        ),
    ] = None
    """Not served."""
    logit_bias: Annotated[dict[str, float] | None, _Only({}, why="it is not done")] = None
    """Served: none."""
    stop: Annotated[str | list[str] | None, _Only([], why="answers end by themselves")] = None
    """Served: none."""
    presence_penalty: Annotated[float | None, _Only(0, why="it is not done")] = None
    """Served: 0."""
    frequency_penalty: Annotated[float | None, _Only(0, why="it is not done")] = None
    """Served: 0."""


class AttemptFacts(Message):
    """What is known of an answer and has no place in OpenAI's API."""

    prompt: str
    """The version that answered."""
    version: int
    """Its number."""
    role: Role
    """Why it was this version."""
    label: str | None
    """Label word of a closed task's answer; null where it is none, and for open tasks."""
    probabilities: dict[str, float] | None
    """Probability of each label word; null for open tasks."""
    attention: dict[str, float] | None
    """Mixing weights; null where nothing is mixed, or they were not asked for."""
    truncated: bool
    """Whether the input lost its end."""


class Choice(Message):
    """An answer."""

    text: str
    """The answer, or a piece of it."""
    index: int
    """Index of its prompt."""
    logprobs: None = None
    """Always null."""
    finish_reason: Literal["stop", "length"] | None
    """Whether the answer ended by itself or at the limit; null while it goes on."""
    attempt: AttemptFacts | None = None
    """More about the answer; null while it goes on."""


class Usage(Message):
    """Tokens of a request."""

    prompt_tokens: int
    """Tokens of the inputs that were read, soft prompts not counted."""
    completion_tokens: int
    """Tokens of the answers, their end tokens included."""
    total_tokens: int
    """Their sum."""


class Completion(Message):
    """Answers, or a piece of one."""

    id: str
    """`cmpl-` and the request's id."""
    object: Literal["text_completion"] = "text_completion"
    """What this is."""
    created: int
    """When, in seconds since 1970."""
    model: str
    """The model, as it was asked for."""
    choices: list[Choice]
    """One for each prompt, in order."""
    usage: Usage | None = None
    """Tokens; null in a stream before its end."""


class Model(Message):
    """A task, an alias of its prompt, or a version."""

    id: str
    """`task`, `task@alias` or `task@v3`."""
    object: Literal["model"] = "model"
    """What this is."""
    created: int = 0
    """Always 0: the bank's versions have no one time."""
    owned_by: str = OWNER
    """Always the same."""
    metadata: dict[str, str]
    """`task`, and `prompt`, the version that answers now."""


class ModelList(Message):
    """All models."""

    object: Literal["list"] = "list"
    """What this is."""
    data: list[Model]
    """By task."""


class OpenAIRoute(Route):
    """Failures as OpenAI's API tells them: 400 for whatever is wrong with a request."""

    def refuse(self, error: RequestError) -> Response:
        """Return the answer for a failure."""
        error = _in_terms(error)
        return problem(
            error.code,
            error.message,
            param=error.where,
            retry_after=error.retry_after_seconds,
            status=400 if error.status == 422 else None,
        )


@dataclass(frozen=True)
class _Answering:
    """A completion under way."""

    id: str
    created: int
    model: str
    usage: bool
    """Whether the stream ends with its tokens."""

    def chunk(self, *choices: Choice, usage: Usage | None = None) -> bytes:
        """Return an event of the stream."""
        return _event(
            self.completion(list(choices), usage=usage).model_dump_json(exclude=_unsaid(self.usage))
        )

    def completion(self, choices: list[Choice], *, usage: Usage | None) -> Completion:
        """Return the answer's body."""
        return Completion(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)


def routes(front: Front) -> APIRouter:
    """Return the routes of OpenAI's API."""
    router = APIRouter(route_class=OpenAIRoute, tags=["OpenAI"])

    @router.get("/v1/models", operation_id="list_models", response_model=ModelList)
    async def list_models(request: Request) -> Response:
        """List every task with its aliases and versions, as models."""
        return answer(
            ModelList(data=[model for task in await front.tasks(request) for model in _models(task)])
        )

    @router.get("/v1/models/{model}", operation_id="get_model", response_model=Model)
    async def get_model(model: str, request: Request) -> Response:
        """Tell which version a model is."""
        for task in await front.tasks(request):
            for one in _models(task):
                if one.id == model:
                    return answer(one)
        raise RequestError("model_not_found", "no such model; /v1/models lists them", where="model")

    @router.post("/v1/completions", operation_id="create_completion", response_model=Completion)
    async def create_completion(body: CompletionIn, request: Request) -> Response:
        """Answer one or several ready texts of one task."""
        rows = _rows(body)
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        answering = _Answering(f"cmpl-{request_id(request)}", int(time.time()), body.model, usage)
        if body.stream:
            if len(rows) > 1:
                raise RequestError("invalid_request", f"got {len(rows)} prompts; wanted one", where="stream")
            events = await front.stream(
                request, rows[0], attention=body.attention, timeout_seconds=body.timeout_seconds
            )
            return EventStream(_stream(answering, events))
        if body.stream_options is not None:
            raise RequestError("invalid_request", "wanted none without stream", where="stream_options")
        reply = await front.predict(
            request, rows, attention=body.attention, timeout_seconds=body.timeout_seconds
        )
        choices = [_choice(row, row.answer, index=index) for index, row in enumerate(reply.rows)]
        found = answering.completion(choices, usage=_usage(*reply.rows))
        return answer(found, headers=server_timing(reply))

    return router


def _rows(body: CompletionIn) -> list[RowIn]:
    """Return the rows of a request.

    Raises:
        RequestError: No task can have the model's name.
    """
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    try:
        return [RowIn(task=body.model, text=text, max_new_tokens=body.max_tokens) for text in texts]
    except ValueError:
        raise RequestError("model_not_found", "no such model; /v1/models lists them", where="model") from None


def _models(task: TaskInfo) -> Iterator[Model]:
    served = task.prompt.partition("@")[0]
    names = {task.task: task.prompt}
    names |= {f"{task.task}@{alias}": f"{served}@v{number}" for alias, number in sorted(task.aliases.items())}
    names |= {f"{task.task}@v{number}": f"{served}@v{number}" for number in task.versions}
    for name, prompt in names.items():
        yield Model(id=name, metadata={"task": task.task, "prompt": prompt})


async def _stream(
    answering: _Answering, events: AsyncGenerator[str | RowOut, None]
) -> AsyncGenerator[bytes, None]:
    """Yield the events of an answer; a failure is the last of them."""
    told = ""
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, str):
                    told += event
                    yield answering.chunk(Choice(text=event, index=0, finish_reason=None))
                    continue
                yield answering.chunk(_choice(event, event.answer[len(told) :], index=0))
                if answering.usage:
                    yield answering.chunk(usage=_usage(event))
        yield b"data: [DONE]\n\n"
    except Exception as error:  # noqa: BLE001 - the status has been sent; the failure is told in the stream
        found = _in_terms(request_error(error))
        yield _event(bytes(problem(found.code, found.message, param=found.where).body).decode())


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def _unsaid(usage: bool) -> set[str]:
    return set() if usage else {"usage"}


def _choice(row: RowOut, text: str, *, index: int) -> Choice:
    facts = AttemptFacts(**row.model_dump(include=set(AttemptFacts.model_fields)))
    return Choice(text=text, index=index, finish_reason="stop" if row.finished else "length", attempt=facts)


def _usage(*rows: RowOut) -> Usage:
    read, written = sum(row.input_tokens for row in rows), sum(row.output_tokens for row in rows)
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def _in_terms(error: RequestError) -> RequestError:
    """Return an error in the words of this API, which has prompts in place of rows and models in place of tasks."""
    code, where = error.code, error.where
    if code == "unknown_task":
        code, where = "model_not_found", "model"
    elif where is not None:
        where = re.sub(r"^rows(\.\d+)?\b.*", r"prompt\1", where)
    return RequestError(code, error.reason, where=where, retry_after_seconds=error.retry_after_seconds)
