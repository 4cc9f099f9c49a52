from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import optuna
import pytest

from attempt_ray.errors import ConfigError
from jobs.search_ui import serve_dashboard
from tests.conftest import heed_signals

_SERVE = """
import sys
import optuna
from jobs.search_ui import serve_dashboard

storage = optuna.storages.InMemoryStorage()
optuna.create_study(study_name="glue-1", storage=storage)
serve_dashboard(storage, port=int(sys.argv[1]))
"""


@pytest.fixture
def served(unused_port: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(unused_port)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,  # noqa: PLW1509 - nothing here runs threads yet
    ) as process:
        try:
            assert process.stderr is not None
            told = next(line for line in process.stderr if line.startswith("dashboard: "))
            assert told == f"dashboard: http://127.0.0.1:{unused_port}/dashboard (Ctrl-C ends it)\n"
            yield process, unused_port
        finally:
            process.kill()


def fetched(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        assert answer.status == 200
        text: str = answer.read().decode()
        return text


def test_the_dashboard_answers_on_loopback_alone_and_ends_quietly(
    served: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = served
    assert "<html" in fetched(port, "/dashboard")
    studies = json.loads(fetched(port, "/api/studies"))["study_summaries"]
    assert [study["study_name"] for study in studies] == ["glue-1"]
    # 127.0.0.2 is this machine too, and a server of every interface would answer there.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert told == "dashboard: ended\n"
    assert process.returncode == 0


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"port {port} of 127\.0\.0\.1: Address already in use; .*another port"
        ):
            serve_dashboard(optuna.storages.InMemoryStorage(), port=port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_cannot_be_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match=f"port {port}; wanted 0 to 65535"):
        serve_dashboard(optuna.storages.InMemoryStorage(), port=port)
