"""What the serving engine makes of rows of many tasks: against PEFT and transformers, and against rows of one task.

Run by `make bench`. Text goes in, answers come out: rendering is done, tokenising is timed, for all alike. Weights and
prompts are random, text and vocabulary are real; every task is closed. Contenders take turns batch by batch; figures are
medians, and ratios are medians of the rounds' ratios. `--clock processor` counts the processor's seconds in place of the
clock's: on a busy machine, and with one thread, which then never waits for another, they are the ones to trust.

`peers`: batches of rows of 8 GLUE tasks in the order in which they came.

- `ours`: our engine, every row under the prompt of its task, label words scored (`evaluation.decode=labels`).
- `ours_mixtures`: the same, every prompt a mixture of six sources by a G that the tasks share.
- `ours_generating`: our engine at its worst: `decode=greedy` where greedy's answer is never a label word, as it is with
  random weights, so that every row is scored and generated.
- `peft`: PEFT with one adapter a task: the batch cut by task, `set_adapter` and `generate` for each part, as its
  documentation has it. Answers end with the longest label, as those of a trained model would.
- `peft_each`: PEFT with requests as they come: `set_adapter` and `generate` row by row.
- `peft_one_task`: PEFT, the whole batch under one adapter: no switching, and the wrong prompt for most rows.
- `raw`: transformers' `generate` on the batch without prompts.
- `peft_best`, `peft_one_task_best`, `raw_best`: rows sorted by length and passes of at most 2,048 tokens, as ours, and one
  pass of the decoder over one label in place of `generate`: the least that could tell labels apart.

`tasks`: one batch whose rows have as many prompts as the table holds, against the same rows under one prompt: prompts used
alone, mixtures with one G, and mixtures with a G each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    DTYPES,
    PROMPT_LENGTH,
    first_prompt,
    fresh_model,
    gemm_gflops,
    machine,
    option_parser,
    parsed,
    write,
)
from peft import PromptTuningConfig, TaskType, get_peft_model
from torch.nn import functional as F  # noqa: N812 - as everyone writes it
from transformers import T5TokenizerFast

from attempt_ray.bank.manifest import Facts, MixtureRecord
from attempt_ray.bank.store import Bank
from attempt_ray.config import Config, DataConfig, parse
from attempt_ray.data.encoding import template_options
from attempt_ray.data.origins import load_split
from attempt_ray.model.backbone import MOST_TOKENS_CPU, load_backbone
from attempt_ray.model.published import backbone_record
from attempt_ray.reporting.costs import forward_flops
from attempt_ray.reporting.parameters import backbone_shape
from attempt_ray.tasks import get_task
from serve_app.engine import Answer, Engine, Row

GLUE = ("cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli")
MINIATURES = ("cb", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli")
SOURCES = ("mnli", "sst2", "qnli", "qqp", "squad", "record")
BOTTLENECK = 100
NANO = {"positions": 20, "bottleneck": 32}
"""Sizes of the embedded preset."""
FEW_TOKENS = 60

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}

Answering = Callable[[Sequence[Row]], object]


def main() -> None:
    parser = option_parser(__doc__)
    parser.set_defaults(threads=2)
    parser.add_argument("--parts", nargs="+", default=["peers", "tasks"], choices=["peers", "tasks"])
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[32, 256], help="rows of the peers' batches"
    )
    parser.add_argument("--clock", default="wall", choices=sorted(CLOCKS), help="what rates are made of")
    parser.add_argument("--tasks", type=int, default=1000, help="prompts in the table")
    parser.add_argument(
        "--nano", action="store_true", help="the nano backbone on the micro-world, tasks alone"
    )
    options = parsed(parser)
    result: dict[str, Any] = {
        "what": "answers to closed tasks, text in and answer out, random weights",
        "backbone": "nano" if options.nano else options.backbone,
        "threads": options.threads,
        "clock": options.clock,
        "machine": machine(),
        "gemm_gflops_float32": round(gemm_gflops(DTYPES["float32"], clock=CLOCKS[options.clock]), 1),
        "load_before": os.getloadavg(),
    }
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        made = Made(options, Path(directory))
        if "peers" in options.parts and not options.nano:
            result["peers"] = {str(rows): peers(made, options, rows=rows) for rows in options.batches}
        if "tasks" in options.parts:
            result["tasks"] = tasks(made, options)
    result["load_after"] = os.getloadavg()
    write(result, options.out)
    print(json.dumps(result, indent=1))


class Made:
    """A backbone in a directory, a bank of random prompts for it, and real rows."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.name = "nano" if options.nano else str(directory / "backbone")
        self.data = options.data
        self.embedded = options.nano
        if not options.nano:
            with torch.inference_mode(False), torch.enable_grad():
                fresh_model(options.backbone).save_pretrained(self.name)
            T5TokenizerFast.from_pretrained(options.data / "t5_tokenizer").save_pretrained(self.name)
        self.backbone = load_backbone(self.config("labels").backbone)
        self.bank_place = str(directory / "bank")
        self.bank = Bank(self.bank_place)
        self._facts = Facts(backbone=backbone_record(self.backbone), tasks=("glue",), config_digest="0" * 12)
        self._start_PH = first_prompt(self.backbone.model)
        self._bottleneck = BOTTLENECK
        if options.nano:
            self._start_PH = self._start_PH[: NANO["positions"]]
            self._bottleneck = NANO["bottleneck"]
        self._generator = torch.Generator().manual_seed(0)
        self._sources = [self.prompt("source", name) for name in SOURCES]

    def config(self, decode: str) -> Config:
        return parse(
            [
                {
                    "backbone": {"name": self.name, "dtype": "float32"},
                    "evaluation": {"decode": decode},
                    "serving": {"prompt_bytes": 2**32},
                }
            ]
        )

    def engine(self, decode: str = "labels") -> Engine:
        return Engine(self.backbone, self.bank, self.config(decode))

    def prompt(self, kind: Any, name: str, *, attention: str | None = None) -> str:
        """Publish a prompt of its own numbers, mixed with the sources where there is a G; return its reference."""
        noise_PH = torch.randn(self._start_PH.shape, generator=self._generator)
        mixture = None
        if attention is not None:
            mixture = MixtureRecord(
                sources=tuple(self._sources),
                attention=attention,
                divisor=float(self.backbone.width),
                pooling="masked",
                authors_width=256,
                weights="learned",
                target="trained",
            )
        facts = self._facts.model_copy(update={"mixture": mixture})
        tensors = {"prompt": (self._start_PH + 0.1 * noise_PH).numpy()}
        return self.bank.publish(kind, name, tensors, facts).reference

    def attention(self, name: str) -> str:
        """Publish a G of its own numbers; return its reference."""
        width, down = self.backbone.width, (self._bottleneck, self.backbone.width)
        tensors = {
            "down.weight": torch.randn(down, generator=self._generator).numpy(),
            "up.weight": torch.randn(down[::-1], generator=self._generator).contiguous().numpy(),
            "norm.weight": np.ones(width, dtype=np.float32),
            "norm.bias": np.zeros(width, dtype=np.float32),
        }
        return self.bank.publish("attention", name, tensors, self._facts).reference

    def texts(self, task: str) -> list[str]:
        """Return the dev rows of a task as its template renders them."""
        chosen = get_task(task)
        data = (
            DataConfig(origin="embedded")
            if self.embedded
            else DataConfig(origin="mirror", root=str(self.data / "hub"))
        )
        rows = load_split(chosen, "validation" if self.embedded else chosen.dev_split, data)
        return [chosen.source_text(row, template_options(data)) for row in rows]


