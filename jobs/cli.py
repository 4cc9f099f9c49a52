"""The `attempt` command: the jobs as subcommands, and a look at tasks, bank, runs and parameter counts.

Every import that is not of the standard library or typer happens inside a command, so that help answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from jobs.edge import INTERRUPTED, MISTAKE, load_config, one_line_errors, perform, tell

_SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}
app = typer.Typer(
    help="Train, evaluate and use mixtures of soft prompts on a frozen T5 (ATTEMPT, Asai et al. 2022).",
    no_args_is_help=True,
    **_SETTINGS,
)
bank_app = typer.Typer(
    help="Look into the prompt bank, and move what it serves.", no_args_is_help=True, **_SETTINGS
)
runs_app = typer.Typer(help="Look at run directories.", no_args_is_help=True, **_SETTINGS)
jobs_app = typer.Typer(
    help="Look at the jobs of a Ray cluster, and stop them.", no_args_is_help=True, **_SETTINGS
)
keys_app = typer.Typer(
    help="Make and revoke the API keys of a deployment.", no_args_is_help=True, **_SETTINGS
)
app.add_typer(bank_app, name="bank")
app.add_typer(runs_app, name="runs")
app.add_typer(jobs_app, name="jobs")
app.add_typer(keys_app, name="keys")
tune_app = typer.Typer(
    help="Search settings on dev rows, test what was found, and look at searches.",
    invoke_without_command=True,
    **_SETTINGS,
)
app.add_typer(tune_app, name="tune")
study_app = typer.Typer(
    help="The paper's tables, ablations and figures: plan, run, watch and report a study.",
    no_args_is_help=True,
    **_SETTINGS,
)
app.add_typer(study_app, name="study")

serve_app = typer.Typer(
    help="Answer requests over HTTP with prompts of the bank.",
    invoke_without_command=True,
    **_SETTINGS,
)
app.add_typer(serve_app, name="serve")

Configs = Annotated[
    list[str] | None,
    typer.Option(
        "--config", "-c", help="Preset or YAML file; may be repeated, later ones win.", metavar="NAME"
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", help="Set one knob, such as training.steps=500; may be repeated.", metavar="KEY=VALUE"
    ),
]
BankPlace = Annotated[str, typer.Option("--bank", help="Directory or URI of the bank.")]
RunsPlace = Annotated[str, typer.Option("--runs", help="Directory or URI of run directories.")]
NoRay = Annotated[
    bool, typer.Option("--no-ray", help="One run after the other in this process, without Ray.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="The cluster's dashboard; default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265.",
        metavar="URL",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", help="File with the cluster's token; default: where Ray looks.", metavar="FILE"
    ),
]
WithoutToken = Annotated[
    bool, typer.Option("--without-token", help="Send no token, even to another machine.")
]
JobName = Annotated[str, typer.Argument(metavar="ID", help="Submission id, as `jobs list` shows it.")]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Name of the search.")]
StudyPlace = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="SQLite file or postgresql:// URL; default: study.db in the search's directory.",
        metavar="PLACE",
    ),
]
StudyDirectoryName = Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study.")]
StudiesPlace = Annotated[str, typer.Option("--directory", help="Directory of study directories.")]
Tflops = Annotated[
    float | None,
    typer.Option("--tflops", help="TFLOP/s of useful work of one worker, for the estimate.", metavar="RATE"),
]
Memory = Annotated[
    float | None, typer.Option("--memory", help="GB of a worker's device; on a GPU 24.", metavar="GB")
]
SearchesPlace = Annotated[str, typer.Option("--directory", help="Directory of search directories.")]
Host = Annotated[str, typer.Option("--host", help="Address to listen on.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")]
ServeFile = Annotated[Path, typer.Argument(metavar="FILE", help="A serve_config.yaml.")]
Prompt = Annotated[
    str | None,
    typer.Option("--prompt", help="Prompt of the bank; default: target/<task>.", metavar="REFERENCE"),
]


class Precision(StrEnum):
    """Types of frozen weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class KeyRole(StrEnum):
    """What an API key may do."""

    infer = "infer"
    admin = "admin"


KeysFile = Annotated[Path, typer.Option("--file", help="File of API keys.", metavar="FILE")]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="Id of a key, as `keys list` shows it.")]
ReferenceText = Annotated[
    str, typer.Argument(metavar="REFERENCE", help="kind/name, kind/name@v3 or kind/name@alias.")
]


