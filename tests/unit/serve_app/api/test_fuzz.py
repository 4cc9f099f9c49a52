"""schemathesis makes requests of the OpenAPI page, valid and not, and looks at what a real server answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import ROOT

HOOKS = "tests.unit.serve_app.api.fuzz_hooks"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)


def fuzz(url: str, place: Path, *, phases: str, cases: int) -> Counter[int]:
    """Return how many answers had each status."""
    report = place / "report.har"
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/openapi.json"]
    command += ["--seed", "6", "--phases", phases, "--max-examples", str(cases), "--checks", ",".join(CHECKS)]
    command += ["--report", "har", "--report-har-path", str(report), "--generation-database", "none"]
    command += ["--continue-on-failure", "--no-shrink", "--no-color", "--warnings", "off"]
    # They judge how fast requests are made up, which depends on what else this machine does.
    command += ["--suppress-health-check", "all"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": HOOKS, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    entries = json.loads(report.read_text())["log"]["entries"]
    return Counter(entry["response"]["status"] for entry in entries)


def judge(found: Counter[int], *, least: int) -> None:
    print(f"{found.total()} cases: {dict(sorted(found.items()))}")  # noqa: T201 - figures for the report
    assert found.total() >= least
    assert not [status for status in found if status >= 500]
    assert found[200] > found.total() / 20


@pytest.mark.slow
def test_a_few_requests_of_each_kind(server: str, tmp_path: Path) -> None:
    judge(fuzz(server, tmp_path, phases="examples,fuzzing", cases=14), least=200)


@pytest.mark.benchmark
@pytest.mark.slow
def test_thousands_of_requests(server: str, tmp_path: Path) -> None:
    judge(fuzz(server, tmp_path, phases="examples,coverage,fuzzing,stateful", cases=80), least=2000)
