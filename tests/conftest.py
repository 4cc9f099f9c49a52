"""What every test shares: no network, no home directory of the user's, one thread."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

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
}

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not SHARED.is_dir():
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(pytest.mark.skip(reason=f"{SHARED} is not there"))


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)
