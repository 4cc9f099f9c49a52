"""The figures of a study: parameters and scores by size (Figure 4), attention (Figure 5), means, sweep, leave-one-out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attempt_ray.reporting.attention import TARGET, TargetWeights
from attempt_ray.reporting.drawing import (
    GREY,
    new_figure,
    png,
    strip,
    style_of,
    svg,
    write_legend,
    write_title,
)
from attempt_ray.reporting.parameters import ParameterTable
from attempt_ray.reporting.study import scaling as by_size
from attempt_ray.reporting.study.ablations import SweepPoint
from attempt_ray.reporting.study.bootstrap import Bootstrap, Estimate
from attempt_ray.reporting.study.cells import Study
from attempt_ray.reporting.study.leave_one_out import LeaveOneOut
from attempt_ray.reporting.study.ordering import Ordering
from attempt_ray.reporting.study.paper import task_name
from attempt_ray.reporting.tables import method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROWS = {
    "FT": "finetune",
    "Adapter": "adapter",
    "BitFit": "bitfit",
    "LoRA": "lora",
    "PT": "prompt_tuning",
    "SPoT": "spot",
    "ATTEMPT-ST": "attempt",
    "MPT": "mpt",
    "DePT": "dept",
    "FT-MT": "finetune_mt",
    "Adapter-MT": "adapter_mt",
    "SPoT-MT": "spot_generic_mt",
    "ATTEMPT-MT": "attempt_mt",
    "MPT-MT": "mpt_mt",
}
"""Our row of each method of the parameter table."""
_BESIDE = 1.02
"""Points of one backbone stand beside each other, each that much to the right of the one before, so that bars are seen."""
_EQUAL = 1.1
"""Values up to so many times the smallest of them are named together."""
_APART = 0.035
"""Least distance of two labels beside the last points, as a share of the axis."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure as it is written."""

    name: str
    caption: str
    png: bytes
    svg: bytes


def _picture(name: str, caption: str, figure: Figure) -> Picture:
    return Picture(name=name, caption=caption, png=png(figure), svg=svg(figure))


def parameters(table: ParameterTable) -> Picture:
    """Return Figure 4a: trainable parameters per task by size of the backbone; no run is needed."""
    figure = new_figure(8.0, 5.4)
    axes = figure.subplots()
    sizes = [entry.shape.parameters(vocabulary=entry.shape.vocabulary) for entry in table.backbones]
    methods = [count.method for count in table.backbones[0].counts]
    ends: list[tuple[float, str, str]] = []
    for method in methods:
        counts = [
            next(count.per_task for count in entry.counts if count.method == method)
            for entry in table.backbones
        ]
        colour, marker, line = style_of(_ROWS.get(method, method), methods)
        axes.plot(sizes, counts, color=colour, marker=marker, ls=line, lw=1.5, ms=6, mec="white", mew=0.6)
        ends.append((counts[-1], method, colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    _label_ends(axes, ends, x=sizes[-1])
    axes.set_xticks(
        sizes,
        [f"{entry.shape.name}\n{_short(size)}" for entry, size in zip(table.backbones, sizes, strict=True)],
    )
    axes.minorticks_off()
    axes.set_ylabel("trainable parameters per task")
    _grid(axes)
    write_title(
        figure,
        "Trainable parameters per task by size of the backbone (Figure 4a)",
        f"from the backbones' shapes alone; m = {table.prompt_length} prompt positions, r = {table.bottleneck}, "
        f"N = {table.num_tasks} tasks in the -MT rows; both axes logarithmic",
    )
    return _picture("figure-4a", "Figure 4a: trainable parameters per task by size of the backbone", figure)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], *, x: float) -> None:
    """Write each line's name beside its last point; almost equal ones share a place, near ones are moved apart.

    The axes are logarithmic.
    """
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    apart = _APART * (high - low)
    together: dict[float, list[tuple[str, str]]] = {}
    first = 0.0
    for value, name, colour in sorted(ends):
        first = first if value < _EQUAL * first else value
        together.setdefault(first, []).append((name, colour))
    places: list[float] = []
    for value in together:
        place = math.log10(value)
        places.append(place if not places else max(place, places[-1] + apart))
    for place, names in zip(places, together.values(), strict=True):
        axes.annotate(
            ", ".join(name for name, _ in names),
            (x, 10**place),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=names[0][1] if len(names) == 1 else GREY,
            annotation_clip=False,
        )


