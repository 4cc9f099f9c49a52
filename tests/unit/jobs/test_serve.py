from __future__ import annotations

import socket
from pathlib import Path

import pytest
import yaml

from attempt_ray.config import parse
from attempt_ray.errors import AttemptError, ClusterError, ConfigError
from jobs.serve import check_file, deploy, file_of, serve_here
from serve_app.arguments import read_file

SHIPPED = Path(__file__).parents[3] / "serve_app" / "serve_config.yaml"


def test_what_is_built_is_read(tmp_path: Path) -> None:
    text = file_of(
        ["embedded"],
        ["bank=/data/bank", "serving.max_replicas=3", "http.keys=keys.json"],
        host="0.0.0.0",
        port=9000,
    )
    path = tmp_path / "serve_config.yaml"
    path.write_text(text)
    page, config = read_file(path)
    assert page["http_options"] == {"host": "0.0.0.0", "port": 9000}
    assert (config.backbone.name, config.bank, config.serving.max_replicas) == ("nano", "/data/bank", 3)
    assert check_file(path)["replicas"] == [1, 3]


def test_a_file_that_others_could_call_without_keys_is_not_built() -> None:
    with pytest.raises(ConfigError, match="there are no keys"):
        file_of(["embedded"], [], host="0.0.0.0", port=8000)


def test_settings_that_no_argument_takes_are_refused_before_they_are_written() -> None:
    with pytest.raises(ConfigError, match="training"):
        file_of(["embedded"], ["training.steps=3"], host="127.0.0.1", port=8000)


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    from tests.ray.serving import Prompts

    Prompts.make(tmp_path / "bank")
    return tmp_path / "bank"


@pytest.mark.parametrize(
    ("host", "keys", "message"),
    [("0.0.0.0", None, "there are no keys"), ("127.0.0.1", "nowhere.json", "nowhere.json")],
)
def test_a_deployment_that_cannot_be_is_refused_before_anything_starts(
    host: str, keys: str | None, message: str, bank: Path
) -> None:
    with pytest.raises(AttemptError, match=message):
        serve_here(parse([{"bank": str(bank), "http": {"keys": keys}}]), host=host, port=1)


def test_an_empty_bank_and_a_taken_port_are_told(tmp_path: Path, bank: Path) -> None:
    with pytest.raises(ConfigError, match="no prompt in the bank"):
        serve_here(parse([{"bank": str(tmp_path / "none")}]), host="127.0.0.1", port=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ClusterError, match=r"cannot listen on 127\.0\.0\.1:.*choose another --port"):
            serve_here(parse([{"bank": str(bank)}]), host="127.0.0.1", port=taken.getsockname()[1])


def test_a_cluster_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"cannot reach http://127\.0\.0\.1:1"):
        deploy(SHIPPED, address="http://127.0.0.1:1", without_token=True)
    bad = tmp_path / "serve_config.yaml"
    bad.write_text(yaml.safe_dump({"applications": []}))
    with pytest.raises(ConfigError, match="wanted one application"):
        deploy(bad, address="http://127.0.0.1:1", without_token=True)
