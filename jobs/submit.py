"""Submit a job to a Ray cluster, once, and follow it: `attempt submit train-sources --config embedded`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_ray import __version__
from attempt_ray.config import ClusterConfig, Config, preset_names
from attempt_ray.errors import ClusterError, ConfigError, unknown_name
from attempt_ray.orchestration.ray_job import check_places
from attempt_ray.orchestration.study import Job
from jobs import plan
from jobs.edge import DONE, FAILED, INTERRUPTED, TERMINATED, load_config, one_line, tell
from jobs.estimate import Estimate, estimate
from jobs.run_pipeline import all_jobs
from jobs.search_plan import plan_search
from jobs.study_plan import plan_study
from jobs.train_target import target_run
from jobs.watch import clock

if TYPE_CHECKING:
    from attempt_ray.orchestration.submission import Jobs, RayJob

MODULES = {
    "train-sources": "train_sources",
    "train-prior": "train_prior",
    "train-target": "train_target",
    "pipeline": "run_pipeline",
    "study": "run_study",
    "tune": "tune",
    "evaluate": "evaluate",
    "report": "report",
}
"""Jobs that can be submitted, and their modules."""
_POOLED = ("train-sources", "train-prior", "pipeline", "study", "tune")
"""Jobs that ask for workers; the others compute in the process that is submitted."""
_DEFAULTS = {"pipeline": ["embedded"], "study": ["study/embedded-quick"]}
"""Configs of a job that is given none."""
_PACKAGES = ("attempt_ray", "jobs", "serve_app", "tune_spaces")

VARIABLES = (
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_ENDPOINT",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
)
"""Variables of this process that a job gets where they are set: where models, rows and the bank are found."""
_STOP_SECONDS = 10
"""What Ray lets a stopped job take to keep its state, instead of 3 s."""
EXCLUDED = (
    ".git",
    ".venv",
    "venv",
    "__pycache__",
    ".cache",
    ".*_cache",
    "*.egg-info",
    "/bank",
    "/runs",
    "/searches",
    "/studies",
    # Whatever is uploaded can be read by everybody who may use the cluster.
    ".env",
    ".aws",
    ".netrc",
    ".ray",
    ".ssh",
    "*.key",
    "*.pem",
    "auth_token",
)
"""What is never uploaded, on top of what .gitignore and .rayignore name; in .gitignore's patterns."""

_SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|AUTH|COOKIE|PRIVATE|API_?KEY|(^|_)(KEY|PWD|PASS)($|_)",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"://[^/@\s]+@|-----BEGIN|\b(access_key|secret_key|password|token|sig)=|AccountKey="
    r"|(^|[=\s'\"])(hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abp]-|AKIA|ASIA|eyJ)[A-Za-z0-9_-]{8}",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is going to be submitted."""

    job: str
    id: str
    """Submission id, of equal work the same."""
    entrypoint: str
    resources: Mapping[str, float]
    """What the submitted process itself takes: CPU, GPU; nothing where it only looks after workers."""
    workers: ClusterConfig
    """What the cluster has to have room for."""
    runtime_env: Mapping[str, Any]
    estimate: Estimate
    bank: str
    runs: str

    def as_dict(self) -> dict[str, Any]:
        """Return the plan, JSON-able."""
        return {
            **{name: getattr(self, name) for name in ("job", "id", "entrypoint", "bank", "runs")},
            "workers": self.workers.workers,
            "cpus_per_worker": self.workers.cpus_per_worker,
            "gpus_per_worker": self.workers.gpus_per_worker,
            "variables": sorted(self.runtime_env["env_vars"]),
            "estimate": self.estimate.as_dict(),
        }

    def describe(self) -> list[str]:
        """Return the plan in lines for people."""
        asked, count = self.workers, self.workers.workers
        each = [f"{asked.cpus_per_worker:g} CPU"]
        each += [f"{asked.gpus_per_worker:g} GPU"] if asked.gpus_per_worker else []
        who = "the job itself" if self.resources else f"{count} worker{'' if count == 1 else 's, each'}"
        return [
            f"{self.job} as {self.id}:",
            *self.estimate.describe(),
            f"  asks for     {who}: {', '.join(each)}",
            f"  bank, runs   {self.bank}, {self.runs}",
            f"  upload       {self.runtime_env['working_dir']}, less what .gitignore and .rayignore name",
            f"  variables    {', '.join(sorted(self.runtime_env['env_vars']))}",
        ]


def make_plan(
    job: str,
    *,
    configs: Sequence[str] = (),
    settings: Sequence[str] = (),
    options: Sequence[str] = (),
    variables: Sequence[str] = (),
    python: str = "python",
    tflops: float | None = None,
    token_file: Path | None = None,
) -> Plan:
    """Return what a job of the present directory would be on a cluster. Nothing is sent.

    Args:
        job: One of `MODULES`.
        configs: Presets, or files in this directory.
        settings: `section.key=value`.
        options: More options of the job.
        variables: `NAME` or `NAME=VALUE`: more variables that it gets.
        python: The interpreter on the cluster.
        tflops: Useful operations a second of one worker, in units of 10^12, for the estimate.
        token_file: Kept out of the upload.

    Raises:
        AttemptError: Something cannot be used, would be lost, or holds a secret.
    """
    if job not in MODULES:
        raise ConfigError(unknown_name("job", job, MODULES))
    here = Path.cwd()
    if here in (Path.home(), Path(here.anchor)):
        raise ConfigError(
            f"the directory to upload is {here}; go to the project's, or name it with --working-dir"
        )
    if tflops is not None and tflops <= 0:
        raise ConfigError(f"--tflops got {tflops:g}; wanted more than 0")
    names = list(configs) or _DEFAULTS.get(job, [])
    config = load_config(names, settings)
    check_places(config, uploaded=True, search=job == "tune", study=job == "study")
    _check_secrets({"bank": config.bank} | {text.partition("=")[0]: text for text in (*settings, *options)})
    runs = runs_of(job, config)
    workers = config.cluster if job in _POOLED else config.cluster.model_copy(update={"workers": 1})
    parts = [python, "-m", f"jobs.{MODULES[job]}"]
    for name in names:
        parts += ["--config", _travels(name, here)]
    for setting in settings:
        parts += ["--set", setting]
    return Plan(
        job=job,
        id=submission_id(job, config, options=options, directory=here),
        entrypoint=shlex.join([*parts, *options]),
        resources={} if job in _POOLED else workers.bundle(),
        workers=workers,
        runtime_env={
            "working_dir": str(here),
            "excludes": [*EXCLUDED, *_inside(token_file, here)],
            "env_vars": environment(variables),
        },
        estimate=estimate(
            runs, config, workers=workers.workers, flops=None if tflops is None else tflops * 1e12
        ),
        bank=config.bank,
        runs=config.runs,
    )


def runs_of(job: str, config: Config) -> list[Job]:
    """Return the runs of a job; none where nothing is trained.

    Raises:
        ConfigError: A name in the config is unknown, or there is nothing to do.
    """
    if job == "report":
        return []
    if job in ("train-target", "evaluate"):
        run = target_run(config)
        return [Job(key=job, config=run)] if job == "train-target" else []
    if job == "tune":
        return plan_search(config).trial_jobs()
    if job == "study":
        study = plan_study(config)
        return [own for backbone in study.backbones for own in study.jobs_on(backbone)]
    plan.check(config)
    makers = {"train-sources": plan.source_jobs, "train-prior": plan.prior_jobs, "pipeline": all_jobs}
    runs = makers[job](config)
    if not runs:
        raise ConfigError("there is nothing to train; look at study.prior and study.prior_groups")
    return runs


def submission_id(job: str, config: Config, *, options: Sequence[str], directory: Path) -> str:
    """Return the id of equal work: the same job, config, code and tasks of the user's own.

    How many workers there shall be, and where the cluster is, do not enter.
    """
    own = {
        name: hashlib.sha256(Path(name).expanduser().read_bytes()).hexdigest()
        for name in config.data.user_tasks
    }
    facts = {
        "job": job,
        "config": config.model_dump(mode="json", exclude={"cluster"}),
        "options": list(options),
        "code": _code_digest(directory),
        "tasks": own,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{job}-{digest[:12]}"


def environment(variables: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables that a job gets.

    Args:
        variables: `NAME`, of this process, or `NAME=VALUE`; they win over `VARIABLES`.

    Raises:
        ConfigError: One of them is not set, malformed, or looks like a secret.
    """
    found = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    for text in variables:
        name, given, value = text.partition("=")
        if not name.isidentifier():
            raise ConfigError(f"--env got '{name}'; wanted NAME or NAME=VALUE")
        if not given and name not in os.environ:
            raise ConfigError(f"--env got '{name}', which is not set here; give --env {name}=VALUE")
        found[name] = value if given else os.environ[name]
    for name, value in found.items():
        if _SECRET_NAME.search(name) or _SECRET_VALUE.search(value):
            raise ConfigError(
                f"the variable {name} looks like a secret, which everybody on the cluster could read; put it into the "
                "environment of the cluster's nodes"
            )
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)} | found


def connect(address: str | None, *, token_file: Path | None = None, without_token: bool = False) -> Jobs:
    """Return the jobs of the cluster at an address, of RAY_API_SERVER_ADDRESS, or of this machine.

    Raises:
        ClusterError: There is no Ray dashboard, it is another machine's and there is no token, or it refuses the token.
    """
    from attempt_ray.orchestration.submission import DEFAULT_ADDRESS, Jobs, check_address, find_token

    token = None if without_token else find_token(token_file)
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    return Jobs(check_address(named, token=token, without_token=without_token), token=token)


