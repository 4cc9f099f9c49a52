from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attempt_ray.bank.store import Bank
from attempt_ray.config import Config
from jobs.run_pipeline import run_pipeline

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def test_a_pool_of_two_learns_what_one_process_learns_bit_for_bit(
    cluster: Path, make_study: Callable[..., Config], tmp_path: Path
) -> None:
    study = {"targets": ["rte"], "methods": ["spot_similar", "attempt"]}
    places = {"cluster": {"workers": 2, "cpus_per_worker": 0.5}}
    pooled = make_study(study=study, **places)
    alone = make_study(study=study, bank=str(tmp_path / "bank-here"), runs=str(tmp_path / "runs-here"))
    assert run_pipeline(pooled)["failed"] == []
    run_pipeline(alone, placement="here")

    def learned(config: Config) -> dict[str, list[bytes]]:
        bank = Bank(config.bank)
        found: dict[str, list[bytes]] = {}
        for version in bank.list():
            tensors = bank.load(version.reference).tensors
            content = b"".join(np.ascontiguousarray(tensors[name]).tobytes() for name in sorted(tensors))
            found.setdefault(f"{version.kind}/{version.name}", []).append(content)
        return {name: sorted(contents) for name, contents in found.items()}

    assert learned(pooled) == learned(alone)
    assert sorted(learned(pooled)) == [
        "attention/prior-text",
        "attention/rte",
        "source/mnli",
        "source/sst2",
        "target/rte",
    ]
