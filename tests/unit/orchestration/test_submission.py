from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attempt_ray.errors import ClusterError
from attempt_ray.orchestration import submission
from attempt_ray.orchestration.submission import Jobs, _Written, check_address, find_token

NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Leave the environment without a token; return the home directory."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_token_is_looked_for_in_rays_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert find_token() == "home"
    (tmp_path / "file").write_text("file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert find_token() == "file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert find_token() == "variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token() is None
    assert find_token(tmp_path / "file") == "file"


def test_token_mode_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE is token, but there is no token"):
        find_token()


@pytest.mark.parametrize("content", [b"", b"two\nsecretlines", b"two secretwords", "sécretlines".encode()])
def test_what_is_no_token_is_refused_without_showing_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ClusterError, match="holds no token") as caught:
        find_token(tmp_path / "file")
    assert "cret" not in str(caught.value)
    with pytest.raises(ClusterError, match=r"cannot read a token from .*: No such file"):
        find_token(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:8265", "http://127.0.0.1:8265"),
        ("http://localhost:8265/", "http://localhost:8265"),
        ("http://[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_this_machine_needs_no_token(address: str, url: str) -> None:
    assert check_address(address, token=None) == url


def test_another_machine_needs_a_token_or_a_word() -> None:
    with pytest.raises(ClusterError, match=r"there is no token for head:8265, which is another machine"):
        check_address("head:8265", token=None)
    assert check_address("https://head", token="t") == "https://head"
    assert check_address("head:8265", token=None, without_token=True) == "http://head:8265"


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "http://", "auto://x", "http://head:port", "http://[x"]
)
def test_what_is_no_dashboard_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=r"^address: got .*; wanted the dashboard's, such as http://127"):
        check_address(address, token="t")


def test_a_password_in_an_address_is_refused_without_showing_it() -> None:
    for address in ("http://user:hidden@head:8265", "ray://user:hidden@head:1"):
        with pytest.raises(ClusterError) as caught:
            check_address(address, token="t")
        assert "hidden" not in str(caught.value)


def test_a_log_that_is_sent_again_is_shown_once() -> None:
    shown: list[str] = []
    written = _Written(shown.append)
    written.more("one\ntw")
    written.rewind()
    for text in ("one\n", "two\n", "three\n"):
        written.more(text)
    written.whole("one\ntwo\nthree\nfour\n")
    written.whole("one\ntwo\nthree\nfour\n")
    assert "".join(shown) == "one\ntwo\nthree\nfour\n"


def jobs_of(client: Any) -> Jobs:
    """Return the jobs of a cluster behind another client."""
    jobs = Jobs.__new__(Jobs)
    jobs.address, jobs._with_token, jobs._client = "http://head:8265", True, client
    return jobs


def job(status: str) -> SimpleNamespace:
    return SimpleNamespace(
        submission_id="x",
        status=status,
        entrypoint="true",
        message=None,
        start_time=1000,
        end_time=None,
        driver_exit_code=None,
    )


@pytest.mark.parametrize("last", ["hangs", "breaks"])
def test_a_job_is_followed_to_its_end_through_connections_that_break_or_hang(
    last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "_WATCH_SECONDS", 0.01)
    monkeypatch.setattr(submission, "_POLL_SECONDS", 0.01)

    class Client:
        tails = 0

        def list_jobs(self) -> list[SimpleNamespace]:
            return [job("RUNNING" if self.tails < 3 else "SUCCEEDED")]

        async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
            self.tails += 1
            yield "one\n"
            if self.tails < 3 or last == "breaks":
                raise RuntimeError("the connection broke")
            await asyncio.sleep(60)

        def get_job_logs(self, name: str) -> str:
            return "one\ntwo\n"

    shown: list[str] = []
    assert jobs_of(Client()).follow("x", shown.append).status == "SUCCEEDED"
    assert "".join(shown) == "one\ntwo\n"


def test_a_cluster_that_does_not_answer_any_more_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_WATCH_SECONDS", 0.01)
    monkeypatch.setattr(submission, "_LOST_SECONDS", 0.05)

    class Client:
        asked = 0

        def list_jobs(self) -> list[SimpleNamespace]:
            self.asked += 1
            if self.asked > 1:
                raise ConnectionError
            return [job("RUNNING")]

        async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
            await asyncio.sleep(60)
            yield ""

    with pytest.raises(ClusterError, match="no Ray dashboard answers at http://head:8265"):
        jobs_of(Client()).follow("x", print)


def test_a_head_that_takes_no_jobs_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_AGENT_SECONDS", 0.02)
    monkeypatch.setattr(submission, "_POLL_SECONDS", 0.01)

    class Client:
        asked = 0

        def submit_job(self, **_: Any) -> str:
            self.asked += 1
            raise RuntimeError("Request failed with status code 500: No available agent to submit job.")

    client = Client()
    with pytest.raises(ClusterError, match=r"accepts no jobs: .* ray start --dashboard-agent-listen-port"):
        jobs_of(client).submit("x", entrypoint="true", runtime_env={}, resources={})
    assert client.asked > 1


def test_a_traceback_of_the_server_becomes_its_last_line() -> None:
    class Client:
        def list_jobs(self) -> None:
            raise RuntimeError("Request failed: Traceback\n  File x\nValueError: too large\n.")

    with pytest.raises(ClusterError, match=r"^http://head:8265: ValueError: too large$"):
        jobs_of(Client()).known()
