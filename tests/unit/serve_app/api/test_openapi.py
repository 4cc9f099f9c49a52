from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from attempt_ray.config import HttpConfig
from serve_app.access import ROUTES
from serve_app.http import make_app
from serve_app.openapi import description
from serve_app.problems import PROBLEMS
from tests.unit.serve_app.api.conftest import Scripted


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    config = HttpConfig(keys="keys.json")
    found: dict[str, Any] = json.loads(description(make_app(Scripted(), config=config, pages={}), config))
    return found


def operations(page: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, one) for path, methods in page["paths"].items() for method, one in methods.items()]


def resolved(page: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in part:
        found: Any = page
        for key in part["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        part = found
    return part


def test_the_page_is_valid_and_has_every_route(page: dict[str, Any]) -> None:
    validate(page)
    found = {(path, method.upper()) for path, method, _ in operations(page)}
    assert found == {(path, method) for path, methods in ROUTES.items() for method in methods}
    ids = [one["operationId"] for _, _, one in operations(page)]
    assert len(set(ids)) == len(ids)
    known = {tag["name"] for tag in page["tags"]}
    assert all(set(one["tags"]) <= known and one["description"] for _, _, one in operations(page))


def test_routes_with_a_role_want_a_key(page: dict[str, Any]) -> None:
    assert page["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, method, one in operations(page):
        role = ROUTES[path][method.upper()]
        assert one["security"] == ([] if role == "public" else [{"key": []}])
        assert ("401" in one["responses"]) == (role != "public")
        assert role == "public" or f"`{role}`" in one["description"]
    without = HttpConfig()
    open_page = json.loads(description(make_app(Scripted(), config=without, pages={}), without))
    assert open_page["paths"]["/v1/predict"]["post"]["security"] == [{"key": []}, {}]


def test_every_request_and_answer_has_an_example_that_fits(page: dict[str, Any]) -> None:
    seen = 0
    for path, method, one in operations(page):
        parts = [("request", one["requestBody"])] if "requestBody" in one else []
        parts += [(status, resolved(page, found)) for status, found in one["responses"].items()]
        for place, part in parts:
            for kind, content in part.get("content", {}).items():
                if kind != "application/json":
                    continue
                where = f"{method} {path} {place}"
                assert "example" in content, where
                jsonschema.validate(
                    content["example"], {**content["schema"], "components": page["components"]}
                )
                seen += 1
    assert seen > 200


def test_every_code_is_told_with_its_status(page: dict[str, Any]) -> None:
    told = {
        (int(status), code)
        for _, _, one in operations(page)
        for status, found in one["responses"].items()
        for code in PROBLEMS
        if f"`{code}`" in resolved(page, found)["description"]
    }
    # No documented method is one that is not allowed.
    assert told == {(status, code) for code, (status, _) in PROBLEMS.items()} - {(405, "method_not_allowed")}


def test_the_page_refers_to_all_of_its_parts(page: dict[str, Any]) -> None:
    text = json.dumps(page)
    for kind in ("schemas", "responses"):
        for name in page["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text, name
