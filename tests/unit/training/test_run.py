from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attempt_ray.bank.store import Bank
from attempt_ray.errors import BackboneError, ConfigError, IntegrityError, NonFiniteError, StoppedError
from attempt_ray.training import course as module
from attempt_ray.training import run as driver
from attempt_ray.training.ingredients import gather
from attempt_ray.training.run import (
    Event,
    Ticket,
    execute,
    execute_stream,
    execute_together,
    mixture_without_training,
)
from attempt_ray.training.stopping import ask_to_stop, withdraw_stop


class EndedEarlyError(Exception):
    """Stands for whatever ends a process early."""


def interrupt_after(step):
    def on_progress(progress):
        if not isinstance(progress, Event) and progress.step == step:
            raise EndedEarlyError

    return on_progress


def history(directory):
    """The lines of metrics.jsonl without the time they took."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def outcome(result):
    """Everything of a run that must be alike bit for bit."""
    report = {key: value for key, value in result.report.items() if key != "seconds"}
    return report, history(result.directory), (result.directory / "best.safetensors").read_bytes()


def elsewhere(config, name):
    """The same run with a bank and run directories of its own."""
    bank = Path(config.bank)
    return config.updated(
        bank=str(shutil.copytree(bank, bank.with_name(f"bank-{name}"))), runs=str(Path(config.runs) / name)
    )


def kinds(events):
    return [event.kind for event in events if isinstance(event, Event)]


def test_a_run_leaves_what_the_contract_names(make_config):
    events = []
    result = execute(make_config(), on_progress=events.append)
    names = {path.name for path in result.directory.iterdir()}
    assert {"config.json", "state.json", "metrics.jsonl", "best.safetensors"} <= names
    assert {"examples.jsonl", "report.json"} <= names
    assert json.loads((result.directory / "state.json").read_text()) == {"schema": 1, "steps": 6}
    assert not list((result.directory / "checkpoints").iterdir())
    assert kinds(events) == ["plan", *["evaluated"] * 3, "published", "finished"]
    lines = history(result.directory)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "dev/mean" in line] == [2, 4, 6]
    assert {"loss", "grad_norm", "lr_prompts", "lr_attention", "tokens", "step"} == set(lines[0])
    assert {"step", "dev/rte/accuracy", "dev/mean"} == set(lines[2])
    assert result.report["backbone_unchanged"] is True
    assert json.loads((result.directory / "report.json").read_bytes()) == result.report


def test_a_finished_run_returns_its_report_and_publishes_nothing(make_config):
    config, events = make_config(), []
    first = execute(config)
    versions = Bank(config.bank).list()
    second = execute(config, on_progress=events.append)
    assert second == first
    assert kinds(events) == ["finished"]
    assert Bank(config.bank).list() == versions


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "prompt_tuning"},
        {"tasks": ["rte", "mrpc", "squad"], "training": {"selection": "per_task"}},
        {"tasks": ["rte", "mrpc"], "training": {"absent_tasks": "lazy"}},
        {"method": "finetune"},
        {"method": "adapter"},
        {"method": "bitfit"},
        {"method": "lora"},
        {"method": "mpt", "tasks": ["rte", "mrpc"], "training": {"absent_tasks": "lazy"}},
        {"method": "mpt", "job": "source", "tasks": ["mnli", "squad"]},
        {"method": "dept", "dept": {"length": 3, "rank": 2, "positions": 8}},
        {"method": "prompt_tuning", "tasks": ["rte", "mrpc"], "prompt": {"shared": True}},
        {"training": {"selection": "last", "patience": 1}},
        {"attention": {"weights": "uniform"}},
        {"attention": {"target": "none"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("step", [1, 5])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(make_config, changes, step):
    config = make_config(**changes)
    whole = execute(elsewhere(config, "whole"))
    if step < whole.report["steps"]:
        with pytest.raises(EndedEarlyError):
            execute(config, on_progress=interrupt_after(step))
    events = []
    resumed = execute(config, on_progress=events.append)
    assert outcome(resumed) == outcome(whole)
    assert ("resumed" in kinds(events)) == (2 <= step < whole.report["steps"])


def test_interrupted_at_every_step_in_turn(make_config):
    config = make_config(training={"checkpoint_steps": 1})
    whole = execute(elsewhere(config, "whole"))
    for step in range(2, 7):
        with pytest.raises(EndedEarlyError):
            execute(config, on_progress=interrupt_after(step))
    assert outcome(execute(config)) == outcome(whole)


def test_without_its_optimizer_a_resumed_run_would_differ(make_config, monkeypatch):
    # Negative control: the comparison above can fail.
    config = make_config()
    whole = execute(elsewhere(config, "whole"))
    monkeypatch.setattr(module, "restore_optimizer", lambda optimizer, tensors: None)
    with pytest.raises(EndedEarlyError):
        execute(config, on_progress=interrupt_after(5))
    assert history(execute(config).directory) != history(whole.directory)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(make_config):
    config = make_config(training={"checkpoint_steps": 1})
    whole = execute(elsewhere(config, "whole"))
    with pytest.raises(EndedEarlyError):
        execute(config, on_progress=interrupt_after(5))
    newest = max(Path(config.runs).glob("*/checkpoints/step-*"))
    (newest / "state.safetensors").write_bytes(b"")
    events = []
    resumed = execute(config, on_progress=events.append)
    assert kinds(events)[:3] == ["plan", "damaged", "resumed"]
    (told,) = (event for event in events if isinstance(event, Event) and event.kind == "resumed")
    assert told.facts["step"] == 3
    assert [step for step, _ in told.facts["means"]] == [2]
    assert outcome(resumed) == outcome(whole)


def test_a_crash_between_publishing_and_report_publishes_once(make_config):
    config = make_config()
    first = execute(config)
    (first.directory / "report.json").unlink()
    versions = Bank(config.bank).list()
    assert outcome(execute(config))[0]["bank"] == first.report["bank"]
    assert Bank(config.bank).list() == versions


def test_a_finished_run_is_published_to_a_bank_that_lacks_it(make_config, source_bank, tmp_path):
    config = make_config()
    first = execute(config)
    other = config.updated(bank=str(shutil.copytree(source_bank, tmp_path / "other")))
    events = []
    second = execute(other, on_progress=events.append)
    assert kinds(events) == ["published", "finished"]
    assert second.report == first.report
    for reference in first.report["bank"].values():
        one, two = Bank(config.bank).load(reference), Bank(other.bank).load(reference)
        assert one.sha256 == two.sha256


def test_damaged_kept_states_are_not_published(make_config, source_bank, tmp_path):
    config = make_config()
    first = execute(config)
    (first.directory / "best.safetensors").write_bytes(b"")
    other = config.updated(bank=str(shutil.copytree(source_bank, tmp_path / "other")))
    with pytest.raises(IntegrityError, match="expected sha256"):
        execute(other)
    assert Bank(other.bank).list("target") == []


def test_best_state_is_tested_and_published(make_config):
    config = make_config(training={"steps": 12, "eval_steps": 1, "prompt_learning_rate": 3.0})
    result = execute(config)
    means = {line["step"]: line["dev/mean"] for line in history(result.directory) if "dev/mean" in line}
    best = min(means, key=lambda step: (-means[step], step))
    assert result.report["best_step"] == best
    kept = load_file(result.directory / "best.safetensors")
    prompt = Bank(config.bank).load(result.report["bank"]["rte"]).tensors["prompt"]
    (name,) = [name for name in kept if name.endswith("prompts_NPH")]
    assert name.startswith(f"{best}/")
    assert torch.equal(kept[name][0], torch.from_numpy(prompt))


def test_patience_stops_early_and_reports_the_steps_taken(make_config):
    config = make_config(training={"steps": 60, "eval_steps": 1, "patience": 2, "prompt_learning_rate": 1e-9})
    events = []
    report = execute(config, on_progress=events.append).report
    assert report["steps"] < report["planned_steps"] == 60
    assert "stopped" in kinds(events)


def test_batches_hold_rows_for_every_task(make_config):
    one = execute(make_config(method="prompt_tuning", training={"epochs": 1, "steps": None}))
    many = execute(
        make_config(method="prompt_tuning", tasks=["rte", "mrpc"], training={"epochs": 1, "steps": None})
    )
    assert one.report["steps"] == 24 / 4
    assert many.report["steps"] == -(-(24 + 12) // 8)


def poison(monkeypatch, *, task, step):
    """Let the gradients of a task's training be NaN after some steps."""
    original = driver.take_step

    def poisoned(trainings):
        for training in trainings:
            if training.step == step and training.method.tasks == (task,):
                training.method.prompts.prompts_NPH.register_hook(lambda gradient: gradient * torch.nan)
        return original(trainings)

    monkeypatch.setattr(driver, "take_step", poisoned)


