from __future__ import annotations

import json
from pathlib import Path

import pytest

from attempt_ray.bank.store import Bank
from jobs.evaluate import evaluate
from jobs.predict import predict
from jobs.run_pipeline import run_pipeline
from jobs.train_target import train_target
from tests_support import MakeStudy  # type: ignore[import-not-found]
