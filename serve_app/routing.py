"""From a path to its template in `serve_app.access`, to the letter: nothing is decoded, folded or put in order first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from serve_app.access import Access
from serve_app.schema import TASK_PATTERN

NAMES: Mapping[str, str] = {
    "task": TASK_PATTERN,
    "model": TASK_PATTERN,
    "name": r"^[a-z0-9][a-z0-9._-]{0,63}$",
    "version": r"^[a-z0-9][a-z0-9._-]{0,63}$",
}
"""What may stand in the place of each `{name}` of a template."""


class Router:
    """Finds the template that a path is of.

    Args:
        routes: Templates, with the access of each method.

    Raises:
        KeyError: A template has a name in braces that is none of `task`, `model`, `name` and `version`.
    """

    def __init__(self, routes: Mapping[str, Mapping[str, Access]]) -> None:
        self._routes = routes
        self._patterns = {path: _compiled(path) for path in routes if "{" in path}

    def match(self, scope: Mapping[str, Any]) -> str | None:
        """Return the template of an ASGI scope's path; None where it has none.

        A path that was sent with a percent-encoded character has none, but for the ``@`` in front of a version, which some
        clients encode.
        """
        path: str = scope["path"]
        raw: bytes | None = scope.get("raw_path")
        if raw is not None and raw.replace(b"%40", b"@") != path.encode("utf-8", "surrogatepass"):
            return None
        if path in self._routes and path not in self._patterns:
            return path
        return next((known for known, pattern in self._patterns.items() if pattern.fullmatch(path)), None)


def _compiled(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)  # text and names in turn
    return re.compile(
        "".join(
            NAMES[part].removeprefix("^").removesuffix("$") if index % 2 else re.escape(part)
            for index, part in enumerate(parts)
        )
    )
