"""Figures as PNG bytes: results, learning curves and the attention heatmap.

matplotlib is imported when a figure is drawn and used through its object API, so no global state is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attempt_ray.reporting import checks
from attempt_ray.reporting.attention import TARGET, AttentionTable, TargetWeights
from attempt_ray.reporting.drawing import GREY, new_figure, png, strip, style_of, write_legend, write_title
from attempt_ray.reporting.runs import Run
from attempt_ray.reporting.tables import ResultsTable, Row, Spread, method_name, method_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

Curve = tuple[Sequence[int], Sequence[float]]

_PARENT = "#D55E00"
_LOSS_BINS = 60
_TASK_COLUMNS = 4


def results_chart(table: ResultsTable) -> bytes | None:
    """Return dots of every method on every target, with seeds and spread; None without target runs."""
    if not table.rows:
        return None
    lines = table.columns[::-1]
    labels = [row.label for row in table.rows]
    shared = table.shared_tasks
    with_mean = len(shared) > 1
    height = (0.16 if len(lines) <= 8 else 0.11) * len(table.rows) + 0.2
    figure = new_figure(9.0, 1.9 + height * (len(lines) + with_mean))
    axes = figure.subplots()
    offsets = np.linspace(0.36, -0.36, len(table.rows)) if len(table.rows) > 1 else np.zeros(1)
    for index, row in enumerate(table.rows):
        colour, marker, _ = style_of(row.label, labels)
        spreads: list[Spread | None] = [row.cells.get(column.task) for column in lines]
        if with_mean:
            spreads.append(row.mean(shared))
        for line, spread in enumerate(spreads):
            if spread is None:
                continue
            y = line + offsets[index]
            axes.plot(
                list(spread.by_seed.values()), [y] * len(spread.by_seed), "|", color=colour, ms=5, alpha=0.55
            )
            axes.errorbar(
                spread.mean,
                y,
                xerr=spread.std,
                fmt=marker,
                color=colour,
                ms=7,
                mec="white",
                mew=0.6,
                elinewidth=1.4,
            )
        axes.plot([], [], marker, color=colour, ms=7, ls="none", label=method_name(row.label))
    names = [f"{column.task}\n{column.metric}, n={column.test_rows:,}" for column in lines]
    if with_mean:
        names.append(
            f"mean of {len(shared)}\nshared targets" if len(shared) < len(lines) else "mean of all\ntargets"
        )
        axes.axhspan(len(lines) - 0.5, len(lines) + 0.5, color="#F0F0F0", zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.5, len(names) - 0.5)
    for edge in range(1, len(names)):
        axes.axhline(edge - 0.5, color="#DDDDDD", lw=0.8, zorder=0)
    axes.set_xlabel("test score (headline metric, points)")
    axes.grid(visible=True, axis="x", color="#E5E5E5", lw=0.8)
    strip(axes)
    axes.tick_params(axis="y", length=0)
    write_title(
        figure,
        "Results on the test split",
        f"marker: mean over {_seed_range(table.rows)}; bar: ±1 standard deviation; ticks: single seeds; "
        "n: test examples",
    )
    write_legend(figure, axes)
    return png(figure)


def attention_heatmap(table: AttentionTable) -> bytes | None:
    """Return mean mixing weights, targets against candidates, with entropy; None without mixing weights.

    A frame marks known true parents.
    """
    if not table.rows:
        return None
    most = max(len(table.of(label)) for label in table.labels)
    columns = len(table.candidates)
    ceiling = max(max(row.weights.values()) for row in table.rows)
    panel = 0.62 * columns + 1.7
    figure = new_figure(max(6.5, panel * len(table.labels) + 0.6), 2.3 + 0.38 * most)
    panels = np.atleast_1d(figure.subplots(1, len(table.labels), squeeze=False)[0])
    images = []
    for axes, label in zip(panels, table.labels, strict=True):
        images.append(_heatmap_panel(axes, table.of(label), table.candidates, ceiling=ceiling))
        axes.set_title(method_name(label), fontsize=11, pad=8)
    bar: Any = figure.colorbar(images[0], ax=list(panels), fraction=0.02, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0)
    seeds = sorted({len(row.by_seed) for row in table.rows})
    framed = any(row.parents for row in table.rows)
    write_title(
        figure,
        "What attends to what: mean mixing weight of each candidate prompt",
        f"mean over test instances (n in brackets) and {_count(seeds)}; bold: most attended source; "
        + ("frame: true parent; " if framed else "")
        + f"H: mean entropy per instance, nats (uniform {table.rows[0].uniform_entropy_nats:.2f})",
    )
    return png(figure)


def _heatmap_panel(
    axes: Axes, rows: Sequence[TargetWeights], candidates: Sequence[str], *, ceiling: float
) -> AxesImage:
    from matplotlib.patches import Rectangle

    weights = np.array([[row.weights.get(name, np.nan) for name in candidates] for row in rows])
    image = axes.imshow(np.ma.masked_invalid(weights), cmap="Blues", vmin=0, vmax=ceiling, aspect="auto")
    for line, row in enumerate(rows):
        for column, name in enumerate(candidates):
            weight = row.weights.get(name)
            if weight is not None:
                colour = "white" if weight > 0.6 * ceiling else "#222222"
                bold = "bold" if name == row.top_source else "normal"
                axes.text(
                    column,
                    line,
                    f"{weight:.2f}",
                    ha="center",
                    va="center",
                    color=colour,
                    fontsize=8,
                    fontweight=bold,
                )
            if name in row.parents:
                frame = (column - 0.46, line - 0.44)
                axes.add_patch(Rectangle(frame, 0.92, 0.88, fill=False, ec=_PARENT, lw=1.8))
        axes.text(
            len(candidates) - 0.3,
            line,
            f"{row.entropy_nats:.2f}",
            ha="left",
            va="center",
            fontsize=8,
            color=GREY,
        )
    axes.text(len(candidates) - 0.3, -0.62, "H", ha="left", va="bottom", fontsize=9, color=GREY)
    axes.set_xticks(range(len(candidates)), ["own prompt" if name == TARGET else name for name in candidates])
    axes.tick_params(axis="x", rotation=40, length=0)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("right")
        tick.set_rotation_mode("anchor")
    axes.set_yticks(range(len(rows)), [f"{row.task} ({row.test_rows:,})" for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_xticks(np.arange(0.5, len(candidates) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axes.grid(visible=True, which="minor", color="white", lw=1.5)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if TARGET in candidates:
        axes.axvline(len(candidates) - 1.5, color=GREY, lw=1.2)
    return image


def learning_curves(runs: Iterable[Run]) -> bytes | None:
    """Return loss and dev score by optimizer step, overall and task by task; None without any history.

    A line is the mean over runs, a band their smallest and largest value. Source prompts follow the targets.
    """
    kept, _ = checks.newest(run for run in runs if run.history and run.report.job != "prior")
    targets = [run for run in kept if run.report.job == "target"]
    sources = [run for run in kept if run.report.job == "source"]
    if not kept:
        return None
    panels = [(task, [run for run in targets if task in run.report.tasks]) for task in _tasks(targets)]
    panels += [(task, [run for run in sources if task in run.report.tasks]) for task in _tasks(sources)]
    width = min(_TASK_COLUMNS, max(2, len(panels)))
    depth = -(-len(panels) // width)
    figure = new_figure(3.1 * width + 0.4, 4.6 + 2.3 * depth)
    grid = figure.add_gridspec(depth + 1, 2 * width, height_ratios=[1.25, *([1.0] * depth)])
    labels = method_order(run.report.label for run in kept)
    overview = targets or sources
    loss_axes = figure.add_subplot(grid[0, :width])
    dev_axes = figure.add_subplot(grid[0, width:])
    for label, of_label in _by_label(overview):
        style = style_of(label, labels)
        _draw(loss_axes, [_binned(run.curve("loss")) for run in of_label], style, overview=method_name(label))
        _draw(dev_axes, [run.curve("dev/mean") for run in of_label], style, overview=method_name(label))
    noun = "target" if targets else "source"
    loss_axes.set_title(f"training loss, mean over {noun} runs", fontsize=10)
    dev_axes.set_title(f"dev score (headline), mean over {noun} runs", fontsize=10)
    for axes in (loss_axes, dev_axes):
        axes.set_xlabel("optimizer step", fontsize=9)
    for index, (task, of_task) in enumerate(panels):
        row, column = divmod(index, width)
        axes = figure.add_subplot(grid[row + 1, 2 * column : 2 * column + 2])
        for label, of_label in _by_label(of_task):
            style = style_of(label, labels)
            _draw(axes, [_dev_curve(run, task) for run in of_label], style)
        first = of_task[0]
        kind = " (source)" if first.report.job == "source" else ""
        metric = first.report.headline.get(task, "dev score")
        axes.set_title(f"{task}{kind}: dev {metric}", fontsize=9)
        if row == depth - 1 or index + width >= len(panels):
            axes.set_xlabel("optimizer step", fontsize=8)
    for axes in figure.axes:
        strip(axes)
        axes.grid(visible=True, color="#EBEBEB", lw=0.8)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=5)
    counted = [f"{len(targets)} target" if targets else "", f"{len(sources)} source" if sources else ""]
    write_title(
        figure,
        "Learning curves",
        f"{' and '.join(part for part in counted if part)} runs; line: mean over runs; band: smallest "
        f"to largest run; loss in at most {_LOSS_BINS} bins of steps",
    )
    write_legend(figure, loss_axes)
    return png(figure)


def _tasks(runs: Sequence[Run]) -> tuple[str, ...]:
    rows = {task: run.report.train_rows.get(task, 0) for run in runs for task in run.report.tasks}
    return tuple(sorted(rows, key=lambda task: (rows[task], task)))


def _by_label(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    labels = method_order(run.report.label for run in runs)
    return [(label, [run for run in runs if run.report.label == label]) for label in labels]


def _dev_curve(run: Run, task: str) -> Curve:
    return run.curve(f"dev/{task}/{run.report.headline.get(task, '')}")


def _binned(curve: Curve) -> Curve:
    """Return the means of at most `_LOSS_BINS` equal spans of steps, at the last step of each."""
    steps, values = np.asarray(curve[0]), np.asarray(curve[1])
    if len(steps) <= _LOSS_BINS:
        return curve
    parts = np.array_split(np.arange(len(steps)), _LOSS_BINS)
    return [int(steps[part[-1]]) for part in parts], [float(values[part].mean()) for part in parts]


def _draw(
    axes: Axes, curves: Iterable[Curve], style: tuple[str, str, Any], *, overview: str | None = None
) -> None:
    """Draw the mean of several curves over the union of their steps, and the band they span.

    An `overview` line mixes tasks, whose band would tell nothing; it enters the legend by that name.
    """
    colour, marker, line = style
    drawn = [(np.asarray(steps, dtype=float), np.asarray(values)) for steps, values in curves if len(steps)]
    if not drawn:
        return
    grid: NDArray[Any] = np.unique(np.concatenate([steps for steps, _ in drawn]))
    each = np.ma.masked_invalid(
        [np.interp(grid, steps, values, left=np.nan, right=np.nan) for steps, values in drawn]
    )
    if len(drawn) > 1 and overview is None:
        axes.fill_between(grid, each.min(axis=0), each.max(axis=0), color=colour, alpha=0.12, lw=0)
    every = max(1, len(grid) // 5)
    axes.plot(
        grid,
        each.mean(axis=0),
        color=colour,
        ls=line,
        lw=1.6,
        marker=marker,
        ms=4,
        markevery=every,
        label=overview,
    )


def _seed_range(rows: Sequence[Row]) -> str:
    return _count(sorted({len(cell.by_seed) for row in rows for cell in row.cells.values()}))


def _count(seeds: Sequence[int]) -> str:
    if len(seeds) > 1:
        return f"{seeds[0]} to {seeds[-1]} seeds"
    return "1 seed" if seeds[0] == 1 else f"{seeds[0]} seeds"
