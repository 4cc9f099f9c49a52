from __future__ import annotations

from pathlib import Path

import pytest

from attempt_ray.errors import ClusterError
from attempt_ray.orchestration.submission import _Written, check_address, find_token

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
