"""The whole of ATTEMPT: source prompts, priors, targets, report: `python -m jobs.run_pipeline --config embedded`.

All runs go through one pool; each starts as soon as those it needs have finished.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attempt_ray.config import Config
from attempt_ray.errors import AttemptError
from attempt_ray.orchestration.study import Job
from attempt_ray.reporting.report import ReportSummary
from attempt_ray.reporting.tables import method_name
from jobs import plan
from jobs.edge import tell
from jobs.pooled import Placement, Study, nominate, promote, run_study
from jobs.preflight import preflight
from jobs.report import also_at, report_on
from jobs.watch import clock, counted


def run_pipeline(
    config: Config, *, placement: Placement = "pool", configs: Sequence[str] = ()
) -> dict[str, Any]:
    """Run every stage of the study, and return what it found.

    Source prompts and priors that the study trains become champions of the bank, since its targets start from them;
    of each target's versions, the one with the best dev score becomes candidate, and champion where there was none.

    Args:
        config: The study.
        placement: A pool of Ray workers, or `here`: one run after the other in this process.
        configs: Presets or files it was read from, for the commands printed at the end.

    Raises:
        AttemptError: Something cannot be used; nothing was trained.
    """
    started = time.monotonic()
    preflight(config, plan.check(config).values())
    study = run_study(all_jobs(config), config, placement=placement, on_event=partial(promote, config))
    digests = [result.report["digest"] for result in study.finished]
    if not digests:
        return {"job": "run_pipeline", "runs": 0, "failed": study.failures}
    summary = report_on(config, digests=digests)
    reports = [result.report for result in study.finished]
    champions = choose(config, reports)
    seconds = time.monotonic() - started
    shown = worth_showing(config, reports, champions)
    for line in closing_lines(config, study, summary, configs=configs, shown=shown, seconds=seconds):
        tell(line)
    return {
        "job": "run_pipeline",
        "seconds": round(seconds, 1),
        "report": summary.as_dict(),
        "champions": champions,
        "runs": len(digests),
        "failed": study.failures,
    }


def all_jobs(config: Config) -> list[Job]:
    """Return every run of the study with what it needs, in the order in which idle workers shall take them."""
    stages, needs = plan.stage_jobs(config)
    return [*stages, *plan.target_jobs(config, needs=needs)]


def choose(config: Config, reports: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Point each target's aliases to its best version by dev score, and return the champions.

    The candidate always moves; a champion that somebody chose before stays.
    """
    from attempt_ray.bank.aliases import CHAMPION
    from attempt_ray.bank.store import Bank

    bank = Bank(config.bank)
    champions = {}
    for task, version in nominate(bank, reports).items():
        if CHAMPION not in bank.aliases("target", task).current:
            bank.set_alias("target", task, CHAMPION, version.number)
        champions[task] = bank.resolve(f"target/{task}@{CHAMPION}").reference
    return champions


def worth_showing(config: Config, reports: Sequence[Mapping[str, Any]], champions: Mapping[str, str]) -> str:
    """Return the first target whose champion is a mixture, else the first."""
    mixtures = {
        reference
        for report in reports
        if report["method"] == "attempt"
        for reference in report["bank"].values()
    }
    targets = config.study.targets
    return next((task for task in targets if champions.get(task) in mixtures), targets[0])


def closing_lines(
    config: Config,
    study: Study,
    summary: ReportSummary,
    *,
    configs: Sequence[str],
    shown: str,
    seconds: float,
) -> list[str]:
    """Return what was learned, where the pictures are and what to type next, with a row of the task `shown`."""
    jobs = [result.report["job"] for result in study.finished]
    learned = [
        counted(jobs.count("source"), "source prompt"),
        counted(jobs.count("prior"), "attention prior"),
        f"prompts for {counted(len(config.study.targets), 'target')} in {counted(jobs.count('target'), 'run')}",
    ]
    lines = ["", f"Learned {', '.join(learned)}; {clock(seconds)} in all."]
    for title, means in (
        ("all targets", summary.means),
        ("targets of at most 600 rows", summary.small_means),
    ):
        told = [f"{method_name(label)} {mean:.1f}" for label, mean in means.items() if mean is not None]
        if told:
            lines.append(f"Mean test score over {title}: {', '.join(told)}.")
    for label, share in summary.parent_agreement.items():
        if share is not None:
            lines.append(
                f"{method_name(label)} attends most to a true parent for {share:.0%} of the targets that have one."
            )
    lines += [f"Note: {warning}" for warning in summary.warnings[:3]]
    lines += [f"Set aside: {item['run']}: {item['error']}" for item in study.failures]
    pictures = ", ".join(path.name for path in summary.files if path.suffix == ".png")
    lines += [
        f"Table and explanations: {_shown(summary.directory / 'report.md')}{also_at(config, summary)}",
        f"Pictures beside it: {pictures}",
        "Type next:",
        *(f"  {command}" for command in next_commands(config, shown, configs=configs)),
    ]
    return lines


def next_commands(config: Config, target: str, *, configs: Sequence[str]) -> list[str]:
    """Return commands to go on with: one answers a test row of the target."""
    given = " ".join(f"--config {shlex.quote(name)}" for name in configs)
    program = "attempt" if shutil.which("attempt") else _shown(Path(sys.executable).parent / "attempt")
    example = _example(config, target)
    fields = " ".join(f"--field {shlex.quote(f'{name}={value}')}" for name, value in example.items())
    return [
        " ".join(filter(None, [program, "predict", target, given, fields])),
        f"{program} bank list --bank {shlex.quote(config.bank)}",
        f"{program} tasks {target}",
    ]


def _example(config: Config, task_name: str) -> dict[str, str]:
    """Return the text columns of a row of the task; none where rows are not at hand."""
    from attempt_ray.data.splits import load_splits
    from attempt_ray.tasks import get_task

    task = get_task(task_name, config.data.user_tasks)
    try:
        row = load_splits(task, config.data).test[0]
    except AttemptError:
        return {}
    return {name: row[name] for name in task.fields if isinstance(row.get(name), str)}


def _shown(path: Path) -> str:
    """Return a path as short as it can be typed here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


if __name__ == "__main__":
    from jobs.cli import run_job

    run_job("pipeline")
