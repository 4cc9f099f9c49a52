from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from attempt_ray.data.batching import Batch, BatchStream
from attempt_ray.errors import ConfigError, NonFiniteError
from attempt_ray.training import loop as module
from attempt_ray.training.ingredients import forget_backbone, gather
from attempt_ray.training.loop import Progress, Training, take_step, train
from attempt_ray.training.optimizer import LinearSchedule, build_optimizer


@pytest.fixture
def training(make_config):
    """Return a function that builds a training of six steps."""

    def build_training(*, stream=None, rows=4, start_step=0, state=None, **changes):
        config = make_config(**changes)
        ingredients = gather(config)
        method = ingredients.build()
        if state is not None:
            method.load_trainable_state(state)
        stream = stream or BatchStream(ingredients.train, seed=1, rows=rows)
        return Training(
            method=method,
            stream=stream,
            optimizer=build_optimizer(method, config.training),
            schedule=LinearSchedule(6, 2),
            seed=7,
            max_grad_norm=config.training.max_grad_norm,
            absent_tasks=config.training.absent_tasks,
            step=start_step,
        )

    return build_training


@pytest.fixture
def parts(training):
    """Return a function that builds a method, its stream and a loop over both."""

    def build(**given):
        built = training(**given)
        return built.method, built.stream, train(built)

    return build


class Edited:
    """A stream whose batches are changed on the way."""

    def __init__(self, stream, edit):
        self.stream, self.edit = stream, edit

    def batch(self, step: int) -> Batch:
        return self.edit(step, self.stream.batch(step))


def test_one_progress_per_step(parts):
    _, _, steps = parts()
    seen = list(steps)
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[0].learning_rates == {"prompts": 0.15, "attention": 0.15}
    assert all(progress.tokens > 0 and progress.grad_norm > 0 for progress in seen)


def test_loop_draws_from_no_global_generator(parts):
    torch.manual_seed(0)
    expected = torch.rand(3)
    method, _, steps = parts()
    torch.manual_seed(0)
    list(islice(steps, 2))
    assert torch.equal(torch.rand(3), expected)
    other, _, steps = parts()
    torch.manual_seed(99)
    list(islice(steps, 2))
    assert all(map(torch.equal, method.trainable_state().values(), other.trainable_state().values()))


def test_dropout_differs_from_step_to_step_and_with_the_seed(parts):
    method, stream, _ = parts()
    batch = stream.batch(0)
    losses = [
        next(
            train(
                Training(
                    method=method,
                    stream=Edited(stream, lambda step, _: batch),
                    optimizer=torch.optim.AdamW(
                        [{"params": [method.prompts.prompts_NPH], "name": "p", "peak_lr": 0.0}]
                    ),
                    schedule=LinearSchedule(9, 0),
                    seed=seed,
                    max_grad_norm=1.0,
                    step=step,
                )
            )
        ).loss
        for seed, step in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_gradients_reach_prompts_and_attention_but_not_the_backbone(parts):
    method, _, steps = parts()
    before = method.backbone.fingerprint()
    start = method.trainable_state()
    next(steps)
    assert all(not torch.equal(tensor, start[name]) for name, tensor in method.trainable_state().items())
    assert method.backbone.fingerprint() == before


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_non_finite_stops_before_the_update(parts, what):
    method, _, steps = parts()
    next(steps)
    before = method.trainable_state()
    with torch.no_grad():
        if what == "loss":
            method.backbone.model.shared.weight[5:] = torch.inf
        else:
            method.prompts.prompts_NPH.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteError, match=r"step 2 of 6 met loss .* lower training.prompt_learning_rate"):
        next(steps)
    assert all(map(torch.equal, method.trainable_state().values(), before.values()))


def test_gradients_are_clipped_over_all_trainables(parts):
    norms = []

    def note(optimizer, _args, _kwargs):
        gradients = [p.grad.norm() for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.stack(gradients).norm().item())

    _, _, steps = parts(training={"max_grad_norm": 1e-3})
    hook = register_optimizer_step_pre_hook(note)
    progress = next(steps)
    hook.remove()
    assert progress.grad_norm > 1e-3  # told before clipping
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


def test_evaluation_mode_between_steps_does_not_leak_into_the_next(parts):
    method, _, steps = parts()
    next(steps)
    method.eval()
    state = method.trainable_state()
    second = next(steps)
    other, _, again = parts()
    next(again)
    assert all(map(torch.equal, other.trainable_state().values(), state.values()))
    assert next(again).loss == second.loss