def scaling(study: Study, bootstrap: Bootstrap) -> Picture | None:
    """Return Figure 4b: mean scores by size of the backbone; None where the study has one backbone alone.

    A method's line is over the targets that it has on all of its backbones.
    """
    sizes = by_size.sizes(study)
    if len(sizes) < 2:
        return None
    figure = new_figure(8.0, 5.0)
    axes = figure.subplots()
    rows = dict.fromkeys(line.row for name in sizes for line in study.lines(backbone=name))
    drawn = by_size.points(study, bootstrap)
    for place, (row, points) in enumerate(drawn.items()):
        colour, marker, line = style_of(row, rows)
        x = [sizes[name] * _BESIDE ** (place - len(drawn) / 2) for name, _ in points]
        means = [mean for _, mean in points]
        axes.errorbar(
            x,
            [mean.value for mean in means],
            yerr=_bars(means),
            color=colour,
            marker=marker,
            ls=line,
            lw=1.5,
            ms=7,
            mec="white",
            mew=0.6,
            elinewidth=1,
            capsize=2,
            label=method_name(row),
        )
    axes.set_xscale("log")
    axes.set_xticks(list(sizes.values()), [f"{name}\n{_short(size)}" for name, size in sizes.items()])
    axes.minorticks_off()
    axes.margins(x=0.08)
    axes.set_ylabel("mean test score, points")
    _grid(axes)
    write_title(
        figure,
        "Scores by size of the backbone (Figure 4b)",
        f"mean over the targets that a method has on all of its backbones, and over seeds; bars: {bootstrap.level:.0%} "
        "interval over test rows and seeds",
    )
    write_legend(figure, axes)
    return _picture("figure-4b", "Figure 4b: scores by size of the backbone", figure)


def means(found: Ordering, *, level: float) -> Picture | None:
    """Return all rows' means with their intervals, the best on top; None without an ordering."""
    if not found.means:
        return None
    figure = new_figure(8.0, 1.5 + 0.32 * len(found.means))
    axes = figure.subplots()
    labels = [line.row for line, _, _ in found.means]
    for place, (line, mean, difference) in enumerate(reversed(found.means)):
        colour, marker, _ = style_of(line.row, labels)
        axes.errorbar(
            mean.value,
            place,
            xerr=_bars([mean]),
            fmt=marker,
            color=colour,
            ms=8,
            mec="white",
            mew=0.6,
            elinewidth=1.6,
            capsize=3,
        )
        told = f"{mean.value:.1f}" + ("" if difference is None or not difference.decided else " *")
        axes.annotate(
            told, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=GREY
        )
    axes.set_yticks(range(len(labels)), [line.name for line, _, _ in reversed(found.means)])
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("mean test score, points")
    _grid(axes)
    write_title(
        figure,
        "Ordering found",
        f"mean over {len(found.tasks)} targets and seeds; bar: {level:.0%} interval over test rows and seeds; *: the paired "
        "interval of the difference to ATTEMPT leaves out 0",
    )
    return _picture("means", "All rows by their mean", figure)


