from __future__ import annotations

import io
import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.errors import AttemptError, ConfigError
from attempt_ray.orchestration.submission import RayJob
from jobs.submit import EXCLUDED, MODULES, VARIABLES, environment, exit_code, make_plan, submit

ROOT = Path(__file__).parents[3]
PLACES = (
    "bank=s3://bucket/bank",
    "runs=/shared/runs",
    "search.directory=/head/searches",
    "study.directory=/shared/studies",
)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory, without variables that travel."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(job: str = "train-sources", *settings: str, **given: Any) -> Any:
    return make_plan(job, configs=given.pop("configs", ["embedded"]), settings=[*PLACES, *settings], **given)


@pytest.mark.parametrize("job", MODULES)
def test_every_job_has_a_plan(job: str) -> None:
    plan = planned(job, "tasks=[rte]")
    words = shlex.split(plan.entrypoint)
    assert words[:3] == ["python", "-m", f"jobs.{MODULES[job]}"]
    assert words[3:] == ["--config", "embedded", *(f for s in (*PLACES, "tasks=[rte]") for f in ("--set", s))]
    assert (ROOT / "jobs" / f"{MODULES[job]}.py").is_file()
    text = "\n".join(plan.describe())
    assert plan.id in text and "s3://bucket/bank" in text and "1 CPU" in text
    assert json.loads(json.dumps(plan.as_dict()))["workers"] == plan.workers.workers
    trains = job not in ("evaluate", "report")
    assert ("GB a worker" in text) is trains is (plan.estimate.runs > 0)


def test_jobs_that_compute_themselves_ask_for_what_a_worker_has() -> None:
    gpu = ("cluster.gpus_per_worker=1", "cluster.workers=4", "tasks=[rte]")
    alone = planned("train-target", *gpu)
    assert (alone.resources, alone.workers.workers) == ({"CPU": 1.0, "GPU": 1.0}, 1)
    pooled = planned("pipeline", *gpu)
    assert (pooled.resources, pooled.workers.workers) == ({}, 4)


def test_equal_work_has_one_id(project: Path) -> None:
    first = planned().id
    assert planned("train-sources", "cluster.workers=7").id == first
    others = {
        planned("train-prior").id,
        planned("train-sources", "seed=7").id,
        planned("train-sources", "runs=/shared/other").id,
        planned("train-sources", options=["--no-ray"]).id,
    }
    (project / "jobs").mkdir()
    (project / "jobs" / "cli.py").write_text("changed")
    others.add(planned().id)
    (project / "notes.txt").write_text("what is no code does not matter")
    assert len(others | {first, planned().id}) == 6


def test_a_task_of_ones_own_is_in_the_id(project: Path) -> None:
    task = "name: tickets\ntemplate: 'subject: {subject}'\nfields: [subject]\nanswer: team\nlabels: {a: a, b: b}\nmetrics: [accuracy]\n"
    (project / "tickets.yaml").write_text(task)
    settings = ("tasks=[tickets]", "data.user_tasks=[tickets.yaml]")
    first = planned("train-target", *settings).id
    (project / "tickets.yaml").write_text(task.replace("subject: {", "title: {"))
    assert planned("train-target", *settings).id != first


def test_a_config_file_travels_by_its_place_in_the_upload(project: Path, tmp_path_factory: Any) -> None:
    (project / "mine.yaml").write_text("seed: 7\n")
    plan = planned(configs=["embedded", str(project / "mine.yaml")])
    assert "--config embedded --config mine.yaml --set" in plan.entrypoint
    outside = tmp_path_factory.mktemp("outside") / "x.yaml"
    outside.write_text("seed: 7\n")
    with pytest.raises(ConfigError, match=r"x.yaml is outside .* and would not be uploaded; copy it there"):
        planned(configs=[str(outside)])