def main() -> None:
    """Run the `attempt` command."""
    _run(typer.main.get_command(app), sys.argv[1:], prog="attempt")


def run_job(name: str) -> None:
    """Run one job as `python -m jobs.NAME`: the same command under another name."""
    command = typer.main.get_command(app)
    for part in name.split():
        command = command.commands[part]  # type: ignore[attr-defined]
    module = {"pipeline": "run_pipeline", "study run": "run_study"}.get(name, name.replace("-", "_"))
    _run(command, sys.argv[1:], prog=f"python -m jobs.{module}")


def _run(command: Any, arguments: Sequence[str], *, prog: str) -> NoReturn:
    """Run a command, with one line for what was typed wrong."""
    try:
        code = command.main(list(arguments), prog_name=prog, standalone_mode=False)
    except typer.TyperException as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        helpful = text.startswith("Usage:")  # nothing was typed but the command's name
        tell(text if helpful else f"error: {text.rstrip('.')}; see {prog} --help")
        code = MISTAKE
    except typer.Abort:
        code = INTERRUPTED
    raise SystemExit(code or 0)


@app.command("train-sources")
def train_sources(config: Configs = None, settings: Settings = None, no_ray: NoRay = False) -> None:
    """Train all source prompts, in parallel."""

    def call() -> Mapping[str, Any]:
        from jobs.train_sources import train_sources

        page = load_config(config or [], settings or [])
        return train_sources(page, placement="here" if no_ray else "pool")

    perform(call)


@app.command("train-prior")
def train_prior(config: Configs = None, settings: Settings = None, no_ray: NoRay = False) -> None:
    """Train the attention prior on the source tasks."""

    def call() -> Mapping[str, Any]:
        from jobs.train_prior import train_prior

        page = load_config(config or [], settings or [])
        return train_prior(page, placement="here" if no_ray else "pool")

    perform(call)


@app.command("train-target")
def train_target(
    config: Configs = None,
    settings: Settings = None,
    without_training: Annotated[
        bool,
        typer.Option("--without-training", help="Use the prior as it is, on tasks without training data."),
    ] = False,
) -> None:
    """Train one target task, or a group of them mixed: --set tasks=[rte]."""

    def call() -> Mapping[str, Any]:
        from jobs.train_target import train_target

        page = load_config(config or [], settings or [])
        return train_target(page, steps="none" if without_training else "as_configured")

    perform(call)


@app.command()
def evaluate(
    config: Configs = None,
    settings: Settings = None,
    prompt: Prompt = None,
    split: Annotated[str, typer.Option("--split", help="dev or test.")] = "test",
) -> None:
    """Score prompts of the bank: --set tasks=[rte]."""

    def call() -> Mapping[str, Any]:
        from jobs.evaluate import evaluate

        return evaluate(load_config(config or [], settings or []), prompt=prompt, split=split)

    perform(call)


@app.command()
def predict(
    task: Annotated[
        str,
        typer.Argument(
            help="Task whose template the rows go through; with --url also rte@candidate or rte@v3."
        ),
    ],
    config: Configs = None,
    settings: Settings = None,
    field: Annotated[
        list[str] | None, typer.Option("--field", "-f", help="One column of the row.", metavar="NAME=VALUE")
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option("--rows", help="File of JSON rows, one per line; - is stdin.", metavar="FILE"),
    ] = None,
    prompt: Prompt = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Ask a deployment instead, such as http://127.0.0.1:8000.")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", help="File with its API key; default: ATTEMPT_API_KEY.", metavar="FILE"),
    ] = None,
    batch_rows: Annotated[
        int | None, typer.Option("--batch-rows", help="Most rows of one request; default: 64.", min=1)
    ] = None,
) -> None:
    """Answer your own rows, and tell what each answer attended to."""

    def call() -> Mapping[str, Any]:
        from attempt_ray.errors import ConfigError
        from jobs.predict import REMOTE_ROWS, predict, predict_remotely, read_key, read_rows

        if url is None:
            if key_file is not None or batch_rows is not None:
                raise ConfigError("--key-file and --batch-rows are for a deployment; give its --url")
            page = load_config(config or [], settings or [])
            return predict(page, task, read_rows(field or [], _lines(rows)), prompt=prompt)
        if config or settings:
            raise ConfigError(
                "--config and --set are of answering here; a deployment has its own: leave them out"
            )
        return predict_remotely(
            task,
            read_rows(field or [], _lines(rows)),
            url=url,
            key=None if key_file is None else read_key(key_file),
            prompt=prompt,
            batch_rows=batch_rows or REMOTE_ROWS,
        )

    perform(call)


