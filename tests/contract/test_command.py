from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import main

ROOT = Path(__file__).parents[2]
JOBS = (
    "train_sources",
    "train_prior",
    "train_target",
    "evaluate",
    "predict",
    "report",
    "run_pipeline",
    "run_study",
    "tune",
)
HEAVY = {
    "torch",
    "ray",
    "transformers",
    "datasets",
    "sklearn",
    "scipy",
    "matplotlib",
    "numpy",
    "pyarrow",
    "pydantic",
    "rich",
}


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd or ROOT,
        env=environment,
    )


def attempt(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return python("-c", "from jobs.cli import main; main()", *arguments, cwd=cwd)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['attempt', '--help']\nfrom jobs.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "import json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    loaded = set(json.loads(python("-c", code).stdout.splitlines()[-1]))
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    "look",
    [
        ["params", "--backbone", "t5-base"],
        ["plan", "--memory", "24"],
        ["tasks"],
        ["bank", "list"],
        ["runs", "list"],
        ["runs", "show", "x"],
    ],
)
def test_a_look_imports_neither_torch_nor_ray(look: list[str], tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['attempt', *{look!r}]\nfrom jobs.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'ray', 'transformers', 'datasets'} & set(sys.modules)))"
    assert python("-c", code, cwd=tmp_path).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_the_same_two_flags(job: str) -> None:
    done = python("-m", f"jobs.{job}", "--help")
    assert done.returncode == 0
    assert re.search(rf"Usage: python -m jobs\.{job} ", done.stdout)
    assert "--config" in done.stdout
    assert "--set" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train-target", "--config", "embeded"],
            "no preset or YAML file 'embeded'; did you mean 'embedded'?",
        ),
        (["train-target", "--set", "trainin.steps=5"], "no config key 'trainin'; did you mean 'training'?"),
        (
            ["train-target", "--set", "training.step=5"],
            "no config key in [training] 'step'; did you mean 'steps'?",
        ),
        (["train-target", "--set", "training.steps"], "--set got 'training.steps'; wanted section.key=value"),
        (["train-target", "--config", "embedded"], "tasks is empty; name at least one"),
        (["pipeline", "--set", "study.targets=[rtee]"], "no task 'rtee'; did you mean 'rte'?"),
        (["train-target", "--set", "tasks=[rtee]"], "no task 'rtee'; did you mean 'rte'?"),
        (["train-target", "--set", "tasks=[boolk]", "--set", "study.prior=false"], "no task 'boolk'"),
        (["evaluate", "--set", "tasks=[rtee]"], "no task 'rtee'; did you mean 'rte'?"),
        (["train-sources", "--set", "attention.sources=[mnlli]"], "no task 'mnlli'; did you mean 'mnli'?"),
        (["tasks", "rtee"], "no task 'rtee'; did you mean 'rte'?"),
        (["params", "--backbone", "t5-bse"], "no backbone 't5-bse'; did you mean 't5-base'?"),
        (["plan", "--backbone", "t5-bse"], "no backbone 't5-bse'; did you mean 't5-base'?"),
        (["plan", "--rows", "0"], "rows: got 0; wanted 1 or more"),
        (["plan", "--memory", "-1"], "memory: got -1 GB; wanted more than 0"),
        (["bank", "show", "target/../x"], "got the name '../x'"),
        (["bank", "promote", "target/rte"], "no prompt 'target/rte'"),
        (["runs", "list"], "no directory runs"),
        (["runs", "show", "rte"], "no directory runs"),
        (["runs", "show", "./"], ". holds neither config.json nor report.json"),
        (["predict", "rte", "--field", "x"], "--field got 'x'; wanted name=value"),
        (["predict", "rte", "--rows", "nowhere.jsonl"], "cannot read rows from nowhere.jsonl"),
        (["study", "run", "--set", "study.ablations=[no_prio]"], "no ablation in study.ablations 'no_prio'"),
        (["study", "plan", "-c", "study/paper-table9"], "no preset or YAML file 'study/paper-table9'"),
        (["study", "plan", "--tflops", "0"], "--tflops got 0; wanted more than 0"),
        (["study", "status", "mine"], "cannot read studies/mine/study.json: No such file or directory"),
        (["submit", "pipelin"], "no job 'pipelin'; did you mean 'pipeline'?"),
        (["submit", "pipeline"], "bank 'bank' and runs 'runs' would be lost"),
        (
            ["submit", "report", "--working-dir", "nowhere"],
            "--working-dir got nowhere, which is no directory",
        ),
        (["jobs", "list", "--address", "ray://head:10001"], "address: got 'ray://head:10001'; wanted"),
        (["evalute"], "No such command 'evalute'. Did you mean 'evaluate'?"),
        (["evaluate", "--confg", "x"], "No such option: --confg"),
    ],
)
def test_a_mistake_is_one_line_with_the_fix_and_exit_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["attempt", *arguments])
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    (line,) = told.err.splitlines()
    assert line.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_meets_a_mistake_says_one_line_and_exits_with_2(tmp_path: Path) -> None:
    done = attempt("pipeline", "--set", "study.targets=[rtee]", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no task 'rtee'; did you mean 'rte'?\n"
