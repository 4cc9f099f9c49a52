from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from attempt_ray.config import DataConfig
from attempt_ray.tasks.spec import Task, classification

WORDS = ("news", "text:", "0", "1", "good", "bad", *(f"w{number}" for number in range(100)))
FEATURES = Features(
    {"text": Value("string"), "label": ClassLabel(names=["bad", "good"]), "idx": Value("int32")}
)

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def task() -> Task:
    return classification(
        "news",
        ("text",),
        words=("bad", "good"),
        prefix="news",
        hub_id="owner/news",
        hub_config="plain",
        group="user",
        metrics=("accuracy",),
        split_rule="native",
        test_split="test",
    )


@pytest.fixture
def with_rule(task: Task) -> Callable[..., Task]:
    return partial(replace, task)


def make_rows(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Return rows of 1 to 40 words whose first word tells the row number."""
    return [
        {
            "text": " ".join(f"w{(number + place) % 100}" for place in range(1 + number * 7 % 40)),
            "label": number % 2,
            "idx": number,
        }
        for number in range(first, first + count)
    ]


@pytest.fixture
def write_split(tmp_path: Path) -> Write:
    """Write rows as `<tmp_path>/mirror/owner/news/plain/<split>.parquet`; return the mirror."""

    def write(split: str, rows: list[dict[str, Any]], *, config: str = "plain") -> Path:
        file = tmp_path / "mirror" / "owner" / "news" / config / f"{split}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(
            {name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES
        ).to_parquet(str(file))
        return tmp_path / "mirror"

    return write


@pytest.fixture
def mirror(tmp_path: Path, write_split: Write) -> DataConfig:
    """A mirror with 60 training, 20 validation and 10 test rows."""
    write_split("train", make_rows(60))
    write_split("validation", make_rows(20, first=60))
    root = write_split("test", make_rows(10, first=80))
    return DataConfig(origin="mirror", root=str(root), cache_dir=str(tmp_path / "cache"))


@pytest.fixture(name="make_rows")
def _make_rows() -> Callable[..., list[dict[str, Any]]]:
    return make_rows


@pytest.fixture(autouse=True)
def _no_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep `to_parquet` quiet."""
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