@app.command()
def report(config: Configs = None, settings: Settings = None) -> None:
    """Write tables and figures of all finished runs."""

    def call() -> Mapping[str, Any]:
        from jobs.report import report

        return report(load_config(config or [], settings or []))

    perform(call)


@app.command()
def pipeline(config: Configs = None, settings: Settings = None, no_ray: NoRay = False) -> None:
    """Train sources, priors and targets, and report; the embedded preset without arguments."""

    def call() -> Mapping[str, Any]:
        from jobs.run_pipeline import run_pipeline

        names = config or ["embedded"]
        page = load_config(names, settings or [])
        return run_pipeline(page, placement="here" if no_ray else "pool", configs=names)

    perform(call)


@study_app.command("run")
def study_run(
    config: Configs = None,
    settings: Settings = None,
    no_ray: NoRay = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan alone.")] = False,
    tflops: Tflops = None,
    memory: Memory = None,
) -> None:
    """Do a study; the same command goes on with it. The preset study/embedded-quick without arguments."""

    def call() -> Mapping[str, Any]:
        from jobs import run_study as study

        page = load_config(config or ["study/embedded-quick"], settings or [])
        if dry_run:
            return study.dry_run(page, tflops=tflops, memory_gb=memory)
        return study.run_study(page, placement="here" if no_ray else "pool")

    perform(call)


@study_app.command("plan")
def study_plan(
    config: Configs = None, settings: Settings = None, tflops: Tflops = None, memory: Memory = None
) -> None:
    """Tell runs, steps, tokens, hours and memory of a study, without weights or rows."""

    def call() -> Mapping[str, Any]:
        from jobs.run_study import dry_run

        page = load_config(config or ["study/embedded-quick"], settings or [])
        return dry_run(page, tflops=tflops, memory_gb=memory)

    perform(call)


@study_app.command("status")
def study_status(
    name: StudyDirectoryName, directory: StudiesPlace = "studies", as_json: AsJson = False
) -> None:
    """Tell where a study stands, row by row, without touching it."""
    with one_line_errors():
        from jobs.run_study import status_lines
        from jobs.study_state import standing

        found = standing(Path(directory).expanduser() / name)
        typer.echo(json.dumps(found.as_dict()) if as_json else "\n".join(status_lines(found)))


@study_app.command("report")
def study_report(
    name: StudyDirectoryName,
    directory: StudiesPlace = "studies",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Another directory for the report, or a .md file for that page alone.",
            metavar="PLACE",
        ),
    ] = None,
    no_inputs: Annotated[
        bool, typer.Option("--no-inputs", help="Leave out test rows, which may not be passed on.")
    ] = False,
) -> None:
    """Write the tables and figures of what a study has done so far."""

    def call() -> Mapping[str, Any]:
        from jobs.run_study import report_study

        return report_study(name, directory=directory, out=out, inputs="withheld" if no_inputs else "shown")

    perform(call)


@study_app.command("rows")
def study_rows(as_json: AsJson = False) -> None:
    """List the rows and ablations that a study can have."""
    with one_line_errors():
        from jobs.run_study import row_lines

        _table(["name", "kind", "what it is"], row_lines(), as_json=as_json)


@tune_app.callback()
def tune(
    context: typer.Context,
    config: Configs = None,
    settings: Settings = None,
    study: Annotated[
        str | None, typer.Option("--study", help="Name of the search; default: made of all that decides it.")
    ] = None,
    space: Annotated[
        str | None,
        typer.Option("--space", help="Search space, or a YAML or Python file; default: by the tasks' group."),
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", help="Trials in all.")] = None,
    hours: Annotated[float | None, typer.Option("--hours", help="No trial starts later than this.")] = None,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", help="Optimizer steps, after which no trial starts.")
    ] = None,
    no_ray: Annotated[bool, typer.Option("--no-ray", help="In this process, without Ray.")] = False,
) -> None:
    """Search settings on dev rows and test what was found; the same command goes on with the same search."""
    if context.invoked_subcommand is not None:
        return

    def call() -> Mapping[str, Any]:
        from jobs.tune import tune

        given = {"study": study, "space": space, "trials": trials, "hours": hours, "max_steps": max_steps}
        named = [f"search.{key}={value}" for key, value in given.items() if value is not None]
        page = load_config(config or [], [*(settings or []), *named])
        return tune(page, placement="here" if no_ray else "pool")

    perform(call)


