"""What goes over the wire of our own API: requests and answers of `/v1/predict`, `/v1/tasks` and the admin routes.

These models are the contract that the OpenAPI page, the client and the playground are made from; nothing here imports
torch or Ray.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

TASK_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}(@(v[0-9]{1,9}|[a-z0-9][a-z0-9._-]{0,63}))?$"
PROMPT_PATTERN = r"^(source|target)/[a-z0-9][a-z0-9._-]{0,63}(@(v[0-9]{1,9}|[a-z0-9][a-z0-9._-]{0,63}))?$"

TaskName = Annotated[str, StringConstraints(pattern=TASK_PATTERN, max_length=130)]
"""`rte` (what the task serves now), `rte@candidate` (an alias) or `rte@v3` (a version)."""
PromptName = Annotated[str, StringConstraints(pattern=PROMPT_PATTERN, max_length=140)]
"""`target/rte`, `target/rte@candidate` or `target/rte@v3`: a prompt of the bank by its own name."""
Role = Literal["champion", "canary", "alias", "pinned"]
"""Why a version answered: it is what the task serves, it is on trial, an alias named it, or its number did."""


class Message(BaseModel):
    """A part of a request or an answer that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Input(Message):
    """A part of a request: numbers are numbers, and no text that looks like one is taken for it."""

    model_config = ConfigDict(strict=True)


class RowIn(Input):
    """A row to answer."""

    task: TaskName
    """Task whose template, label words and limits apply; after `@` an alias or version of its prompt."""
    prompt: PromptName | None = None
    """A prompt by its own name in the bank, in place of the task's."""
    fields: dict[str, str | int | float | bool | list[str]] | None = None
    """Columns that the task's template reads, as `GET /v1/tasks/{task}` lists them."""
    text: str | None = None
    """The input as it is, in place of `fields`."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Longest answer of an open task, in tokens; the deployment's limit holds besides."""

    @model_validator(mode="after")
    def _one_input(self) -> RowIn:
        if (self.fields is None) == (self.text is None):
            got = "neither" if self.fields is None else "both"
            raise ValueError(f"got {got} of fields and text; give one of them")
        if self.prompt is not None and "@" in self.task:
            raise ValueError(
                "got a prompt and a version after the task's name; give the version in one place"
            )
        return self


class PredictRequest(Input):
    """Rows of one or several tasks, answered together from one state of the bank."""

    rows: Annotated[list[RowIn], Field(min_length=1)]
    """The rows; the deployment limits how many."""
    attention: bool = False
    """Whether the mixing weights behind each answer are wanted."""
    timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """How long the answer is of use; later, the request is given up."""


class RowOut(Message):
    """An answer."""

    task: str
    """The row's task, without version."""
    prompt: str
    """The version that answered: `target/rte@v3`."""
    version: int
    """Its number."""
    role: Role
    """Why it was this version."""
    answer: str
    """The answer, as the language model wrote it."""
    label: str | None = None
    """Label word of a closed task's answer; null where it is none, and for open tasks."""
    probabilities: dict[str, float] | None = None
    """Probability of each label word, summing to 1; null for open tasks."""
    attention: dict[str, float] | None = None
    """Mixing weight of each source prompt and of `target`; null where nothing is mixed, or it was not asked for."""
    truncated: bool
    """Whether the input was longer than the task's limit and lost its end."""
    input_tokens: int
    """Tokens of the input that were read, the prompt not counted."""
    output_tokens: int
    """Tokens of the answer, its end token included."""
    finished: bool = True
    """Whether the answer came to its end; false where the limit of tokens cut it off."""


class PredictResponse(Message):
    """Answers, in the order of the rows: all of them, or the request failed as a whole."""

    id: str
    """The request's id, as in the header `X-Request-Id`."""
    rows: list[RowOut]
    """One answer for each row."""


class CanaryIn(Input):
    """A version put on trial beside what a task serves."""

    version: Annotated[int, Field(ge=1, le=999_999_999)]
    """Number of the version."""
    percent: Annotated[float, Field(gt=0, le=100)] = 10.0
    """Share of the task's rows that it answers."""
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of its rows that may fail; above it, the trial ends and the champion answers everything again."""
    min_rows: Annotated[int, Field(ge=1)] = 20
    """Rows it has answered before its errors are judged."""


class Canary(CanaryIn):
    """A trial under way or over."""

    state: Literal["running", "rolled back", "promoted", "stopped"]
    """Where it stands."""
    reason: str | None = None
    """Why it was rolled back."""


class Problem(Message):
    """A version that a replica refuses to serve."""

    prompt: str
    """The version."""
    reason: str
    """What is wrong with it."""
    replica: str
    """Who says so."""


class TaskInfo(Message):
    """A task that can be asked."""

    task: str
    """Its name."""
    kind: str
    """What its answer is: a class, a number, or text."""
    fields: list[str]
    """Columns that its template reads."""
    labels: list[str]
    """Its label words; empty for open tasks."""
    prompt: str
    """The version it serves: `target/rte@v3`."""
    versions: list[int]
    """Numbers of all its versions."""
    aliases: dict[str, int]
    """Version of each alias."""
    canary: Canary | None = None
    """The version on trial, or the last one that was."""
    sources: list[str]
    """Names of the mixing weights of the version it serves; empty where nothing is mixed."""
    example: RowIn
    """A row that it understands."""
    problems: list[Problem] = []
    """Versions that are refused."""


class TaskList(Message):
    """All tasks that can be asked."""

    tasks: list[TaskInfo]
    """By name."""


class PromoteIn(Input):
    """What a task shall serve from now on."""

    version: Annotated[int, Field(ge=1, le=999_999_999)] | None = None
    """Number of the version; null is the candidate, else the newest."""
    expected: Annotated[int, Field(ge=1, le=999_999_999)] | None = None
    """Version it must serve now for the change to happen; null: whatever it serves."""


class Changed(Message):
    """What a task serves after a change of the bank; replicas follow within two seconds."""

    prompt: str
    """The version."""
    canary: Canary | None = None
    """The version on trial."""


class ReplicaStatus(Message):
    """One engine replica."""

    replica: str
    """Its id."""
    healthy: bool
    """Whether its engine answers."""
    ready: bool
    """Whether it serves the bank as it is; false while the bank cannot be read or a version is refused."""
    backbone: str
    """The frozen language model."""
    bank: str
    """Where its bank is."""
    bank_revision: int
    """Changes of the bank it has seen since it started."""
    bank_state: str
    """Digest of what it serves; replicas of equal digests serve the same."""
    bank_age_seconds: float
    """Time since it last read the bank successfully."""
    loaded_prompts: int
    """Versions on its device."""
    loaded_bytes: int
    """Bytes they take."""
    queued_rows: int
    """Rows that wait."""
    queued_tokens: int
    """Their tokens."""
    running_rows: int
    """Rows in the batch under way."""
    oldest_batch_seconds: float
    """How long the engine has been computing it."""
    problems: list[Problem]
    """Versions it refuses; what was served before is served still."""


class Status(Message):
    """The deployment."""

    ready: bool
    """Whether at least one replica answers."""
    replicas: list[ReplicaStatus]
    """Engine replicas."""


class ErrorDetail(Message):
    """What went wrong, in the form of OpenAI's API."""

    message: str
    """Got; wanted; what to do."""
    type: str
    """Kind of the error, such as `invalid_request_error`."""
    param: str | None = None
    """Where in the request, such as `rows.3.fields`."""
    code: str
    """Name of the error for programs, such as `unknown_task`."""


class ErrorBody(Message):
    """Every answer that is no success."""

    error: ErrorDetail
    """What went wrong."""
