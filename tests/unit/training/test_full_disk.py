"""A disk that fills up at any write of a run, and is then given room."""

from __future__ import annotations

import re

from safetensors.torch import load_file

from attempt_ray.bank.store import Bank
from attempt_ray.errors import StorageError
from attempt_ray.training.run import execute


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
