from __future__ import annotations

import pytest
import torch

from attempt_ray.config import Config, TrainingConfig
from attempt_ray.tasks import get_task
from attempt_ray.training.ingredients import gather
from attempt_ray.training.optimizer import (
    LinearSchedule,
    build_optimizer,
    paper_epochs,
    plan_steps,
    step_without,
)


def test_schedule_rises_to_the_peak_and_falls_to_zero():
    schedule = LinearSchedule(steps=10, warmup_steps=4)
    factors = [schedule.factor(step) for step in range(11)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[9] == pytest.approx(1 / 6)
    assert factors[10] == 0.0


def test_warmup_is_clamped_to_a_share_of_the_run():
    plan = plan_steps(TrainingConfig(steps=160), steps_per_epoch=8, default_epochs=20)
    assert (plan.steps, plan.warmup_steps, plan.eval_steps) == (160, 16, 16)


def test_whole_fraction_keeps_the_papers_warmup_that_small_tasks_never_leave():
    plan = plan_steps(TrainingConfig(steps=160, warmup_fraction=1), steps_per_epoch=8, default_epochs=20)
    assert plan.warmup_steps == 500
    highest = max(LinearSchedule(plan.steps, plan.warmup_steps).factor(step) for step in range(160))
    assert 0.3 * highest == pytest.approx(0.096)  # CB: 160 steps of 500 that warm up


def test_epochs_become_steps_and_are_told():
    plan = plan_steps(TrainingConfig(epochs=2.5), steps_per_epoch=7, default_epochs=20)
    assert plan.steps == 18
    assert "18 steps (2.57 epochs of 7)" in plan.describe()


def test_steps_win_over_epochs():
    plan = plan_steps(TrainingConfig(steps=5, epochs=100), steps_per_epoch=7, default_epochs=20)
    assert plan.steps == 5


@pytest.mark.parametrize(
    ("job", "task", "rows", "epochs"),
    [
        ("source", "mnli", 392_702, 5),
        ("target", "nq", 103_071, 5),
        ("target", "cb", 250, 20),
        ("target", "yelp", 100_000, 10),
    ],
)
def test_epochs_default_to_the_papers(job, task, rows, epochs):
    assert paper_epochs(Config(job=job), tasks=[get_task(task)], train_rows=[rows]) == epochs


def test_two_groups_hold_their_tensors_and_rates(make_config):
    # The authors' filter on names matches nothing, so there every tensor trains at the prompts' rate.
    config = make_config(training={"prompt_learning_rate": 0.3, "attention_learning_rate": 0.1})
    method = gather(config).build()
    optimizer = build_optimizer(method, config.training)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {id(p) for p in groups["prompts"]["params"]} == {id(method.prompts.prompts_NPH)}
    assert {id(p) for p in groups["attention"]["params"]} == {id(p) for p in method.attention.parameters()}
    assert LinearSchedule(10, 2).apply(optimizer, 0) == {"prompts": 0.15, "attention": 0.05}
    assert (groups["prompts"]["betas"], groups["prompts"]["eps"]) == ((0.9, 0.999), 1e-8)


def test_lazy_step_leaves_absent_rows_and_their_moments_alone():
    prompts = torch.nn.Parameter(torch.ones(2, 1, 1))
    optimizer = torch.optim.AdamW([prompts], lr=0.1)
    prompts.grad = torch.ones(2, 1, 1)
    optimizer.step()
    before, moment = prompts.detach().clone(), optimizer.state[prompts]["exp_avg"].clone()
    prompts.grad = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    step_without(optimizer, [prompts], absent_N=torch.tensor([False, True]))
    assert prompts[0] != before[0]
    assert prompts[1] == before[1]
    assert optimizer.state[prompts]["exp_avg"][1] == moment[1]
    prompts.grad = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    optimizer.step()
    assert prompts[1] != before[1]  # dense Adam goes on moving it
