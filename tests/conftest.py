"""What every test shares: no network, no home directory of the user's, one thread."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Set before any library reads them; Ray's workers and subprocesses inherit them.
_HOME = tempfile.mkdtemp(prefix="attempt-tests-")
os.environ |= {
    "HOME": _HOME,
    "XDG_CACHE_HOME": f"{_HOME}/.cache",
    "HF_HOME": f"{_HOME}/.cache/huggingface",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MPLCONFIGDIR": f"{_HOME}/.cache/matplotlib",
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_EC2_METADATA_DISABLED": "true",
}

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


_WORDS = tuple(f"w{number}" for number in range(30))
_PIECES = (
    "0",
    "1",
    "2",
    "premise:",
    "hypothesis:",
    "sentence1:",
    "sentence2:",
    "sentence:",
    "question:",
    "context:",
)
_COLUMNS = {
    "mnli": ("premise", "hypothesis"),
    "sst2": ("sentence",),
    "rte": ("sentence1", "sentence2"),
    "mrpc": ("sentence1", "sentence2"),
}
_SPLITS = {
    "mnli": {"train": 12, "validation_mismatched": 6, "validation_matched": 6},
    "sst2": {"train": 16, "validation": 6},
    "rte": {"train": 12, "validation": 8},
    "mrpc": {"train": 12, "validation": 8},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not SHARED.is_dir():
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(pytest.mark.skip(reason=f"{SHARED} is not there"))


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """Port of an S3 server, a process of its own that ends with this one."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.stdin.close()


@pytest.fixture
def unused_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def s3(s3_port: int) -> str:
    """URI of a new bucket."""
    from pyarrow import fs

    bucket = f"bucket-{secrets.token_hex(6)}"
    options = f"endpoint_override=127.0.0.1:{s3_port}&scheme=http&region=us-east-1"
    filesystem, _ = fs.FileSystem.from_uri(f"s3://{bucket}?{options}&allow_bucket_creation=true")
    filesystem.create_dir(bucket)
    return f"s3://{bucket}/attempt?{options}"


@pytest.fixture(scope="session")
def save_tiny_backbone() -> Callable[[Path], None]:
    """Return a function that saves a random T5 of width 16 whose words are `w0` to `w29`, labels and field names."""
    return _save_backbone


@pytest.fixture(scope="session")
def study_files(tmp_path_factory: pytest.TempPathFactory, save_tiny_backbone: Callable[[Path], None]) -> Path:
    """A tiny random T5 in `backbone/`, and rows of two sources and two targets as `rows/<task>/<split>.jsonl`."""
    root = tmp_path_factory.mktemp("study")
    save_tiny_backbone(root / "backbone")
    for task, columns in _COLUMNS.items():
        rng = random.Random(task)
        (root / "rows" / task).mkdir(parents=True)
        for split, count in _SPLITS[task].items():
            rows = [
                {
                    **{column: " ".join(rng.choices(_WORDS, k=4)) for column in columns},
                    "label": rng.randrange(2),
                    "idx": n,
                }
                for n in range(count)
            ]
            (root / "rows" / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return root


def _save_backbone(directory: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    vocabulary = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *_PIECES, *_WORDS))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 1,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        }
        model = T5ForConditionalGeneration(T5Config(vocab_size=len(vocabulary), **shape))
    model.save_pretrained(directory)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(directory)


@pytest.fixture
def make_study(study_files: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function from what differs to the config of a study whose bank and runs are in `tmp_path`."""
    from attempt_ray.config import parse

    base: dict[str, Any] = {
        "bank": str(tmp_path / "bank"),
        "runs": str(tmp_path / "runs"),
        "backbone": {"name": str(study_files / "backbone")},
        "data": {
            "origin": "files",
            "root": str(study_files / "rows"),
            "batch_rows": 4,
            "cache_dir": str(study_files / "cache"),
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
