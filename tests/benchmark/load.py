"""An open-loop load generator for a deployment: requests come when they come, whatever became of those before.

    python -m tests.benchmark.load --url http://127.0.0.1:8000 --rate 20 --seconds 30
    python -m tests.benchmark.load --url http://127.0.0.1:8000 --seconds 30      # finds the peak, then shares of it

Arrivals are a Poisson process of a fixed seed. Latency counts from the moment at which a request was due, so a generator
or a server that falls behind is not flattered by it (coordinated omission). Each request asks one row of real GLUE text,
or of the micro-world where `--data` is not there.

The peak is what a closed loop gets, its callers doubled until more of them get nothing more. Goodput counts answers that
came within `--limit` of their moment, per second, inside the time of sending and after its first fifth.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow.parquet as pq

from attempt_ray.data import microworld
from attempt_ray.tasks import get_task

GLUE = ("cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli")
MINIATURES = ("cb", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli")
SHARES = (0.5, 0.8, 1.0, 2.0, 5.0)
REFUSALS = ("429", "503")
WARM_UP = 0.2
"""Share of a step that is not counted in its goodput."""
GAIN = 1.05
"""More callers have to answer this much more for even more to be tried."""
MOST_CALLERS = 512


@dataclass(frozen=True)
class Outcome:
    """What came of a request."""

    status: str
    """HTTP status, or the name of the exception."""
    retry_after: bool = False
    """Whether it said when to come again."""
    inside_seconds: float | None = None
    """What the engine says that it took, its queue included."""


Send = Callable[[int], Awaitable[Outcome]]
"""Sends the n-th request."""


@dataclass(frozen=True)
class _Sent:
    due: float
    sent: float
    ended: float
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rate for some time. Times are milliseconds; None where there is nothing to measure."""

    wanted_rate: float
    """Requests per second that were asked for."""
    offered_rate: float
    """Requests per second that were sent."""
    late_p99: float | None
    """From when a request was due to when it was sent: the generator's own delay."""
    generator_cpu: float
    """Cores that this process used, a server in it included."""
    requests: int
    goodput: float
    """Answers per second within the limit."""
    statuses: dict[str, int]
    outside_p50: float | None
    """From when a request was sent to its answer, less what the engine says that it took: what HTTP adds."""
    outside_p99: float | None
    answered_p50: float | None
    answered_p99: float | None
    refused_p50: float | None
    refused_p99: float | None
    refusals_without_retry_after: int
    """429 and 503 that do not say when to come again."""


async def open_loop(send: Send, *, rate: float, seconds: float, limit: float, seed: int = 0) -> Step:
    """Send requests at a mean rate for some seconds and return what came of all of them.

    Args:
        send: Sends the n-th request; it need not raise, and what it raises is the outcome.
        rate: Requests per second in the mean.
        seconds: How long requests are sent; answers are waited for.
        limit: Seconds within which an answer counts as good.
        seed: Of the arrivals.
    """
    rng = random.Random(seed)
    gaps = itertools.accumulate(rng.expovariate(rate) for _ in itertools.count())
    arrivals = list(itertools.takewhile(lambda at: at < seconds, gaps))
    started, cpu = time.perf_counter(), time.process_time()
    under_way: list[asyncio.Task[_Sent]] = []
    for number, arrival in enumerate(arrivals):
        due = started + arrival
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        under_way.append(asyncio.create_task(_one(send, number, due)))
    sending = max(seconds, time.perf_counter() - started)
    cpu = (time.process_time() - cpu) / sending
    sent = await asyncio.gather(*under_way)
    first, last = started + WARM_UP * seconds, started + seconds
    good = sum(
        one.outcome.status == "200" and first <= one.ended < last and one.ended - one.due <= limit
        for one in sent
    )
    answered = [one.ended - one.due for one in sent if one.outcome.status == "200"]
    outside = [
        one.ended - one.sent - one.outcome.inside_seconds
        for one in sent
        if one.outcome.inside_seconds is not None
    ]
    refused = [one.ended - one.due for one in sent if one.outcome.status in REFUSALS]
    return Step(
        wanted_rate=round(rate, 2),
        offered_rate=round(len(sent) / sending, 2),
        late_p99=_quantile([one.sent - one.due for one in sent], 0.99),
        generator_cpu=round(cpu, 3),
        requests=len(sent),
        goodput=round(good / (last - first), 2),
        statuses=dict(Counter(one.outcome.status for one in sent).most_common()),
        outside_p50=_quantile(outside, 0.5),
        outside_p99=_quantile(outside, 0.99),
        answered_p50=_quantile(answered, 0.5),
        answered_p99=_quantile(answered, 0.99),
        refused_p50=_quantile(refused, 0.5),
        refused_p99=_quantile(refused, 0.99),
        refusals_without_retry_after=sum(
            one.outcome.status in REFUSALS and not one.outcome.retry_after for one in sent
        ),
    )


async def closed_loop(send: Send, *, callers: int, seconds: float) -> float:
    """Return answers per second where every caller asks again as soon as it has been answered."""
    ends: list[float] = []
    numbers = itertools.count()
    started = time.perf_counter()

    async def call() -> None:
        while time.perf_counter() < started + seconds:
            sent = await _one(send, next(numbers), time.perf_counter())
            if sent.outcome.status == "200":
                ends.append(sent.ended)
            else:
                await asyncio.sleep(0.05)

    await asyncio.gather(*(call() for _ in range(callers)))
    first, last = started + WARM_UP * seconds, started + seconds
    return sum(first <= end < last for end in ends) / (last - first)