def numbers(result):
    """All figures of a run's history, in order."""
    return [value for line in history(result.directory) for value in line.values()]


TOGETHER = (
    {},
    {"tasks": ["mrpc"], "seed": 3, "training": {"steps": 4, "prompt_learning_rate": 0.1}},
    {"tasks": ["rte", "mrpc"], "attention": {"weights": "uniform"}},
    {"method": "prompt_tuning", "training": {"patience": 1}},
)


def test_runs_together_are_what_each_is_alone(make_config):
    configs = [make_config(**changes) for changes in TOGETHER]
    alone = [execute(elsewhere(config, f"alone{place}")) for place, config in enumerate(configs)]
    seen = [[] for _ in configs]
    results = execute_together(configs, on_progress=[events.append for events in seen])
    for result, expected, events in zip(results, alone, seen, strict=True):
        assert result.report["steps"] == expected.report["steps"]
        assert result.report["digest"] == expected.report["digest"]
        assert numbers(result) == pytest.approx(numbers(expected), rel=1e-3, abs=1e-4)
        assert kinds(events)[-2:] == ["published", "finished"]
    again = execute_together(configs)
    assert [result.report for result in again] == [result.report for result in results]


def test_runs_together_go_on_where_they_were(make_config):
    configs = [make_config(**changes) for changes in TOGETHER]
    apart = elsewhere(configs[0], "whole")
    whole = execute_together([config.updated(bank=apart.bank, runs=apart.runs) for config in configs])
    ended = execute_together(configs, on_progress=[interrupt_after(3)] * 4)
    assert all(isinstance(error, EndedEarlyError) for error in ended)
    events = []
    results = execute_together(configs, on_progress=[events.append, *[lambda _: None] * 3])
    assert "resumed" in kinds(events)
    assert [outcome(result) for result in results] == [outcome(result) for result in whole]


