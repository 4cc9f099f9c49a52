"""A study of short real runs, in a process of its own, that tests kill parts of.

Run as a script with the study as JSON on stdin; prints one line for every event and the results at the end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from attempt_ray.config import Config, parse
from attempt_ray.orchestration.pool import Job, PoolEvent, run_jobs


def jobs_of(page: dict[str, Any], seeds: list[int]) -> list[Job]:
    """Return a source run for every seed, of its two sources in turn."""
    config = parse([page])
    sources = config.attention.sources
    return [
        Job(
            key=f"{seed}",
            config=config.updated(
                job="source", method="prompt_tuning", tasks=(sources[seed % len(sources)],), seed=seed
            ),
        )
        for seed in seeds
    ]


def learned(config: Config) -> dict[str, bytes]:
    """Return what every run under the config's directory learned, by the run's name."""
    return {path.parent.name: path.read_bytes() for path in Path(config.runs).glob("*/best.safetensors")}


def descendants(pid: int) -> dict[int, str]:
    """Return the title of every process below `pid`, by its id."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), ()):
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            waiting.append(child)
    return found


def titled(pid: int, text: str) -> list[int]:
    """Return the processes below `pid` whose title holds `text`."""
    return sorted(child for child, title in descendants(pid).items() if text in title)


@contextmanager
def nodes(count: int) -> Iterator[None]:
    """Hold a cluster of `count` nodes besides a head without room for workers; a pool's own for 0."""
    if not count:
        yield
        return
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        for _ in range(count):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        for node in ray.nodes():
            if node["Resources"].get("CPU"):
                tell("node", node["NodeID"], cluster.address)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    given = json.load(sys.stdin)

    def on_event(event: PoolEvent) -> None:
        facts = event.facts
        tell(event.kind, event.key, facts["step"] if "step" in facts else facts.get("kind", ""))

    page = given["page"]
    with nodes(given["nodes"]):
        results = run_jobs(
            jobs_of(page, given["seeds"]),
            cluster=parse([page]).cluster,
            on_event=on_event,
            in_process=given["in_process"],
        )
    for result in results:
        tell("result", result.key, result.status, result.attempts, result.error)


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
