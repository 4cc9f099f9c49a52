"""Hostile names in every place of a request, through guard, application and a real engine: no file outside the bank."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from attempt_ray.bank import Bank
from serve_app import http
from tests.unit.serve_app.test_guard import hostile_names, hostile_targets

_watched: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is not None and event in ("open", "os.listdir", "os.scandir"):
        _watched.append(str(arguments[0]))


@contextmanager
def opened() -> Iterator[list[str]]:
    """Note what files and directories this process opens."""
    global _watched  # noqa: PLW0603 - an audit hook cannot be taken off
    if not getattr(_audit, "added", False):
        sys.addaudithook(_audit)
        _audit.added = True  # type: ignore[attr-defined]
    _watched = found = []
    try:
        yield found
    finally:
        _watched = None


def outside(paths: list[str], bank: Bank) -> list[str]:
    """Return absolute paths that lead out of the bank; others are names in directories that were opened before."""
    root = os.path.realpath(bank.place)
    # Other threads read the process's own limits, and FastAPI the source of a route whose request it refuses.
    own = ("/proc/", "/sys/", os.path.realpath(http.__file__))
    return [
        path
        for path in paths
        if (path.startswith("/") and not os.path.realpath(path).startswith((root, *own))) or ".." in path
    ]


def bodies(name: str) -> list[tuple[str, str, Any]]:
    """Return requests that carry a name in their body."""
    fields = {"sentence1": "x", "sentence2": "y"}
    rte = {"task": "rte", "fields": fields}
    return [
        ("POST", "/v1/predict", {"rows": [{"task": name, "text": "x"}]}),
        ("POST", "/v1/predict", {"rows": [{"task": f"rte@{name}", "text": "x"}]}),
        ("POST", "/v1/predict", {"rows": [{**rte, "prompt": name}]}),
        ("POST", "/v1/predict", {"rows": [{**rte, "prompt": f"target/{name}"}]}),
        ("POST", "/v1/predict", {"rows": [{"task": "rte", "fields": {**fields, name: "x"}}]}),
        ("POST", "/v1/completions", {"model": name, "prompt": "x"}),
        (
            "POST",
            "/v2/models/rte/infer",
            {"inputs": [{"name": name, "shape": [1], "datatype": "BYTES", "data": ["x"]}]},
        ),
        ("PUT", "/v1/tasks/rte/canary", {"version": name}),
    ]


def test_no_name_opens_a_file_outside_the_bank_or_breaks_the_server(
    on_host: Callable[..., Any], bank: Bank
) -> None:
    statuses: Counter[int] = Counter()

    async def scenario(client: httpx2.AsyncClient) -> list[str]:
        requests = [request for name in hostile_names() for request in bodies(name)]
        requests += [("GET", target, None) for target in hostile_targets()[::5]]
        with opened() as paths:
            for method, target, body in requests:
                url = httpx2.URL(f"http://localhost{target}") if body is not None else None
                try:
                    reply = await client.request(method, url or f"http://localhost{target}", json=body)
                except (httpx2.InvalidURL, UnicodeEncodeError, ValueError):
                    continue  # this client cannot send it; the guard's own tests do
                statuses[reply.status_code] += 1
        return paths

    paths = on_host(scenario)
    assert outside(paths, bank) == []
    assert sum(statuses.values()) > 2000
    assert not [status for status in statuses if status >= 500], statuses


def test_an_opened_file_is_seen(tmp_path: Any, bank: Bank) -> None:
    (tmp_path / "secret").write_text("x")
    with opened() as paths:
        (tmp_path / "secret").read_text()
        os.listdir(bank.place)  # noqa: PTH208 - the call that is watched
    assert outside(paths, bank) == [str(tmp_path / "secret")]


@pytest.mark.parametrize("path", ["/etc/passwd", "../x"])
def test_what_leads_out_is_told(path: str, bank: Bank) -> None:
    assert outside([path], bank) == [path]
