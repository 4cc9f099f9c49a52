"""Two processes of torch's own that share a training."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from attempt_ray.config import parse
from attempt_ray.data.batching import BatchStream
from attempt_ray.training.evaluation import evaluate
from attempt_ray.training.ingredients import gather
from attempt_ray.training.loop import Training, train
from attempt_ray.training.optimizer import LinearSchedule, build_optimizer
from attempt_ray.training.parallel import ALONE, Team


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
    mp.spawn(member, args=(size, page, rows, str(tmp_path)), nprocs=size)
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


def test_a_process_alone_exchanges_nothing():
    assert ALONE.leads and ALONE.gathered("x") == ["x"] and ALONE.from_leader("x") == "x"
    assert ALONE.add_gradients([], 1.5) == 1.5
