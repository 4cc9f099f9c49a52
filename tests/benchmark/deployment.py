"""What a deployment bears: goodput and latency from half of its peak to five times that, and what HTTP adds.

    python tests/benchmark/deployment.py --out deployment.json [--nano] [--threads 1]

Ray and Serve are started privately, with one engine replica of `--threads` cores; the generator (`load.py`) runs in this
process beside them, so on two cores all share. Weights and prompts are random, text is real; every row is scored
(`evaluation.decode=labels`), one row a request. As many requests as two full batches are let in at once; more are refused.

- `steps`: shares of the peak that a closed loop finds; see `load.py`. `batch_fill` is the mean share of a batch's budget
  that was used in that step, from `/metrics`.
- `outside_p50`: what HTTP adds, request by request: latency less the time in queue and engine, which the answer tells.
- `http_adds_p50`: the median latency at half load through HTTP, less that of the same requests at the same moments given
  to a `Host` in this process; with batches of hundreds of milliseconds, the rougher measure of the two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import ray
import torch
from common import machine, option_parser, parsed, write
from engine import GLUE, MINIATURES, Made
from load import HttpSender, Outcome, Step, bodies, find_peak, ladder, open_loop, rows, table
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from attempt_ray.config import Config
from attempt_ray.errors import AttemptError
from serve_app.app import make
from serve_app.gateway import Call
from serve_app.host import Host
from serve_app.schema import RowIn

FILL = ("attempt_batch_fill_total", "attempt_batches_total", "attempt_batch_rows_total")


def main() -> None:
    parser = option_parser(__doc__)
    parser.set_defaults(rows=32, threads=1)
    parser.add_argument("--nano", action="store_true", help="the nano backbone on the micro-world")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each rate lasts")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds within which an answer is good")
    parser.add_argument("--port", type=int, default=18_432)
    options = parsed(parser)
    load_before = os.getloadavg()
    # Sockets of Ray's have short paths.
    with tempfile.TemporaryDirectory(prefix="ar-", dir="/tmp") as directory:
        made = Made(options, Path(directory))
        config = configured(made, options)
        given = rows(
            Path("absent") if options.nano else options.data, tasks=MINIATURES if options.nano else GLUE
        )
        del made
        started = time.perf_counter()
        result = through_http(config, given, options, Path(directory))
        result["seconds_to_start"] = round(result["seconds_to_start"] - started, 1)
        result["half_load_in_process"] = asyncio.run(
            in_process(config, given, options, rate=result["peak"] / 2)
        )
    half = result["steps"]["50%"]["answered_p50"]
    result = {
        "what": "one row a request, labels scored, random weights, one engine replica",
        "backbone": "nano" if options.nano else options.backbone,
        "engine_threads": options.threads,
        "batch_rows": options.rows,
        "seconds_a_step": options.seconds,
        "limit_seconds": options.limit,
        "machine": machine(),
        "load_before": load_before,
        **result,
        "http_adds_p50": round(half - result["half_load_in_process"]["answered_p50"], 2),
        "goodput_at_500_over_peak": round(result["steps"]["500%"]["goodput"] / result["peak"], 3),
    }
    write(result, options.out)
    print(json.dumps(result, indent=1))
    print(table(result["steps"]))


def configured(made: Made, options: argparse.Namespace) -> Config:
    """Return the config of a deployment with a promoted prompt for each task: mixtures with one G."""
    attention = made.attention("shared")
    for task in MINIATURES if options.nano else GLUE:
        made.bank.promote(made.prompt("target", task, attention=attention))
    most = 2 * options.rows
    return made.config("labels").updated(
        bank=made.bank_place,
        serving={
            "batch_rows": options.rows,
            "batch_tokens": 2**20,
            "cpus_per_replica": float(options.threads),
        },
        http={
            "requests_per_second": 1e6,
            "burst_requests": 10**6,
            "concurrent_requests": most,
            "concurrent_requests_in_all": most,
        },
    )


def through_http(
    config: Config, given: list[dict[str, Any]], options: argparse.Namespace, directory: Path
) -> dict[str, Any]:
    """Return what the load generator finds."""
    # Else Ray runs its workers behind whatever else the machine does; it reads the name in this case.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(
        address="local",
        num_cpus=max(2, options.threads + 1),
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=str(directory / "ray"),
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": options.port})
        serve.run(make(config), name="attempt", route_prefix="/")
        ready = time.perf_counter()
        url = f"http://127.0.0.1:{options.port}"
        return {"seconds_to_start": ready, **asyncio.run(steps(url, given, options))}
    finally:
        serve.shutdown()
        ray.shutdown()


async def steps(url: str, given: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Return the peak and its shares, with the fill of the batches of each."""
    fills: list[dict[str, float]] = []
    async with HttpSender(url, bodies(given)) as send:
        # As many callers as are let in; the first answers pay for what is made on first use.
        await open_loop(send, rate=2.0, seconds=3.0, limit=options.limit)
        peak, callers = await find_peak(
            send, seconds=options.seconds / 2, callers=options.rows, most=2 * options.rows
        )
        before = await scraped(url)

        async def on_step(share: float, step: Step) -> None:
            nonlocal before
            after = await scraped(url)
            fill, batches, computed = (after[name] - before[name] for name in FILL)
            fills.append(
                {"batch_fill": round(fill / batches, 3), "rows_a_batch": round(computed / batches, 1)}
            )
            before = after

        found = await ladder(send, seconds=options.seconds, limit=options.limit, peak=peak, on_step=on_step)
    found["callers_at_peak"] = callers
    found["steps"] = {
        name: step | fill for (name, step), fill in zip(found["steps"].items(), fills, strict=True)
    }
    return found


async def scraped(url: str) -> dict[str, float]:
    """Return the batches' counters of the one engine."""
    async with aiohttp.ClientSession() as session, session.get(url + "/metrics") as response:
        text = await response.text()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {sample.name: sample.value for sample in samples if sample.name in FILL}


async def in_process(
    config: Config, given: list[dict[str, Any]], options: argparse.Namespace, *, rate: float
) -> dict[str, Any]:
    """Return the same requests at the same moments, given to a host in this process."""
    torch.set_num_threads(options.threads)
    async with Host(config) as host:
        calls = [Call(rows=[RowIn(**row)], timeout_seconds=60.0) for row in given]

        async def send(number: int) -> Outcome:
            try:
                await host.predict(calls[number % len(calls)])
            except AttemptError as error:
                return Outcome(type(error).__name__)
            return Outcome("200")

        await open_loop(send, rate=2.0, seconds=3.0, limit=options.limit)
        step = await open_loop(send, rate=rate, seconds=options.seconds, limit=options.limit, seed=0)
    return {
        "rate": step.offered_rate,
        "answered_p50": step.answered_p50,
        "answered_p99": step.answered_p99,
        "statuses": step.statuses,
    }


if __name__ == "__main__":
    main()
