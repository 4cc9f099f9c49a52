"""Every method's real count of trainable numbers against method by formula, on shapes without weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from attempt_ray.config import METHODS
from attempt_ray.model.backbone import Backbone, BackboneIdentity
from attempt_ray.reporting.parameters import parameter_table

SHAPES: dict[str, dict[str, Any]] = {
    "t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "t5-small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "uneven": {  # gated, untied, heads narrower than the model, another depth of the decoder
        "d_model": 96,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "vocab_size": 48,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
}
ROWS = {
    "adapter": "Adapter",
    "bitfit": "BitFit",
    "lora": "LoRA",
    "prompt_tuning": "PT",
    "attempt": "ATTEMPT-ST",
    "mpt": "MPT",
    "dept": "DePT",
}


@pytest.fixture
def make_shape(make_tokenizer, monkeypatch):
    """Return a function from a shape's name to a backbone on torch's meta device."""
    # The one value of the weights that a method reads when it is made.
    monkeypatch.setattr(Backbone, "pad_embedding_H", property(lambda backbone: torch.zeros(backbone.width)))

    def make(name: str) -> Backbone:
        with torch.device("meta"):
            model = T5ForConditionalGeneration(T5Config(**SHAPES[name]))
        identity = BackboneIdentity(
            name=name,
            revision=None,
            weights_sha256="",
            tokenizer_sha256="",
            width=SHAPES[name]["d_model"],
            vocabulary=SHAPES[name].get("vocab_size", 32_128),
        )
        return Backbone(model, make_tokenizer(), identity)

    return make


def count(build, backbone, method, tasks=("rte",), **sections) -> int:
    length = 40 if method == "dept" else 100
    given = {
        "initial": torch.zeros(length, backbone.width),
        "sources": {"mnli": torch.zeros(length, backbone.width)},
    }
    sections = {"method": method, "prompt": {"length": 100}, "attention": {"sources": ["mnli"]}} | sections
    return build(backbone, tasks, given=given, **sections).trainable_parameters


@pytest.mark.parametrize("method", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_by_formula_are_those_that_train(build, make_shape, tmp_path, shape, method):
    name = shape
    if shape == "uneven":
        (tmp_path / "config.json").write_text(json.dumps(SHAPES[shape]))
        name = str(tmp_path)
    (entry,) = parameter_table(name).backbones
    assert count(build, make_shape(shape), method) == entry.per_task(ROWS[method])


@pytest.mark.parametrize(
    ("method", "number"),
    [
        ("finetune", 222_903_552),
        ("adapter", 1_855_104),
        ("bitfit", 282_496),
        ("lora", 884_736),
        ("prompt_tuning", 76_800),
        ("attempt", 231_936),
        ("mpt", 77_668),
        ("dept", 76_800),
    ],
)
def test_counts_on_t5_base(build, make_shape, method, number):
    assert count(build, make_shape("t5-base"), method) == number


def test_every_method_is_counted():
    assert {*ROWS, "finetune"} == set(METHODS)


def test_tasks_share_what_they_are_to_share(build, make_shape):
    backbone, tasks = make_shape("t5-base"), ("rte", "cb", "mrpc", "wnli")
    assert count(build, backbone, "mpt", tasks) == 76_800 + 4 * 868
    assert count(build, backbone, "dept", tasks) == 4 * 76_800
    shared = {"length": 100, "shared": True}
    assert count(build, backbone, "prompt_tuning", tasks, prompt=shared) == 76_800
    assert count(build, backbone, "adapter", tasks) == 1_855_104
