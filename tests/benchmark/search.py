"""What a search finds on embedded tasks, and what it takes, in commands that a user types.

- `found`: for each search seed, 30 trials with ASHA, the paper's point first; a random search without pruning that may take
  as many optimizer steps; and the paper's point alone. Dev scores choose, and three fresh seeds are tested.
- `time`: the same trials, none pruned: packed on two workers of a pool, one after the other in one process with two
  threads, and each in a process of its own with two threads; and pruned on the pool.

Sources and priors are trained first, unless the directory has them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml
from common import machine, write

from tune_spaces.embedded import SPACE

TASKS = ("rte", "cb", "mrpc")
TRIALS = 30
TIMED = 6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, required=True, help="where bank, runs and searches go")
    parser.add_argument("--seeds", type=int, default=3, help="search seeds")
    parser.add_argument("--steps", type=int, help="steps of every run; else the search chooses them, too")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=["found", "time"], choices=["found", "time"])
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    for job in ("train_sources", "train_prior"):
        run(options.directory, f"jobs.{job}", "--config", "embedded")
    result: dict[str, Any] = {"tasks": TASKS, "trials": TRIALS, "machine": machine()}
    for part in options.parts:
        result[part] = {"found": found, "time": timed}[part](options)
        write(result, options.out)
    print(json.dumps(result, indent=1))


def found(options: argparse.Namespace) -> dict[str, Any]:
    """Return what each way finds, by search seed."""
    page = SPACE.model_dump(mode="json")
    if options.steps is not None:
        page["knobs"] = [knob for knob in page["knobs"] if knob["key"] != "training.steps"]
        page["fixed"] = {"training.steps": options.steps, "training.eval_steps": max(1, options.steps // 5)}
        page["known"] = [{key: page["known"][0][key] for key in page["known"][0] if key != "training.steps"}]
    spaces = {}
    for name, known in (("searched", page["known"]), ("random", [])):
        spaces[name] = options.directory / f"{name}-{options.steps}.yaml"
        spaces[name].write_text(yaml.safe_dump(page | {"known": known, "name": name}))
    ways: dict[str, list[dict[str, Any]]] = {"tpe_asha": [], "random": [], "paper": []}
    for seed in range(options.seeds):
        fresh = [100 * (seed + 1) + number for number in range(3)]
        common = [f"search.seed={seed}", f"search.seeds=[{seed + 1}]", f"search.final_seeds={fresh}"]
        common.append(f"search.space={spaces['searched']}")
        ended = f"{options.steps}-{seed}"
        searched = tune(options.directory, f"tpe-{ended}", *common, f"search.trials={TRIALS}")
        ways["tpe_asha"].append(searched)
        limit = [f"search.space={spaces['random']}", "search.sampler=random", "search.pruner=none"]
        budget = ["search.trials=1000", f"search.max_steps={searched['steps']}"]
        ways["random"].append(tune(options.directory, f"random-{ended}", *common, *limit, *budget))
        ways["paper"].append(tune(options.directory, f"paper-{ended}", *common, "search.trials=1"))
    return {name: summary(results) for name, results in ways.items()}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of one way over search seeds."""
    dev, test = [one["best"]["dev"] for one in results], [one["final"]["mean"] for one in results]
    spread = {"dev_std": round(stdev(dev), 2), "test_std": round(stdev(test), 2)} if len(dev) > 1 else {}
    return {
        "dev": round(fmean(dev), 2),
        "test": round(fmean(test), 2),
        **spread,
        "by_seed": [
            {
                key: one[key]
                for key in ("finished", "pruned", "failed_trials", "steps", "best", "final", "seconds")
            }
            for one in results
        ],
    }


def timed(options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds that the same trials take in each way, start-up counted, the final test not."""
    page = ["search.sampler=random", "search.final_seeds=[7]", "search.seed=9"]
    two = ["training.threads=2"]
    seconds: dict[str, float] = {}

    def clocked(name: str, *settings: str, ray: bool = False, trials: int = TIMED) -> None:
        started = time.monotonic()
        done = tune(options.directory, f"time-{name}", *page, *settings, f"search.trials={trials}", ray=ray)
        tested = done["seconds"] - done["search_seconds"]
        seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started - tested, 1)

    clocked("pool", "search.pruner=none", ray=True)
    clocked("pool_pruned", ray=True)
    clocked("one_process", "search.pruner=none", "search.packed=false", *two)
    # A process for each trial: the search is taken up again and again, one trial further each time.
    for number in range(1, TIMED + 1):
        clocked("processes", "search.pruner=none", "search.packed=false", *two, trials=number)
    return seconds


def tune(directory: Path, study: str, *settings: str, ray: bool = False) -> dict[str, Any]:
    """Search, and return what the job printed."""
    named = [f"study.targets=[{','.join(TASKS)}]", f"search.study={study}", *settings]
    given = [part for setting in named for part in ("--set", setting)]
    return run(directory, "jobs.tune", "--config", "embedded", *([] if ray else ["--no-ray"]), *given)


def run(directory: Path, module: str, *options: str) -> dict[str, Any]:
    """Run a job in the directory; return the JSON that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", module, *options],
        cwd=directory,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
