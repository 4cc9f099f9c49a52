"""Training speed of prompt tuning on a frozen T5, against PEFT, in one process on the same batches.

Run by `make bench`. Contenders take turns batch by batch, so that what else the machine does falls on all alike; the
figures are medians. Weights are random, text and vocabulary are real.

- `ours`: this package, in the precision that it picks for the processor.
- `ours_float32`: the same in float32.
- `peft`: PEFT's PromptTuning as its guide for sequence-to-sequence models has it: float32, every input padded to 128
  tokens, a plain loop of forward, backward and AdamW.
- `peft_best`: PEFT with inputs padded to the batch's longest, in the precision that suits the processor, with the
  faster of transformers' attentions here; batches are bucketed by length by us, for it as well.
- `authors`: the recipe of ATTEMPT's authors: every input padded to 256, float32, transformers' forward.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import (
    DOCUMENTED_WIDTH,
    DTYPES,
    LEARNING_RATE,
    PROMPT_LENGTH,
    first_prompt,
    fresh_model,
    gemm_gflops,
    identity_of,
    machine,
    new_training,
    option_parser,
    parsed,
    rows_of,
    stream,
    write,
)
from matplotlib.figure import Figure
from peft import PromptTuningConfig, TaskType, get_peft_model
from transformers import T5TokenizerFast

from attempt_ray.data.batching import Batch
from attempt_ray.model.backbone import Backbone
from attempt_ray.model.precision import choose_precision
from attempt_ray.reporting.costs import training_flops
from attempt_ray.reporting.parameters import BACKBONES
from attempt_ray.training.loop import take_step
from attempt_ray.training.optimizer import BETAS, EPS

AUTHORS_WIDTH = 256

Step = Callable[[Batch], float]


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--curve-steps", type=int, default=50, help="steps of the loss curves; 0 draws none")
    parser.add_argument("--curve-rows", type=int, default=4, help="rows of a batch of the loss curves")
    options = parsed(parser)
    tokenizer = T5TokenizerFast.from_pretrained(options.data / "t5_tokenizer")
    result = {
        "what": "training steps of prompt tuning, 100 positions, real GLUE text, random weights",
        "backbone": options.backbone,
        "rows": options.rows,
        "threads": options.threads,
        "machine": machine(),
        "gemm_gflops": {name: round(gemm_gflops(dtype), 1) for name, dtype in DTYPES.items()},
        "speed": speed(options, tokenizer),
    }
    if options.curve_steps:
        result["curves"] = curves(options, tokenizer)
    write(result, options.out)
    chart(result, options.out.with_suffix(".png"))
    print(json.dumps({key: value for key, value in result.items() if key != "curves"}, indent=1))


def speed(options: argparse.Namespace, tokenizer: Any) -> dict[str, Any]:
    """Return rows per second of each contender, and the share of the machine's matrix products that ours reaches."""
    batches = stream(options, tokenizer, rows=options.rows)
    shape = BACKBONES[options.backbone]
    picked = choose_precision("auto", "cpu").dtype
    attention = fastest_attention(options, tokenizer, batches.batch(0), DTYPES[picked])
    contenders: dict[str, Step] = {
        "ours_float32": ours(options, tokenizer, "float32"),
        "peft": theirs(options, tokenizer, "float32", width=DOCUMENTED_WIDTH),
        "peft_best": theirs(options, tokenizer, picked, attention=attention),
        "authors": theirs(options, tokenizer, "float32", width=AUTHORS_WIDTH),
    }
    if picked != "float32":
        contenders["ours"] = ours(options, tokenizer, picked)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    flops: list[float] = []
    for number in range(options.rounds + 1):
        batch = batches.batch(number)
        for name, step in contenders.items():
            started = time.perf_counter()
            step(batch)
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
        if number:
            flops.append(training_flops(shape, rows_of(batch)))
    seconds.setdefault("ours", seconds["ours_float32"])
    peak = gemm_gflops(DTYPES[picked])
    return {
        "precision": picked,
        "attention_of_peft_best": attention,
        "mean_tokens_with_prompt": round(
            statistics.mean(
                tokens
                for number in range(1, options.rounds + 1)
                for tokens, _ in rows_of(batches.batch(number))
            ),
            1,
        ),
        "rows_per_second": {
            name: round(options.rows / statistics.median(spent), 3) for name, spent in seconds.items()
        },
        "times_as_fast": {
            name: round(statistics.median(a / b for a, b in zip(spent, seconds["ours"], strict=True)), 2)
            for name, spent in seconds.items()
            if not name.startswith("ours")
        },
        "useful_share_of_matrix_peak": round(
            statistics.median(
                work / spent / 1e9 / peak for work, spent in zip(flops, seconds["ours"], strict=True)
            ),
            3,
        ),
        "n": options.rounds,
    }


