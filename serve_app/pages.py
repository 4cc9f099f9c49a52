"""The playground's files, read once: what a browser asks for is looked up, and no path is made of it."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request, Response

PLAYGROUND = Path(__file__).parent / "playground"


@dataclass(frozen=True)
class Page:
    """A file."""

    content: bytes
    """What is in it."""
    media_type: str
    """What that is."""
    etag: str
    """Quoted digest of the content."""

    def response(self, request: Request) -> Response:
        """Return the file, or that the browser has it already."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        known = {
            tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")
        }
        if known & {self.etag, "*"}:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def read_pages(directory: Path = PLAYGROUND) -> Mapping[str, Page]:
    """Return the plain files of a directory by name, those that are hidden or Python apart; none where it is not there."""
    if not directory.is_dir():
        return {}
    return {
        path.name: page(path.read_bytes(), media_type=mimetypes.guess_type(path.name)[0])
        for path in sorted(directory.iterdir())
        if path.is_file() and not path.name.startswith((".", "_")) and path.suffix != ".py"
    }


def page(content: bytes, *, media_type: str | None) -> Page:
    """Return a page of some content."""
    return Page(
        content, media_type or "application/octet-stream", f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    )
