"""What a method answers on a split, how it scores, and what G attended to on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from attempt_ray.config import Config
from attempt_ray.data.batching import evaluation_batches
from attempt_ray.data.encoding import EncodedSplit, template_options
from attempt_ray.model.methods import Method
from attempt_ray.tasks import headline, score
from attempt_ray.training.parallel import ALONE, Team
from attempt_ray.training.stopping import heed_stop


@dataclass(frozen=True, kw_only=True)
class AttentionSummary:
    """Mixing weights of one task over the instances of a split (paper, figure 5, which leaves the statistic open)."""

    candidates: tuple[str, ...]
    """The sources in order, then `target` where it takes part."""
    mean: tuple[float, ...]
    """Mean weight of each candidate; sums to 1."""
    std: tuple[float, ...]
    """Standard deviation of each weight over the instances."""
    entropy_nats: float
    """Mean over the instances of the entropy of their weights."""
    uniform_entropy_nats: float
    """Entropy of equal weights: the most there can be."""
    n: int
    """Instances."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One task's answers on one split, scored."""

    scores: Mapping[str, float]
    """Every metric of the task in points, headline first."""
    headline: float
    """The first of them."""
    n: int
    """Examples scored."""
    predictions: tuple[str, ...]
    """Answers in the order of the split's rows."""
    constant: bool
    """Whether all answers are one and the same, as those of a collapsed prompt."""
    attention: AttentionSummary | None
    """What G attended to; None where nothing is mixed."""
    weights: tuple[tuple[float, ...], ...] | None = None
    """Mixing weights of every row, in the order of the split's rows, candidates in order; None where nothing is mixed."""

    def record(self) -> dict[str, Any]:
        """Return count and metrics as the run report holds them."""
        return {"n": self.n, "metrics": dict(self.scores)}


def evaluate(
    method: Method, split: EncodedSplit, *, task_index: int, config: Config, team: Team = ALONE
) -> Evaluation:
    """Return a method's score on every row of a split, dropout off; the method's mode is as before after it.

    Closed tasks are answered greedily within the length of their longest label, or by their most probable label under
    `evaluation.decode: labels`; open tasks always greedily. No random number is drawn.

    Args:
        method: What answers.
        split: Dev or test rows of one task.
        task_index: Index of that task in the method's tasks.
        config: Decoding, batch size and the template choices that the split was made with.
        team: Processes that share the work, batch by batch; all return the same.

    Raises:
        StoppedError: Runs of this process are asked to stop.
    """
    task, backbone = split.task, method.backbone
    options = template_options(config.data)
    labels = task.labels.get(options.label_words, ())
    candidates_CL = backbone.encode_candidates(labels) if labels else None
    if candidates_CL is not None:
        max_new_tokens = candidates_CL.shape[1]
    else:
        max_new_tokens = min(config.evaluation.max_new_tokens, task.max_target_tokens)
    answer_by_row: dict[int, str] = {}
    weights_by_row: dict[int, Tensor] = {}
    with _evaluating(method):
        batches = evaluation_batches(
            split,
            rows=config.evaluation.batch_rows,
            tokens=config.evaluation.batch_tokens,
            task_index=task_index,
            pad_id=backbone.pad_id,
        )
        for batch in islice(batches, team.rank, None, team.size):
            if team.size == 1:  # all of a team stop after one and the same step
                heed_stop()
            on_device = batch.to(backbone.device)
            if config.evaluation.decode == "labels" and candidates_CL is not None:
                logprob_BC, weights_BK = method.score_labels(on_device, candidates_CL)
                answers = [labels[index] for index in logprob_BC.argmax(dim=-1).tolist()]
            else:
                ids_BL, weights_BK = method.generate(
                    on_device, max_new_tokens=max_new_tokens, candidates_CL=candidates_CL
                )
                answers = backbone.decode(ids_BL)
            rows = batch.row_B.tolist()
            answer_by_row |= zip(rows, answers, strict=True)
            if weights_BK is not None:
                weights_by_row |= zip(rows, weights_BK.double().cpu(), strict=True)
    for answers_of_one, weights_of_one in team.gathered((answer_by_row, weights_by_row)):
        answer_by_row |= answers_of_one
        weights_by_row |= weights_of_one
    predictions = [answer_by_row[row] for row in range(len(split))]
    weights_NK = [weights_by_row[row] for row in range(len(split))] if method.candidates else []
    scores = score(task, predictions, split.examples(), options)
    return Evaluation(
        scores=scores,
        headline=headline(task, scores),
        n=len(split),
        predictions=tuple(predictions),
        constant=len(set(predictions)) == 1,
        attention=_summary(method.candidates, torch.stack(weights_NK)) if method.candidates else None,
        weights=tuple(tuple(weights_K.tolist()) for weights_K in weights_NK) if method.candidates else None,
    )


def attention_record(summary: AttentionSummary) -> dict[str, Any]:
    """Return a summary as the run report holds it."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(summary).items()
    }


def _summary(candidates: tuple[str, ...], weights_BK: Tensor) -> AttentionSummary:
    entropy_B = torch.special.entr(weights_BK).sum(dim=-1)
    return AttentionSummary(
        candidates=candidates,
        mean=tuple(weights_BK.mean(dim=0).tolist()),
        std=tuple(weights_BK.std(dim=0, correction=0).tolist()),
        entropy_nats=entropy_B.mean().item(),
        uniform_entropy_nats=math.log(len(candidates)),
        n=len(weights_BK),
    )


@contextmanager
def _evaluating(method: Method) -> Iterator[None]:
    was_training = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(was_training)