def test_a_run_that_fails_leaves_those_beside_it_alone(make_config, monkeypatch):
    configs = [make_config(), make_config(tasks=["mrpc"]), make_config(tasks=["nothing"])]
    expected = execute(elsewhere(configs[0], "alone"))
    poison(monkeypatch, task="mrpc", step=3)
    sound, diverged, wrong = execute_together(configs)
    assert numbers(sound) == pytest.approx(numbers(expected), rel=1e-3, abs=1e-4)
    assert isinstance(diverged, NonFiniteError)
    assert isinstance(wrong, ConfigError)
    assert len(Bank(configs[0].bank).list("target")) == 1


def spoil(monkeypatch, *, way, seed):
    """Let one run of several fail in its third step."""
    kept = driver.take_step

    def spoiled(trainings):
        for training in trainings:
            if training.seed == seed and training.step == 2:
                if way == "diverges":
                    training.method.prompts.prompts_NPH.register_hook(lambda gradient: gradient * torch.nan)
                elif way == "loses its rows":
                    training.stream = None
                else:
                    training.method.segment = lambda *_, **__: torch.empty(2**60)
        return kept(trainings)

    monkeypatch.setattr(driver, "take_step", spoiled)


@pytest.mark.parametrize("way", ["diverges", "loses its rows", "wants more memory than there is"])
def test_of_24_runs_together_one_fails_and_23_are_what_they_are_alone_bit_for_bit(
    make_config, monkeypatch, way
):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    changes = {"method": "prompt_tuning", "data": {"batch_rows": 8}, "training": {"steps": 4}}
    configs = [make_config(tasks=[("rte", "mrpc")[seed % 2]], seed=seed, **changes) for seed in range(1, 25)]
    alone = [execute(config.updated(runs=f"{config.runs}/alone")) for config in configs]
    spoil(monkeypatch, way=way, seed=7)
    together = execute_together(configs)
    torch.set_num_threads(threads)
    assert [place for place, result in enumerate(together) if isinstance(result, Exception)] == [6]
    for place, (result, expected) in enumerate(zip(together, alone, strict=True)):
        if place != 6:
            assert result.report["backbone_unchanged"]
            assert (result.directory / "best.safetensors").read_bytes() == (
                expected.directory / "best.safetensors"
            ).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{"backbone": {"dtype": "bfloat16"}}, {"training": {"dropout": 0.25}}, {"training": {"threads": 2}}],
    ids=str,
)
def test_runs_that_cannot_share_a_backbone_are_refused(make_config, changes):
    config = make_config()
    with pytest.raises(ConfigError, match="make them agree or run them apart"):
        execute_together([config, make_config(**changes)])
    assert not Path(config.runs).exists()


