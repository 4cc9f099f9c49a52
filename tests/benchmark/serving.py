"""Speed of answering on a frozen T5 with prompts of many tasks in a batch, in one process.

Run by `make bench`. Weights are random, text and vocabulary are real. Every row is answered with one of two labels of
two tokens, in one pass of encoder and decoder. Contenders take turns batch by batch; figures are medians.

- `ours`: this package in the precision that it picks for the processor; each row has the prompt of its own task.
- `ours_float32`: the same in float32.
- `transformers`: the same rows, but as generate() of transformers answers them: padded to the batch's longest, float32.
- `ctranslate2_float32`, `ctranslate2_int8`: CTranslate2, which knows no soft prompts, on rows of as many tokens of text.

Then ours alone over input lengths and over numbers of tasks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ctranslate2
import torch
from common import (
    DTYPES,
    PROMPT_LENGTH,
    first_prompt,
    fresh_model,
    gemm_gflops,
    identity_of,
    machine,
    option_parser,
    parsed,
    rows_of,
    stream,
    write,
)
from matplotlib.figure import Figure
from transformers import T5TokenizerFast

from attempt_ray.data.batching import Batch
from attempt_ray.model.backbone import Backbone
from attempt_ray.model.methods import PromptTuning
from attempt_ray.model.precision import choose_precision
from attempt_ray.model.soft_prompt import SoftPrompts
from attempt_ray.reporting.costs import forward_flops
from attempt_ray.reporting.parameters import BACKBONES

LABELS = ("0", "1")
TEXT_LENGTHS = (28, 60, 124, 252)
TASK_COUNTS = (1, 10, 100, 1000)

Answer = Callable[[Batch], object]


def main() -> None:
    options = parsed(option_parser(__doc__))
    tokenizer = T5TokenizerFast.from_pretrained(options.data / "t5_tokenizer")
    with torch.inference_mode():
        result = {
            "what": "answers of two tokens among two labels, 100 prompt positions, real GLUE text, random weights",
            "backbone": options.backbone,
            "rows": options.rows,
            "threads": options.threads,
            "n": options.rounds,
            "machine": machine(),
            "gemm_gflops": {name: round(gemm_gflops(dtype), 1) for name, dtype in DTYPES.items()},
            "speed": speed(options, tokenizer),
            "by_length": by_length(options, tokenizer),
            "by_tasks": by_tasks(options, tokenizer),
        }
    write(result, options.out)
    chart(result, options.out.with_suffix(".png"))
    print(json.dumps(result, indent=1))


def speed(options: argparse.Namespace, tokenizer: Any) -> dict[str, Any]:
    """Return rows per second of each contender on the same batches."""
    picked = choose_precision("auto", "cpu").dtype
    contenders: dict[str, Answer] = {
        "ours_float32": ours(options, tokenizer, "float32", tasks=100),
        "transformers": theirs(options),
    }
    if picked != "float32":
        contenders["ours"] = ours(options, tokenizer, picked, tasks=100)
    contenders |= ctranslate2_of(options, tokenizer)
    batches = stream(options, tokenizer, rows=options.rows)
    given = [batches.batch(number) for number in range(options.rounds + 1)]
    seconds = taking_turns(contenders, given)
    seconds.setdefault("ours", seconds["ours_float32"])
    shape = BACKBONES[options.backbone]
    work = [
        sum(forward_flops(shape, tokens=tokens, targets=2 * len(LABELS)) for tokens, _ in rows_of(batch))
        for batch in given[1:]
    ]
    peak = gemm_gflops(DTYPES[picked])
    return {
        "precision": picked,
        "mean_tokens_with_prompt": round(
            statistics.mean(tokens for batch in given[1:] for tokens, _ in rows_of(batch)), 1
        ),
        "rows_per_second": {
            name: round(options.rows / statistics.median(spent), 3) for name, spent in seconds.items()
        },
        "ours_is_times_as_fast_as": {
            name: round(statistics.median(a / b for a, b in zip(spent, seconds["ours"], strict=True)), 2)
            for name, spent in seconds.items()
            if not name.startswith("ours")
        },
        "useful_share_of_matrix_peak": round(
            statistics.median(a / b / 1e9 / peak for a, b in zip(work, seconds["ours"], strict=True)), 3
        ),
    }


def by_length(options: argparse.Namespace, tokenizer: Any) -> dict[str, float]:
    """Return milliseconds a row by input tokens, the prompt included."""
    answer = ours(options, tokenizer, choose_precision("auto", "cpu").dtype, tasks=100)
    found = {}
    for length in TEXT_LENGTHS:
        given = [of_width(length, options.rows, number) for number in range(options.rounds + 1)]
        spent = taking_turns({"ours": answer}, given)["ours"]
        found[str(length + PROMPT_LENGTH)] = round(statistics.median(spent) / options.rows * 1e3, 3)
    return found


def by_tasks(options: argparse.Namespace, tokenizer: Any) -> dict[str, float]:
    """Return rows per second by the number of tasks whose prompts are loaded and asked for in turn."""
    picked = choose_precision("auto", "cpu").dtype
    contenders = {str(count): ours(options, tokenizer, picked, tasks=count) for count in TASK_COUNTS}
    given = [of_width(28, options.rows, number) for number in range(options.rounds + 1)]
    seconds = taking_turns(contenders, given)
    return {name: round(options.rows / statistics.median(spent), 3) for name, spent in seconds.items()}


def taking_turns(contenders: Mapping[str, Answer], given: list[Batch]) -> dict[str, list[float]]:
    """Return the seconds of each contender for each batch but the first, which warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number, batch in enumerate(given):
        for name, answer in contenders.items():
            started = time.perf_counter()
            answer(batch)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def of_width(length: int, rows: int, number: int) -> Batch:
    """Return a batch of random tokens without padding."""
    generator = torch.Generator().manual_seed(number)
    return Batch(
        input_ids_BT=torch.randint(10, 30_000, (rows, length), generator=generator),
        mask_BT=torch.ones(rows, length, dtype=torch.bool),
        labels_BL=torch.ones(rows, 2, dtype=torch.long),
        task_B=torch.zeros(rows, dtype=torch.long),
        row_B=torch.arange(rows) + number * rows,
    )