@tune_app.command("report")
def tune_report(study: StudyName, storage: StudyPlace = None, directory: SearchesPlace = "searches") -> None:
    """Write what a search has found so far: tables, pictures, warnings."""

    def call() -> Mapping[str, Any]:
        from jobs.tune_report import tune_report

        return tune_report(study, storage=storage, directory=directory)

    perform(call)


@tune_app.command("ui")
def tune_ui(
    study: StudyName,
    storage: StudyPlace = None,
    directory: SearchesPlace = "searches",
    port: Annotated[int, typer.Option("--port", help="Port on 127.0.0.1.", min=1, max=65535)] = 8080,
) -> None:
    """Open optuna-dashboard on a search, for this machine alone."""

    def call() -> None:
        from jobs.tune_report import tune_ui

        tune_ui(study, storage=storage, directory=directory, port=port)

    perform(call)


@app.command()
def submit(
    job: Annotated[
        str,
        typer.Argument(
            help="train-sources, train-prior, train-target, pipeline, study, tune, evaluate or report.",
            metavar="JOB",
        ),
    ],
    options: Annotated[
        list[str] | None, typer.Argument(help="More options of the job, after --.", metavar="OPTION")
    ] = None,
    config: Configs = None,
    settings: Settings = None,
    address: Address = None,
    token_file: TokenFile = None,
    without_token: WithoutToken = False,
    working_dir: Annotated[
        Path, typer.Option("--working-dir", help="Directory that is uploaded, and the job works in.")
    ] = Path(),
    python: Annotated[str, typer.Option("--python", help="Interpreter on the cluster.")] = "python",
    env: Annotated[
        list[str] | None,
        typer.Option("--env", help="A variable that the job gets; no secrets.", metavar="NAME[=VALUE]"),
    ] = None,
    tflops: Tflops = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end.")] = True,
    again: Annotated[bool, typer.Option("--again", help="Even if the same work has succeeded.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan alone; nothing is sent.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Submit a job to a Ray cluster, once, and follow it: attempt submit pipeline --config embedded."""
    import contextlib

    with one_line_errors():
        from attempt_ray.errors import ConfigError
        from jobs import submit as submission

        if not working_dir.is_dir():
            raise ConfigError(f"--working-dir got {working_dir}, which is no directory")
        token_file = None if token_file is None else token_file.absolute()
        names = [str(Path(name).absolute()) if Path(name).is_file() else name for name in config or []]
        with contextlib.chdir(working_dir):
            plan = submission.make_plan(
                job,
                configs=names,
                settings=settings or [],
                options=options or [],
                variables=env or [],
                python=python,
                tflops=tflops,
                token_file=token_file,
            )
            for line in plan.describe():
                tell(line)
            facts, code = {"job": "submit", "id": plan.id, "plan": plan.as_dict()}, 0
            if not dry_run:
                cluster = submission.connect(address, token_file=token_file, without_token=without_token)
                follow = _connection(address, token_file, without_token=without_token)
                facts, code = submission.submit(plan, cluster, wait=wait, again=again, yes=yes, follow=follow)
        typer.echo(json.dumps(facts))
    raise typer.Exit(code)


@jobs_app.command("list")
def jobs_list(
    address: Address = None,
    token_file: TokenFile = None,
    without_token: WithoutToken = False,
    as_json: AsJson = False,
) -> None:
    """List the jobs that were submitted to a cluster, the latest first."""
    with one_line_errors():
        from jobs.submit import connect, job_rows

        found = connect(address, token_file=token_file, without_token=without_token).known()
        if as_json:
            typer.echo(json.dumps([job.as_dict() for job in found]))
        else:
            _table(["job", "status", "exit code", "started", "took"], job_rows(found), as_json=False)


@jobs_app.command("logs")
def jobs_logs(
    name: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    address: Address = None,
    token_file: TokenFile = None,
    without_token: WithoutToken = False,
) -> None:
    """Print what a job has printed; with --follow, exit with its exit code."""
    code = 0
    with one_line_errors():
        from jobs.submit import connect, follow_job

        cluster = connect(address, token_file=token_file, without_token=without_token)
        if follow:
            again = _connection(address, token_file, without_token=without_token)
            _, code = follow_job(cluster, name, address=again, stream=sys.stdout)
        else:
            typer.echo(cluster.log(name), nl=False)
    raise typer.Exit(code)


@jobs_app.command("stop")
def jobs_stop(
    name: JobName,
    address: Address = None,
    token_file: TokenFile = None,
    without_token: WithoutToken = False,
    as_json: AsJson = False,
) -> None:
    """Stop a job; its runs keep what they have reached, and the same submission goes on from there."""
    with one_line_errors():
        from jobs.submit import connect

        job = connect(address, token_file=token_file, without_token=without_token).stop(name)
        typer.echo(json.dumps(job.as_dict()) if as_json else f"{job.id}: {job.status}")


def _connection(address: str | None, token_file: Path | None, *, without_token: bool) -> str:
    """Return the options that lead to the same cluster."""
    import shlex

    parts = [] if address is None else ["--address", address]
    parts += [] if token_file is None else ["--token-file", str(token_file)]
    return shlex.join([*parts, *(["--without-token"] if without_token else [])])


@app.command()
def params(
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="t5-small to t5-11b, nano or a directory; default: all T5."),
    ] = None,
    prompt_length: Annotated[int, typer.Option("--prompt-length", help="Prompt positions m.")] = 100,
    bottleneck: Annotated[int, typer.Option("--bottleneck", help="Width r of G's bottleneck.")] = 100,
    tasks: Annotated[int, typer.Option("--tasks", help="Tasks N of the multi-task rows.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Print the paper's table of trainable parameters, from config alone."""
    with one_line_errors():
        from attempt_ray.reporting.parameters import parameter_table, render_markdown

        table = parameter_table(backbone, prompt_length=prompt_length, bottleneck=bottleneck, num_tasks=tasks)
        typer.echo(json.dumps(table.as_dict()) if as_json else render_markdown(table).rstrip())


@app.command()
def plan(
    backbone: Annotated[
        str, typer.Option("--backbone", help="t5-small to t5-11b, nano or a directory.")
    ] = "t5-base",
    rows: Annotated[int, typer.Option("--rows", help="Rows of a batch.")] = 16,
    tokens: Annotated[int, typer.Option("--tokens", help="Input tokens of a row, prompt included.")] = 356,
    targets: Annotated[int, typer.Option("--targets", help="Target tokens of a row.")] = 4,
    dtype: Annotated[
        Precision, typer.Option("--dtype", help="Type of the frozen weights.")
    ] = Precision.bfloat16,
    memory: Annotated[
        float | None, typer.Option("--memory", help="GB at hand: how many rows fit?", metavar="GB")
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Layers computed again, as with backbone.recompute=true.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell the memory and work of a training step beforehand, from the backbone's shape alone."""
    with one_line_errors():
        from attempt_ray.reporting.costs import plan_step
        from attempt_ray.reporting.parameters import backbone_shape

        found = plan_step(
            backbone_shape(backbone),
            rows=rows,
            tokens=tokens,
            targets=targets,
            weight_bytes=4 if dtype is Precision.float32 else 2,
            recompute=recompute,
            limit=None if memory is None else memory * 1e9,
        )
        typer.echo(json.dumps(found.as_dict()) if as_json else found.describe())


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="Show this task: fields, labels, an example.")] = None,
    user_task: Annotated[
        list[str] | None, typer.Option("--user-task", help="YAML file of a task of your own.", metavar="FILE")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the tasks, or show one."""
    with one_line_errors():
        from jobs.show import task_facts, task_rows, task_text

        files = tuple(user_task or ())
        if name is None:
            _table(["task", "group", "kind", "headline", "data set"], task_rows(files), as_json=as_json)
        else:
            facts = task_facts(name, files)
            typer.echo(json.dumps(facts) if as_json else task_text(facts))


@serve_app.callback()
def serve(
    context: typer.Context,
    config: Configs = None,
    settings: Settings = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
) -> None:
    """Serve on this machine until Ctrl-C, or `check`, `build` and `deploy` a serve_config.yaml."""
    if context.invoked_subcommand is not None:
        return
    with one_line_errors():
        from jobs.serve import serve_here

        serve_here(load_config(config or [], settings or []), host=host, port=port)


@serve_app.command("check")
def serve_check(file: ServeFile) -> None:
    """Read a serve_config.yaml strictly: Serve itself takes keys that it does not know."""

    def call() -> Mapping[str, Any]:
        from jobs.serve import check_file

        return check_file(file)

    perform(call)


@serve_app.command("build")
def serve_build(
    config: Configs = None, settings: Settings = None, host: Host = "127.0.0.1", port: Port = 8000
) -> None:
    """Print a serve_config.yaml of presets, files and settings."""
    with one_line_errors():
        from jobs.serve import file_of

        typer.echo(file_of(config or [], settings or [], host=host, port=port).rstrip())


@serve_app.command("deploy")
def serve_deploy(
    file: ServeFile,
    address: Address = None,
    token_file: TokenFile = None,
    without_token: WithoutToken = False,
) -> None:
    """Send a serve_config.yaml to a cluster."""

    def call() -> Mapping[str, Any]:
        from jobs.serve import deploy

        return deploy(file, address=address, token_file=token_file, without_token=without_token)

    perform(call)


@bank_app.command("list")
def bank_list(
    kind: Annotated[str | None, typer.Argument(help="source, target or attention.")] = None,
    bank: BankPlace = "bank",
    as_json: AsJson = False,
) -> None:
    """List every version, with its aliases and scores."""
    with one_line_errors():
        from jobs.show import version_rows

        _table(
            ["version", "aliases", "backbone", "scores", "created"], version_rows(bank, kind), as_json=as_json
        )


@bank_app.command("show")
def bank_show(reference: ReferenceText, bank: BankPlace = "bank") -> None:
    """Print the manifest of a version as JSON."""
    with one_line_errors():
        from attempt_ray.bank.store import Bank

        typer.echo(Bank(bank).show(reference).to_json().decode().rstrip())


@bank_app.command("verify")
def bank_verify(
    reference: Annotated[
        str | None, typer.Argument(metavar="REFERENCE", help="One version; default: all.")
    ] = None,
    bank: BankPlace = "bank",
) -> None:
    """Read everything back and compare digests; exits with 1 where something is wrong."""
    with one_line_errors():
        from attempt_ray.bank.store import Bank

        problems = Bank(bank).verify(reference)
        for problem in problems:
            typer.echo(str(problem))
        tell(f"{len(problems)} problems" if problems else "everything is as it was written")
    raise typer.Exit(1 if problems else 0)


@bank_app.command("promote")
def bank_promote(reference: ReferenceText, bank: BankPlace = "bank") -> None:
    """Make a version the champion: the candidate, or the one named."""
    with one_line_errors():
        from attempt_ray.bank.store import Bank

        typer.echo(f"champion: {Bank(bank).promote(reference).reference}")


@bank_app.command("rollback")
def bank_rollback(reference: ReferenceText, bank: BankPlace = "bank") -> None:
    """Point an alias (the champion) back to where it pointed before."""
    with one_line_errors():
        from attempt_ray.bank.aliases import CHAMPION
        from attempt_ray.bank.names import Reference
        from attempt_ray.bank.store import Bank

        wanted = Reference.parse(reference)
        alias = wanted.alias or CHAMPION
        typer.echo(f"{alias}: {Bank(bank).rollback(wanted.kind, wanted.name, alias=alias).reference}")


@bank_app.command("canary")
def bank_canary(
    reference: ReferenceText,
    percent: Annotated[float, typer.Option("--percent", help="Share of the rows that it answers.")] = 10.0,
    max_error_rate: Annotated[
        float,
        typer.Option("--max-error-rate", help="Share of its rows that may fail before it is rolled back."),
    ] = 0.05,
    min_rows: Annotated[
        int, typer.Option("--min-rows", help="Rows it answers before its errors are judged.")
    ] = 20,
    stop: Annotated[bool, typer.Option("--stop", help="End the trial under way.")] = False,
    bank: BankPlace = "bank",
) -> None:
    """Let a version answer a share of what the champion would, in deployments that follow this bank."""
    with one_line_errors():
        from jobs.show import end_canary, start_canary

        if stop:
            typer.echo(end_canary(bank, reference))
        else:
            typer.echo(
                start_canary(
                    bank, reference, percent=percent, max_error_rate=max_error_rate, min_rows=min_rows
                )
            )


@bank_app.command("remove")
def bank_remove(reference: ReferenceText, bank: BankPlace = "bank") -> None:
    """Remove a version that nothing points to; its number is not given again."""
    with one_line_errors():
        from attempt_ray.bank.store import Bank

        typer.echo(f"removed: {Bank(bank).remove(reference).reference}")


@bank_app.command("export")
def bank_export(
    reference: ReferenceText,
    directory: Annotated[Path, typer.Argument(help="A directory that does not exist yet.")],
    bank: BankPlace = "bank",
) -> None:
    """Copy a version, byte for byte, into a new directory."""
    with one_line_errors():
        from attempt_ray.bank.store import Bank

        typer.echo(str(Bank(bank).export(reference, directory)))


@bank_app.command("import")
def bank_import(
    directory: Annotated[Path, typer.Argument(help="A directory that `export` wrote.")],
    bank: BankPlace = "bank",
) -> None:
    """Add an exported version under the next free number."""
    with one_line_errors():
        from attempt_ray.bank.store import Bank

        typer.echo(Bank(bank).import_(directory).reference)


@keys_app.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(help="Who gets the key.")],
    role: Annotated[
        KeyRole, typer.Option("--role", help="infer asks; admin also changes what is served.")
    ] = KeyRole.infer,
    days: Annotated[
        float | None, typer.Option("--days", help="How long it is good for; default: for ever.")
    ] = None,
    file: KeysFile = Path("keys.json"),
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once."""
    with one_line_errors():
        from jobs.keys import add_key

        add_key(file, name, role=role.value, days=days, as_json=as_json)


@keys_app.command("list")
def keys_list(file: KeysFile = Path("keys.json"), as_json: AsJson = False) -> None:
    """List the keys, without their texts, which nobody has kept."""
    with one_line_errors():
        from jobs.keys import key_rows

        _table(["id", "name", "role", "created", "expires", "state"], key_rows(file), as_json=as_json)


@keys_app.command("revoke")
def keys_revoke(key_id: KeyId, file: KeysFile = Path("keys.json"), as_json: AsJson = False) -> None:
    """Remove a key; a deployment refuses it within 2 seconds."""
    with one_line_errors():
        from serve_app.keys import KeyFile

        key = KeyFile(file).revoke(key_id)
        facts = {"revoked": key.id, "name": key.name}
        typer.echo(json.dumps(facts) if as_json else f"revoked: {key.id} of {key.name}")


@keys_app.command("rotate")
def keys_rotate(
    key_id: KeyId,
    overlap_hours: Annotated[
        float, typer.Option("--overlap-hours", help="How long the old key stays good beside the new one.")
    ] = 24.0,
    file: KeysFile = Path("keys.json"),
    as_json: AsJson = False,
) -> None:
    """Make a key of the same name and role, print it, this once, and let the old one expire."""
    with one_line_errors():
        from jobs.keys import rotate_key

        rotate_key(file, key_id, overlap_hours=overlap_hours, as_json=as_json)


@runs_app.command("list")
def runs_list(runs: RunsPlace = "runs", as_json: AsJson = False) -> None:
    """List run directories: state, steps, and the score or the reason why there is none."""
    with one_line_errors():
        from jobs.runs import run_rows

        _table(["run", "state", "method", "steps", "score"], run_rows(runs), as_json=as_json)


@runs_app.command("show")
def runs_show(
    name: Annotated[str, typer.Argument(help="A run directory's name, a part of it, or its path.")],
    runs: RunsPlace = "runs",
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on until the run ends; exits with 1 unless it finished."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell where a run stands, running or not; --json adds its report."""
    finished = True
    with one_line_errors():
        from jobs.runs import show_run

        finished = show_run(runs, name, follow=follow, as_json=as_json)
    raise typer.Exit(0 if finished else 1)


def _lines(path: str | None) -> Iterable[str]:
    """Return the lines of a file, of stdin for `-`, or none."""
    from attempt_ray.errors import DataError

    if path is None:
        return ()
    if path == "-":
        return sys.stdin
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read rows from {path}: {error}; give a file of JSON lines") from None


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, as_json: bool) -> None:
    """Print rows for people, in columns, or as one line of JSON."""
    if as_json:
        typer.echo(json.dumps([dict(zip(header, row, strict=True)) for row in rows]))
        return
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    for line in (header, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