def test_fine_tuning_shares_its_backbone_with_no_run(make_config):
    with pytest.raises(ConfigError, match="run it apart"):
        execute_together([make_config(), make_config(method="finetune")])
    with pytest.raises(ConfigError, match="got no run"):
        execute_together([])


def test_places_of_runs_that_end_are_taken_by_others(make_config):
    configs = [make_config(seed=seed, training={"steps": seed}) for seed in range(1, 7)]
    expected = [execute(elsewhere(config, f"alone{place}")) for place, config in enumerate(configs)]
    waiting, under_way, outcomes, most = list(configs), set(), {}, []

    def take(places):
        tickets = []
        for config in [waiting.pop(0) for _ in range(min(places, len(waiting)))]:
            under_way.add(config.seed)

            def on_end(outcome, seed=config.seed):
                under_way.discard(seed)
                outcomes[seed] = outcome

            tickets.append(Ticket(config=config, on_progress=lambda _: None, on_end=on_end))
        most.append(len(under_way))
        return tickets

    execute_stream(take, most=2)
    assert max(most) == 2
    for config, alone in zip(configs, expected, strict=True):
        assert numbers(outcomes[config.seed]) == pytest.approx(numbers(alone), rel=1e-3, abs=1e-4)
    waiting += configs  # finished before: they ask for no step, and the stream goes on to the next
    execute_stream(take, most=2)
    assert not waiting


@pytest.fixture
def stop_at():
    """Ask to stop when a run says a thing for the first time."""

    def stop_at(wanted):
        def on_progress(progress):
            said = progress.kind if isinstance(progress, Event) else progress.step
            if said == wanted:
                ask_to_stop()

        return on_progress

    yield stop_at
    withdraw_stop()


@pytest.mark.parametrize(
    ("said", "step"),
    [(3, 3), (2, 2), ("evaluated", 2), (6, 6)],
    ids=["between two steps", "before an evaluation", "after it", "before the last evaluation"],
)
def test_a_run_that_is_asked_to_stop_keeps_its_state(make_config, stop_at, said, step):
    config = make_config(training={"checkpoint_steps": 100})
    whole = execute(elsewhere(config, "whole"))
    with pytest.raises(
        StoppedError, match=f"run the same command again to go on; the state after step {step} is"
    ):
        execute(config, on_progress=stop_at(said))
    withdraw_stop()
    events = []
    resumed = execute(config, on_progress=events.append)
    assert events[1].message == f"resumed after step {step}"
    assert outcome(resumed) == outcome(whole)


def test_a_run_that_is_asked_to_stop_before_its_first_step_has_no_state(make_config):
    config = make_config()
    ask_to_stop()
    with pytest.raises(StoppedError):
        execute(config)
    withdraw_stop()
    events = []
    execute(config, on_progress=events.append)
    assert "resumed" not in kinds(events)


def test_non_finite_training_keeps_the_last_good_state(make_config, monkeypatch):
    config = make_config(training={"checkpoint_steps": 100})
    poison(monkeypatch, task="rte", step=3)
    with pytest.raises(NonFiniteError, match="the state after step 3 is kept in"):
        execute(config)
    (directory,) = Path(config.runs).iterdir()
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step-00000003"]
    assert (directory / "best.safetensors").exists()
    assert Bank(config.bank).list("target") == []
    monkeypatch.undo()
    assert execute(config).report["steps"] == 6


