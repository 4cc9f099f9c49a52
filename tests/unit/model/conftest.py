from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from attempt_ray.model.backbone import Backbone, BackboneIdentity, tokenizer_sha256, weights_sha256

WORDS = ["<pad>", "</s>", "<unk>", "0", "1", "true", "false", *(f"w{index}" for index in range(40))]
WIDTH = 32


def make_tokenizer() -> PreTrainedTokenizerFast:
    pipeline = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    pipeline.pre_tokenizer = pre_tokenizers.Whitespace()
    pipeline.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", WORDS.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pipeline, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_model(family: str = "t5") -> T5ForConditionalGeneration | MT5ForConditionalGeneration:
    """A tiny random model: `t5` (v1.0, tied), `t5-v1_1` (gated GELU, untied head) or `mt5`."""
    shape: dict[str, Any] = {
        "vocab_size": 48,
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "t5":
            return T5ForConditionalGeneration(T5Config(**shape))
        if family == "mt5":
            return MT5ForConditionalGeneration(MT5Config(**shape))
        model = T5ForConditionalGeneration(
            T5Config(**shape, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        )
        model.lm_head.weight = torch.nn.Parameter(torch.randn(shape["vocab_size"], WIDTH))
        return model


@pytest.fixture(name="make_tokenizer")
def _make_tokenizer() -> Callable[[], PreTrainedTokenizerFast]:
    return make_tokenizer


@pytest.fixture
def make_backbone() -> Callable[..., Backbone]:
    def make(family: str = "t5", dtype: torch.dtype = torch.float32) -> Backbone:
        model, tokenizer = make_model(family), make_tokenizer()
        identity = BackboneIdentity(
            name=f"tiny-{family}",
            revision=None,
            weights_sha256=weights_sha256(model),
            tokenizer_sha256=tokenizer_sha256(tokenizer),
            width=WIDTH,
            vocabulary=48,
        )
        return Backbone(model.to(dtype), tokenizer, identity)

    return make


@pytest.fixture
def backbone(make_backbone: Callable[..., Backbone]) -> Backbone:
    return make_backbone()


@pytest.fixture
def save_backbone(tmp_path) -> Callable[..., Any]:
    """Save a tiny model with its tokenizer in transformers layout; return the directory."""

    def save(family: str = "t5"):
        directory = tmp_path / family
        make_model(family).save_pretrained(directory)
        make_tokenizer().save_pretrained(directory)
        return directory

    return save