def attention(rows: Sequence[TargetWeights], *, label: str) -> Picture | None:
    """Return Figure 5: mean mixing weights, targets against candidates, and their deviation over instances; None without."""
    if not rows:
        return None
    sources = dict.fromkeys(name for each in rows for name in each.weights if name != TARGET)
    candidates = [*sources, *([TARGET] if any(TARGET in each.weights for each in rows) else [])]
    figure = new_figure(max(7.5, 1.24 * len(candidates) + 3.0), 1.9 + 0.34 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, title, values, colours in (
        (left, "mean over test instances", [each.weights for each in rows], "Blues"),
        (right, "standard deviation over instances", [each.std for each in rows], "Oranges"),
    ):
        grid = np.array([[value.get(name, np.nan) for name in candidates] for value in values])
        ceiling = max(float(np.nanmax(grid)), 1e-9)
        axes.imshow(np.ma.masked_invalid(grid), cmap=colours, vmin=0, vmax=ceiling, aspect="auto")
        for (line, column), value in np.ndenumerate(grid):
            if np.isfinite(value):
                colour = "white" if value > 0.6 * ceiling else "#222222"
                axes.text(column, line, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(
            range(len(candidates)),
            ["target" if name == TARGET else name for name in candidates],
            rotation=40,
            ha="right",
            rotation_mode="anchor",
        )
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(0.5, len(candidates) - 1), minor=True)
        axes.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
        axes.grid(visible=True, which="minor", color="white", lw=1.5)
        axes.tick_params(which="minor", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    left.set_yticks(range(len(rows)), [f"{task_name(each.task)} ({each.test_rows:,})" for each in rows])
    seeds = sorted({len(each.by_seed) for each in rows})
    write_title(
        figure,
        f"What attends to what: {method_name(label)} (Figure 5)",
        f"weights of the kept state over test instances (n in brackets), then the mean of {_count(seeds)}; "
        "each row of the left map sums to 1",
    )
    return _picture(
        f"figure-5-{label.replace('_', '-')}", f"Figure 5: mixing weights of {method_name(label)}", figure
    )


def sweep(points: Sequence[SweepPoint], *, lines: Mapping[str, Estimate], level: float) -> Picture | None:
    """Return the means by temperature, with `lines` for comparison; None without a sweep."""
    if not points:
        return None
    figure = new_figure(7.0, 4.0)
    axes = figure.subplots()
    colour = style_of("attempt", ())[0]
    numbers = [place for place, point in enumerate(points) if point.number is not None]
    axes.plot(numbers, [points[place].mean.value for place in numbers], "-", color=colour, lw=1.5)
    axes.errorbar(
        range(len(points)),
        [point.mean.value for point in points],
        yerr=_bars([point.mean for point in points]),
        fmt="o",
        color=colour,
        ms=7,
        mec="white",
        mew=0.6,
        capsize=3,
        elinewidth=1.2,
        label="ATTEMPT by temperature",
    )
    for row, mean in lines.items():
        colour, _, line = style_of(row, lines)
        shown = "ATTEMPT as configured" if row == "attempt" else method_name(row)
        axes.axhline(mean.value, color=colour, ls=":" if row == "attempt" else line, lw=1.3, label=shown)
    axes.set_xticks(range(len(points)), [point.name for point in points])
    axes.set_xlabel("temperature K (scores are divided by d e^K)")
    axes.set_ylabel("mean test score, points")
    axes.margins(x=0.08)
    _grid(axes)
    write_title(
        figure,
        "Sweep of the temperature",
        f"mean over {len(points[0].mean.tasks)} targets and seeds; bars: {level:.0%} interval over test rows and seeds",
    )
    write_legend(figure, axes)
    return _picture("temperature", "Sweep of the temperature", figure)


def leave_one_out(found: LeaveOneOut, *, level: float) -> Picture | None:
    """Return drops against weights, a panel for each target; None without removals."""
    if not found.removals:
        return None
    columns = min(4, len(found.tasks))
    depth = -(-len(found.tasks) // columns)
    figure = new_figure(max(5.5, 2.7 * columns + 0.4), 1.3 + 2.3 * depth)
    panels = figure.subplots(depth, columns, squeeze=False)
    sources = list(dict.fromkeys(removal.source for removal in found.removals))
    for number, axes in enumerate(panels.flat):
        if number >= len(found.tasks):
            axes.set_visible(False)
            continue
        task = found.tasks[number]
        removals = [removal for removal in found.removals if removal.task == task]
        axes.axhline(0, color="#BBBBBB", lw=0.9)
        for removal in removals:
            colour = _SOURCE_COLOURS[sources.index(removal.source) % len(_SOURCE_COLOURS)]
            axes.errorbar(
                removal.weight,
                removal.drop.value,
                yerr=_bars([removal.drop]),
                fmt="o",
                color=colour,
                ms=6,
                mec="white",
                mew=0.5,
                elinewidth=1,
                label=removal.source,
            )
        axes.set_title(f"{task_name(task)}: \u03c1 {found.correlation(task)}", fontsize=8.5)
        axes.margins(x=0.12)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=4)
        if number + columns >= len(found.tasks):
            axes.set_xlabel("mean attention weight", fontsize=8)
        _grid(axes)
    figure.supylabel("points lost without it", fontsize=9)
    write_title(
        figure,
        "Which source mattered, and what was attended to",
        f"bars: {level:.0%} interval of the drop; \u03c1: Spearman's rank correlation; all pairs together: {found.correlation()}",
    )
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        [handles[source] for source in sources],
        sources,
        loc="outside lower center",
        ncols=min(6, len(sources)),
        frameon=False,
        fontsize=9,
    )
    return _picture("leave-one-out", "Points lost without a source, against its attention", figure)


_SOURCE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9", "#8C6D31")


def _count(seeds: Sequence[int]) -> str:
    """Return numbers of seeds in words, `seeds` ascending."""
    ends = seeds if len(seeds) == 1 else (seeds[0], seeds[-1])
    return f"{' to '.join(map(str, ends))} {'seed' if ends[-1] == 1 else 'seeds'}"


def _bars(estimates: Sequence[Estimate]) -> Any:
    """Return distances to both ends of the intervals, none where there is no interval."""
    return np.array(
        [
            [0.0 if each.low is None else max(0.0, each.value - each.low) for each in estimates],
            [0.0 if each.high is None else max(0.0, each.high - each.value) for each in estimates],
        ]
    )


def _grid(axes: Axes) -> None:
    axes.grid(visible=True, color="#EBEBEB", lw=0.8)
    strip(axes)


def _short(count: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"
