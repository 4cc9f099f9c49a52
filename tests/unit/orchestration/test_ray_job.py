from __future__ import annotations

import json

import pytest

from attempt_ray.config import Config
from attempt_ray.errors import ClusterError
from attempt_ray.orchestration.ray_job import check_places, in_upload, job_address

SHARED = Config(bank="s3://bucket/bank", runs="/shared/runs")


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that Ray's supervisor sets for a job with an upload."""
    facts = {"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}, "metadata": {"job_submission_id": "x"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(facts))
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")


def test_a_job_knows_its_cluster(inside: None) -> None:
    assert job_address() == "192.0.2.1:6379"
    assert in_upload()


def test_an_address_in_the_shell_makes_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert job_address() is None
    assert not in_upload()
    check_places(Config())


def test_a_job_without_an_upload_may_write_beside_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {}}')
    check_places(Config())


def test_places_in_an_upload_are_refused_by_name(inside: None) -> None:
    check_places(SHARED)
    with pytest.raises(ClusterError, match=r"^runs 'runs' would be lost: .* --set runs=/shared/runs$"):
        check_places(SHARED.updated(runs="runs"))
    with pytest.raises(ClusterError, match=r"^bank 'b' and runs 'runs' would be lost"):
        check_places(Config(bank="b"))