def peers(made: Made, options: argparse.Namespace, *, rows: int) -> dict[str, Any]:
    """Return rows per second of every contender on the same batches of rows of 8 tasks."""
    plain = {task: made.prompt("target", task) for task in GLUE}
    shared = made.attention("shared")
    mixed = {task: made.prompt("target", f"{task}-mixed", attention=shared) for task in GLUE}
    scoring, greedy = made.engine(), made.engine("greedy")
    peft = Peft(made, plain)
    contenders: dict[str, Answering] = {
        "ours": scoring.answer,
        "ours_mixtures": lambda given: scoring.answer(under(given, mixed)),
        "ours_generating": greedy.answer,
        "peft": peft.by_task,
        "peft_best": peft.by_task_best,
        "peft_one_task": peft.one_task,
        "peft_one_task_best": peft.one_task_best,
        "raw": peft.raw,
        "raw_best": peft.raw_best,
    }
    if rows <= 32:
        contenders["peft_each"] = peft.each
    batches = list(mixed_batches(made, plain, rows=rows, count=options.rounds + 1))
    check_agreement(scoring, peft, batches[0][:16])
    seconds = taking_turns(contenders, batches, CLOCKS[options.clock])
    shape = backbone_shape(options.backbone)
    lengths = [
        [(len(scoring.prepare(row).question.ids), len(get_task(row.task).labels["digits"])) for row in batch]
        for batch in batches[1:]
    ]
    # Least work of one that scores: every label is at most two tokens and the end.
    work = [
        sum(
            forward_flops(shape, tokens=tokens + PROMPT_LENGTH, targets=3 * labels)
            for tokens, labels in batch
        )
        for batch in lengths
    ]
    peak = gemm_gflops(DTYPES["float32"], clock=CLOCKS[options.clock])
    return {
        "n": options.rounds,
        "mean_text_tokens": round(statistics.mean(tokens for batch in lengths for tokens, _ in batch), 1),
        "gigaflops_per_row": round(statistics.mean(work) / rows / 1e9, 2),
        "rows_per_second": {
            name: round(rows / statistics.median(spent), 2) for name, spent in seconds.items()
        },
        "ours_is_times_as_fast_as": {
            name: round(
                statistics.median(theirs / mine for theirs, mine in zip(spent, seconds["ours"], strict=True)),
                2,
            )
            for name, spent in seconds.items()
            if name != "ours"
        },
        "useful_share_of_matrix_peak": {
            name: round(
                statistics.median(
                    flops / spent / 1e9 / peak for flops, spent in zip(work, seconds[name], strict=True)
                ),
                3,
            )
            for name in ("ours", "ours_mixtures", "peft", "peft_best")
        },
    }