def test_a_job_gets_few_variables_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "HF_TOKEN": "canary-1",
        "RAY_AUTH_TOKEN": "canary-2",
        "AWS_SECRET_ACCESS_KEY": "canary-3",
        "WANDB_API_KEY": "canary-4",
        "PGPASSWORD": "canary-5",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = planned(variables=["TOKENIZERS_PARALLELISM=false"])
    assert plan.runtime_env["env_vars"] == {
        "RAY_JOB_STOP_WAIT_TIME_S": "10",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    assert "canary" not in f"{plan!r}{plan.describe()}{plan.as_dict()}"
    for name in secrets:
        with pytest.raises(ConfigError, match=f"the variable {name} looks like a secret") as caught:
            environment([name])
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["http://user:pw@proxy:1", "hf_abcdefghijkl", "sk-abcdefghijkl", "-----BEGIN RSA", "AKIAABCDEFGHIJKL"],
)
def test_a_value_that_looks_like_a_secret_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="the variable PLACE looks like a secret"):
        environment([f"PLACE={value}"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["NOT_SET_HERE"], "which is not set here; give --env NOT_SET_HERE=VALUE"),
        (["a b=1"], "--env got 'a b'; wanted NAME or NAME=VALUE"),
    ],
)
def test_a_malformed_variable_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        environment(given)


def test_a_secret_in_a_setting_is_refused_without_showing_it() -> None:
    for setting in ("bank=s3://AKID:canary@bucket/x", "bank=s3://bucket/x?secret_key=canary"):
        with pytest.raises(ConfigError, match="bank got a URI that carries a password or key") as caught:
            planned("train-sources", setting)
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("job", "settings", "message"),
    [
        ("train-source", (), "no job 'train-source'; did you mean 'train-sources'?"),
        ("train-sources", ("bank=bank",), "bank 'bank' would be lost"),
        ("train-target", (), "tasks is empty"),
        ("evaluate", (), "tasks is empty"),
        ("pipeline", ("study.targets=[rtee]",), "no task 'rtee'"),
        ("train-prior", ("study.prior=false",), "there is nothing to train"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_sent(
    job: str, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(AttemptError) as caught:
        planned(job, *settings)
    assert message in str(caught.value)


def test_a_home_directory_is_not_uploaded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project))
    with pytest.raises(ConfigError, match="go to the project's, or name it with --working-dir"):
        planned()


def test_without_a_terminal_nothing_is_submitted_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty:
        address = "http://127.0.0.1:1"

        def check_fits(self, cluster: Any) -> None: ...

        def present(self, name: str, *, again: bool) -> tuple[str, None]:
            return name, None

    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(ConfigError, match="nobody to ask whether to submit; give --yes"):
        submit(planned(), Empty())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "own", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 143),
    ],
)
def test_the_exit_code_is_the_jobs(status: str, own: int | None, code: int) -> None:
    job = RayJob(id="x", status=status, entrypoint="", message="", started=None, ended=None, exit_code=own)
    assert exit_code(job) == code


def test_the_token_file_and_what_looks_private_stay_out_of_the_upload(project: Path) -> None:
    for name in ("key.pem", ".env", "auth_token", "my-token", "code.py"):
        (project / name).write_text("x")
    plan = planned(token_file=project / "my-token")
    assert packed(project, plan.runtime_env["excludes"]) == {"code.py"}


def test_what_commands_leave_in_a_directory_stays_out_of_the_upload(project: Path) -> None:
    for name in ("bank", "runs", "searches", "studies"):
        (project / name / "x").mkdir(parents=True)
        (project / name / "x" / "rows.json").write_text("x")
    (project / "code.py").write_text("x")
    assert packed(project, EXCLUDED) == {"code.py"}


def test_the_upload_of_this_project_is_its_code(tmp_path: Path) -> None:
    names = packed(ROOT, EXCLUDED)
    assert {name.partition("/")[0] for name in names if "/" in name} == {
        "attempt_ray",
        "jobs",
        "serve_app",
        "tune_spaces",
    }
    assert {"attempt_ray/bank/store.py", "attempt_ray/backbones/nano/model.safetensors"} <= names
    sizes = {name: (ROOT / name).stat().st_size for name in names}
    backbones = sum(size for name, size in sizes.items() if name.startswith("attempt_ray/backbones/"))
    assert backbones < 12 * 2**20
    assert sum(sizes.values()) - backbones < 3 * 2**20


def packed(directory: Path, excludes: Any) -> set[str]:
    """Return the files that Ray packs of a directory."""
    from ray._private.runtime_env.packaging import create_package

    target = Path.cwd().parent / "packed.zip"
    create_package(str(directory), target, include_gitignore=True, excludes=[".git", *excludes])
    with zipfile.ZipFile(target) as package:
        names = {name for name in package.namelist() if not name.endswith("/")}
    target.unlink()
    return names
