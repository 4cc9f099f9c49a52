"""The course of one run: gather, resume or start, train, select, test, publish.

A run is a directory named by the digest of its config and of all content it reads. Going through the same run again
goes on where it was, bit for bit, and once it has finished returns its report.

A run's course is a generator that asks for every step of its training, so that whoever drives it may take the steps of
several runs in one forward pass.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch.optim import AdamW

from attempt_ray.config import Config
from attempt_ray.data.batching import BatchStream
from attempt_ray.errors import BackboneError, NonFiniteError, StoppedError
from attempt_ray.model.methods import Method
from attempt_ray.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    remove_checkpoints,
    restore_optimizer,
    save_checkpoint,
)
from attempt_ray.training.directory import History, RunDirectory, run_name
from attempt_ray.training.evaluation import Evaluation, evaluate
from attempt_ray.training.examples import example_lines
from attempt_ray.training.ingredients import Ingredients, forget_backbone, gather
from attempt_ray.training.loop import Progress, Training
from attempt_ray.training.mirror import open_run
from attempt_ray.training.optimizer import (
    LinearSchedule,
    StepPlan,
    build_optimizer,
    paper_epochs,
    plan_steps,
)
from attempt_ray.training.parallel import ALONE, Team
from attempt_ray.training.publishing import is_published, publish
from attempt_ray.training.report import build_report
from attempt_ray.training.selection import SHARED, Kept, Selection

HISTORY_LINES = 1000
"""Most training steps written to metrics.jsonl; longer runs write every n-th."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something other than a step that a watching person may want to know."""

    kind: str
    """`plan`, `resumed`, `damaged`, `evaluated`, `stopped`, `published` or `finished`."""
    message: str
    """One line for people."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs, as plain JSON."""


