"""From the text a user gives for a bank to the storage behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyarrow import ArrowException, fs

from attempt_ray.bank.local import LocalStorage
from attempt_ray.bank.remote import RemoteStorage
from attempt_ray.bank.storage import Storage
from attempt_ray.errors import BankError

_WANTED = "a directory, or a URI that pyarrow opens: file:///path, s3://bucket/path, gs://bucket/path, hdfs://host/path"


def open_storage(uri: Any) -> Storage:
    """Return the storage at a local path or pyarrow filesystem URI; nothing is created.

    Raises:
        BankError: It is neither.
    """
    if not isinstance(uri, str) or not uri.strip() or "\0" in uri:
        raise BankError(f"got {uri!a} as the bank; wanted {_WANTED}")
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return LocalStorage(Path(uri).expanduser())
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (ArrowException, ValueError, OSError, ImportError) as error:
        # A URI may hold a password; pyarrow's words repeat it.
        reason = f": {' '.join(str(error).split())}" if "@" not in uri and "?" not in uri else ""
        raise BankError(f"cannot open the bank's '{scheme}' URI{reason}; wanted {_WANTED}") from None
    if isinstance(filesystem, fs.LocalFileSystem):
        return LocalStorage(Path(path))
    return RemoteStorage(filesystem, path, scheme=scheme)
