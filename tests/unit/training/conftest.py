"""A tiny random T5 on disk, rows of five tasks as JSONL files, and configs of runs over them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.config import Config, parse
from attempt_ray.training.ingredients import forget_backbone
from attempt_ray.training.run import execute

WORDS = tuple(f"w{number}" for number in range(30))
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
def files(tmp_path_factory: pytest.TempPathFactory, save_tiny_backbone: Callable[[Path], None]) -> Path:
    """`backbone/` and `rows/<task>/<split>.jsonl`; `cb` has no training rows."""
    root = tmp_path_factory.mktemp("files")
    save_tiny_backbone(root / "backbone")
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