OnProgress = Callable[[Progress | Event], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    directory: Path | str
    """Its directory; on an object store its URI, without options."""
    report: Mapping[str, Any]
    """The content of its report.json."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run under way."""

    ingredients: Ingredients
    method: Method
    digest: str
    directory: RunDirectory
    emit: OnProgress
    team: Team

    @property
    def config(self) -> Config:
        return self.ingredients.config

    def event(self, kind: str, message: str, **facts: Any) -> None:
        self.emit(Event(kind=kind, message=message, facts=facts))

    def new_selection(self) -> Selection:
        training = self.config.training
        return Selection(rule=training.selection, tasks=self.config.tasks, patience=training.patience)


@dataclass(frozen=True, kw_only=True)
class _Learned:
    """What came of training."""

    selection: Selection
    plan: StepPlan
    steps: int
    tokens: int


@dataclass
class _Totals:
    """What a run has counted, this process's restarts included."""

    step: int = 0
    evaluated: int = 0
    """The last step after which dev rows were scored."""
    tokens: int = 0
    seconds: float = 0.0


_Asking = Generator[Training, Progress | Exception, _Learned]
"""Training that asks for its steps one by one, and is sent what each did or why it was not taken."""

Course = Generator[Training, Progress | Exception, RunResult]
"""The same for a whole run."""

Learn = Callable[[_Run, _Totals], _Asking]
"""How a run learns."""


def course(
    config: Config,
    learn: Learn,
    *,
    rows: Literal["all", "test"] = "all",
    on_progress: OnProgress,
    team: Team = ALONE,
) -> Course:
    """Go through a run; one that has finished before asks for no step.

    Of the processes that share a run the leading one keeps its directory and publishes; the others follow it.

    Args:
        config: The run.
        learn: `train_and_select` or `keep_start`.
        rows: `test` leaves training and dev rows alone, which then need not exist.
        on_progress: Called after every step and on every event.
        team: Processes that share the run.

    Raises:
        AttemptError: As `attempt_ray.training.run.execute`.
    """
    ingredients = gather(config, rows=rows)
    method, digest = ingredients.build(), ingredients.digest()
    with _directory(config, run_name(config, digest), team) as directory:
        run = _Run(
            ingredients=ingredients,
            method=method,
            digest=digest,
            directory=directory,
            emit=on_progress,
            team=team,
        )
        report: dict[str, Any] | None = team.from_leader(_finished(run))
        if report is None:
            with directory.leased(config):
                report = team.from_leader(_finished(run))
                if report is None:
                    try:
                        report = yield from _completed(run, learn)
                    except Exception as error:
                        directory.note_end(error)
                        raise
        return RunResult(directory.place, report)


@contextmanager
def _directory(config: Config, name: str, team: Team) -> Iterator[RunDirectory]:
    """Hold the directory of a run; what a process writes that does not lead is thrown away."""
    if team.leads:
        yield open_run(config, name)
    else:
        with tempfile.TemporaryDirectory(prefix="attempt-run-") as root:
            yield RunDirectory(Path(root) / name)


def _finished(run: _Run) -> dict[str, Any] | None:
    """Return the report of a run that has finished, what it learned being in the bank; None of one that has not."""
    report = run.directory.report()
    if report is None or report["digest"] != run.digest:
        return None
    if not is_published(run.config, run.digest, report["bank"]):
        selection = run.new_selection()
        selection.restore(report["kept"], run.directory.read_best(report["best_sha256"]))
        report["bank"] = publish(
            run.ingredients,
            run.method,
            selection,
            digest=run.digest,
            scores=report["scores"],
            steps=report["steps"],
        )
        run.directory.write_report(report)
        run.event("published", f"published again: {', '.join(report['bank'].values())}", **report["bank"])
    run.event("finished", f"finished before: {run.directory.place}", means=report["kept"].get("means", []))
    return report


def _completed(run: _Run, learn: Learn) -> Generator[Training, Progress | Exception, dict[str, Any]]:
    """Take the run to its end and return its report."""
    directory, started = run.directory, time.monotonic()
    totals = _Totals()
    learned = yield from learn(run, totals)
    selection = learned.selection
    best_sha256 = directory.write_best(selection.tensors())
    finals, scores = _final_scores(run, selection)
    unchanged = _backbone_unchanged(run)
    report = build_report(
        run.ingredients,
        run.method,
        selection,
        digest=run.digest,
        plan=learned.plan,
        steps=learned.steps,
        finals=finals,
        scores=scores,
        tokens=learned.tokens,
        seconds=totals.seconds + time.monotonic() - started,
        backbone_unchanged=unchanged,
    )
    references = (
        publish(
            run.ingredients,
            run.method,
            selection,
            digest=run.digest,
            scores=scores,
            steps=learned.steps,
        )
        if run.team.leads
        else {}
    )
    report |= {"bank": references, "best_sha256": best_sha256}
    if run.config.job == "target" and finals:
        splits = {split.task.name: split for split in run.ingredients.test}
        report["examples_sha256"] = directory.write_examples(example_lines(splits, finals))
    if not run.ingredients.train:
        report["label"] = "attempt_prior"
    directory.write_report(report)
    remove_checkpoints(directory.checkpoints)
    directory.keep()
    if references:
        run.event("published", f"published {', '.join(references.values())}", **references)
    headlines = {task: final.headline for task, final in finals.items()}
    shown = ", ".join(f"{task} {value:.1f}" for task, value in headlines.items())
    run.event("finished", f"finished: {shown}", **headlines)
    return report


def keep_start(run: _Run, _totals: _Totals) -> _Asking:
    """Keep the method as it starts."""
    yield from ()
    selection = run.new_selection()
    state = run.method.trainable_state()
    names = run.config.tasks if selection.rule == "per_task" else (SHARED,)
    selection.kept = {name: Kept(0, None, state) for name in names}
    plan = StepPlan(steps=0, warmup_steps=0, steps_per_epoch=1, eval_steps=1)
    return _Learned(selection=selection, plan=plan, steps=0, tokens=0)


def train_and_select(run: _Run, totals: _Totals) -> _Asking:
    """Train to the end of the budget, or until patience runs out, from wherever the run stands."""
    config, method = run.config, run.method
    stream = _stream(run.ingredients)
    plan = _plan(run.ingredients, stream)
    dtype, reason = run.ingredients.precision
    run.event(
        "plan",
        f"{plan.describe()}; frozen weights in {dtype} ({reason})",
        steps=plan.steps,
        steps_per_epoch=plan.steps_per_epoch,
        dtype=dtype,
    )
    run.directory.note_plan(steps=plan.steps)
    optimizer = build_optimizer(method, config.training)
    selection = run.new_selection()
    _resume(run, optimizer, selection, totals)
    history = run.directory.history(through=totals.step, tensorboard=config.training.tensorboard)
    started, seconds_before = time.monotonic(), totals.seconds

    def save() -> None:
        history.sync()
        save_checkpoint(
            run.directory.checkpoints,
            Checkpoint(
                step=totals.step,
                trainable=method.trainable_state(),
                optimizer=optimizer_tensors(optimizer),
                best=selection.tensors(),
                facts={
                    "selection": selection.facts(),
                    "evaluated": totals.evaluated,
                    "tokens": totals.tokens,
                    "seconds": seconds_before + time.monotonic() - started,
                },
            ),
        )
        run.directory.keep()

    training = Training(
        method=method,
        stream=stream,
        optimizer=optimizer,
        schedule=LinearSchedule(plan.steps, plan.warmup_steps),
        seed=config.seed,
        max_grad_norm=config.training.max_grad_norm,
        absent_tasks=config.training.absent_tasks,
        step=totals.step,
        team=run.team,
    )
    every = -(-plan.steps // HISTORY_LINES)

    def select_if_due() -> None:
        if totals.step > totals.evaluated and (training.done or totals.step % plan.eval_steps == 0):
            _select(run, selection, history, step=totals.step)
            totals.evaluated = totals.step

    try:
        select_if_due()  # the run may have been stopped in the middle of an evaluation
        while not (training.done or selection.stopped):
            progress = yield training
            if isinstance(progress, Exception):
                raise progress
            totals.step = progress.step
            totals.tokens += progress.tokens
            if training.done or progress.step % every == 0:
                seconds = seconds_before + time.monotonic() - started
                history.add(_line(progress, tokens=totals.tokens, seconds=seconds))
            run.emit(progress)
            select_if_due()
            ended = training.done or selection.stopped
            if ended or progress.step % config.training.checkpoint_steps == 0:
                save()
            if selection.stopped:
                run.event("stopped", f"stopped early after {progress.step} steps", step=progress.step)
    except (NonFiniteError, StoppedError) as error:
        if totals.step:
            save()
        if selection.kept:
            run.directory.write_best(selection.tensors())
        raise type(error)(
            f"{error}; the state after step {totals.step} is kept in {run.directory.place}"
        ) from None
    finally:
        history.close()
    return _Learned(selection=selection, plan=plan, steps=totals.step, tokens=totals.tokens)


def _resume(run: _Run, optimizer: AdamW, selection: Selection, totals: _Totals) -> None:
    """Set everything to the newest whole checkpoint, where there is one."""
    found = load_checkpoint(
        run.directory.checkpoints,
        on_damage=lambda message: run.event(
            "damaged", message.replace(str(run.directory.path), str(run.directory.place))
        ),
    )
    run.directory.keep()
    checkpoint: Checkpoint | None = run.team.from_leader(found)
    if checkpoint is None:
        return
    run.method.load_trainable_state(checkpoint.trainable)
    restore_optimizer(optimizer, checkpoint.optimizer)
    selection.restore(checkpoint.facts["selection"], checkpoint.best)
    totals.step = checkpoint.step
    totals.evaluated = checkpoint.facts.get("evaluated", checkpoint.step)
    totals.tokens = checkpoint.facts["tokens"]
    totals.seconds = checkpoint.facts["seconds"]
    facts = {"step": checkpoint.step, "means": selection.facts()["means"]}
    run.event("resumed", f"resumed after step {checkpoint.step}", **facts)


def _select(run: _Run, selection: Selection, history: History, *, step: int) -> None:
    """Evaluate every task on its dev rows and let the selection decide."""
    evaluations = {
        split.task.name: evaluate(run.method, split, task_index=index, config=run.config, team=run.team)
        for index, split in enumerate(run.ingredients.dev)
    }
    improved = selection.update(step, evaluations, run.method.trainable_state())
    values = {
        f"dev/{task}/{metric}": value
        for task, evaluation in evaluations.items()
        for metric, value in evaluation.scores.items()
    }
    mean = sum(evaluation.headline for evaluation in evaluations.values()) / len(evaluations)
    history.add({"step": step, **values, "dev/mean": mean})
    run.event(
        "evaluated",
        f"step {step}: dev {mean:.2f}{' (best)' if improved else ''}",
        step=step,
        mean=mean,
        improved=improved,
        **values,
    )


def _final_scores(
    run: _Run, selection: Selection
) -> tuple[dict[str, Evaluation], dict[str, dict[str, dict[str, Any]]]]:
    """Return each task's evaluation in the state kept for it, and its scores by split.

    That is on test rows, but for a prior: its prompts are thrown away, so its dev rows tell enough. A trial has been
    scored on its dev rows, and shall not see others.
    """
    if run.config.trial:
        return {}, {task: {"dev": selection.records[task]} for task in run.config.tasks}
    prior = run.config.job == "prior"
    finals: dict[str, Evaluation] = {}
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for index, split in enumerate(run.ingredients.dev if prior else run.ingredients.test):
        task = split.task.name
        run.method.load_trainable_state(selection.state_for(task))
        finals[task] = evaluate(run.method, split, task_index=index, config=run.config, team=run.team)
        scores[task] = {"dev": selection.records[task]} if task in selection.records else {}
        if not prior:
            scores[task]["test"] = finals[task].record()
    return finals, scores


def _backbone_unchanged(run: _Run) -> bool | None:
    """Check that the frozen weights are those from before; return None where the run has a backbone of its own.

    Raises:
        BackboneError: They moved, so nothing that the run learned can be trusted.
    """
    if run.config.facts.backbone != "frozen":
        return None
    found = run.ingredients.backbone.fingerprint()
    if found != run.ingredients.fingerprint:
        forget_backbone()
        raise BackboneError(
            f"backbone '{run.ingredients.backbone.identity.name}' had weights {run.ingredients.fingerprint[:12]} before "
            f"the run and {found[:12]} after it; nothing was published; remove {run.directory.place} and run again"
        )
    return True


def _stream(ingredients: Ingredients) -> BatchStream:
    """Return the run's batches: `data.batch_rows` for each task, so that N tasks take N times as many per step."""
    data = ingredients.config.data
    return BatchStream(
        ingredients.train,
        seed=ingredients.config.seed,
        rows=data.batch_rows * len(ingredients.tasks),
        tokens=data.batch_tokens,
        mixing=data.mixing,
        mixing_temperature=data.mixing_temperature,
        pad_id=ingredients.backbone.pad_id,
    )


def _plan(ingredients: Ingredients, stream: BatchStream) -> StepPlan:
    rows = [len(split) for split in ingredients.train]
    return plan_steps(
        ingredients.config.training,
        steps_per_epoch=stream.steps_per_epoch,
        default_epochs=paper_epochs(ingredients.config, tasks=ingredients.tasks, train_rows=rows),
    )


def _line(progress: Progress, *, tokens: int, seconds: float) -> dict[str, Any]:
    rates = {f"lr_{name}": rate for name, rate in progress.learning_rates.items()}
    return {
        "step": progress.step,
        "loss": progress.loss,
        "grad_norm": progress.grad_norm,
        **rates,
        "tokens": tokens,
        "seconds": round(seconds, 3),
    }