@pytest.mark.parametrize("absent_tasks", ["dense", "lazy"])
def test_absent_task_is_moved_by_dense_adam_alone(parts, absent_tasks):
    def only_first(step, batch):
        rows = (batch.task_B == 0) | torch.tensor(step == 0)
        return replace(
            batch,
            **{
                name: getattr(batch, name)[rows]
                for name in ("input_ids_BT", "mask_BT", "labels_BL", "task_B", "row_B")
            },
        )

    changes = {"tasks": ["rte", "mrpc"], "training": {"absent_tasks": absent_tasks}}
    _, stream, _ = parts(**changes)
    method, _, steps = parts(stream=Edited(stream, only_first), **changes)
    next(steps)
    before = method.prompt_tensors()
    next(steps)
    after = method.prompt_tensors()
    assert not torch.equal(before["rte"], after["rte"])
    assert torch.equal(before["mrpc"], after["mrpc"]) == (absent_tasks == "lazy")


UNLIKE = (
    {"tasks": ["rte"], "training": {"prompt_learning_rate": 0.3}},
    {"tasks": ["mrpc"], "method": "prompt_tuning", "seed": 5, "training": {"max_grad_norm": 1e-3}},
    {"tasks": ["rte", "mrpc"], "attention": {"weights": "uniform"}},
)


@pytest.mark.parametrize("most_tokens", [1, 100, 10_000])
def test_trainings_together_are_what_each_is_alone(training, most_tokens):
    alone = []
    for changes in UNLIKE:
        built = training(**changes)
        alone.append((list(train(built)), built.method.trainable_state()))
    together = [training(**changes) for changes in UNLIKE]
    steps = [take_step(together, most_tokens=most_tokens) for _ in range(6)]
    for place, (progresses, state) in enumerate(alone):
        seen = [step[place] for step in steps]
        assert [one.tokens for one in seen] == [one.tokens for one in progresses]
        assert [one.learning_rates for one in seen] == [one.learning_rates for one in progresses]
        assert [one.loss for one in seen] == pytest.approx([one.loss for one in progresses], rel=1e-4)
        for name, tensor in together[place].method.trainable_state().items():
            torch.testing.assert_close(tensor, state[name], rtol=1e-3, atol=1e-4)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 4, 12])
def test_on_a_processor_the_bits_do_not_tell_who_shared_the_pass(training, one_thread, rows):
    alone, together = ([training(rows=rows, **changes) for changes in UNLIKE] for _ in range(2))
    for one in alone:
        list(train(one))
    for _ in range(6):
        take_step(together)
    for one, other in zip(alone, together, strict=True):
        expected = one.method.trainable_state()
        assert all(
            torch.equal(tensor, expected[name]) for name, tensor in other.method.trainable_state().items()
        )


@pytest.mark.parametrize(
    ("stand_alone", "rows", "passes"), [(True, 12, 1), (False, 12, 3), (True, 1, 3)], ids=str
)
def test_on_a_processor_passes_are_shared_where_the_bits_stay(
    training, monkeypatch, stand_alone, rows, passes
):
    built = [training(rows=rows, **changes) for changes in UNLIKE]
    monkeypatch.setattr(type(built[0].method.backbone), "rows_stand_alone", stand_alone)
    seen = []
    original = module.losses
    monkeypatch.setattr(module, "losses", lambda *given: seen.append(1) or original(*given))
    take_step(built)
    assert len(seen) == passes


def test_a_pass_that_fails_is_taken_apart(training, monkeypatch):
    expected = list(train(training()))
    sound, broken = training(), training(tasks=["mrpc"])
    original = broken.method.segment

    def short_of_memory(*given, **more):
        segment = original(*given, **more)
        raise RuntimeError(f"out of memory for {len(segment.mask_BT)} rows")

    monkeypatch.setattr(broken.method, "segment", short_of_memory)
    for step in range(3):
        done, failed = take_step([sound, broken], most_tokens=10_000)
        assert done.loss == pytest.approx(expected[step].loss, rel=1e-4)
        assert isinstance(failed, RuntimeError) and "out of memory" in str(failed)
    assert (sound.step, broken.step) == (3, 0)


def test_rows_that_cannot_be_read_fail_their_own_training(training):
    def unreadable(step, batch):
        raise OSError("rows are gone")

    sound, broken = training(), training(tasks=["mrpc"])
    broken.stream = Edited(broken.stream, unreadable)
    done, failed = take_step([sound, broken])
    assert isinstance(done, Progress) and isinstance(failed, OSError)


def test_a_training_that_fails_leaves_the_others_alone(training):
    sound, broken = training(), training(tasks=["mrpc"])
    expected = list(train(training()))
    with torch.no_grad():
        broken.method.prompts.prompts_NPH.fill_(torch.nan)
    for step in range(3):
        done, failed = take_step([sound, broken])
        assert isinstance(done, Progress)
        assert isinstance(failed, NonFiniteError)
        assert done.loss == pytest.approx(expected[step].loss, rel=1e-4)
    assert (sound.step, broken.step) == (3, 0)


def test_trainings_on_several_backbones_are_refused(training):
    one = training()
    forget_backbone()
    with pytest.raises(ConfigError, match="several backbones"):
        take_step([one, training()])
