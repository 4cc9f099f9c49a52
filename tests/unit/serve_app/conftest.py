"""A bank for the shipped nano, made in milliseconds: prompts of noise, but real versions with real manifests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attempt_ray.bank import Bank, Facts, MixtureRecord, Version
from attempt_ray.bank.names import Kind
from attempt_ray.config import BackboneConfig, Config, parse
from attempt_ray.model.backbone import load_backbone
from attempt_ray.model.published import backbone_record

Publish = Callable[..., Version]


@pytest.fixture(scope="session")
def nano_facts() -> Facts:
    backbone = load_backbone(BackboneConfig(name="nano", dtype="float32"))
    return Facts(backbone=backbone_record(backbone), tasks=("rte",), config_digest="0123456789ab")


@pytest.fixture
def nano_bank(tmp_path: Path) -> Bank:
    return Bank(str(tmp_path / "bank"))


@pytest.fixture
def publish(nano_bank: Bank, nano_facts: Facts) -> Publish:
    """Return a publisher of prompts: alone, mixed from sources, or finite ones that overflow once they are mixed."""

    def add(
        name: str, *, seed: int, kind: Kind = "target", sources: tuple[str, ...] = (), overflows: bool = False
    ) -> Version:
        width = nano_facts.backbone.width
        rng = np.random.default_rng(seed)
        facts = nano_facts
        if kind == "attention":
            tensors = {
                "down.weight": rng.normal(size=(8, width)),
                "up.weight": rng.normal(size=(width, 8)),
                "norm.weight": np.ones(width),
                "norm.bias": np.zeros(width),
            }
        else:
            tensors = {"prompt": rng.normal(size=(4, width), scale=0.5)}
        if overflows:
            tensors, sources = {"prompt": np.full((4, width), 3e38)}, ("source/mnli@v1",)
        if sources:
            mixture = MixtureRecord(
                sources=sources,
                attention=None if overflows else "attention/g@v1",
                divisor=100.0,
                pooling="masked",
                authors_width=64,
                weights="uniform" if overflows else "learned",
                target="trained",
            )
            facts = facts.model_copy(update={"mixture": mixture})
        return nano_bank.publish(
            kind, name, {key: value.astype(np.float32) for key, value in tensors.items()}, facts
        )

    return add


@pytest.fixture
def served(nano_bank: Bank, publish: Publish) -> Bank:
    """A bank with a mixed target (rte), a plain one (cb), and sources (mnli, squad)."""
    publish("mnli", seed=1, kind="source")
    publish("squad", seed=2, kind="source")
    publish("g", seed=3, kind="attention")
    publish("rte", seed=4, sources=("source/mnli@v1", "source/squad@v1"))
    publish("cb", seed=5)
    for name in ("rte", "cb"):
        nano_bank.promote(f"target/{name}@v1")
    return nano_bank


@pytest.fixture
def nano_config(nano_bank: Bank) -> Callable[..., Config]:
    """Return a maker of configs for the nano and its bank; arguments are settings of `serving`."""

    def make(**serving: object) -> Config:
        layers = {
            "backbone": {"name": "nano", "dtype": "float32"},
            "data": {"origin": "embedded"},
            "bank": nano_bank.place.rstrip("/"),
            "serving": {"follow_seconds": 0.02, **serving},
        }
        return parse([layers])

    return make
