"""Make a backbone from nothing: `python -m jobs.pretrain_backbone --config pretrain/nano`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from jobs.edge import perform


def pretrain_backbone(configs: Sequence[str], settings: Sequence[str] = ()) -> dict[str, Any]:
    """Pre-train the backbone that the presets or files describe, and return its recipe.

    Raises:
        AttemptError: Something cannot be used; nothing was trained.
    """
    from attempt_ray.config import config_paths, load_pretrain
    from attempt_ray.training.pretraining import PretrainProgress, pretrain
    from jobs.watch import step_bar

    config = load_pretrain(config_paths(configs), settings)
    with step_bar("pre-training", total=config.steps) as advance:

        def on_progress(progress: PretrainProgress) -> None:
            advance(progress.step, loss=progress.loss, tokens=progress.tokens)

        made = pretrain(config, on_progress=on_progress)
    return {"output": config.output, **{key: made[key] for key in made if key != "config"}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the job from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="append", default=[], help="preset or YAML file; may be repeated")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    given = parser.parse_args(arguments)
    perform(lambda: pretrain_backbone(given.config or ["pretrain/nano"], given.settings))


if __name__ == "__main__":
    main()
