"""The arguments of the application in a `serve_config.yaml`, and a strict look at the whole file.

Serve takes keys that it does not know without a word, so that a limit with a typing error is no limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from attempt_ray.config import Config, Section, config_paths, load_layers, parse
from attempt_ray.errors import ConfigError, unknown_name
from attempt_ray.hosts import is_loopback

IMPORT_PATH = "serve_app.app:build"
_FILE = {"proxy_location", "http_options", "grpc_options", "logging_config", "applications"}
_HTTP = {
    "host",
    "port",
    "root_path",
    "request_timeout_s",
    "keep_alive_timeout_s",
    "ssl_keyfile",
    "ssl_certfile",
}
_APPLICATION = {"name", "route_prefix", "import_path", "runtime_env", "args", "logging_config"}


class ServeArguments(Section):
    """What `args` may hold: presets or files, and sections of a config that win over them."""

    config: tuple[str, ...] = ()
    """Presets or YAML files, later ones winning, as `--config` takes them."""
    bank: str | None = None
    """Directory or URI of the bank."""
    device: str | None = None
    """Device of the backbone."""
    backbone: dict[str, Any] = Field(default_factory=dict)
    """As the section `backbone` of a config."""
    data: dict[str, Any] = Field(default_factory=dict)
    """As the section `data`: templates and tasks."""
    evaluation: dict[str, Any] = Field(default_factory=dict)
    """As the section `evaluation`: decoding."""
    serving: dict[str, Any] = Field(default_factory=dict)
    """As the section `serving`: batches, replicas, following the bank."""
    http: dict[str, Any] = Field(default_factory=dict)
    """As the section `http`: keys and limits."""

    def to_config(self) -> Config:
        """Return the config.

        Raises:
            ConfigError: A name, key or value cannot be used.
        """
        own = {name: value for name, value in self.model_dump(exclude={"config"}).items() if value}
        return parse([*load_layers(config_paths(self.config)), own])


def read_file(path: Path) -> tuple[dict[str, Any], Config]:
    """Return a `serve_config.yaml`, every key of it known, and the config of its application.

    Raises:
        ConfigError: It cannot be read, holds a key or value that nobody reads, or would answer callers of other machines
            without keys.
    """
    (content,) = load_layers([path])
    return dict(content), read_page(content, str(path))


def read_page(page: Mapping[str, Any], path: str) -> Config:
    """Return the config of the application of a `serve_config.yaml`, every key of which is known.

    Args:
        page: What the file holds.
        path: What to call it.

    Raises:
        ConfigError: As `read_file`.
    """
    _known(page, _FILE, path)
    http = _mapping(page.get("http_options", {}), f"{path}: http_options")
    _known(http, _HTTP, f"{path}: http_options")
    applications = page.get("applications")
    if not isinstance(applications, list) or len(applications) != 1:
        raise ConfigError(
            f"{path}: wanted one application under 'applications', with import_path {IMPORT_PATH}"
        )
    application = _mapping(applications[0], f"{path}: applications.0")
    _known(application, _APPLICATION, f"{path}: applications.0")
    if application.get("import_path") != IMPORT_PATH:
        raise ConfigError(f"{path}: import_path is {application.get('import_path')!r}; wanted {IMPORT_PATH}")
    if application.get("route_prefix", "/") != "/":
        raise ConfigError(f"{path}: route_prefix is {application['route_prefix']!r}; wanted /")
    arguments = _mapping(application.get("args", {}), f"{path}: args")
    config = parse_arguments(arguments).to_config()
    check_host(str(http.get("host", "127.0.0.1")), config)
    return config


def parse_arguments(arguments: Mapping[str, Any]) -> ServeArguments:
    """Return the arguments.

    Raises:
        ConfigError: A key or value cannot be used.
    """
    _known(arguments, set(ServeArguments.model_fields), "args")
    try:
        return ServeArguments.model_validate(dict(arguments))
    except ValueError as error:
        raise ConfigError(f"args: {' '.join(str(error).split())}") from None


def check_host(host: str, config: Config) -> None:
    """Refuse to answer other machines without keys.

    Raises:
        ConfigError: The host is not this machine alone, and there is no file of keys.
    """
    if config.http.keys is None and not is_loopback(host):
        raise ConfigError(
            f"host {host} can be reached from other machines and there are no keys; make some with 'attempt keys add NAME"
            " --role admin' and set http.keys to the file, or use host 127.0.0.1"
        )


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} holds {type(value).__name__}; wanted a mapping")
    return value


def _known(page: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in page:
        if key not in known:
            raise ConfigError(f"{where}: {unknown_name('key', str(key), known)}")
