"""What can be known to be wrong before any training starts."""

from __future__ import annotations

from collections.abc import Iterable

from attempt_ray.bank.places import check_reachable, open_runs, open_storage
from attempt_ray.bank.remote import RemoteStorage
from attempt_ray.config import Config
from attempt_ray.tasks import Task
from jobs.edge import tell


def check_stores(config: Config) -> None:
    """Write to the object stores that `runs` and `bank` name, so that training does not start what it cannot keep.

    Raises:
        BankError: `bank` is neither a path nor a URI.
        ConfigError: `runs` is neither a path nor a URI.
        StorageError: A store cannot be reached or written.
    """
    for storage in (open_runs(config.runs), open_storage(config.bank)):
        if isinstance(storage, RemoteStorage):
            check_reachable(storage)


def preflight(config: Config, tasks: Iterable[Task]) -> None:
    """Load the backbone and encode every row of every task, as the runs will: what they read is then whole and cached.

    Raises:
        BackboneError: The backbone cannot be loaded.
        BankError: `bank` is neither a path nor a URI.
        ConfigError: `runs` is neither a path nor a URI.
        DataError: A split is missing or empty, a row lacks a field, or a label is outside the verbalizer.
        StorageError: The disk refused the cache, or a store cannot be reached or written.
    """
    from attempt_ray.data.encoding import encode_splits
    from attempt_ray.model.backbone import load_backbone

    check_stores(config)
    known = list(tasks)
    tell(f"checking the backbone and the rows of {len(known)} tasks ...")
    backbone = load_backbone(config.backbone)
    for task in known:
        encode_splits(
            task, config.data, backbone.tokenizer, tokenizer_digest=backbone.identity.tokenizer_sha256
        )
