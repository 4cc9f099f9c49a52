"""The `openai` package, as it comes, against a real server and engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from attempt_ray.errors import DataError, OverloadedError, StorageError
from serve_app.gateway import Reply
from serve_app.problems import problem
from serve_app.schema import RowOut
from tests.unit.serve_app.api.conftest import Scripted

TEXTS = [
    "newsqa question: who found the coat ? context: mary found the coat in the barn .",
    "newsqa question: which thing did laura discover ? context: laura discovered the firm axe in the castle .",
]
CUT = RowOut(
    task="newsqa",
    prompt="target/newsqa@v1",
    version=1,
    role="champion",
    answer="the firm axe",
    truncated=True,
    input_tokens=7,
    output_tokens=3,
    finished=False,
)


@pytest.fixture
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def test_a_script_of_the_synchronous_client(client: openai.OpenAI) -> None:
    # 1-3: models
    models = {model.id: model for model in client.models.list()}
    assert {"rte", "rte@champion", "rte@candidate", "rte@v1", "rte@v2", "newsqa", "cb@v1"} <= set(models)
    assert models["rte@candidate"].metadata == {"task": "rte", "prompt": "target/rte@v2"}  # type: ignore[attr-defined]
    assert client.models.retrieve("rte@v2") == models["rte@v2"]
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("rte@v9")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    # 4: one prompt
    one = client.completions.create(model="newsqa", prompt=TEXTS[0], max_tokens=4, temperature=0)
    assert (one.object, one.model, one.id[:5]) == ("text_completion", "newsqa", "cmpl-")
    (choice,) = one.choices
    assert choice.finish_reason in ("stop", "length")
    assert one.usage is not None
    assert one.usage.total_tokens == one.usage.prompt_tokens + one.usage.completion_tokens
    # 5: several, in order, each as it is alone
    both = client.completions.create(model="newsqa", prompt=TEXTS, max_tokens=4)
    assert [each.index for each in both.choices] == [0, 1]
    assert both.choices[0].text == choice.text
    # 6: a closed task, and what is known of its answer
    closed = client.completions.create(
        model="rte@v2", prompt="rte sentence1: a", extra_body={"attention": True}
    )
    facts = closed.choices[0].attempt  # type: ignore[attr-defined]
    assert (facts["prompt"], facts["version"], facts["role"]) == ("target/rte@v2", 2, "pinned")
    assert list(facts["attention"]) == ["mnli", "squad", "target"]
    assert sum(facts["probabilities"].values()) == pytest.approx(1)
    # 7: without it, no weights
    plain = client.completions.create(
        model="rte", prompt="rte sentence1: a", user="u", seed=1, top_p=0.5, n=1
    )
    assert plain.choices[0].attempt["attention"] is None  # type: ignore[attr-defined]
    # 8-9: streams tell what comes without them
    for text in TEXTS:
        whole = client.completions.create(model="newsqa", prompt=text)
        chunks = list(client.completions.create(model="newsqa", prompt=text, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
        assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert all(chunk.usage is None for chunk in chunks)
    # 10: with the tokens
    *_, last, counted = client.completions.create(
        model="rte", prompt="rte", stream=True, stream_options={"include_usage": True}
    )
    assert last.choices[0].attempt["version"] == 1  # type: ignore[attr-defined]
    assert (counted.choices, counted.usage.prompt_tokens) == ([], 2)  # type: ignore[union-attr]
    # 11: with_raw_response
    raw = client.completions.with_raw_response.create(model="rte", prompt="rte")
    assert raw.headers["x-request-id"] == raw.parse().id.removeprefix("cmpl-")
    assert "queue;dur=" in raw.headers["server-timing"]
    # 12-21: what is not done is refused by its name
    refused: dict[str, Any] = {
        "temperature": 0.7,
        "n": 2,
        "best_of": 3,
        "echo": True,
        "suffix": "end",
        "logprobs": 1,
        "logit_bias": {"5": 1},
        "stop": ["."],
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "max_tokens": 0,
    }
    for name, value in refused.items():
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(**{"model": "rte", "prompt": "rte", name: value})
        assert (error.value.param, error.value.code) == (name, "invalid_request")
        assert f"{name}: got {json.dumps(value)}; wanted " in str(error.value)
    # 23-27: prompts and models that cannot be
    for prompt in ([1, 2, 3], [[1, 2]], [], ["ok", "x" * 30_000]):
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(model="rte", prompt=prompt)  # type: ignore[arg-type]
        assert str(error.value.param).startswith("prompt")
    with pytest.raises(openai.BadRequestError, match="got 2 prompts; wanted one"):
        client.completions.create(model="newsqa", prompt=TEXTS, stream=True)
    with pytest.raises(openai.BadRequestError, match="wanted none without stream"):
        client.completions.create(model="newsqa", prompt="x", stream_options={"include_usage": True})
    for model in ("rtee", "R/TE", "rte@v9", "rte@nobody"):
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError) as unknown:
                client.completions.create(model=model, prompt="x", stream=stream)
            assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")


def test_a_script_of_the_asynchronous_client(server: str) -> None:
    async def script() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
            models = [model.id async for model in client.models.list()]
            assert "rte@candidate" in models
            found = await asyncio.gather(
                *(client.completions.create(model=model, prompt="rte sentence1: a dog") for model in models)
            )
            assert [one.model for one in found] == models
            whole = await client.completions.create(model="newsqa", prompt=TEXTS[1])
            stream = await client.completions.create(model="newsqa", prompt=TEXTS[1], stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text
            with pytest.raises(openai.NotFoundError):
                await client.completions.create(model="nobody", prompt="x")
            with pytest.raises(openai.BadRequestError):
                await client.completions.create(model="rte", prompt="x", temperature=1)

    asyncio.run(script())


class Refusing:
    """Refuses the first request as the guard does with a key that asks too often."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._refused = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._refused:
            await self._app(scope, receive, send)
            return
        self._refused = True
        await problem("rate_limit_exceeded", "too many", retry_after=1)(scope, receive, send)


