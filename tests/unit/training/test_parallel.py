"""Two processes of torch's own that share a training."""

from __future__ import annotations

import copy
import json
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from attempt_ray.config import parse
from attempt_ray.data.batching import BatchStream
from attempt_ray.errors import StoppedError
from attempt_ray.training.evaluation import evaluate
from attempt_ray.training.ingredients import gather
from attempt_ray.training.loop import Training, train
from attempt_ray.training.optimizer import LinearSchedule, build_optimizer
from attempt_ray.training.parallel import ALONE, Team
from attempt_ray.training.run import execute
from attempt_ray.training.stopping import ask_to_stop

# Processes are forked from one that has imported what they need, which takes seconds.
multiprocessing.set_forkserver_preload(["attempt_ray.training.run", "attempt_ray.model.backbone", "datasets"])


def start(function, args, count):
    mp.start_processes(function, args=args, nprocs=count, start_method="forkserver")


def learn(page, rows, team):
    """Train six steps; return losses, what was learned and the dev answers."""
    config = parse([page])
    ingredients = gather(config)
    method = ingredients.build()
    training = Training(
        method=method,
        stream=BatchStream(ingredients.train, seed=1, rows=rows),
        optimizer=build_optimizer(method, config.training),
        schedule=LinearSchedule(6, 2),
        seed=7,
        max_grad_norm=0.5,
        team=team,
    )
    steps = [(step.loss, step.grad_norm, step.tokens) for step in train(training)]
    found = evaluate(method, ingredients.dev[0], task_index=0, config=config, team=team)
    return steps, method.trainable_state(), (found.predictions, found.scores, found.attention)


def member(rank, size, page, rows, directory):
    torch.set_num_threads(1)
    store = f"file://{directory}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    torch.save(learn(page, rows, Team.of_process_group()), f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("size", "rows"), [(2, 7), (3, 2)], ids=["uneven parts", "more processes than rows"])
def test_a_team_learns_what_one_process_learns(make_config, tmp_path: Path, size, rows):
    page = make_config(tasks=["rte", "mrpc"], training={"dropout": 0.0}).model_dump(mode="json")
    page["evaluation"]["batch_rows"] = 5
    expected = learn(copy.deepcopy(page), rows, ALONE)
    start(member, (size, page, rows, str(tmp_path)), size)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(size)]
    for steps, state, answers in found:
        assert steps == found[0][0]
        assert all(torch.equal(tensor, found[0][1][name]) for name, tensor in state.items())
        assert answers == found[0][2]
    steps, state, answers = found[0]
    for (loss, norm, tokens), (loss_alone, norm_alone, tokens_alone) in zip(steps, expected[0], strict=True):
        assert loss == pytest.approx(loss_alone, rel=1e-4)
        assert norm == pytest.approx(norm_alone, rel=1e-3)
        assert tokens == tokens_alone
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[1][name], rtol=1e-3, atol=1e-4)
    assert answers[:2] == expected[2][:2]


def go_on(rank, size, page, stop_after, directory):
    """Execute a run in one of `size` processes; the leading one asks to stop after a step."""
    torch.set_num_threads(1)
    team = ALONE
    if size > 1:
        store = f"file://{directory}/store-{stop_after}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
        team = Team.of_process_group()

    def on_progress(progress):
        if team.leads and getattr(progress, "step", None) == stop_after:
            ask_to_stop()

    try:
        execute(parse([page]), on_progress=on_progress, team=team)
    except StoppedError:
        Path(directory, f"stopped-{stop_after}-{rank}").touch()
    if size > 1:
        dist.destroy_process_group()


def history(runs: Path):
    (directory,) = runs.iterdir()
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_run_moves_from_two_processes_to_one_and_back(make_config, tmp_path: Path):
    training = {"steps": 9, "eval_steps": 3, "checkpoint_steps": 100, "dropout": 0.0}
    settings = {"tasks": ["rte", "mrpc"], "training": training, "backbone": {"dtype": "float32"}}
    config = make_config(**settings)
    page = config.model_dump(mode="json")
    for size, stop_after in ((2, 2), (1, 5), (2, 99)):
        start(go_on, (size, page, stop_after, str(tmp_path)), size)
    assert {path.name for path in tmp_path.glob("stopped-*")} == {"stopped-2-0", "stopped-2-1", "stopped-5-0"}
    alone = make_config(**settings, runs=str(tmp_path / "alone"))
    execute(alone)
    for found, expected in zip(history(Path(config.runs)), history(tmp_path / "alone"), strict=True):
        assert found.keys() == expected.keys()
        for name in found.keys() - {"seconds"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-3)


def test_a_process_alone_exchanges_nothing():
    assert ALONE.leads and ALONE.gathered("x") == ["x"] and ALONE.from_leader("x") == "x"
    assert ALONE.add_gradients([], 1.5) == 1.5