async def find_peak(
    send: Send, *, seconds: float, callers: int = 8, most: int = MOST_CALLERS
) -> tuple[float, int]:
    """Return the most answers per second that a closed loop gets, and its callers."""
    best = (0.0, callers)
    while callers <= most:
        rate = await closed_loop(send, callers=callers, seconds=seconds)
        if rate < GAIN * best[0]:
            break
        best = (rate, callers)
        callers *= 2
    return best


async def _one(send: Send, number: int, due: float) -> _Sent:
    sent = time.perf_counter()
    try:
        outcome = await send(number)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        outcome = Outcome(type(error).__name__)
    return _Sent(due, sent, time.perf_counter(), outcome)


def _quantile(seconds: Sequence[float], share: float) -> float | None:
    """Return a quantile in milliseconds: the least value that this share does not exceed."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    return round(1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)


class HttpSender:
    """Requests to `/v1/predict`, in turn from a list of bodies. Use it as an async context manager."""

    def __init__(
        self, url: str, bodies: Sequence[bytes], *, key: str | None = None, timeout: float = 120.0
    ) -> None:
        self._url, self._bodies = url.rstrip("/") + "/v1/predict", bodies
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout = aiohttp.ClientTimeout(total=timeout)

    async def __aenter__(self) -> HttpSender:
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=self._timeout, headers=self._headers
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def __call__(self, number: int) -> Outcome:
        body = self._bodies[number % len(self._bodies)]
        async with self._session.post(self._url, data=body) as response:
            await response.read()
            return Outcome(
                str(response.status),
                "Retry-After" in response.headers,
                _inside(response.headers.get("Server-Timing")),
            )


def _inside(timing: str | None) -> float | None:
    """Return the seconds of a `Server-Timing` header: queue and engine."""
    if timing is None:
        return None
    return sum(float(part.partition("dur=")[2]) for part in timing.split(",")) / 1e3


def rows(data: Path, *, tasks: Sequence[str] | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Return dev rows of GLUE tasks, or of the micro-world where `data` is not there, as requests have them, shuffled."""
    real = (data / "hub").is_dir()
    found: list[dict[str, Any]] = []
    for name in tasks or (GLUE if real else MINIATURES):
        task = get_task(name)
        if real:
            file = data / "hub" / task.hub_id / (task.hub_config or "default") / f"{task.dev_split}.parquet"
            given = pq.read_table(file).slice(0, 200).to_pylist()
        else:
            given = microworld.rows(name, "validation", seed=seed, count=200)
        found += [
            {"task": name, "fields": {key: value for key, value in row.items() if isinstance(value, str)}}
            for row in given
        ]
    random.Random(seed).shuffle(found)
    return found


def bodies(given: Sequence[dict[str, Any]], *, rows_each: int = 1) -> list[bytes]:
    """Return requests of some rows each."""
    return [
        json.dumps({"rows": given[start : start + rows_each]}).encode()
        for start in range(0, len(given) - rows_each + 1, rows_each)
    ]


async def ladder(
    send: Send,
    *,
    seconds: float,
    limit: float,
    seed: int = 0,
    peak: float | None = None,
    shares: Sequence[float] = SHARES,
    settle: float = 2.0,
    on_step: Callable[[float, Step], Awaitable[None]] | None = None,
) -> dict[str, Any]:
    """Return the peak and what became of each share of it."""
    callers = None
    if peak is None:
        peak, callers = await find_peak(send, seconds=seconds / 2)
    if not peak:
        sys.exit("no request was answered; look at the server")
    steps: dict[str, Any] = {}
    for number, share in enumerate(shares):
        await asyncio.sleep(settle)
        step = await open_loop(send, rate=share * peak, seconds=seconds, limit=limit, seed=seed + number)
        steps[f"{share:.0%}"] = asdict(step)
        if on_step is not None:
            await on_step(share, step)
    return {"peak": round(peak, 2), "callers_at_peak": callers, "steps": steps}


def table(steps: dict[str, Any]) -> str:
    """Return the steps as a table in Markdown."""
    heads = ["load", "offered/s", "goodput/s", "answered p50 ms", "p99", "HTTP adds p50", "p99"]
    heads += ["refused p50", "p99", "statuses"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, step in steps.items():
        names = ["offered_rate", "goodput"]
        names += [
            f"{kind}_{point}" for kind in ("answered", "outside", "refused") for point in ("p50", "p99")
        ]
        cells = ["-" if step[one] is None else f"{step[one]:,.1f}" for one in names]
        statuses = ", ".join(f"{status}: {count}" for status, count in step["statuses"].items())
        lines.append("| " + " | ".join([name, *cells, statuses]) + " |")
    return "\n".join(lines)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    given = bodies(rows(options.data, tasks=options.tasks, seed=options.seed), rows_each=options.rows_each)
    async with HttpSender(options.url, given, key=options.key) as send:
        if options.rate is not None:
            step = await open_loop(
                send, rate=options.rate, seconds=options.seconds, limit=options.limit, seed=options.seed
            )
            return {"peak": None, "steps": {f"{options.rate:g}/s": asdict(step)}}
        return await ladder(
            send, seconds=options.seconds, limit=options.limit, seed=options.seed, peak=options.peak
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True, help="where the deployment listens")
    parser.add_argument(
        "--rate", type=float, help="requests per second; without it, the peak and shares of it"
    )
    parser.add_argument("--peak", type=float, help="the peak, where it is known")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each rate lasts")
    parser.add_argument("--limit", type=float, default=5.0, help="seconds within which an answer is good")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows-each", type=int, default=1, help="rows of a request")
    parser.add_argument("--tasks", nargs="+", help="tasks to ask; default: GLUE's, or its miniatures")
    parser.add_argument("--key", help="API key")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    result = asyncio.run(run(options))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(table(result["steps"]))


if __name__ == "__main__":
    main()