def tasks(made: Made, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a batch of rows under many prompts costs, as a multiple of the same rows under one."""
    shared = made.attention("shared")
    numbers = range(options.tasks)
    kinds = {
        "prompts": [made.prompt("target", f"plain{number}") for number in numbers],
        "one_g": [made.prompt("target", f"shared{number}", attention=shared) for number in numbers],
        "a_g_each": [
            made.prompt("target", f"own{number}", attention=made.attention(f"g{number}"))
            for number in numbers
        ],
    }
    engine = made.engine()
    started = time.perf_counter()
    for prompts in kinds.values():
        for prompt in prompts:
            engine.load(prompt)
    loading = time.perf_counter() - started
    rng = random.Random(0)
    pool = short_rows(made, engine)
    batches = [rng.choices(pool, k=options.rows) for _ in range(options.rounds + 1)]
    contenders: dict[str, Answering] = {}
    for kind, prompts in kinds.items():
        order = rng.sample(prompts, k=len(prompts))
        contenders[f"{kind}, one"] = lambda given, one=prompts[0]: engine.answer(dealt(given, [one]))
        contenders[f"{kind}, many"] = lambda given, order=order: engine.answer(dealt(given, order))
    seconds = taking_turns(contenders, batches, CLOCKS[options.clock])
    found: dict[str, Any] = {
        "n": options.rounds,
        "rows": options.rows,
        "tasks_in_a_batch": min(options.rows, options.tasks),
        "loaded": engine.loaded_prompts,
        "loaded_megabytes": round(engine.loaded_bytes / 1e6),
        "seconds_to_load": round(loading, 1),
    }
    for kind in kinds:
        one, many = seconds[f"{kind}, one"], seconds[f"{kind}, many"]
        ratios = [a / b for a, b in zip(many, one, strict=True)]
        found[kind] = {
            "rows_per_second_one": round(options.rows / statistics.median(one), 2),
            "rows_per_second_many": round(options.rows / statistics.median(many), 2),
            "many_over_one": round(statistics.median(ratios), 4),
            "least": round(min(ratios), 4),
            "most": round(max(ratios), 4),
        }
    return found


def taking_turns(
    contenders: Mapping[str, Answering], batches: Sequence[Sequence[Row]], clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Return the seconds of each contender for each batch but the first, which warms up; who begins changes."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number, batch in enumerate(batches):
        names = list(contenders)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = clock()
            contenders[name](batch)
            if number:
                seconds[name].append(clock() - started)
    return seconds


def mixed_batches(made: Made, prompts: Mapping[str, str], *, rows: int, count: int) -> Iterator[list[Row]]:
    """Yield batches of as many rows of every task, shuffled."""
    rng = random.Random(0)
    texts = {task: made.texts(task) for task in GLUE}
    for _ in range(count):
        batch = [
            Row(task=task, prompt=prompts[task], text=text)
            for task in GLUE
            for text in rng.choices(texts[task], k=rows // len(GLUE))
        ]
        rng.shuffle(batch)
        yield batch


def short_rows(made: Made, engine: Engine) -> list[Row]:
    """Return rows of few tokens, for which what a prompt costs weighs most."""
    first = f"source/{SOURCES[0]}@v1"
    rows = [
        Row(task=task, prompt=first, text=text)
        for task in (MINIATURES if made.embedded else GLUE)
        for text in made.texts(task)[:200]
    ]
    return [row for row in rows if len(engine.prepare(row).question.ids) <= FEW_TOKENS]


def under(rows: Sequence[Row], prompts: Mapping[str, str]) -> list[Row]:
    return [Row(task=row.task, prompt=prompts[row.task], text=row.text) for row in rows]


def dealt(rows: Sequence[Row], prompts: Sequence[str]) -> list[Row]:
    return [
        Row(task=row.task, prompt=prompts[place % len(prompts)], text=row.text)
        for place, row in enumerate(rows)
    ]


class Peft:
    """PEFT and transformers on the same weights, from text to ids."""

    def __init__(self, made: Made, prompts: Mapping[str, str]) -> None:
        self._tokenizer = T5TokenizerFast.from_pretrained(made.name)
        self._bare = type(made.backbone.model).from_pretrained(made.name).eval()
        config = PromptTuningConfig(
            task_type=TaskType.SEQ_2_SEQ_LM,
            num_virtual_tokens=PROMPT_LENGTH,
            num_transformer_submodules=1,
            inference_mode=True,
        )
        base = type(made.backbone.model).from_pretrained(made.name)
        first, *others = prompts
        self._model = get_peft_model(base, config, adapter_name=first)
        for task in others:
            self._model.add_adapter(task, config)
        for task, reference in prompts.items():
            weight = self._model.prompt_encoder[task].embedding.weight
            weight.data = torch.from_numpy(made.bank.load(reference).tensors["prompt"].copy())
        self._model.eval()
        self._ids = {
            task: self._tokenizer(list(get_task(task).labels["digits"])).input_ids for task in prompts
        }

    def by_task(self, rows: Sequence[Row]) -> None:
        for task, part in parts(rows).items():
            self._model.set_adapter(task)
            self._generate(self._model, part, self._longest(task))

    def by_task_best(self, rows: Sequence[Row]) -> None:
        for task, part in parts(rows).items():
            self._model.set_adapter(task)
            self._score(self._model, part, self._ids[task][0], PROMPT_LENGTH)

    def each(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._model.set_adapter(row.task)
            self._generate(self._model, [row], self._longest(row.task))

    def one_task(self, rows: Sequence[Row]) -> None:
        self._model.set_adapter("mnli")
        self._generate(self._model, rows, self._longest("mnli"))

    def one_task_best(self, rows: Sequence[Row]) -> None:
        self._model.set_adapter("mnli")
        self._score(self._model, rows, self._ids["mnli"][0], PROMPT_LENGTH)

    def raw(self, rows: Sequence[Row]) -> None:
        self._generate(self._bare, rows, self._longest("mnli"))

    def raw_best(self, rows: Sequence[Row]) -> None:
        self._score(self._bare, rows, self._ids["mnli"][0], 0)

    def logprobs(self, row: Row) -> list[float]:
        """Return the log probability of every label of a row's task."""
        self._model.set_adapter(row.task)
        return [self._score(self._model, [row], ids, PROMPT_LENGTH)[0] for ids in self._ids[row.task]]

    def _longest(self, task: str) -> int:
        return max(map(len, self._ids[task]))

    def _generate(self, model: Any, rows: Sequence[Row], tokens: int) -> list[str]:
        given = self._tokenizer([row.text for row in rows], padding=True, return_tensors="pt")
        # Random weights do not end answers, trained ones do.
        ids_BL = model.generate(
            input_ids=given.input_ids,
            attention_mask=given.attention_mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
        return self._tokenizer.batch_decode(ids_BL, skip_special_tokens=True)

    def _score(self, model: Any, rows: Sequence[Row], label: Sequence[int], prompt: int) -> list[float]:
        """Return the log probability of one label for every row, in passes of few tokens and little padding."""
        encoded = self._tokenizer([row.text for row in rows]).input_ids
        found = [0.0] * len(rows)
        for places in passes([len(ids) + prompt for ids in encoded]):
            given = self._tokenizer.pad(
                {"input_ids": [encoded[place] for place in places]}, return_tensors="pt"
            )
            labels_BL = torch.tensor([label] * len(places))
            logits_BLV = model(
                input_ids=given.input_ids,
                attention_mask=given.attention_mask,
                decoder_input_ids=F.pad(labels_BL[:, :-1], (1, 0)),
            ).logits
            told_BL = logits_BLV.log_softmax(dim=-1).gather(-1, labels_BL[..., None])[..., 0]
            for place, value in zip(places, told_BL.sum(dim=-1).tolist(), strict=True):
                found[place] = value
        return found


def parts(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.task].append(row)
    return found


def passes(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield places in order of length, as many at a time as a pass has tokens for."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > MOST_TOKENS_CPU:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def check_agreement(engine: Engine, peft: Peft, rows: Sequence[Row]) -> None:
    """Check that both compute the same, on rows that neither truncates."""
    for row, answer in zip(rows, engine.answer(rows), strict=True):
        assert isinstance(answer, Answer), answer
        if not answer.truncated:
            theirs = torch.tensor(peft.logprobs(row))
            torch.testing.assert_close(
                torch.tensor(list((answer.logprobs or {}).values())), theirs, atol=1e-3, rtol=1e-5
            )


if __name__ == "__main__":
    main()
