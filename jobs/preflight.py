"""What can be known to be wrong before any training starts."""

from __future__ import annotations

from collections.abc import Iterable

from attempt_ray.config import Config
from attempt_ray.tasks import Task
from jobs.edge import tell


def preflight(config: Config, tasks: Iterable[Task]) -> None:
    """Load the backbone and encode every row of every task, as the runs will: what they read is then whole and cached.

    Raises:
        BackboneError: The backbone cannot be loaded.
        DataError: A split is missing or empty, a row lacks a field, or a label is outside the verbalizer.
        StorageError: The disk refused the cache.
    """
    from attempt_ray.data.encoding import encode_splits
    from attempt_ray.model.backbone import load_backbone

    known = list(tasks)
    tell(f"checking the backbone and the rows of {len(known)} tasks ...")
    backbone = load_backbone(config.backbone)
    for task in known:
        encode_splits(
            task, config.data, backbone.tokenizer, tokenizer_digest=backbone.identity.tokenizer_sha256
        )
