"""A tiny random T5 on disk, rows of five tasks as JSONL files, and configs of runs over them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from attempt_ray.config import Config, parse
from attempt_ray.training.ingredients import forget_backbone
from attempt_ray.training.run import execute

WORDS = tuple(f"w{number}" for number in range(30))
PIECES = (
    "0",
    "1",
    "2",
    "premise:",
    "hypothesis:",
    "sentence1:",
    "sentence2:",
    "question:",
    "context:",
    "sentence:",
)
WIDTH = 16
LENGTH = 3
SOURCES = ("mnli", "squad")

MakeConfig = Callable[..., Config]


def pair(rng: random.Random, *, classes: int, names: tuple[str, str]) -> dict[str, Any]:
    label = rng.randrange(classes)
    first = [WORDS[label], *rng.choices(WORDS[5:], k=rng.randint(1, 6))]
    return {names[0]: " ".join(first), names[1]: " ".join(rng.choices(WORDS[5:], k=3)), "label": label}


def answer(rng: random.Random) -> dict[str, Any]:
    words = rng.sample(WORDS, k=6)
    return {
        "question": words[0],
        "context": " ".join(words),
        "answers": {"text": [words[1]], "answer_start": [0]},
    }


ROWS: dict[str, tuple[Callable[[random.Random], dict[str, Any]], dict[str, int]]] = {
    "rte": (
        lambda rng: pair(rng, classes=2, names=("sentence1", "sentence2")),
        {"train": 24, "validation": 12},
    ),
    "mrpc": (
        lambda rng: pair(rng, classes=2, names=("sentence1", "sentence2")),
        {"train": 12, "validation": 12},
    ),
    "mnli": (
        lambda rng: pair(rng, classes=3, names=("premise", "hypothesis")),
        {"train": 16, "validation_mismatched": 6, "validation_matched": 6},
    ),
    "squad": (answer, {"train": 20, "validation": 6}),
    "cb": (lambda rng: pair(rng, classes=3, names=("premise", "hypothesis")), {"validation": 8}),
}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`backbone/` and `rows/<task>/<split>.jsonl`; `cb` has no training rows."""
    root = tmp_path_factory.mktemp("files")
    save_backbone(root / "backbone")
    for task, (make, counts) in ROWS.items():
        rng = random.Random(task)
        (root / "rows" / task).mkdir(parents=True)
        for split, count in counts.items():
            lines = [
                json.dumps({**make(rng), "idx": number, "id": str(number), "title": ""})
                for number in range(count)
            ]
            (root / "rows" / task / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return root


def save_backbone(directory: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *PIECES, *WORDS))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=len(vocabulary),
                d_model=WIDTH,
                d_kv=8,
                d_ff=32,
                num_layers=1,
                num_heads=2,
                decoder_start_token_id=0,
            )
        )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def base_config(files: Path, root: Path) -> dict[str, Any]:
    """What all runs share: tiny, from files, everything below `root`."""
    return {
        "bank": str(root / "bank"),
        "runs": str(root / "runs"),
        "tasks": ["rte"],
        "backbone": {"name": str(files / "backbone")},
        "data": {
            "origin": "files",
            "root": str(files / "rows"),
            "batch_rows": 4,
            "cache_dir": str(files / "cache"),
        },
        "prompt": {"length": LENGTH},
        "attention": {"sources": list(SOURCES), "bottleneck": 4},
        "training": {"steps": 6, "eval_steps": 2, "checkpoint_steps": 2},
        "evaluation": {"max_new_tokens": 3, "decode": "labels"},
    }


@pytest.fixture
def make_config(files: Path, tmp_path: Path, filled_bank: Path) -> MakeConfig:
    """Return a function from what differs to the config of a short run; the bank holds two source prompts."""
    return lambda **changes: parse([base_config(files, filled_bank.parent), changes])


@pytest.fixture(scope="session")
def source_bank(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with the prompts of two source runs of three steps."""
    root = tmp_path_factory.mktemp("sources")
    for task in SOURCES:
        source = {"job": "source", "method": "prompt_tuning", "tasks": [task], "training": {"steps": 3}}
        execute(parse([base_config(files, root), source]))
    return root / "bank"


@pytest.fixture
def filled_bank(source_bank: Path, tmp_path: Path) -> Path:
    """A bank of the test's own that holds the two source prompts."""
    return Path(shutil.copytree(source_bank, tmp_path / "bank"))


@pytest.fixture(autouse=True)
def _own_backbone() -> None:
    """Load the backbone anew for every test."""
    forget_backbone()