def test_a_backbone_that_moved_is_an_error_and_nothing_is_published(make_config):
    config = make_config()

    def touch(progress):
        if isinstance(progress, Event) and progress.kind == "plan":
            with torch.no_grad():
                gather(config).backbone.model.shared.weight[0] += 1

    with pytest.raises(BackboneError, match=r"before the run and .* after it; nothing was published"):
        execute(config, on_progress=touch)
    assert Bank(config.bank).list("target") == []


def test_two_processes_do_not_share_a_run(make_config, monkeypatch):
    config = make_config()
    monkeypatch.setattr("attempt_ray.training.directory.LEASE_SECONDS", 0.1)

    def execute_again(progress):
        if isinstance(progress, Event):
            execute(config)

    with pytest.raises(ConfigError, match="is being executed by process"):
        execute(config, on_progress=execute_again)


def test_a_prior_then_a_target_without_training_data(make_config):
    prior = execute(make_config(job="prior", tasks=["mnli", "squad"]))
    assert list(prior.report["bank"]) == ["attention"]
    assert set(prior.report["scores"]["mnli"]) == {"dev"}
    reference = prior.report["bank"]["attention"]
    config = make_config(tasks=["cb"], attention={"prior": reference})
    result = mixture_without_training(config)
    report = result.report
    assert (report["steps"], report["train_rows"], report["label"]) == (0, {"cb": 0}, "attempt_prior")
    assert set(report["scores"]["cb"]) == {"test"}
    bank = Bank(config.bank)
    prompt = bank.load(report["bank"]["cb"])
    assert (prompt.tensors["prompt"] == bank.load("source/mnli").tensors["prompt"]).all()
    attention = bank.load(prompt.manifest.mixture.attention)
    assert attention.sha256 == bank.load(reference).sha256
    assert reference in prompt.manifest.parents
    assert mixture_without_training(config) == result


def test_a_prior_is_where_training_starts(make_config):
    prior = execute(make_config(job="prior", tasks=["mnli", "squad"]))
    config = make_config(attention={"prior": prior.report["bank"]["attention"]})
    started = gather(config).build().attention_tensors()
    stored = Bank(config.bank).load(prior.report["bank"]["attention"]).tensors
    assert all((started[name].numpy() == stored[name]).all() for name in stored)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"method": "prompt_tuning"}, "set job=target and method=attempt"), ({}, "name one in attention.prior")],
)
def test_a_mixture_without_training_needs_a_prior(make_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        mixture_without_training(make_config(**changes))


@pytest.mark.parametrize("method", ["finetune", "adapter", "bitfit", "lora"])
def test_a_method_that_changes_the_backbone_leaves_no_trace_on_the_next_runs(make_config, method):
    before = execute(elsewhere(make_config(method="prompt_tuning"), "before"))
    backbone = gather(make_config()).backbone
    whole, names = backbone.fingerprint(), list(backbone.model.state_dict())
    report = execute(make_config(method=method, adapter={"learning_rate": 0.1})).report
    assert report["backbone_unchanged"] is None
    assert report["bank"] == {}
    after = gather(make_config()).backbone
    assert (after.fingerprint(), list(after.model.state_dict())) == (whole, names)
    assert outcome(execute(elsewhere(make_config(method="prompt_tuning"), "after"))) == outcome(before)


def test_finetuning_moves_its_own_copy_alone_and_is_not_published(make_config):
    config = make_config(method="finetune", evaluation={"decode": "greedy"})
    report = execute(config).report
    assert report["backbone_unchanged"] is None
    assert report["bank"] == {}
    assert report["attention"] is None
    frozen = gather(make_config(backbone={"dtype": "float32"})).backbone
    assert frozen.fingerprint() == report["backbone"]["weights_sha256"]


def test_what_ended_a_run_is_left_in_its_directory(make_config):
    config = make_config()
    with pytest.raises(EndedEarlyError):
        execute(config, on_progress=interrupt_after(3))
    (directory,) = Path(config.runs).iterdir()
    ended = json.loads((directory / "state.json").read_text())["ended"]
    assert ended == {"how": "failed", "error": "EndedEarlyError: EndedEarlyError"}
    execute(config)
    assert "ended" not in json.loads((directory / "state.json").read_text())
