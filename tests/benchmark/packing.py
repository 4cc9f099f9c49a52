"""What it costs to train several prompts on one frozen T5 at once, in one process.

Run by `make bench`. Weights are random, text and vocabulary are real. Both halves of a pair take turns, and the figures
are medians of their ratios.

- `six_sources`: the time of a step of six prompts with `rows` rows each, over that of one prompt with six times as many.
- `trials`: rows per second of 32 trials of one task with `trial-rows` rows each, taken together, over those of a single
  trial with as many rows.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
from common import (
    DTYPES,
    fresh_model,
    identity_of,
    machine,
    new_training,
    option_parser,
    parsed,
    stream,
    write,
)
from transformers import T5TokenizerFast

from attempt_ray.data.batching import Batch
from attempt_ray.model.backbone import Backbone
from attempt_ray.model.precision import choose_precision
from attempt_ray.training.loop import Training, take_step

SOURCES = 6
TRIALS = 32


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--trial-rows", type=int, default=4, help="rows of a trial's batch")
    options = parsed(parser)
    tokenizer = T5TokenizerFast.from_pretrained(options.data / "t5_tokenizer")
    picked = choose_precision("auto", "cpu").dtype
    model = fresh_model(options.backbone).to(DTYPES[picked])
    backbone = Backbone(model, tokenizer, identity_of(options.backbone, model))
    large = stream(options, tokenizer, rows=options.rows * SOURCES)
    one, six = new_training(backbone), [new_training(backbone) for _ in range(SOURCES)]

    def steps_of(trainings: list[Training], rows: int) -> Callable[[Batch], None]:
        def steps(batch: Batch) -> None:
            for number, training in enumerate(trainings):
                training.stream.given = rows_from(batch, number * rows, rows)
            take_step(trainings)

        return steps

    many = stream(options, tokenizer, rows=options.trial_rows * TRIALS)
    alone, trials = new_training(backbone), [new_training(backbone) for _ in range(TRIALS)]

    def one_by_one(batch: Batch) -> None:
        for number in range(TRIALS):
            alone.stream.given = rows_from(batch, number * options.trial_rows, options.trial_rows)
            take_step([alone])

    result = {
        "what": "training steps of several prompts of 100 positions at once, real GLUE text, random weights",
        "backbone": options.backbone,
        "precision": picked,
        "threads": options.threads,
        "n": options.rounds,
        "machine": machine(),
        "six_sources": {
            "rows_of_each": options.rows,
            "time_over_one_prompt_of_all_rows": ratio(
                steps_of(six, options.rows),
                steps_of([one], options.rows * SOURCES),
                [large.batch(number) for number in range(options.rounds + 1)],
            ),
        },
        "trials": {
            "trials": TRIALS,
            "rows_of_each": options.trial_rows,
            "rate_over_one_by_one": ratio(
                one_by_one,
                steps_of(trials, options.trial_rows),
                [many.batch(number) for number in range(options.rounds + 1)],
            ),
        },
    }
    write(result, options.out)
    print(json.dumps(result, indent=1))


def ratio(first: Callable[[Batch], None], second: Callable[[Batch], None], batches: list[Batch]) -> float:
    """Return the median over the batches, but for the one that warms up, of the first's time over the second's."""
    found = []
    for batch in batches:
        spent = []
        for steps in (first, second):
            started = time.perf_counter()
            steps(batch)
            spent.append(time.perf_counter() - started)
        found.append(spent[0] / spent[1])
    return round(statistics.median(found[1:]), 3)


def rows_from(batch: Batch, start: int, count: int) -> Batch:
    """Return some of a batch's rows, all of one task."""
    part = slice(start, start + count)
    mask_BT = batch.mask_BT[part]
    width = int(mask_BT.sum(dim=1).max())
    return Batch(
        batch.input_ids_BT[part, :width],
        mask_BT[:, :width],
        batch.labels_BL[part],
        torch.zeros(len(mask_BT), dtype=torch.long),
        batch.row_B[part],
    )


if __name__ == "__main__":
    main()