def submit(
    wanted: Plan,
    cluster: Jobs,
    *,
    wait: bool = True,
    again: bool = False,
    yes: bool = False,
    follow: str = "",
) -> tuple[dict[str, Any], int]:
    """Submit what was planned, unless it runs or has succeeded; return what came of it and the exit code.

    Args:
        wanted: What to submit.
        cluster: Where.
        wait: Follow the job to its end.
        again: Submit even if it has succeeded before.
        yes: Do not ask the person at the terminal.
        follow: How the address was given, for the commands that are shown.

    Raises:
        ClusterError: The cluster can never give what is asked, or accepts no jobs.
        ConfigError: There is nobody to ask.
    """
    cluster.check_fits(wanted.workers)
    submitted = False
    while True:
        name, present = cluster.present(wanted.id, again=again)
        if present is not None:
            tell(f"{name} is there already: {present.status}; it is not submitted again")
            break
        if not (yes or _agreed(cluster.address)):
            return {"job": "submit", "id": name, "status": "NOT SUBMITTED"}, INTERRUPTED
        yes = True
        if cluster.submit(
            name, entrypoint=wanted.entrypoint, runtime_env=wanted.runtime_env, resources=wanted.resources
        ):
            submitted = True
            tell(f"submitted {name} to {cluster.address}")
            break
    facts = {"job": "submit", "id": name, "submitted": submitted, "plan": wanted.as_dict()}
    if not wait:
        tell(f"to follow it: {follow_command(name, follow)}")
        return facts | {"status": cluster.find(name).status}, DONE
    job, code = follow_job(cluster, name, address=follow)
    return facts | {
        "status": job.status if job else "RUNNING",
        "exit_code": job.exit_code if job else None,
    }, code


def follow_job(
    cluster: Jobs, name: str, *, address: str = "", stream: Any = None
) -> tuple[RayJob | None, int]:
    """Pass on what a job prints until it ends; return it with its exit code. Ctrl-C ends the following alone.

    Raises:
        ClusterError: There is no such job, or the cluster does not answer any more.
    """
    out = stream or sys.stderr
    command = follow_command(name, address)
    tell(f"following it; Ctrl-C leaves it running, and this follows it again: {command}")

    def write(text: str) -> None:
        out.write(text)
        out.flush()

    try:
        job = cluster.follow(name, write)
    except KeyboardInterrupt:
        tell(f"{name} goes on; to follow it again: {command}")
        return None, INTERRUPTED
    except ClusterError as error:
        raise ClusterError(f"{error}; the job may go on: {command}") from None
    took = f" after {clock(job.ended - job.started)}" if job.started and job.ended else ""
    tell(f"{name}: {job.status}{took}")
    if job.status == "FAILED" and job.exit_code is None:
        tell(f"it never started: {one_line(job.message)[:300]}")
    return job, exit_code(job)


def exit_code(job: RayJob) -> int:
    """Return the exit code that stands for a job that has ended: its own, where it has one."""
    if job.status == "SUCCEEDED":
        return DONE
    if job.status == "STOPPED":
        return TERMINATED
    if job.exit_code:
        return job.exit_code if job.exit_code > 0 else 128 - job.exit_code
    return FAILED


def follow_command(name: str, address: str = "") -> str:
    """Return the command that follows a job."""
    return " ".join(filter(None, ["attempt jobs logs", name, "--follow", address]))


def job_rows(jobs: Sequence[RayJob]) -> list[list[str]]:
    """Return one row per job: id, state, exit code, start, duration."""
    rows = []
    for job in jobs:
        started = (
            "" if job.started is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))
        )
        took = "" if job.started is None else clock((job.ended or time.time()) - job.started)
        rows.append([job.id, job.status, "" if job.exit_code is None else str(job.exit_code), started, took])
    return rows


def _check_secrets(texts: Mapping[str, str]) -> None:
    """Refuse texts, by their names, that look as if they held a secret: a job's command can be read by everybody."""
    for name, text in texts.items():
        if _SECRET_VALUE.search(text):
            raise ConfigError(
                f"{name} looks as if it held a secret, which everybody on the cluster could read; put it into the "
                "environment of the cluster's nodes"
            )


def _agreed(address: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(
            "there is nobody to ask whether to submit; give --yes, or --dry-run to see the plan alone"
        )
    sys.stderr.write(f"submit to {address}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _travels(name: str, here: Path) -> str:
    """Return how a config is named on the cluster: a preset as it is, a file by its place in the upload."""
    if name in preset_names():
        return name
    path = Path(name).expanduser().resolve()
    if not path.is_relative_to(here.resolve()):
        raise ConfigError(f"{name} is outside {here} and would not be uploaded; copy it there")
    return path.relative_to(here.resolve()).as_posix()


def _inside(path: Path | None, here: Path) -> list[str]:
    """Return the pattern that keeps a file out of the upload, where it is in it."""
    if path is None or not path.expanduser().resolve().is_relative_to(here.resolve()):
        return []
    return [f"/{path.expanduser().resolve().relative_to(here.resolve()).as_posix()}"]


def _code_digest(directory: Path) -> str:
    """Return the digest of the code that is uploaded; the version where it is the cluster's own that runs."""
    digest = hashlib.sha256(__version__.encode())
    for package in _PACKAGES:
        for path in sorted((directory / package).rglob("*")):
            if path.suffix in (".py", ".yaml", ".json", ".safetensors") and path.is_file():
                digest.update(f"{path.relative_to(directory).as_posix()}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
