"""Optuna's dashboard of a storage, for this machine alone."""

from __future__ import annotations

import errno
import os
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna

from attempt_ray.errors import ConfigError
from jobs.edge import tell

HOST = "127.0.0.1"
"""The dashboard asks for no password and can delete studies, so no other machine reaches it."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing of single requests."""

    def address_string(self) -> str:
        """Return the caller's address, without asking a name server."""
        return str(self.client_address[0])


def serve_dashboard(storage: optuna.storages.BaseStorage, *, port: int) -> None:
    """Serve Optuna's dashboard at `port` of this machine until Ctrl-C.

    Args:
        storage: Where the studies are.
        port: Port to listen at; 0 takes a free one.

    Raises:
        ConfigError: The port is taken, or not to be had.
    """
    from optuna_dashboard import wsgi

    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port}; wanted 0 to 65535; choose another port")
    try:
        server = make_server(HOST, port, wsgi(storage), server_class=_Server, handler_class=_Handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise ConfigError(
            f"port {port} of {HOST}: {os.strerror(error.errno)}; wanted one that is free; choose another port"
        ) from None
    with server:
        tell(f"dashboard: http://{HOST}:{server.server_port}/dashboard (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            tell("dashboard: ended")
