"""A disk that fills up at any write of a run, and is then given room."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from attempt_ray.bank.store import Bank
from attempt_ray.errors import StorageError
from attempt_ray.training.run import execute

Resize = Callable[[int], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Resize]]:
    """A disk in memory, and how to give it another size in KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a disk in memory is not allowed here")

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}k", place], check=True)

    try:
        yield place, resize
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_loses_nothing_at_any_write(make_config, disk, source_bank, tmp_path):
    place, resize = disk
    training = {"steps": 24, "eval_steps": 4, "checkpoint_steps": 3}
    whole = execute(make_config(training=training))
    config = make_config(training=training, runs=str(place / "runs"))
    refusals = []
    for size in range(8, 4096, 8):
        resize(size)
        try:
            result = execute(config)
        except StorageError as error:
            refusals.append(str(error))
        else:
            break
    assert len(refusals) >= 5
    for refusal in refusals:
        assert re.search(
            r"No space left on device \([\d,]+ bytes needed, [\d,]+ bytes free\); free some space", refusal
        ), refusal
    assert load_file(result.directory / "best.safetensors").keys()
    assert (result.directory / "best.safetensors").read_bytes() == (
        whole.directory / "best.safetensors"
    ).read_bytes()
    assert not [path for path in place.rglob("*") if ".tmp-" in path.name]
    assert Bank(config.bank).verify() == []
