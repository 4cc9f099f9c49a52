"""Pictures of a search: Optuna's own, each as PNG and as a page that can be hovered over.

They are drawn from a copy of the study in memory, whose parameters have short names and whose only objective is the dev
score, except where all objectives are shown. matplotlib and plotly are imported when something is drawn. Optuna draws
through pyplot: its style, its list of figures and a backend that was chosen are put back afterwards.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import TrialState

from attempt_ray.reporting.search_study import STATES, SearchStudy, SearchTrial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTLY = "plotly.min.js"
"""The script that every page loads from its own directory."""

IMPORTANCE_TRIALS = 5
"""Finished trials without which no importance is told."""

_DPI = 150
_LABEL = 30
_CATEGORY = 16
_ROW = 32
_COLUMNS = 4
_CONTOURS = 3
_CONTOUR_TRIALS = 10
_BEST, _FINISHED, _PRUNED, _RUNNING = "#D55E00", "#0072B2", "#B0B0B0", "#009E73"
_STATES = dict(
    zip(
        STATES,
        (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING),
        strict=True,
    )
)


@dataclass(frozen=True, kw_only=True)
class SearchPictures:
    """What was drawn and what was not."""

    contents: Mapping[str, bytes]
    """File content by file name."""
    titles: Mapping[str, str]
    """Title of each plot that was drawn, by its name: that of its files without their ending."""
    importances: Mapping[str, float]
    """Share of each knob in reaching the best tenth of the finished trials, the greatest first, 1 in all.

    Optuna's PED-ANOVA (Watanabe et al. 2023) of the primary objective; empty where nothing can be told.
    """
    left_out: Mapping[str, str]
    """Reason, by the name of each plot that was not drawn."""


class _LeftOutError(Exception):
    """A study cannot have a plot; the text says why."""


def labels(knobs: Sequence[str]) -> dict[str, str]:
    """Return a short label for each knob: as much of the end of its key as tells it from the others."""
    parts = {knob: knob.split(".") for knob in knobs}

    def end(knob: str, length: int) -> str:
        return " ".join(parts[knob][-length:]).replace("_", " ")

    short: dict[str, str] = {}
    for knob in knobs:
        others = [other for other in knobs if other != knob]
        length = next(
            (
                length
                for length in range(1, len(parts[knob]))
                if all(end(other, length) != end(knob, length) for other in others)
            ),
            len(parts[knob]),
        )
        label = end(knob, length)
        label = _shortened(label, _LABEL)
        short[knob] = label if label not in short.values() else knob
    return short


def draw(search: SearchStudy) -> SearchPictures:
    """Return every picture that a search can have, and for the others the reason."""
    copy = _Copy(search)
    contents: dict[str, bytes] = {}
    titles: dict[str, str] = {}
    left_out: dict[str, str] = {}
    with _quiet(), _pyplot():
        for name, (title, png, page) in _plots(copy).items():
            try:
                files = {f"{name}.png": _png(png, title), f"{name}.html": _page(page, name=name, title=title)}
            except _LeftOutError as reason:
                left_out[name] = str(reason)
            except Exception as error:  # noqa: BLE001 - a plot that Optuna fails at must not take the report with it
                left_out[name] = (
                    f"Optuna cannot draw it: {' '.join(str(error).split()) or type(error).__name__}"
                )
            else:
                contents |= files
                titles[name] = title
    if titles:
        from plotly.offline import get_plotlyjs

        contents[PLOTLY] = get_plotlyjs().encode()
    shares = copy.importances if "importances" in titles else {}
    return SearchPictures(contents=contents, titles=titles, importances=shares, left_out=left_out)


def plot_names() -> tuple[str, ...]:
    """Return the name of every plot, in their order in a report."""
    return (
        "history",
        "pareto-front",
        "importances",
        "slices",
        "contours",
        "parallel-coordinates",
        "intermediate-values",
    )


_Draw = Callable[[], Any]


def _plots(copy: _Copy) -> dict[str, tuple[str, _Draw, _Draw]]:
    dev = copy.search.objectives[copy.search.primary]
    drawn = (
        (f"{dev} by trial", copy.history_png, copy.history_page),
        ("Pareto front", copy.front_png, copy.front_page),
        (f"What matters for {dev}", copy.importances_png, copy.importances_page),
        (f"{dev} by parameter", copy.slices_png, copy.slices_page),
        (f"{dev} by two parameters", copy.contours_png, copy.contours_page),
        ("Parameters side by side", copy.parallel_png, copy.parallel_page),
        (f"{dev} by optimizer step", copy.steps_png, copy.steps_page),
    )
    return dict(zip(plot_names(), drawn, strict=True))


class _Copy:
    """A search as studies that Optuna can draw."""

    def __init__(self, search: SearchStudy) -> None:
        self.search = search
        self.labels = labels(search.knobs)
        self.dev = search.objectives[search.primary]

    @cached_property
    def one(self) -> optuna.Study:
        """The study with the primary objective alone."""
        return self._study([self.search.primary])

    @cached_property
    def all(self) -> optuna.Study:
        """The study with all objectives."""
        study = self._study(range(len(self.search.objectives)))
        study.set_metric_names(list(self.search.objectives))
        return study

    def _study(self, objectives: Sequence[int]) -> optuna.Study:
        ways = [
            StudyDirection.MAXIMIZE if self.search.maximize[index] else StudyDirection.MINIMIZE
            for index in objectives
        ]
        study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), directions=ways)
        for trial in self.search.trials:
            params = {
                self.labels[knob]: value for knob, value in trial.point.items() if knob in trial.domains
            }
            study.add_trial(
                optuna.trial.create_trial(
                    state=_STATES[trial.state],
                    values=[trial.values[index] for index in objectives] if trial.values else None,
                    params=params,
                    distributions={
                        self.labels[knob]: trial.domains[knob]
                        for knob in trial.point
                        if knob in trial.domains
                    },
                    intermediate_values=dict(trial.reports),
                )
            )
        return study

    # What there is to draw.

    def finished(self, least: int) -> Sequence[SearchTrial]:
        found = self.search.ranked
        if len(found) < least:
            raise _LeftOutError(f"{_trials(len(found))} finished, and it takes {least}")
        return found

    def varied(self) -> list[str]:
        """Return the knobs that finished trials have with more than one value."""
        seen = {
            knob: {
                str(trial.point[knob])
                for trial in self.search.ranked
                if knob in trial.point and knob in trial.domains
            }
            for knob in self.search.knobs
        }
        found = [knob for knob, values in seen.items() if len(values) > 1]
        if not found:
            raise _LeftOutError("no parameter has two values among the finished trials")
        return found

    @cached_property
    def importances(self) -> dict[str, float]:
        """Share by knob."""
        self.finished(IMPORTANCE_TRIALS)
        varied = self.varied()
        if len(varied) < 2:
            raise _LeftOutError(f"only one parameter varies, {self.labels[varied[0]]}")
        if len({self.search.value(trial) for trial in self.search.ranked}) < 2:
            raise _LeftOutError(f"every finished trial has the same {self.dev}")
        found = optuna.importance.get_param_importances(
            self.one, params=[self.labels[knob] for knob in varied]
        )
        if len(set(found.values())) < 2:
            raise _LeftOutError("the best tenth of the trials tells no parameter from another")
        keys = {label: knob for knob, label in self.labels.items()}
        return {keys[label]: share for label, share in found.items()}

    def pairs(self) -> list[str]:
        """Return labels of two or three knobs that were asked together, as important as can be."""
        self.finished(_CONTOUR_TRIALS)
        order = list(self.importances)
        for start, first in enumerate(order):
            taken = [first]
            for knob in order[start + 1 :]:
                if len(taken) < _CONTOURS and all(self._together(knob, other) for other in taken):
                    taken.append(knob)
            if len(taken) > 1:
                return [self.labels[knob] for knob in taken]
        raise _LeftOutError("no two parameters were asked together often enough")

    def _together(self, knob: str, other: str) -> bool:
        both = [trial.point for trial in self.search.ranked if {knob, other} <= trial.point.keys()]
        varied = all(len({str(point[key]) for point in both}) > 1 for key in (knob, other))
        return varied and len(both) >= _CONTOUR_TRIALS

    def reported(self) -> Sequence[SearchTrial]:
        found = [
            trial
            for trial in self.search.trials
            if trial.reports and trial.state in ("finished", "pruned", "running")
        ]
        if not found:
            many = len(self.search.objectives) > 1
            raise _LeftOutError(
                "a search with several objectives prunes nothing and reports no value before the end"
                if many
                else "no trial reported a value before its end"
            )
        if all(len(trial.reports) < 2 for trial in found):
            raise _LeftOutError("no trial reported twice")
        return found

    # The pictures.

    def history_png(self) -> Any:
        from matplotlib.ticker import MaxNLocator
        from optuna.visualization import matplotlib as pictures

        self.finished(1)
        axes: Any = pictures.plot_optimization_history(self.one, target_name=self.dev)
        figure = _laid_out(axes.figure, 9.0, 4.8)
        _plain(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("trial")
        axes.get_legend().remove()
        for line in axes.get_lines():
            line.set(drawstyle="steps-post", label="best so far")
        paper = self.search.paper
        if paper is not None and paper.values:
            axes.axhline(self.search.value(paper), color="#333333", lw=1, ls="--", label="the paper's point")
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        return figure

    def history_page(self) -> Any:
        from optuna import visualization

        page = visualization.plot_optimization_history(self.one, target_name=self.dev)
        paper = self.search.paper
        if paper is not None and paper.values:
            page.add_hline(
                y=self.search.value(paper),
                line_dash="dash",
                line_width=1,
                annotation_text="the paper's point",
            )
        return page

    def front_png(self) -> Any:
        from optuna.visualization import matplotlib as pictures

        self._front()
        axes: Any = pictures.plot_pareto_front(self.all, target_names=list(self.search.objectives))
        if axes.name == "rectilinear":
            _plain(axes)
        _, names = axes.get_legend_handles_labels()
        axes.legend(
            ["on the front" if name == "Best Trial" else "not on it" for name in names],
            facecolor="white",
            fontsize=9,
        )
        return _laid_out(axes.figure, 7.5, 5.2)

    def front_page(self) -> Any:
        from optuna import visualization

        return visualization.plot_pareto_front(self.all, target_names=list(self.search.objectives))

    def _front(self) -> None:
        count = len(self.search.objectives)
        if count == 1:
            raise _LeftOutError("the search has one objective")
        if count > 3:
            raise _LeftOutError(f"the search has {count} objectives, and at most 3 can be drawn")
        self.finished(2)

    def importances_png(self) -> Any:
        from optuna.visualization import matplotlib as pictures

        names = [self.labels[knob] for knob in self.importances]
        axes: Any = pictures.plot_param_importances(self.one, params=names, target_name=self.dev)
        _plain(axes)
        axes.set(xlabel="share of the importance", ylabel="")
        axes.grid(visible=False, axis="y")
        axes.set_xlim(right=1.12 * max(self.importances.values()))
        if axes.get_legend():
            axes.get_legend().remove()
        return _laid_out(axes.figure, 8.0, 1.3 + 0.38 * len(names))

    def importances_page(self) -> Any:
        from optuna import visualization

        names = [self.labels[knob] for knob in self.importances]
        return visualization.plot_param_importances(self.one, params=names, target_name=self.dev)

    def slices(self) -> list[str]:
        self.finished(2)
        return [self.labels[knob] for knob in self.varied()]

    def slices_png(self) -> Any:
        import numpy as np
        from matplotlib.category import StrCategoryConverter
        from optuna.visualization import matplotlib as pictures

        names = self.slices()
        found: Any = pictures.plot_slice(self.one, params=names, target_name=self.dev)
        panels: list[Any] = list(np.atleast_1d(found))
        columns = min(_COLUMNS, len(panels))
        rows = -(-len(panels) // columns)
        figure = _laid_out(panels[0].figure, max(5.5, 3.2 * columns + 0.8), 3.0 * rows + 0.6)
        grid = figure.add_gridspec(rows, columns)
        for index, axes in enumerate(panels):
            axes.set_subplotspec(grid[divmod(index, columns)])
            first = index % columns == 0
            axes.set_ylabel(self.dev if first else "")
            axes.tick_params(labelleft=first, labelbottom=True, labelsize=8)
            axes.set_xlabel(_wrapped(axes.get_xlabel(), 26), fontsize=9)
            _plain(axes)
            if isinstance(axes.xaxis.get_converter(), StrCategoryConverter):
                names = [label.get_text().strip("'") for label in axes.get_xticklabels()]
                axes.set_xticks(axes.get_xticks(), names)
                axes.set_xlim(-0.4, len(names) - 0.6)
                _short_categories(axes)
        _slim(figure)
        return figure

    def slices_page(self) -> Any:
        from optuna import visualization

        names = self.slices()
        page = visualization.plot_slice(self.one, params=names, target_name=self.dev)
        return _wide(page, 150 + 260 * len(names), 520)

    def contours_png(self) -> Any:
        import numpy as np
        from optuna.visualization import matplotlib as pictures

        names = self.pairs()
        found: Any = pictures.plot_contour(self.one, params=names, target_name=self.dev)
        panels = np.atleast_2d(found)
        figure = _laid_out(panels[0, 0].figure, *((7.5, 5.6) if len(names) == 2 else (11.0, 9.0)))
        for (row, column), axes in np.ndenumerate(panels):
            axes.tick_params(labelsize=8)
            axes.set_xlabel(_wrapped(axes.get_xlabel(), 26) if row == len(panels) - 1 else "", fontsize=9)
            axes.set_ylabel(_wrapped(axes.get_ylabel(), 26) if column == 0 else "", fontsize=9)
            axes.grid(visible=False)
            _plain(axes)
            _short_categories(axes)
        _slim(figure)
        return figure

    def contours_page(self) -> Any:
        from optuna import visualization

        page = visualization.plot_contour(self.one, params=self.pairs(), target_name=self.dev)
        return _wide(page, 1100, 900)

    def parallel(self) -> tuple[optuna.Study, list[str]]:
        self.finished(2)
        several = len(self.search.objectives) > 1
        return (self.all if several else self.one), [self.labels[knob] for knob in self.varied()]

    def parallel_png(self) -> Any:
        import numpy as np
        from optuna.visualization import matplotlib as pictures

        study, names = self.parallel()
        drawn: Any = pictures.plot_parallel_coordinate(study, params=names, target_name=self.dev)
        several = study is self.all
        heads = [*(self.search.objectives if several else (self.dev,)), *sorted(names)]
        figure = _laid_out(drawn.figure, max(7.0, 1.5 * len(heads) + 1.0), 5.6)
        drawn.set_xticks(range(len(heads)), [_wrapped(head, 14) for head in heads], rotation=0, fontsize=9)
        drawn.tick_params(axis="x", pad=14, length=0)
        (lines,) = drawn.collections
        # Optuna's palest lines are white; here the best ones are dark and lie on top.
        less_is_dark = several or not self.search.maximize[self.search.primary]
        lines.set_cmap("viridis" if less_is_dark else "viridis_r")
        lines.set(linewidth=1.2, alpha=0.8)
        shade = lines.get_array()
        order = np.argsort(-shade if less_is_dark else shade, kind="stable")
        lines.set_segments([lines.get_segments()[index] for index in order])
        lines.set_array(shade[order])
        scales = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        keys = {label: knob for knob, label in self.labels.items()}
        for axes, head in zip(scales, heads, strict=True):
            axes.grid(visible=False)
            axes.set_facecolor("none")
            axes.tick_params(axis="y", labelsize=8)
            axes.spines[:].set_color("#888888")
            _plain_ticks(axes)
            texts = [label.get_text() for label in axes.get_yticklabels()]
            if "None" in texts and any(keys[head] not in trial.point for trial in self.search.ranked):
                axes.set_yticks(
                    axes.get_yticks(), ["not asked" if text == "None" else text for text in texts]
                )
            for label in axes.get_yticklabels():
                label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8})
        _slim(figure)
        return figure

    def parallel_page(self) -> Any:
        from optuna import visualization

        study, names = self.parallel()
        page = visualization.plot_parallel_coordinate(study, params=names, target_name=self.dev)
        heads = [*(self.search.objectives if study is self.all else (self.dev,)), *sorted(names)]
        page.update_xaxes(ticktext=["<br>".join(textwrap.wrap(head, 16)) for head in heads])
        return _wide(page, 250 + 150 * len(heads), 600)

    def steps_png(self) -> Any:
        from matplotlib.lines import Line2D
        from optuna.visualization import matplotlib as pictures

        drawn = self.reported()
        axes: Any = pictures.plot_intermediate_values(self.one)
        _plain(axes)
        axes.set(xlabel="optimizer step", ylabel=self.dev)
        colours = {"finished": _FINISHED, "pruned": _PRUNED, "running": _RUNNING}
        best = self.search.best
        for line, trial in zip(axes.get_lines(), drawn, strict=True):
            is_best = best is not None and trial.number == best.number
            line.set(
                color=_BEST if is_best else colours[trial.state],
                linewidth=2.2 if is_best else 1.1,
                alpha=1.0 if is_best else 0.6,
                zorder=3 if is_best else 2,
            )
        shown = {
            state: colour for state, colour in colours.items() if any(trial.state == state for trial in drawn)
        }
        if best is not None and best in drawn:
            shown[f"best (trial {best.number})"] = _BEST
        if axes.get_legend():
            axes.get_legend().remove()
        figure = _laid_out(axes.figure, 9.0, 5.0)
        handles = [Line2D([], [], color=colour, marker=".") for colour in shown.values()]
        figure.legend(handles, list(shown), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        return figure

    def steps_page(self) -> Any:
        from optuna import visualization

        page = visualization.plot_intermediate_values(self.one)
        return page.update_layout(xaxis_title="optimizer step", yaxis_title=self.dev)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what Optuna says about its own plots: that they are experimental, that it made a study."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.filterwarnings("ignore", module=r"optuna\.")
            yield
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def _pyplot() -> Iterator[None]:
    """Draw on Agg inside the block, and leave pyplot as it was."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    before = mpl.get_backend(auto_select=False)
    open_before = set(plt.get_fignums())
    try:
        with mpl.rc_context({"figure.constrained_layout.use": True}):
            plt.switch_backend("agg")
            yield
    finally:
        for number in set(plt.get_fignums()) - open_before:
            plt.close(number)
        if before is not None:
            plt.switch_backend(before)


