"""Triton's HTTP client, as it comes, against a real server and engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from attempt_ray.errors import OverloadedError
from serve_app.gateway import Reply
from serve_app.schema import Problem, RowIn, RowOut, TaskInfo
from tests.unit.serve_app.api.conftest import Scripted

TEXTS = ["rte sentence1: a dog runs .", "rte sentence1: the hat was repaired ."]
OnScript = Callable[..., httpx2.Response]


@pytest.fixture
def client(server: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.removeprefix("http://"), concurrency=2) as found:
        yield found


def tensor(name: str, texts: list[str], shape: list[int] | None = None) -> triton.InferInput:
    shape = shape or [len(texts)]
    found = triton.InferInput(name, shape, "BYTES")
    return found.set_data_from_numpy(np.array(texts, dtype=object).reshape(shape), binary_data=False)


def outputs(*names: str, binary: bool = False) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def test_a_script_of_the_client(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "attempt-ray"
    for model, version in (("rte", ""), ("rte", "2"), ("rte@candidate", ""), ("newsqa", "1")):
        assert client.is_model_ready(model, version)
    for model, version in (("nobody", ""), ("rte", "9"), ("rte", "x"), ("rte@candidate", "1")):
        assert not client.is_model_ready(model, version)
    about = client.get_model_metadata("rte")
    assert (about["versions"], about["inputs"]) == (
        ["1", "2"],
        [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
    )
    assert about["parameters"]["fields"] == ["sentence1", "sentence2"]
    assert client.get_model_metadata("rte", "2")["parameters"]["prompt"] == "target/rte@v2"
    assert [one["name"] for one in client.get_model_metadata("newsqa")["outputs"]] == [
        "answer",
        "prompt",
        "attention",
    ]

    found = client.infer("rte", [tensor("text", TEXTS)], request_id="7")
    head = found.get_response()
    assert (head["model_name"], head["model_version"], head["id"]) == ("rte", "1", "7")
    assert [one["name"] for one in head["outputs"]] == ["answer", "label", "probabilities", "prompt"]
    probabilities = found.as_numpy("probabilities")
    assert (probabilities.shape, probabilities.dtype) == ((2, 2), np.float32)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert json.loads(found.get_output("probabilities")["parameters"]["labels"]) == [
        "entailment",
        "not_entailment",
    ]
    assert found.as_numpy("prompt").tolist() == ["target/rte@v1"] * 2
    assert found.as_numpy("answer").shape == (2,)

    column = client.infer("rte", [tensor("text", TEXTS, [2, 1])], outputs=outputs("probabilities"))
    np.testing.assert_array_equal(column.as_numpy("probabilities"), probabilities)
    assert column.as_numpy("answer") is None
    fields = [tensor("sentence1", ["a dog runs .", "x"]), tensor("sentence2", ["a dog moves .", "y"])]
    pinned = client.infer(
        "rte", fields, model_version="2", outputs=outputs("attention", "prompt", binary=True)
    )
    assert pinned.as_numpy("prompt").tolist() == ["target/rte@v2"] * 2
    np.testing.assert_allclose(pinned.as_numpy("attention").sum(axis=1), 1, rtol=1e-6)
    assert json.loads(pinned.get_output("attention")["parameters"]["candidates"]) == [
        "mnli",
        "squad",
        "target",
    ]
    opened = client.infer(
        "newsqa", [tensor("text", ["x"])], parameters={"max_new_tokens": 2}, timeout=20_000_000
    )
    assert [one["name"] for one in opened.get_response()["outputs"]] == ["answer", "prompt"]
    several = [client.async_infer("rte", [tensor("text", [text])]) for text in TEXTS * 3]
    for index, request in enumerate(several):
        np.testing.assert_allclose(
            request.get_result().as_numpy("probabilities")[0], probabilities[index % 2], atol=1e-6
        )

    figures = triton.InferInput("text", [1], "FP32").set_data_from_numpy(
        np.ones(1, dtype=np.float32), binary_data=False
    )
    binary = triton.InferInput("text", [1], "BYTES").set_data_from_numpy(np.array(["x"], dtype=object))
    refused: list[tuple[str, str, dict[str, Any]]] = [
        ("404", "there is no|no task", {"model_name": "nobody", "inputs": [tensor("text", ["x"])]}),
        ("404", "there is no version", {"inputs": [tensor("text", ["x"])], "model_version": "x"}),
        ("400", "no row field", {"inputs": [tensor("sentence1", ["x"])]}),
        ("400", "wanted a string", {"inputs": [figures]}),
        ("415", "binary", {"inputs": [binary]}),
        ("400", "several lengths", {"inputs": [tensor("sentence1", ["x"]), tensor("sentence2", ["x", "y"])]}),
        ("400", "twice", {"inputs": [tensor("text", ["x"]), tensor("text", ["y"])]}),
        ("400", "no output 'logits'", {"inputs": [tensor("text", ["x"])], "outputs": outputs("logits")}),
        ("400", "no parameter 'priority'", {"inputs": [tensor("text", ["x"])], "priority": 1}),
        ("400", "whole number from 1", {"inputs": [tensor("text", ["x"])], "timeout": -1}),
        (
            "400",
            "no parameter 'classification'",
            {"inputs": [tensor("text", ["x"])], "outputs": [triton.InferRequestedOutput("label", False, 1)]},
        ),
        ("400", "at most 64", {"inputs": [tensor("text", ["x"] * 65)]}),
        ("400", "at most 20,000", {"inputs": [tensor("text", ["x" * 20_001])]}),
    ]
    for status, message, call in refused:
        with pytest.raises(InferenceServerException, match=message) as error:
            client.infer(**{"model_name": "rte", **call})
        assert status in str(error.value.status()), message


def row(**given: Any) -> RowOut:
    usual: dict[str, Any] = {"task": "rte", "prompt": "target/rte@v1", "version": 1, "role": "champion"}
    usual |= {"answer": "0", "truncated": False, "input_tokens": 1, "output_tokens": 2}
    return RowOut(**{**usual, **given})


def task(**given: Any) -> TaskInfo:
    usual: dict[str, Any] = {
        "task": "rte",
        "kind": "classification",
        "fields": ["a"],
        "labels": ["yes", "no"],
    }
    usual |= {"prompt": "target/rte@v1", "versions": [1, 2], "aliases": {"champion": 1}, "sources": []}
    return TaskInfo(**{**usual, "example": RowIn(task="rte", text="x"), **given})


def infer(path: str = "/v2/models/rte/infer", **body: Any) -> Callable[[httpx2.AsyncClient], Any]:
    usual = {"inputs": [{"name": "a", "shape": [2], "datatype": "BYTES", "data": ["x", "y"]}]}
    return lambda client: client.post(path, json={**usual, **body})


def test_rows_of_several_versions_share_one_tensor(on_script: OnScript) -> None:
    rows = [
        row(attention={"mnli": 0.25, "target": 0.75}, label="yes"),
        row(attention={"sst2": 0.5, "target": 0.5}, version=2, prompt="target/rte@v2", role="canary"),
    ]
    found = on_script(infer(outputs=[{"name": "attention"}, {"name": "answer"}]), Scripted(Reply(rows=rows)))
    body = found.json()
    assert "model_version" not in body
    (weights, _) = body["outputs"]
    assert json.loads(weights["parameters"]["candidates"]) == ["mnli", "target", "sst2"]
    assert (weights["shape"], weights["data"]) == ([2, 3], [0.25, 0.75, 0, 0, 0.5, 0.5])


@pytest.mark.parametrize("name", ["label", "probabilities", "attention"])
def test_an_output_that_the_task_has_not_is_refused(on_script: OnScript, name: str) -> None:
    found = on_script(infer(outputs=[{"name": name}]), Scripted(Reply(rows=[row(), row()])))
    assert (found.status_code, list(found.json())) == (400, ["error", "code"])
    assert f"the task has no '{name}'" in found.json()["error"]


def test_an_answer_that_is_no_label_has_an_empty_one(on_script: OnScript) -> None:
    rows = [row(probabilities={"yes": 0.5, "no": 0.5}, label=label) for label in ("no", None)]
    found = on_script(infer(outputs=[{"name": "label"}]), Scripted(Reply(rows=rows)))
    assert found.json()["outputs"][0]["data"] == ["no", ""]


def test_a_task_with_a_field_called_text_reads_it_as_a_field(on_script: OnScript) -> None:
    inputs = [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]}]
    for fields, wanted in (
        (["a"], RowIn(task="rte", text="x")),
        (["text"], RowIn(task="rte", fields={"text": "x"})),
    ):
        gateway = Scripted([task(fields=fields)], Reply(rows=[row()]))
        assert on_script(infer(inputs=inputs), gateway).status_code == 200
        assert gateway.calls[1].rows == [wanted]


def test_time_and_tokens_of_the_request_are_kept(on_script: OnScript) -> None:
    gateway = Scripted(Reply(rows=[row(), row()]))
    on_script(infer(parameters={"timeout": 2_500_000, "max_new_tokens": 3}), gateway)
    call = gateway.calls[0]
    assert (call.timeout_seconds, [one.max_new_tokens for one in call.rows]) == (2.5, [3, 3])


def test_a_version_that_is_refused_is_not_ready(on_script: OnScript) -> None:
    problem = Problem(prompt="target/rte@v2", reason="damaged", replica="r")

    async def scenario(client: httpx2.AsyncClient) -> list[int]:
        paths = ("rte/ready", "rte/versions/1/ready", "rte/versions/2/ready", "rte@champion/ready")
        return [(await client.get(f"/v2/models/{path}")).status_code for path in paths]

    assert on_script(scenario, Scripted([task(problems=[problem])])) == [200, 200, 400, 200]


def test_failures_have_the_protocols_form_and_say_when_to_ask_again(on_script: OnScript) -> None:
    found = on_script(infer(), Scripted(OverloadedError("full", 3)))
    assert (found.status_code, found.headers["retry-after"]) == (503, "3")
    assert found.json() == {"error": "full", "code": "overloaded"}
    empty = on_script(infer(inputs=[]), Scripted())
    assert empty.json() == {"error": "inputs: got []; wanted 1 or more", "code": "invalid_request"}
    data = [{"name": "a", "shape": [3], "datatype": "BYTES", "data": ["x"]}]
    assert "got the shape [3] and 1 texts" in on_script(infer(inputs=data), Scripted()).json()["error"]
    other = [{"name": "a", "shape": [1], "datatype": "FP32", "data": ["x"]}]
    assert "wanted BYTES" in on_script(infer(inputs=other), Scripted()).json()["error"]