def ours(options: argparse.Namespace, tokenizer: Any, dtype: str, *, tasks: int) -> Answer:
    """Return this package's answers, each row with the prompt of one of `tasks` tasks."""
    model = fresh_model(options.backbone).to(DTYPES[dtype])
    backbone = Backbone(model, tokenizer, identity_of(options.backbone, model))
    prompts = SoftPrompts(first_prompt(model).repeat(tasks, 1, 1))
    method = PromptTuning(backbone, [str(number) for number in range(tasks)], prompts).eval()
    candidates_CL = backbone.encode_candidates(LABELS)

    def answer(batch: Batch) -> object:
        task_B = batch.row_B * 7919 % tasks
        mixed = Batch(batch.input_ids_BT, batch.mask_BT, batch.labels_BL, task_B, batch.row_B)
        return method.score_labels(mixed, candidates_CL).logprob_BC.argmax(dim=-1).tolist()

    return answer


def theirs(options: argparse.Namespace) -> Answer:
    """Return answers of transformers' own generate()."""
    model = fresh_model(options.backbone).eval()
    prompt_1PH = first_prompt(model)[None]

    def answer(batch: Batch) -> object:
        rows = len(batch.mask_BT)
        inputs = torch.cat([prompt_1PH.expand(rows, -1, -1), model.shared(batch.input_ids_BT)], dim=1)
        mask = torch.cat([torch.ones(rows, PROMPT_LENGTH, dtype=torch.bool), batch.mask_BT], dim=1)
        return model.generate(
            inputs_embeds=inputs, attention_mask=mask, max_new_tokens=2, min_new_tokens=2, do_sample=False
        )

    return answer


def ctranslate2_of(options: argparse.Namespace, tokenizer: Any) -> dict[str, Answer]:
    """Return answers of CTranslate2 on rows with as many tokens, the prompt's positions being text."""
    with tempfile.TemporaryDirectory() as directory:
        source, converted = Path(directory, "transformers"), Path(directory, "ctranslate2")
        with torch.inference_mode(False):
            fresh_model(options.backbone).save_pretrained(source)
        tokenizer.save_pretrained(source)
        ctranslate2.converters.TransformersConverter(str(source)).convert(str(converted))
        engines = {
            f"ctranslate2_{precision}": ctranslate2.Translator(
                str(converted), compute_type=precision, intra_threads=options.threads, inter_threads=1
            )
            for precision in ("float32", "int8")
        }
    filler = tokenizer.convert_ids_to_tokens(list(range(100, 100 + PROMPT_LENGTH)))

    def answering(engine: Any) -> Answer:
        def answer(batch: Batch) -> object:
            rows = [
                filler + tokenizer.convert_ids_to_tokens(ids[mask].tolist())
                for ids, mask in zip(batch.input_ids_BT, batch.mask_BT, strict=True)
            ]
            return engine.translate_batch(rows, beam_size=1, max_decoding_length=2, min_decoding_length=2)

        return answer

    return {name: answering(engine) for name, engine in engines.items()}


def chart(result: dict[str, Any], path: Path) -> None:
    """Draw rows per second of all, time by length, and rows per second by tasks."""
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    bars, lengths, tasks = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    rates = dict(result["speed"]["rows_per_second"])
    if result["speed"]["precision"] == "float32":
        del rates["ours_float32"]
    bars.barh(list(rates)[::-1], list(rates.values())[::-1], color="0.6")
    bars.set_xlabel(f"rows per second, {result['backbone']}, {result['threads']} thread(s)")
    for axes, key, label in (
        (lengths, "by_length", "milliseconds a row"),
        (tasks, "by_tasks", "rows per second"),
    ):
        axes.plot([int(name) for name in result[key]], list(result[key].values()), "o-", color="black")
        axes.set_ylabel(label)
        axes.set_ylim(0, 1.15 * max(result[key].values()))
    lengths.set_xlabel("input tokens, prompt included")
    lengths.set_xlim(left=0)
    tasks.set_xlabel("tasks in turn")
    tasks.set_xscale("log")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