def curves(options: argparse.Namespace, tokenizer: Any) -> dict[str, Any]:
    """Return the losses of ours and PEFT's in float32 from one start on the same batches."""
    batches = stream(options, tokenizer, rows=options.curve_rows)
    pair = {
        "ours_float32": ours(options, tokenizer, "float32"),
        "peft": theirs(options, tokenizer, "float32", width=DOCUMENTED_WIDTH),
    }
    losses: dict[str, list[float]] = {name: [] for name in pair}
    for number in range(options.curve_steps):
        batch = batches.batch(number)
        for name, step in pair.items():
            losses[name].append(step(batch))
    gaps = [abs(a - b) / abs(b) for a, b in zip(losses["ours_float32"], losses["peft"], strict=True)]
    return {"rows": options.curve_rows, "greatest_relative_difference": max(gaps), "loss": losses}


def chart(result: dict[str, Any], path: Path) -> None:
    """Draw rows per second, and the loss curves on top of each other."""
    rates = result["speed"]["rows_per_second"]
    names = [name for name in ("ours", "ours_float32", "peft_best", "peft", "authors") if name in rates]
    curves = result.get("curves", {}).get("loss", {})
    figure = Figure(figsize=(9 if curves else 4.5, 3.2), layout="constrained")
    bars, *panels = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    bars.barh(names[::-1], [rates[name] for name in names[::-1]], color="0.6")
    bars.set_xlabel(f"rows per second, {result['backbone']}, {result['threads']} thread(s)")
    for lines in panels:
        for name, losses in curves.items():
            style = {"peft": {"linewidth": 4, "alpha": 0.4}}.get(name, {"linewidth": 1, "color": "black"})
            lines.plot(range(1, len(losses) + 1), losses, label=name, **style)
        lines.set_xlabel("step")
        lines.set_ylabel("loss in nats, float32")
        lines.legend()
    figure.savefig(path, dpi=120)


def ours(options: argparse.Namespace, tokenizer: Any, dtype: str) -> Step:
    """Return a step of this package's prompt tuning."""
    model = fresh_model(options.backbone).to(DTYPES[dtype])
    backbone = Backbone(model, tokenizer, identity_of(options.backbone, model))
    training = new_training(backbone)

    def step(batch: Batch) -> float:
        training.stream.given = batch
        (progress,) = take_step([training])
        return progress.loss

    return step


def theirs(
    options: argparse.Namespace,
    tokenizer: Any,
    dtype: str,
    *,
    width: int | None = None,
    attention: str = "sdpa",
) -> Step:
    """Return a step of PEFT's prompt tuning, in the loop of its guide."""
    base = fresh_model(options.backbone, attention=attention).to(DTYPES[dtype])
    start = first_prompt(base)
    config = PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=PROMPT_LENGTH, num_transformer_submodules=1
    )
    model = get_peft_model(base, config)
    (prompt,) = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        prompt.data = start.clone()
    optimizer = torch.optim.AdamW([prompt], lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=0.0)
    model.train()

    def step(batch: Batch) -> float:
        ids_BT, mask_BT = batch.input_ids_BT, batch.mask_BT
        if width is not None:
            pad = width - ids_BT.shape[1]
            ids_BT = torch.nn.functional.pad(ids_BT, (0, pad), value=tokenizer.pad_token_id)
            mask_BT = torch.nn.functional.pad(mask_BT, (0, pad))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=ids_BT, attention_mask=mask_BT.long(), labels=batch.labels_BL).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def fastest_attention(options: argparse.Namespace, tokenizer: Any, batch: Batch, dtype: torch.dtype) -> str:
    """Return which of transformers' attentions takes a step sooner here."""
    name = next(name for name, found in DTYPES.items() if found == dtype)
    spent = {}
    for attention in ("sdpa", "eager"):
        step = theirs(options, tokenizer, name, attention=attention)
        step(batch)
        started = time.perf_counter()
        step(batch)
        spent[attention] = time.perf_counter() - started
    return min(spent, key=spent.__getitem__)


if __name__ == "__main__":
    main()