def _png(picture: _Draw, title: str) -> bytes:
    from matplotlib import pyplot as plt

    figure = picture()
    try:
        for axes in figure.axes:
            axes.set_title("")
            axes.set_title("", loc="left")
        figure.suptitle(title, fontsize=11)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    finally:
        plt.close(figure)
    return buffer.getvalue()


def _page(picture: _Draw, *, name: str, title: str) -> bytes:
    figure = picture()
    figure.update_layout(title_text=title)
    text: str = figure.to_html(include_plotlyjs="directory", full_html=True, div_id=name)
    return text.encode()


def _laid_out(figure: Figure, width: float, height: float) -> Figure:
    """Set a figure's size in inches, and let nothing overlap."""
    figure.set_size_inches(width, height)
    if not figure.get_constrained_layout():
        figure.set_layout_engine("constrained")
    return figure


def _plain(axes: Axes) -> None:
    """Draw on white, like the other figures of a report."""
    axes.set_facecolor("white")
    for line in (*axes.get_xgridlines(), *axes.get_ygridlines()):
        line.set_color("#E5E5E5")
    axes.spines[:].set(visible=True, color="#BBBBBB")
    _plain_ticks(axes)


def _plain_ticks(axes: Axes) -> None:
    """Write few and plain numbers, at axes with logarithms too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    for axis, most in ((axes.xaxis, 5), (axes.yaxis, 6)):
        if axis.get_scale() == "log":
            low, high = sorted(axis.get_view_interval())
            axis.set_major_locator(
                LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,), numticks=most + 1)
            )
            axis.set_minor_formatter(NullFormatter())
        elif isinstance(axis.get_major_formatter(), ScalarFormatter):
            axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
        else:
            continue
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _short_categories(axes: Axes) -> None:
    """Shorten names of categories, and slope them below an axis that they would fill."""
    from matplotlib.ticker import FixedLocator

    for axis, ticks in ((axes.xaxis, axes.set_xticks), (axes.yaxis, axes.set_yticks)):
        shown = [label.get_text() for label in axis.get_ticklabels()]
        if not isinstance(axis.get_major_locator(), FixedLocator) or not any(shown):
            continue
        names = [_shortened(name, _CATEGORY) for name in shown]
        ticks(axis.get_ticklocs(), names)
        if axis is axes.xaxis and sum(map(len, names)) > _ROW:
            for label in axis.get_ticklabels():
                label.set(rotation=25, ha="right", rotation_mode="anchor")


def _slim(figure: Figure) -> None:
    """Make colour bars no wider than it takes to see a colour."""
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            axes.set_box_aspect(30)
            axes.tick_params(labelsize=8)


def _shortened(text: str, most: int) -> str:
    """Return a text of at most `most` letters, its middle left out where it has more."""
    return text if len(text) <= most else f"{text[: most // 2 - 1].rstrip()}…{text[-most // 2 :].lstrip()}"


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _wide(page: Any, width: int, height: int) -> Any:
    return page.update_layout(width=width, height=height)


def _trials(count: int) -> str:
    return "1 trial has" if count == 1 else f"{count or 'no'} trials have"
