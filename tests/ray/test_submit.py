"""A cluster with a token, as `ray start` makes it, and jobs submitted to it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from attempt_ray.bank.store import Bank
from attempt_ray.config import Config
from attempt_ray.errors import ClusterError
from attempt_ray.orchestration.submission import Jobs
from jobs.serve import deploy, file_of
from jobs.submit import Plan, make_plan, submit
from jobs.train_sources import train_sources
from serve_app.client import Client
from tests.conftest import heed_signals
from tests.ray.serving import ROW, Prompts

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
ATTEMPT = (PYTHON, "-c", "from jobs.cli import main; main()")


on_demand = pytest.mark.skipif("ATTEMPT_RAY_KILLS" not in os.environ, reason="a minute each: make kills")


@dataclass(frozen=True)
class Cluster:
    address: str
    token: str
    token_file: Path

    @property
    def options(self) -> list[str]:
        return ["--address", self.address, "--token-file", str(self.token_file)]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="att-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        token = secrets.token_hex(32)
        token_file = Path(scratch) / "token"
        token_file.write_text(f"{token}\n")
        token_file.chmod(0o600)
        port, dashboard, agent, client = free_ports(4)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "HOME": scratch,
            "PYTHONPATH": str(ROOT),
        }
        options = {
            "port": port,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": dashboard,
            # Two clusters of one machine cannot share Ray's default; the second would accept no job, ever.
            "dashboard-agent-listen-port": agent,
            "ray-client-server-port": client,
            "temp-dir": scratch,
            "num-cpus": 2,
            "object-store-memory": 100 * 2**20,
        }
        command = [PYTHON, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        with (Path(scratch) / "start.log").open("w") as log:
            process = subprocess.Popen(
                [*command, *(f"--{name}={value}" for name, value in options.items())],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                yield _ready(Cluster(f"http://127.0.0.1:{dashboard}", token, token_file))
            finally:
                process.terminate()  # it ends what it started
                process.wait(60)


def _ready(cluster: Cluster) -> Cluster:
    deadline = time.monotonic() + 90
    while True:
        try:
            Jobs(cluster.address, token=cluster.token)
        except ClusterError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return cluster


@pytest.fixture(scope="module")
def jobs(head: Cluster) -> Jobs:
    return Jobs(head.address, token=head.token)


def attempt(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ATTEMPT, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def settings_of(config: Config) -> list[str]:
    """Return the settings that make a config of the defaults."""
    found = []
    for name, value in config.model_dump(mode="json", exclude_defaults=True).items():
        sections = value if isinstance(value, dict) else {"": value}
        for key, content in sections.items():
            found.append(f"{name}.{key}={json.dumps(content)}" if key else f"{name}={json.dumps(content)}")
    return found


def planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_study: Callable[..., Config], entrypoint: str
) -> Plan:
    """Return a plan of a shell command of its own id, with a small upload."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    plan = make_plan("train-sources", settings=settings_of(make_study()))
    return replace(plan, entrypoint=entrypoint)


def test_a_job_joins_the_cluster_it_runs_on_and_runs_once(
    head: Cluster,
    jobs: Jobs,
    make_study: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_study(cluster={"workers": 1})
    settings = settings_of(config)
    asked = [text for setting in settings for text in ("--set", setting)]
    done = attempt("submit", "train-sources", *asked, "--python", PYTHON, "--yes", *head.options)
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)
    assert (first["status"], first["submitted"], first["exit_code"]) == ("SUCCEEDED", True, 0)
    assert "2, 4 steps in all" in done.stderr and "[2/2] source/" in done.stderr
    assert {f"{version.kind}/{version.name}" for version in Bank(config.bank).list()} == {
        "source/mnli",
        "source/sst2",
    }
    (known,) = (job for job in jobs._client.list_jobs() if job.submission_id == first["id"])
    assert known.driver_info is not None, "the job started a cluster of its own"
    assert head.token not in done.stdout + done.stderr + str(known)
    assert set(known.runtime_env) == {"working_dir", "excludes", "env_vars"}

    monkeypatch.chdir(ROOT)
    plan = make_plan("train-sources", settings=settings, python=PYTHON)
    again, code = submit(plan, jobs, yes=True)
    assert (again["id"], again["submitted"], code) == (first["id"], False, 0)
    assert sum(job.id.startswith(plan.id) for job in jobs.known()) == 1
    log = jobs.log(plan.id)
    assert log.count("[2/2] source/") == 1 and json.loads(log.splitlines()[-1])["failed"] == []


