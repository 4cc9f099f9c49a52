"""What the benchmarks share: their options, the backbone of random weights, batches of real text, the machine."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from attempt_ray.config import DataConfig
from attempt_ray.data.batching import Batch, BatchStream
from attempt_ray.data.encoding import encode_splits
from attempt_ray.model.backbone import Backbone, BackboneIdentity, tokenizer_sha256
from attempt_ray.model.methods import PromptTuning
from attempt_ray.model.soft_prompt import SoftPrompts, from_vocabulary
from attempt_ray.reporting.parameters import BACKBONES
from attempt_ray.tasks import get_task
from attempt_ray.training.loop import Training
from attempt_ray.training.optimizer import BETAS, EPS, LinearSchedule

TASKS = ("rte", "mrpc", "sst2", "qqp", "cola")
PROMPT_LENGTH = 100
DOCUMENTED_WIDTH = 128
LEARNING_RATE = 3e-2
"""That of PEFT's guide."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def option_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="t5-small", choices=sorted(BACKBONES))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch")
    parser.add_argument("--rounds", type=int, default=8, help="timed batches")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options, having checked that the data are there and set the threads."""
    options = parser.parse_args()
    if not (options.data / "hub").is_dir():
        sys.exit(f"no directory {options.data / 'hub'}; give the directory of the real rows with --data")
    torch.set_num_threads(options.threads)
    return options


def write(result: dict[str, Any], path: Path) -> None:
    """Write the figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def stream(options: argparse.Namespace, tokenizer: Any, *, rows: int) -> BatchStream:
    """Return batches of real training rows, bucketed by length, cut to the documented width."""
    data = DataConfig(
        origin="mirror",
        root=str(options.data / "hub"),
        max_source_tokens=DOCUMENTED_WIDTH,
        max_train_rows=1000,
        max_dev_rows=10,
        max_test_rows=10,
    )
    digest = tokenizer_sha256(tokenizer)
    splits = [encode_splits(get_task(name), data, tokenizer, tokenizer_digest=digest).train for name in TASKS]
    return BatchStream(splits, seed=0, rows=rows)


def rows_of(batch: Batch) -> list[tuple[int, int]]:
    """Return tokens, prompt included, and target tokens of every row."""
    tokens = batch.mask_BT.sum(dim=1) + PROMPT_LENGTH
    return list(zip(tokens.tolist(), (batch.labels_BL >= 0).sum(dim=1).tolist(), strict=True))


def fresh_model(backbone: str, *, attention: str = "sdpa") -> T5ForConditionalGeneration:
    """Return a T5 of the shape with random weights, the same at every call, and no dropout."""
    shape = BACKBONES[backbone]
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=shape.vocabulary,
        d_model=shape.width,
        d_kv=shape.head_width,
        d_ff=shape.feed_forward,
        num_layers=shape.encoder_layers,
        num_heads=shape.heads,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    model.set_attn_implementation(attention)
    return model.requires_grad_(False)


def identity_of(name: str, model: T5ForConditionalGeneration) -> BackboneIdentity:
    """Return the identity of a model with random weights."""
    return BackboneIdentity(
        name=name,
        revision=None,
        weights_sha256="",
        tokenizer_sha256="",
        width=model.config.d_model,
        vocabulary=model.config.vocab_size,
    )


def first_prompt(model: T5ForConditionalGeneration) -> Tensor:
    """Return the prompt that every contender starts from."""
    rows_VH = model.shared.weight.detach().float()
    return from_vocabulary(rows_VH, PROMPT_LENGTH, top=5000, generator=torch.Generator().manual_seed(0))


def gemm_gflops(
    dtype: torch.dtype,
    *,
    rows: int = 2048,
    width: int = 768,
    repeats: int = 8,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the best rate of a matrix product here, in 10**9 operations a second of that clock."""
    left, right = torch.randn(rows, width).to(dtype), torch.randn(width, width).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        started = clock()
        left @ right
        best = min(best, clock() - started)
    return 2 * rows * width * width / best / 1e9


def machine() -> dict[str, Any]:
    """Return what the figures were measured on and with."""
    facts = torch.cpu.get_capabilities()
    flags: Sequence[str] = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
    return {
        "processor": facts.get("cpu_name") or platform.processor(),
        "flags": [flag for flag in flags if facts.get(flag)],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


class Given:
    """A stream of the batch that it is given, its rows all of one task."""

    given: Batch

    def batch(self, step: int) -> Batch:
        one = self.given
        return Batch(one.input_ids_BT, one.mask_BT, one.labels_BL, torch.zeros_like(one.task_B), one.row_B)


def new_training(backbone: Backbone) -> Any:
    """Return the training of one prompt on the batch that its stream is given."""
    method = PromptTuning(backbone, ["glue"], SoftPrompts(first_prompt(backbone.model)[None]))
    groups = [{"params": list(method.prompts.parameters()), "name": "prompts", "peak_lr": LEARNING_RATE}]
    return Training(
        method=method,
        stream=Given(),
        optimizer=torch.optim.AdamW(groups, betas=BETAS, eps=EPS, weight_decay=0.0),
        schedule=LinearSchedule(10**9, 0),
        seed=0,
        max_grad_norm=1e9,
    )
