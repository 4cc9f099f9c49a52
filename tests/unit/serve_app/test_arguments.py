from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from attempt_ray.errors import ConfigError
from serve_app.arguments import check_host, parse_arguments, read_file

SHIPPED = Path(__file__).parents[3] / "serve_app" / "serve_config.yaml"
Change = Callable[[dict[str, Any]], Any]


def application(page: dict[str, Any]) -> dict[str, Any]:
    return page["applications"][0]  # type: ignore[no-any-return]


def test_the_file_that_ships_is_read() -> None:
    page, config = read_file(SHIPPED)
    assert page["http_options"]["host"] == "127.0.0.1"
    assert (config.backbone.name, config.bank, config.serving.max_replicas) == ("nano", "bank", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda page: page.update(aplications=[]), "no key 'aplications'; did you mean 'applications'"),
        (lambda page: page["http_options"].update(hots="x"), "http_options: no key 'hots'"),
        (lambda page: page.update(http_options=3), "http_options holds int; wanted a mapping"),
        (lambda page: page.update(applications=[]), "wanted one application"),
        (lambda page: application(page).update(deployments=[]), "no key 'deployments'"),
        (lambda page: application(page).update(import_path="x:y"), "wanted serve_app.app:build"),
        (lambda page: application(page).update(route_prefix="/x"), "route_prefix is '/x'; wanted /"),
        (lambda page: application(page)["args"].update(banks="x"), "args: no key 'banks'"),
        (
            lambda page: application(page)["args"]["serving"].update(max_replica=1),
            "no config key in \\[serving\\] 'max_replica'",
        ),
        (lambda page: application(page)["args"].update(config=["embeded"]), "did you mean 'embedded'"),
        (lambda page: application(page)["args"].update(serving=3), "args: .*serving"),
        (lambda page: application(page)["args"]["serving"].update(min_replicas=5), "wanted min_replicas"),
        (lambda page: page["http_options"].update(host="0.0.0.0"), "can be reached from other machines"),
    ],
)
def test_what_serve_would_pass_over_is_refused(change: Change, message: str, tmp_path: Path) -> None:
    page = yaml.safe_load(SHIPPED.read_text())
    change(page)
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(page))
    with pytest.raises(ConfigError, match=message):
        read_file(path)


def test_sections_win_over_presets() -> None:
    arguments = {"config": ["embedded"], "backbone": {"dtype": "bfloat16"}, "http": {"max_rows": 3}}
    config = parse_arguments(arguments).to_config()
    assert (config.backbone.name, config.backbone.dtype, config.http.max_rows) == ("nano", "bfloat16", 3)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_this_machine_needs_no_keys(host: str) -> None:
    check_host(host, parse_arguments({}).to_config())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.3", "prompts.example.com"])
def test_other_machines_need_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="attempt keys add"):
        check_host(host, parse_arguments({}).to_config())
    check_host(host, parse_arguments({"http": {"keys": "keys.json"}}).to_config())
