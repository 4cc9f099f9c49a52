"""The commands of docs/serving.md, section "The API", work as they are written."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.conftest import ROOT

SECTION = (ROOT / "docs" / "serving.md").read_text().partition("\n## The API\n")[2].partition("\n## ")[0]


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)
    return [text for its, text in found if its == language]


def test_every_curl_command_is_answered(server: str) -> None:
    commands = re.findall(r"^curl .*?(?=^curl |\Z)", "\n".join(blocks("")), re.DOTALL | re.MULTILINE)
    assert len(commands) > 12
    for command in commands:
        here = command.replace("http://127.0.0.1:8000", server).replace("curl ", "curl --fail-with-body ", 1)
        done = subprocess.run(["bash", "-c", here], capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout


def test_every_client_example_runs(server: str) -> None:
    programs = blocks("python")
    assert len(programs) == 2
    for program in programs:
        here = program.replace("127.0.0.1:8000", server.removeprefix("http://"))
        done = subprocess.run(
            [sys.executable, "-c", here], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
