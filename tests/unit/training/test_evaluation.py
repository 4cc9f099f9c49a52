from __future__ import annotations

import pytest
import torch

from attempt_ray.data.batching import evaluation_batches
from attempt_ray.data.encoding import template_options
from attempt_ray.tasks import score
from attempt_ray.training.evaluation import evaluate
from attempt_ray.training.ingredients import gather


@pytest.fixture
def run(make_config):
    """Return a function that gives config, ingredients and method."""

    def build(**changes):
        config = make_config(**changes)
        ingredients = gather(config)
        return config, ingredients, ingredients.build()

    return build


@pytest.mark.parametrize("decode", ["greedy", "labels"])
def test_predictions_stand_in_the_order_of_the_rows(run, decode):
    config, ingredients, method = run(evaluation={"decode": decode, "batch_rows": 2})
    split = ingredients.dev[0]
    together = evaluate(method, split, task_index=0, config=config)
    method.eval()
    candidates_CL = method.backbone.encode_candidates(("0", "1"))
    alone = [""] * len(split)
    for batch in evaluation_batches(split, rows=1, task_index=0):
        if decode == "labels":
            alone[int(batch.row_B)] = "01"[method.score_labels(batch, candidates_CL).logprob_BC.argmax()]
        else:
            alone[int(batch.row_B)] = method.backbone.decode(method.generate(batch, max_new_tokens=2).ids_BL)[
                0
            ]
    assert list(together.predictions) == alone
    assert together.scores == score(split.task, alone, split.examples(), template_options(config.data))
    assert together.headline == together.scores["accuracy"]
    assert together.n == len(split)
    assert together.constant == (len(set(alone)) == 1)


def test_closed_answers_are_labels_under_decode_labels(run):
    config, ingredients, method = run()
    evaluation = evaluate(method, ingredients.dev[0], task_index=0, config=config)
    assert set(evaluation.predictions) <= {"0", "1"}


def test_attention_sums_to_one_and_bounds_its_entropy(run):
    config, ingredients, method = run()
    summary = evaluate(method, ingredients.dev[0], task_index=0, config=config).attention
    assert summary is not None
    assert summary.candidates == ("mnli", "squad", "target")
    assert sum(summary.mean) == pytest.approx(1)
    assert summary.n == len(ingredients.dev[0])
    assert 0 < summary.entropy_nats <= summary.uniform_entropy_nats


def test_no_mixture_no_attention(run):
    config, ingredients, method = run(method="prompt_tuning")
    assert evaluate(method, ingredients.dev[0], task_index=0, config=config).attention is None


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_generators_are_as_before(run, training):
    config, ingredients, method = run()
    method.train(training)
    state = torch.get_rng_state()
    first = evaluate(method, ingredients.dev[0], task_index=0, config=config)
    assert method.training is training
    assert method.backbone.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert evaluate(method, ingredients.dev[0], task_index=0, config=config) == first


def test_each_task_is_answered_under_its_own_prompt(run):
    config, ingredients, method = run(
        method="prompt_tuning", tasks=["rte", "mrpc"], evaluation={"decode": "greedy"}
    )
    with torch.no_grad():
        method.prompts.prompts_NPH[1] *= -3
    split = ingredients.dev[0]
    batch = next(iter(evaluation_batches(split, rows=6, task_index=1)))
    method.eval()
    answers = method.backbone.decode(method.generate(batch, max_new_tokens=2).ids_BL)
    predictions = evaluate(method, split, task_index=1, config=config).predictions
    assert [predictions[row] for row in batch.row_B.tolist()] == answers