def test_the_client_asks_again_where_it_is_told_to(serve_script: Callable[..., Any]) -> None:
    gateway = Scripted(OverloadedError("full", 1), Reply(rows=[CUT]))
    with serve_script(gateway, wrap=Refusing) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2)
        found = client.completions.create(model="newsqa", prompt="x")
        assert (found.choices[0].text, found.choices[0].finish_reason) == ("the firm axe", "length")
        assert len(gateway.calls) == 2
        gateway.outcomes = [OverloadedError("full", 1)]
        with pytest.raises(openai.InternalServerError) as error:
            client.with_options(max_retries=0).completions.create(model="newsqa", prompt="x")
        assert (error.value.status_code, error.value.code) == (503, "overloaded")
        assert error.value.response.headers["retry-after"] == "1"


def test_the_client_gives_up_in_its_time_and_the_work_is_cancelled(serve_script: Callable[..., Any]) -> None:
    gateway = Scripted(...)
    with serve_script(gateway) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=0.3)
        with pytest.raises(openai.APITimeoutError):
            client.completions.create(model="rte", prompt="x")
        with pytest.raises(openai.APITimeoutError):
            client.completions.create(model="rte", prompt="x", stream=True)
    assert (len(gateway.calls), gateway.cancelled) == (2, 2)


def test_a_stream_that_fails_says_so_at_its_end(serve_script: Callable[..., Any]) -> None:
    gateway = Scripted("the ", "firm ", StorageError("rows.0: the disk is gone"))
    with serve_script(gateway) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="newsqa", prompt="x", stream=True)
        assert [next(stream).choices[0].text for _ in range(2)] == ["the ", "firm "]
        with pytest.raises(openai.APIError, match=r"prompt\.0: the disk is gone"):
            next(stream)


def test_pieces_and_their_end_are_told_as_they_come(on_script: Callable[..., Any]) -> None:
    gateway = Scripted("the ", "firm ", CUT)
    body = {"model": "newsqa", "prompt": "x", "stream": True, "max_tokens": 3, "timeout_seconds": 9}
    found = on_script(lambda client: client.post("/v1/completions", json=body), gateway)
    assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, end = found.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["the ", "firm ", "axe"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert [chunk["choices"][0]["attempt"] is None for chunk in chunks] == [True, True, False]
    call = gateway.calls[0]
    assert (call.rows[0].max_new_tokens, call.timeout_seconds) == (3, 9)


def test_errors_of_rows_name_their_prompt(on_script: Callable[..., httpx2.Response]) -> None:
    gateway = Scripted(DataError("rows.1: it is empty"))
    body = {"model": "newsqa", "prompt": ["x", ""]}
    found = on_script(lambda client: client.post("/v1/completions", json=body), gateway)
    assert (found.status_code, found.json()["error"]["param"]) == (400, "prompt.1")
    assert found.json()["error"]["message"] == "prompt.1: it is empty"
