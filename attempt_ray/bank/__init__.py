"""Prompts on disk or object store: immutable versions, moving aliases, digests checked at every read."""

from attempt_ray.bank.aliases import CANDIDATE, CHAMPION, Aliases
from attempt_ray.bank.fsck import Problem
from attempt_ray.bank.manifest import BackboneRecord, Facts, Manifest, MetricRecord, MixtureRecord
from attempt_ray.bank.names import KINDS, Kind, Version
from attempt_ray.bank.store import Bank
from attempt_ray.bank.versions import Loaded

__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "KINDS",
    "Aliases",
    "BackboneRecord",
    "Bank",
    "Facts",
    "Kind",
    "Loaded",
    "Manifest",
    "MetricRecord",
    "MixtureRecord",
    "Problem",
    "Version",
]
