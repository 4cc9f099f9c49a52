from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from attempt_ray.bank.manifest import (
    Facts,
    Manifest,
    MetricRecord,
    TensorRecord,
    check_tensors,
    decode_json,
    encode_json,
)
from attempt_ray.errors import BackboneError, BankError


@pytest.fixture
def manifest(facts):
    return Manifest(
        **dict(facts),
        kind="target",
        name="rte",
        number=3,
        created="2026-11-22T10:00:00Z",
        tensors={"prompt": TensorRecord(shape=(3, 8), dtype="float32")},
        files={"tensors.safetensors": "d" * 64},
    )


def attention(width=8, bottleneck=2):
    shapes = {
        "down.weight": (bottleneck, width),
        "up.weight": (width, bottleneck),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def test_a_manifest_survives_the_file(manifest):
    data = manifest.to_json()
    assert Manifest.from_json(data) == manifest
    assert Manifest.from_json(data).to_json() == data
    assert decode_json(data)["schema"] == 1
    assert set(decode_json(data)) == {
        "schema", "kind", "name", "number", "created", "backbone", "tensors", "tasks", "config_digest", "data_sha256",
        "metrics", "parents", "mixture", "files", "recipe", "imported",
    }  # fmt: skip


def test_a_newer_schema_asks_for_an_upgrade(manifest):
    data = encode_json({**decode_json(manifest.to_json()), "schema": 2})
    with pytest.raises(BankError, match=r"schema is 2.*upgrade"):
        Manifest.from_json(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../x"), ("kind", "other"), ("number", 0), ("created", "today"), ("files", {"../x": "d" * 64}),
        ("files", {"x": "short"}), ("parents", ["source/mnli"]), ("parents", ["../x@v1"]), ("unknown", 1),
        ("tensors", {"prompt": {"shape": [0, 8], "dtype": "float32"}}), ("config_digest", "x"), ("backbone", None),
        ("tensors", {"prompt": {"shape": [3, 8], "dtype": "float64"}}),
    ],
)  # fmt: skip
def test_an_impossible_manifest_is_refused(manifest, key, value):
    data = encode_json({**decode_json(manifest.to_json()), key: value})
    with pytest.raises(BankError):
        Manifest.from_json(data)


@pytest.mark.parametrize("field", ["width", "weights_sha256", "tokenizer_sha256"])
def test_a_version_for_another_backbone_is_refused(manifest, backbone, field):
    manifest.check_backbone(backbone)
    manifest.check_backbone(backbone.model_copy(update={"name": "/models/nano", "revision": None}))
    other = backbone.model_copy(update={field: 16 if field == "width" else "e" * 64, "name": "other"})
    with pytest.raises(
        BackboneError, match=rf"target/rte@v3 was made for backbone 'nano' \({field} .*got 'other'.*train"
    ):
        manifest.check_backbone(other)


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_an_undefined_score_is_null(value):
    assert MetricRecord(value=value, n=3, split="dev").value is None


def test_facts_refuse_unknown_keys(backbone):
    with pytest.raises(ValidationError):
        Facts(backbone=backbone, tasks=(), config_digest="0" * 12, surprise=1)


def test_facts_must_be_json(manifest):
    for value in (math.nan, object(), {1: 2, "1": 3}.keys()):
        with pytest.raises(BankError, match="plain JSON"):
            encode_json({"recipe": value})


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"a":1,"a":2}', b'{"a":NaN}', b"[" * 100_000, b"\xff{}", b"1e999999x", b"{}{}"]
)
def test_what_is_not_strict_json_is_refused(data):
    with pytest.raises(BankError, match="not JSON"):
        decode_json(data)


def test_tensors_of_each_kind_are_accepted():
    check_tensors("source", {"prompt": np.ones((3, 8), np.float32)}, width=8)
    check_tensors("target", {"prompt": np.ones((1, 8), np.float32)}, width=8)
    check_tensors("attention", attention(), width=8)


@pytest.mark.parametrize(
    ("kind", "tensors", "message"),
    [
        ("source", {}, "wants prompt"),
        ("source", {"promt": np.ones((3, 8), np.float32)}, "wants prompt"),
        ("source", {"prompt": np.ones((3, 9), np.float32)}, r"\[3, 9\]; wanted \[3, 8\]"),
        ("source", {"prompt": np.ones((0, 8), np.float32)}, r"\[0, 8\]"),
        ("source", {"prompt": np.ones(8, np.float32)}, r"\[8\]; wanted \[any, 8\]"),
        ("source", {"prompt": np.ones((3, 8))}, "float64; wanted float32"),
        ("target", {"prompt": np.full((3, 8), np.nan, np.float32)}, "24 of 24 values NaN"),
        ("target", {"prompt": np.array([[np.inf] + [0] * 7], np.float32)}, "1 of 8 values NaN or infinite"),
        ("attention", {"prompt": np.ones((3, 8), np.float32)}, "wants down.weight"),
        (
            "attention",
            {**attention(), "up.weight": np.ones((8, 3), np.float32)},
            r"\[8, 3\]; wanted \[8, 2\]",
        ),
        ("attention", attention(width=16), "backbone of width 8"),
    ],
)
def test_other_tensors_are_refused(kind, tensors, message):
    with pytest.raises(BankError, match=message):
        check_tensors(kind, tensors, width=8)
