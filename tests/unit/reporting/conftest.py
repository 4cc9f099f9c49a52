from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

WriteRun = Callable[..., Path]
MakeSearch = Callable[..., optuna.Study]

_LOG = FloatDistribution(0.001, 1.0, log=True)
_DOMAINS = {
    "training.rate": _LOG,
    "prompt.rate": _LOG,
    "training.steps": CategoricalDistribution((100, 200, 400)),
    "temperature": CategoricalDistribution(("auto", "absolute")),
    "attention.temperature": FloatDistribution(-4.0, 2.0),
}
_PAPER = {"training.rate": 0.1, "prompt.rate": 0.1, "training.steps": 200, "temperature": "auto"}
_SPACE = {
    "name": "tiny",
    "knobs": [
        {
            "key": key,
            "sets": {"auto": {"attention.temperature": "auto"}, "absolute": {}}
            if key == "temperature"
            else {},
        }
        for key in _DOMAINS
    ],
    "fixed": {"training.warmup_steps": 3},
    "known": [_PAPER],
}


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


@pytest.fixture(scope="session")
def make_search() -> MakeSearch:
    """Return a function from trials to a study as a search leaves it.

    A trial is its dev score, or a mapping of what differs from a finished trial inside of every domain: `value`,
    `values`, `state`, `point`, `reports`, and user attributes. The first trial is the paper's point. `attrs` replaces
    attributes of the study.
    """

    def make(
        trials: Sequence[Any], *, objectives: Sequence[str] = ("dev",), attrs: dict[str, Any] | None = None
    ) -> optuna.Study:
        ways = ["maximize", *["minimize"] * (len(objectives) - 1)]
        study = optuna.create_study(study_name="glue-1", directions=ways)
        known = {
            "space": _SPACE,
            "space_digest": "0123456789ab",
            "objectives": list(objectives),
            "seeds": [1, 2],
            "tasks": ["rte", "cb"],
            "method": "attempt",
            "sampler": "random",
            "pruner": "asha",
            "config_digest": "ba9876543210",
        }
        for key, value in (known | (attrs or {})).items():
            study.set_user_attr(key, value)
        rng = random.Random(1)
        for number, given in enumerate(trials):
            trial = dict(given) if isinstance(given, dict) else {"value": given}
            point = {**_PAPER, **({} if number == 0 else _drawn(rng))} | trial.pop("point", {})
            state = trial.pop("state", TrialState.COMPLETE)
            value, values, reports = (
                trial.pop("value", None),
                trial.pop("values", None),
                trial.pop("reports", {}),
            )
            told = {"point": point, "steps": 200, "tokens": 5000, "seconds": 360.0, "known": number == 0}
            study.add_trial(
                create_trial(
                    state=state,
                    value=value,
                    values=values,
                    params=point,
                    distributions={key: _DOMAINS[key] for key in point},
                    intermediate_values=reports,
                    user_attrs=told | trial,
                )
            )
        return study

    return make


def _drawn(rng: random.Random) -> dict[str, Any]:
    point: dict[str, Any] = {key: 10 ** rng.uniform(-2.5, -0.5) for key in ("training.rate", "prompt.rate")}
    if rng.random() < 0.5:
        point |= {"temperature": "absolute", "attention.temperature": rng.uniform(-3, 1)}
    return point