@on_demand
def test_a_search_is_submitted_like_any_job(
    head: Cluster, make_study: Callable[..., Config], tmp_path: Path
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "name: own\n"
        "knobs: [{key: training.attention_learning_rate, domain: {kind: floats, low: 0.01, high: 1.0, log: true}}]\n"
        "known: [{training.attention_learning_rate: 0.3}]\n"
    )
    search = {"space": str(space), "trials": 3, "trials_at_once": 2, "final_seeds": [7], "study": "own"}
    config = make_study(
        cluster={"workers": 1},
        study={"targets": ["rte"], "prior": False},
        search={**search, "directory": str(tmp_path / "searches")},
    )
    train_sources(config, placement="here")
    asked = [text for setting in settings_of(config) for text in ("--set", setting)]
    done = attempt("submit", "tune", *asked, "--python", PYTHON, "--yes", *head.options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "SUCCEEDED"
    assert "[3/3] trial 2: " in done.stderr and "test " in done.stderr
    assert (tmp_path / "searches" / "own" / "report.md").is_file()
    assert Bank(config.bank).aliases("target", "rte").current["candidate"] == 1


def test_submitted_at_once_by_several_runs_once(
    jobs: Jobs, make_study: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path, monkeypatch, make_study, "sleep 1")
    found: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: found.append(submit(plan, jobs, wait=False, yes=True)[0]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [facts["id"] for facts in found] == [plan.id] * 4
    assert sum(facts["submitted"] for facts in found) == 1


def test_what_failed_is_submitted_anew_under_a_derived_id(
    jobs: Jobs,
    make_study: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = planned(tmp_path, monkeypatch, make_study, "echo hello; exit 3")
    facts, code = submit(plan, jobs, yes=True)
    assert (facts["id"], facts["status"], code) == (plan.id, "FAILED", 3)
    assert "\nhello\n" in capsys.readouterr().err
    facts, code = submit(replace(plan, entrypoint="true"), jobs, yes=True)
    assert (facts["id"], facts["status"], code) == (f"{plan.id}-2", "SUCCEEDED", 0)
    facts, _ = submit(plan, jobs, yes=True, wait=False)
    assert (facts["id"], facts["submitted"]) == (f"{plan.id}-2", False)
    facts, _ = submit(replace(plan, entrypoint="true"), jobs, yes=True, again=True, wait=False)
    assert (facts["id"], facts["submitted"]) == (f"{plan.id}-3", True)


def test_a_lost_terminal_ends_the_following_alone(
    head: Cluster,
    jobs: Jobs,
    make_study: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = planned(tmp_path, monkeypatch, make_study, "echo begun; sleep 1000")
    submit(plan, jobs, wait=False, yes=True)
    for sent, code in ((signal.SIGINT, 130), (signal.SIGHUP, -signal.SIGHUP)):
        follower = subprocess.Popen(
            [*ATTEMPT, "jobs", "logs", plan.id, "--follow", *head.options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=heed_signals,  # noqa: PLW1509 - nothing here runs threads yet
        )
        assert follower.stdout is not None
        try:
            while follower.stdout.readline() != "begun\n":
                pass
            follower.send_signal(sent)
            _, told = follower.communicate(timeout=90)
        finally:
            follower.kill()
        assert follower.returncode == code
        assert f"attempt jobs logs {plan.id} --follow --address {head.address}" in told
        assert "Traceback" not in told and head.token not in told
        assert jobs.find(plan.id).status == "RUNNING"
    done = attempt("jobs", "stop", plan.id, *head.options)
    assert (done.returncode, done.stdout) == (0, f"{plan.id}: STOPPED\n")


def test_a_job_refuses_places_that_would_be_lost_with_its_upload(jobs: Jobs) -> None:
    command = f"{PYTHON} -m jobs.train_sources --config embedded"
    assert jobs.submit("lost", entrypoint=command, runtime_env={"working_dir": str(ROOT)}, resources={})
    lines: list[str] = []
    job = jobs.follow("lost", lines.append)
    assert (job.status, job.exit_code) == ("FAILED", 2)
    (line,) = (line for line in "".join(lines).splitlines() if line.startswith("error: "))
    assert (
        line.startswith("error: bank 'bank' and runs 'runs' would be lost") and "--set bank=/shared" in line
    )


@on_demand
def test_a_deployment_is_sent_to_a_cluster_and_answers(head: Cluster, tmp_path: Path) -> None:
    prompts = Prompts.make(tmp_path / "bank")
    (port,) = free_ports(1)
    text = file_of(
        ["embedded"],
        [f"bank={prompts.bank.place}", "serving.cpus_per_replica=0.5"],
        host="127.0.0.1",
        port=port,
    )
    path = tmp_path / "serve_config.yaml"
    path.write_text(text)
    with pytest.raises(ClusterError, match="401"):
        deploy(path, address=head.address, without_token=True)
    deploy(path, address=head.address, token_file=head.token_file)
    with Client(f"http://127.0.0.1:{port}", timeout=120, retries=200) as client:
        assert client.predict([ROW]).rows[0].prompt == "target/rte@v1"
    empty = {"applications": []}
    answer = httpx2.put(
        f"{head.address}/api/serve/applications/",
        json=empty,
        headers={"Authorization": f"Bearer {head.token}"},
    )
    assert answer.status_code == 200


def test_the_list_shows_every_job_with_its_outcome(head: Cluster) -> None:
    elsewhere = {"RAY_ADDRESS": "http://127.0.0.1:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
    done = attempt("jobs", "list", "--json", *head.options, **elsewhere)
    found = json.loads(done.stdout)
    assert {"SUCCEEDED", "FAILED", "STOPPED"} <= {job["status"] for job in found}
    assert found == sorted(found, key=lambda job: job["started"], reverse=True)
    table = attempt("jobs", "list", *head.options).stdout.splitlines()
    assert len(table) == 1 + len(found) and table[0].split() == [
        "job",
        "status",
        "exit",
        "code",
        "started",
        "took",
    ]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("token", "refuses the token; give the file with the cluster's token: --token-file"),
        ("address", "no Ray dashboard answers at http://127.0.0.1:"),
        ("cpus", "2 workers of 3 CPU each do not fit: there is room for 0; the largest node has"),
        ("gpus", "there is room for 0; the largest node has 0 GPU; lower cluster.gpus_per_worker"),
    ],
)
def test_a_mistake_is_told_in_a_few_lines_and_nothing_is_submitted(
    head: Cluster, jobs: Jobs, tmp_path: Path, mistake: str, message: str
) -> None:
    before = len(jobs.known())
    wrong = tmp_path / "token"
    wrong.write_text(secrets.token_hex(32))
    address = f"http://127.0.0.1:{free_ports(1)[0]}" if mistake == "address" else head.address
    asked = ["--address", address, "--token-file", str(wrong if mistake == "token" else head.token_file)]
    asked += ["--set", f"bank={tmp_path}/bank", "--set", f"runs={tmp_path}/runs"]
    if mistake in ("cpus", "gpus"):
        asked += ["--set", f"cluster.{mistake}_per_worker={3 if mistake == 'cpus' else 1}"]
    done = attempt("submit", "pipeline", "--yes", *asked)
    assert (done.returncode, done.stdout) == (2, "")
    plan, _, error = done.stderr.partition("error: ")
    assert plan.startswith("pipeline as pipeline-") and message in error
    assert len(error.splitlines()) == 1
    assert head.token not in done.stderr and wrong.read_text() not in done.stderr
    assert len(jobs.known()) == before
