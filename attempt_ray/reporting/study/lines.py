"""A line of the report: what is repeated over tasks and seeds, how it is printed, and where it stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from attempt_ray.reporting.tables import method_name, method_order


@dataclass(frozen=True, order=True)
class Line:
    """What is repeated over tasks and seeds."""

    row: str
    ablation: str | None = None
    backbone: str = ""

    @property
    def label(self) -> str:
        """The line's name where backbones are not told apart."""
        return f"{self.row}/{self.ablation}" if self.ablation else self.row

    @property
    def name(self) -> str:
        """How the line is printed."""
        return (
            f"{method_name(self.row)}: {ablation_name(self.ablation)}"
            if self.ablation
            else method_name(self.row)
        )


_ABLATIONS = {
    "no_target": "no target",
    "no_attention": "no attention, 1/(t+1)",
    "no_attention_sources": "no attention, 1/t",
    "single_prompt": "single prompt",
    "no_prior": "no prior transfer",
    "frozen_attention": "G frozen",
    "frozen_norm": "LayerNorm frozen",
    "authors_pooling": "authors' pooling",
    "init_vocab": "start from vocabulary",
    "init_normal": "start from noise",
    "one_rate": "one learning rate",
}
"""How ablations are printed, in the order of the table; others follow."""

TEMPERATURE, WITHOUT = "temperature_", "without_"
"""Beginnings of the ablations that are a sweep of the temperature, and that leave a source out."""


def ablation_name(ablation: str) -> str:
    """Return how an ablation is printed."""
    if ablation.startswith(TEMPERATURE):
        return f"temperature {ablation.removeprefix(TEMPERATURE)}"
    if ablation.startswith(WITHOUT):
        return f"without {ablation.removeprefix(WITHOUT)}"
    return _ABLATIONS.get(ablation, ablation.replace("_", " "))


def temperature(ablation: str) -> float | None:
    """Return the K of an ablation of the sweep; None for others and where the sources give it."""
    try:
        return float(ablation.removeprefix(TEMPERATURE)) if ablation.startswith(TEMPERATURE) else None
    except ValueError:
        return None


def line_order(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Return lines without repetition: rows in the order of `METHODS`, each before its ablations."""
    distinct = set(lines)
    rows = method_order(line.row for line in distinct)
    known = list(_ABLATIONS)

    def key(line: Line) -> tuple[Any, ...]:
        ablation = line.ablation or ""
        place = known.index(ablation) if ablation in known else len(known)
        return (
            rows.index(line.row),
            bool(ablation),
            place,
            temperature(ablation) or 0.0,
            ablation,
            line.backbone,
        )

    return tuple(sorted(distinct, key=key))
