from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write one finished run directory under ``tmp_path/runs``; keywords replace parts of its report."""

    def write(
        label: str = "attempt",
        scores: dict[str, float] | None = None,
        *,
        seed: int = 1,
        job: str = "target",
        train_rows: int = 500,
        weights: dict[str, float] | None = None,
        **changes: Any,
    ) -> Path:
        scores = {"rte": 80.0} if scores is None else scores
        tasks = list(scores)
        digest = hashlib.sha256(repr((label, scores, seed, job, changes)).encode()).hexdigest()[:12]
        directory = tmp_path / "runs" / f"{job}-{label}-{'+'.join(tasks)}-s{seed}-{digest}"
        directory.mkdir(parents=True)
        attention: dict[str, Any] | None = weights and {
            "candidates": list(weights),
            "mean": list(weights.values()),
            "std": [0.1] * len(weights),
            "entropy_nats": 1.0,
            "uniform_entropy_nats": 1.1,
            "n": 100,
        }
        report = {
            "schema": 1,
            "job": job,
            "method": "finetune" if label == "finetune" else "prompt_tuning",
            "label": label,
            "tasks": tasks,
            "seed": seed,
            "digest": digest,
            "steps": 300,
            "warmup_steps": 30,
            "backbone": {"name": "nano", "revision": None, "weights_sha256": "ab" * 32, "width": 128},
            "backbone_unchanged": True,
            "trainable_parameters": 2_560,
            "parameters_per_task": 2_560.0,
            "train_rows": dict.fromkeys(tasks, train_rows),
            "data_sha256": dict.fromkeys(tasks, "cd" * 32),
            "seconds": 60.0,
            "tokens": 1_000,
            "best_step": 270,
            "scores": {
                task: {
                    "dev": {"n": 50, "metrics": {"accuracy": 70.0}},
                    "test": {"n": 100, "metrics": {"accuracy": score, "f1": 1.0}},
                }
                for task, score in scores.items()
            },
            "headline": dict.fromkeys(tasks, "accuracy"),
            "attention": dict.fromkeys(tasks, attention) if attention else None,
            "bank": {},
            "parents": [],
            "constant_prediction": dict.fromkeys(tasks, False),
            "environment": {"threads": 1},
            **changes,
        }
        lines = [{"step": step, "loss": 2.0 / step} for step in (10, 20, 30)]
        lines += [{"step": 30, "dev/mean": 70.0, **{f"dev/{task}/accuracy": 70.0 for task in tasks}}]
        (directory / "report.json").write_text(json.dumps(report))
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return directory

    return write
