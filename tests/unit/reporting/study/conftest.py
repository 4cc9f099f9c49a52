"""Studies as a study runner leaves them: study.json and run directories whose answers give the scores they report."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attempt_ray.tasks import TASKS, Example
from attempt_ray.tasks.metrics import METRICS, Answers

SOURCES = ("mnli", "sst2", "qnli", "qqp", "squad", "record")


class StudyMaker:
    """Collects cells, writes their runs below `root`/runs and the study below `root`/studies/tiny."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = root / "runs"
        self.directory = root / "studies" / "tiny"
        self.cells: list[dict[str, Any]] = []
        self.test_rows = 60
        self.config: dict[str, Any] = {"backbone": {"name": "nano"}, "data": {"label_words": "digits"}}

    def add(
        self,
        row: str,
        skill: float,
        *,
        tasks: Sequence[str] = ("rte",),
        seed: int = 1,
        ablation: str | None = None,
        backbone: str = "nano",
        status: str = "finished",
        error: str = "",
        weights: dict[str, float] | None = None,
        constant: bool = False,
        examples: bool = True,
        **report: Any,
    ) -> Path | None:
        """Add a cell; a finished one gets a run whose answers are right with probability `skill`."""
        key = "/".join(filter(None, [row, ablation, "+".join(tasks), f"s{seed}"]))
        digest = hashlib.sha256(f"{key} {backbone}".encode()).hexdigest()[:12]
        name = f"target-{row.removesuffix('_mt')}-{'-'.join(tasks)[:60]}-s{seed}-{digest}"
        finished = status == "finished"
        self.cells.append(
            {
                "row": row,
                "ablation": ablation,
                "tasks": list(tasks),
                "seed": seed,
                "backbone": backbone,
                "key": key,
                "status": status,
                "run": name if finished else None,
                "error": error,
            }
        )
        if not finished:
            return None
        directory = self.runs / name
        directory.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(zlib.crc32(f"{key} {backbone}".encode()))
        lines, scores, attention = [], {}, {}
        for task in tasks:
            found, metrics, drawn = self._answers(task, skill, rng, weights, constant=constant)
            lines += found
            scores[task] = {
                "dev": {"n": 50, "metrics": metrics},
                "test": {"n": len(found), "metrics": metrics},
            }
            if drawn is not None and weights is not None:
                entropy = -(drawn * np.log(drawn)).sum(axis=1)
                attention[task] = {
                    "candidates": list(weights),
                    "mean": drawn.mean(axis=0).tolist(),
                    "std": drawn.std(axis=0).tolist(),
                    "entropy_nats": float(entropy.mean()),
                    "uniform_entropy_nats": float(np.log(len(weights))),
                    "n": len(found),
                }
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        facts = {
            "schema": 1,
            "job": "target",
            "method": row.removesuffix("_mt"),
            "label": row,
            "tasks": list(tasks),
            "seed": seed,
            "digest": digest,
            "steps": 300,
            "warmup_steps": 30,
            "backbone": {"name": backbone, "weights_sha256": hashlib.sha256(backbone.encode()).hexdigest()},
            "trainable_parameters": 2_560,
            "parameters_per_task": 2_560 / len(tasks),
            "train_rows": dict.fromkeys(tasks, 500),
            "data_sha256": dict.fromkeys(tasks, "cd" * 32),
            "seconds": 60.0,
            "tokens": 100_000,
            "scores": scores,
            "headline": {task: TASKS[task].metrics[0] for task in tasks},
            "attention": attention or None,
            "constant_prediction": dict.fromkeys(tasks, constant),
            **report,
        }
        if examples:
            facts["examples_sha256"] = hashlib.sha256(content).hexdigest()
            (directory / "examples.jsonl").write_bytes(content)
        (directory / "report.json").write_text(json.dumps(facts))
        (directory / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n')
        return directory

    def write(self) -> Path:
        """Write study.json and return the study's directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        content = {"schema": 1, "name": "tiny", "config": self.config, "cells": self.cells}
        (self.directory / "study.json").write_text(json.dumps(content))
        return self.directory

    def _answers(
        self,
        name: str,
        skill: float,
        rng: np.random.Generator,
        weights: dict[str, float] | None,
        *,
        constant: bool,
    ) -> tuple[list[dict[str, Any]], dict[str, float], Any]:
        task, rows = TASKS[name], self.test_rows
        asked = np.random.default_rng(zlib.crc32(name.encode()))
        labels = task.labels.get("digits", ())
        if task.kind == "classification":
            golds = [[str(label)] for label in asked.choice(labels, rows)]
            others = [[label for label in labels if label != gold[0]] for gold in golds]
            wrong = [str(rng.choice(each)) for each in others]
        elif task.kind == "regression":
            values = asked.uniform(0, 5, rows)
            golds = [[f"{value:.1f}"] for value in values]
            wrong = [f"{value:.1f}" for value in rng.uniform(0, 5, rows)]
        else:
            golds = [[f"town {number}", f"the town {number} hall"] for number in range(rows)]
            wrong = [f"town {rng.integers(rows)} river" for _ in range(rows)]
        right = rng.random(rows) < skill
        answers = [gold[0] if hit else miss for gold, hit, miss in zip(golds, right, wrong, strict=True)]
        if constant:
            answers = ["1"] * rows
        examples = tuple(Example(source="", target=gold[0], golds=tuple(gold)) for gold in golds)
        asked_and_answered = Answers(predictions=tuple(answers), examples=examples, labels=labels)
        metrics = {metric: 100 * METRICS[metric].fraction(asked_and_answered) for metric in task.metrics}
        drawn = None
        if weights is not None:
            drawn = rng.dirichlet(20 * np.array(list(weights.values())) + 0.3, size=rows)
            drawn = np.round(drawn, 6).clip(1e-6)
        lines: list[dict[str, Any]] = []
        for row, (gold, answer) in enumerate(zip(golds, answers, strict=True)):
            line = {"task": name, "row": row, "input": f"{task.prefix} sentence1: row {row} | of {name}"}
            line |= {"answer": answer, "gold": gold}
            if drawn is not None:
                line["weights"] = drawn[row].tolist()
            lines.append(line)
        return lines, metrics, drawn


@pytest.fixture(scope="session")
def make_study() -> Callable[[Path], StudyMaker]:
    """Return a function from a directory to an empty study below it."""
    return StudyMaker


@pytest.fixture
def study(tmp_path: Path) -> StudyMaker:
    """An empty study."""
    return StudyMaker(tmp_path)
