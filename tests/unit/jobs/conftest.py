"""A study small enough for a test: a tiny random T5 on disk, two sources and two targets as JSON lines."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from attempt_ray.config import Config, parse

WORDS = tuple(f"w{number}" for number in range(24))
PIECES = ("0", "1", "2", "premise:", "hypothesis:", "sentence1:", "sentence2:", "sentence:", "question:", "context:")
COLUMNS = {
    "mnli": ("premise", "hypothesis"),
    "sst2": ("sentence",),
    "rte": ("sentence1", "sentence2"),
    "mrpc": ("sentence1", "sentence2"),
}
SPLITS = {
    "mnli": {"train": 12, "validation_mismatched": 6, "validation_matched": 6},
    "sst2": {"train": 16, "validation": 6},
    "rte": {"train": 12, "validation": 8},
    "mrpc": {"train": 12, "validation": 8},
}

MakeStudy = Callable[..., Config]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    save_backbone(root / "backbone")
    for task, columns in COLUMNS.items():
        rng = random.Random(task)
        (root / "rows" / task).mkdir(parents=True)
        for split, count in SPLITS[task].items():
            rows = [
                {**{column: " ".join(rng.choices(WORDS, k=4)) for column in columns}, "label": rng.randrange(2), "idx": n}
                for n in range(count)
            ]
            (root / "rows" / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return root


def save_backbone(directory: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *PIECES, *WORDS))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
        model = T5ForConditionalGeneration(T5Config(vocab_size=len(vocabulary), **shape))
    model.save_pretrained(directory)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(directory)


@pytest.fixture
def make_study(files: Path, tmp_path: Path) -> MakeStudy:
    """Return a function from what differs to the config of a study whose bank and runs are in `tmp_path`."""
    base: dict[str, Any] = {
        "bank": str(tmp_path / "bank"),
        "runs": str(tmp_path / "runs"),
        "backbone": {"name": str(files / "backbone")},
        "data": {
            "origin": "files",
            "root": str(files / "rows"),
            "batch_rows": 4,
            "cache_dir": str(files / "cache"),
        },
        "prompt": {"length": 3},
        "attention": {"sources": ["mnli", "sst2"], "bottleneck": 4},
        "training": {"steps": 2, "eval_steps": 1, "threads": 1},
        "evaluation": {"decode": "labels"},
        "study": {
            "targets": ["rte", "mrpc"],
            "methods": ["prompt_tuning", "spot", "spot_similar", "attempt", "attempt_mt"],
            "seeds": [1],
            "parents": {"rte": ["mnli"]},
            "prior_groups": {"text": ["mnli", "sst2"], "qa": ["squad"]},
        },
    }
    return lambda **changes: parse([base, changes])
