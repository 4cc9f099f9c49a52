"""A hyper-parameter search's report: Markdown and pictures, every number read back from the Optuna study."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from attempt_ray.bank.durable import storage_errors, write_durably
from attempt_ray.reporting import markdown
from attempt_ray.reporting.search_plots import PLOTLY, SearchPictures, draw, plot_names
from attempt_ray.reporting.search_study import STATES, SearchStudy, SearchTrial, read_search

TPE_STARTUP_TRIALS = 10
"""Trials that Optuna's TPE draws at random before it models anything (`TPESampler(n_startup_trials)`)."""

_BEST_SHOWN = 10
_GOOD_IMPORTANCE = 50
"""Finished trials whose best tenth holds the five that Optuna asks for."""
_UNKNOWN = "-"


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """What was written, and the few numbers a job prints."""

    directory: Path
    files: tuple[Path, ...]
    best_trial: int | None
    """Number of the best finished trial: of several objectives, the dev score decides."""
    best_value: float | None
    best_spread: float | None
    """Standard deviation over seeds; None where it is unknown."""
    best_point: Mapping[str, Any]
    paper_value: float | None
    """The same score of the paper's settings; None where they did not finish."""
    counts: Mapping[str, int]
    """Trials by state, `retries` among them, and `all`."""
    left_out: Mapping[str, str]
    """Why a plot was not drawn, by its name."""
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the summary, JSON-able."""
        return {
            "directory": str(self.directory),
            "files": [str(path) for path in self.files],
            "best_trial": self.best_trial,
            "best_value": self.best_value,
            "best_spread": self.best_spread,
            "best_point": dict(self.best_point),
            "paper_value": self.paper_value,
            "counts": dict(self.counts),
            "left_out": dict(self.left_out),
            "warnings": list(self.warnings),
        }


def write_search_report(
    study: optuna.Study, directory: Path, *, commands: Sequence[str] = ()
) -> SearchSummary:
    """Write ``report.md`` and the pictures of a search into `directory`.

    Each file appears whole or not at all, ``report.md`` last; a picture of an earlier report that this one does not
    have is removed. A study that lacks what a search writes gets a shorter report.

    Args:
        study: The study, finished or not.
        directory: Directory of the report; made if it is not there.
        commands: Command lines that go on with the search, to be printed at the end.

    Raises:
        StorageError: The disk refused.
    """
    search = read_search(study)
    pictures = draw(search)
    warnings = tuple(_warnings(search))
    contents = dict(pictures.contents)
    contents["report.md"] = _markdown(search, pictures, warnings=warnings, commands=commands).encode()
    with storage_errors(f"write the report into {directory}", where=directory):
        directory.mkdir(parents=True, exist_ok=True)
        for name in {f"{plot}.{ending}" for plot in plot_names() for ending in ("png", "html")} | {PLOTLY}:
            if name not in contents:
                (directory / name).unlink(missing_ok=True)
    for name, data in contents.items():
        write_durably(directory / name, data)
    best, paper = search.best, search.paper
    return SearchSummary(
        directory=directory,
        files=tuple(directory / name for name in contents),
        best_trial=None if best is None else best.number,
        best_value=None if best is None else search.value(best),
        best_spread=None if best is None else best.spread,
        best_point={} if best is None else best.point,
        paper_value=search.value(paper) if paper is not None and paper.values else None,
        counts=search.counts(),
        left_out=pictures.left_out,
        warnings=warnings,
    )


# What to keep in mind.


def _warnings(search: SearchStudy) -> Iterator[str]:
    if search.best is None:
        return
    yield from _on_selection(search, search.best)
    yield from _on_startup(search)
    yield from _on_paper(search, search.best)
    yield from _on_edges(search.best)
    yield from _on_final(search, search.best)


def _on_selection(search: SearchStudy, best: SearchTrial) -> Iterator[str]:
    if (count := len(search.ranked)) > 1:
        name = search.objectives[search.primary]
        most = "largest" if search.maximize[search.primary] else "smallest"
        cure = (
            "the final result below, of fresh seeds, does not share this"
            if search.final is not None
            else "train it again with fresh seeds before quoting a number"
        )
        yield (
            f"The value of trial {best.number} was chosen as the {most} of {count}, so its {name} flatters it; {cure}."
        )


def _on_startup(search: SearchStudy) -> Iterator[str]:
    done = sum(trial.state in ("finished", "pruned") for trial in search.trials)
    if search.sampler == "tpe" and done < TPE_STARTUP_TRIALS:
        yield (
            f"Only {done} of the {TPE_STARTUP_TRIALS} trials that TPE starts with are done: so far every point was drawn "
            "at random or given."
        )


def _on_paper(search: SearchStudy, best: SearchTrial) -> Iterator[str]:
    if search.paper_point is None:
        return
    paper = search.paper
    if paper is None or not paper.values:
        state = "was not tried" if paper is None else f"is {paper.state} (trial {paper.number})"
        yield f"The paper's point {state}, so there is nothing to compare trial {best.number} with."
        return
    if paper.number == best.number:
        if len(search.ranked) > 1:
            yield f"None of {len(search.ranked)} finished trials is better than the paper's point."
        return
    gain = abs(search.value(best) - search.value(paper))
    spreads = [spread for spread in (best.spread, paper.spread) if spread is not None]
    if not spreads:
        yield (
            f"Trial {best.number} is better than the paper's point by {_score(gain)}, and no spread over seeds is known: "
            "whether that is chance cannot be told."
        )
    elif gain <= max(spreads):
        yield (
            f"Trial {best.number} is better than the paper's point by {_score(gain)}, which is no more than the spread over "
            f"seeds ({_score(max(spreads))}): it may be chance."
        )


def _on_edges(best: SearchTrial) -> Iterator[str]:
    for knob in best.point:
        if end := best.edge(knob):
            yield (
                f"`{knob}` of trial {best.number} is {_value(best.point[knob])}, at the {end} end of its domain "
                f"({_domain(best.domains[knob])}): a wider domain may hold better values."
            )


def _on_final(search: SearchStudy, best: SearchTrial) -> Iterator[str]:
    final = search.final
    chosen = None if final is None else final.trial
    if chosen is None or chosen == best.number or len(search.objectives) > 1:
        return
    yield f"The final result is of trial {chosen}, and trial {best.number} is better by now."


# The report.


def _markdown(
    search: SearchStudy, pictures: SearchPictures, *, warnings: Sequence[str], commands: Sequence[str]
) -> str:
    parts = [
        f"# Search {' '.join(search.name.split())}",
        _described(search),
        "## Trials",
        _counted(search),
    ]
    if warnings:
        parts += ["## Keep in mind", "\n".join(f"- {warning}" for warning in warnings)]
    parts += ["## Best trial", *_best(search)]
    parts += _final(search)
    if search.ranked:
        parts += [
            f"## The best {min(_BEST_SHOWN, len(search.ranked))} of {len(search.ranked)} finished trials"
        ]
        parts += [_ranking(search, search.ranked[:_BEST_SHOWN])]
        parts += _picture("history", pictures)
    if len(search.objectives) > 1 and search.front:
        parts += [
            "## Pareto front",
            "No other trial is better than these in one objective without being worse in another.",
            _ranking(search, search.front),
            *_picture("pareto-front", pictures),
        ]
    parts += ["## What matters", *_importance(search, pictures)]
    drawn = [name for name in plot_names()[3:] if name in pictures.titles]
    if drawn:
        parts += ["## Pictures", *(text for name in drawn for text in _picture(name, pictures))]
    if pictures.left_out:
        lines = [f"- {name}: {reason}" for name, reason in pictures.left_out.items()]
        parts += ["## Not drawn", "\n".join(lines)]
    parts += _failures(search)
    parts += ["## How to go on", *_onwards(search, commands)]
    return "\n\n".join(parts) + "\n"


def _described(search: SearchStudy) -> str:
    ways = ("maximized" if up else "minimized" for up in search.maximize)
    objectives = ", ".join(f"{name} ({way})" for name, way in zip(search.objectives, ways, strict=True))
    space = search.space.get("name")
    digest = "" if search.space_digest is None else f" ({search.space_digest})"
    rows = [
        ("objective" if len(search.objectives) == 1 else "objectives", objectives),
        ("space", f"{space if isinstance(space, str) else 'unknown'}{digest}"),
        ("method", search.method),
        ("tasks", ", ".join(search.tasks)),
        ("seeds of a trial", ", ".join(map(str, search.seeds))),
        ("sampler", search.sampler),
        ("pruner", search.pruner),
        ("config", search.config_digest),
    ]
    return "\n".join(f"- {name}: {text or 'unknown'}" for name, text in rows)


def _counted(search: SearchStudy) -> str:
    counts = search.counts()
    if not counts["all"]:
        return "There is no trial yet."
    states = ", ".join(f"{counts[state]} {state}" for state in STATES)
    retries = f"{counts['retries']} of them repeat another" if counts["retries"] else "none repeats another"
    return f"{counts['all']} trials: {states}; {retries}.\n\nSpent: {_spent(search)}."


def _spent(search: SearchStudy) -> str:
    begun = [trial for trial in search.trials if trial.state != "waiting"]
    steps = [trial.steps for trial in begun if trial.steps is not None]
    tokens = [trial.tokens for trial in begun if trial.tokens is not None]
    seconds = [trial.seconds for trial in begun if trial.seconds is not None]
    texts = [
        f"{sum(steps):,} optimizer steps" if steps else "",
        f"{sum(tokens):,} tokens" if tokens else "",
        f"{sum(seconds) / 3600:,.2f} hours of training" if seconds else "",
    ]
    known = ", ".join(text for text in texts if text)
    silent = len(begun) - min(len(steps), len(tokens), len(seconds))
    if not known:
        return "unknown"
    return known + (f", without {_trials(silent)} that did not tell" if silent else "")


def _best(search: SearchStudy) -> list[str]:
    best, paper = search.best, search.paper
    if best is None:
        return ["No trial has finished."]
    name = search.objectives[search.primary]
    others = "".join(
        f", {objective} {_score(value)}"
        for objective, value in zip(search.objectives, best.values, strict=True)
        if objective != name
    )
    seeds = f" over {len(search.seeds)} seeds" if len(search.seeds) > 1 and best.spread is not None else ""
    lines = [f"Trial {best.number}: {name} {_spread(search, best)}{seeds}{others}."]
    compared = paper is not None and paper.values and paper.number != best.number
    if paper is not None and compared:
        gain = search.value(best) - search.value(paper)
        lines.append(
            f"The paper's point, trial {paper.number}: {_spread(search, paper)}; a difference of {gain:+,.2f}."
        )
    elif paper is not None and paper.values:
        lines.append("It is the paper's point.")
    known = search.paper_point
    header = ["parameter", f"trial {best.number}", *(["paper"] if known is not None else []), "domain"]
    rows = []
    for knob in search.knobs:
        if knob not in best.point and (known is None or knob not in known):
            continue
        domain = search.domain(knob)
        cells = [_cell(best.point, knob), *([_cell(known, knob)] if known is not None else [])]
        rows.append([f"`{knob}`", *cells, _UNKNOWN if domain is None else _domain(domain)])
    return [" ".join(lines), *([markdown.table(header, rows)] if rows else []), *_by_task(search, best)]


def _by_task(search: SearchStudy, best: SearchTrial) -> list[str]:
    if not best.scores:
        return []
    paper = search.paper if search.paper is not None and search.paper.number != best.number else None
    reference = paper.scores if paper is not None else {}
    seeds = list(dict.fromkeys(seed for scores in best.scores.values() for seed in scores))
    header = [
        "dev by task",
        *(f"seed {seed}" for seed in seeds),
        "mean",
        *(["paper's mean"] if reference else []),
    ]
    rows = []
    for task, scores in best.scores.items():
        cells = [_score(scores[seed]) if seed in scores else _UNKNOWN for seed in seeds]
        cells.append(_score(statistics.fmean(scores.values())))
        if reference:
            cells.append(
                _score(statistics.fmean(reference[task].values())) if task in reference else _UNKNOWN
            )
        rows.append([task, *cells])
    return [markdown.table(header, rows)]


def _final(search: SearchStudy) -> list[str]:
    final = search.final
    if final is None:
        return []
    trial = "The chosen trial" if final.trial is None else f"Trial {final.trial}"
    seeds = f" with fresh seeds ({', '.join(map(str, final.seeds))})" if final.seeds else ""
    mean = "" if final.mean is None else f": mean test score {_score(final.mean)}"
    spread = "" if final.mean is None or final.std is None else f" ± {_score(final.std)}"
    parts = ["## Final result", f"{trial}, trained again{seeds}{mean}{spread}."]
    tasks = dict.fromkeys([*final.test, *final.bank])
    rows = [
        [
            task,
            f"`{final.bank[task]}`" if task in final.bank else _UNKNOWN,
            _score(statistics.fmean(final.test[task])) if task in final.test else _UNKNOWN,
            ", ".join(_score(score) for score in final.test.get(task, ())) or _UNKNOWN,
        ]
        for task in tasks
    ]
    return [*parts, markdown.table(["task", "bank", "test", "by seed"], rows, left=2)] if rows else parts


def _ranking(search: SearchStudy, trials: Sequence[SearchTrial]) -> str:
    knobs = [knob for knob in search.knobs if any(knob in trial.point for trial in trials)]
    others = [name for index, name in enumerate(search.objectives) if index != search.primary]
    header = ["trial", search.objectives[search.primary], *others, "steps", *(f"`{knob}`" for knob in knobs)]
    rows = []
    for trial in trials:
        costs = [value for index, value in enumerate(trial.values) if index != search.primary]
        rows.append(
            [
                f"{trial.number}{_mark(search, trial)}",
                _spread(search, trial),
                *(_score(cost) for cost in costs),
                _UNKNOWN if trial.steps is None else f"{trial.steps:,}",
                *(_cell(trial.point, knob) for knob in knobs),
            ]
        )
    return markdown.table(header, rows)


def _mark(search: SearchStudy, trial: SearchTrial) -> str:
    if search.paper is not None and trial.number == search.paper.number:
        return " (paper)"
    return " (known)" if trial.known else ""


def _importance(search: SearchStudy, pictures: SearchPictures) -> list[str]:
    shares = pictures.importances
    if not shares:
        return [f"Nothing can be told: {pictures.left_out.get('importances', 'unknown')}."]
    count = len(search.ranked)
    caution = (
        f" Of {count} finished trials that is few, so the shares are rough: from {_GOOD_IMPORTANCE} on they rest on "
        "five trials or more."
        if count < _GOOD_IMPORTANCE
        else ""
    )
    text = (
        "Share of each parameter in what tells the best tenth of the finished trials from the others (PED-ANOVA)."
        + caution
    )
    table = markdown.table(
        ["parameter", "share"], [[f"`{knob}`", f"{share:.3f}"] for knob, share in shares.items()]
    )
    return [text, table, *_picture("importances", pictures)]


def _picture(name: str, pictures: SearchPictures) -> tuple[str, ...]:
    title = pictures.titles.get(name)
    if title is None:
        return ()
    more = " The colour bar is that of the first panel." if name == "contours" else ""
    return (f"![{title}]({name}.png)", f"[To hover over]({name}.html).{more}")


def _failures(search: SearchStudy) -> list[str]:
    groups: dict[str, list[SearchTrial]] = {}
    for trial in search.trials:
        if trial.state == "failed":
            # Steps and sizes differ from one failure to the next of the same kind.
            groups.setdefault(re.sub(r"\d+", "#", trial.reason or "unknown"), []).append(trial)
    if not groups:
        return []
    retried = {trial.retry_of for trial in search.trials}
    rows = [
        [
            f"`{(trials[0].reason or 'unknown').replace('`', chr(39))}`",
            str(len(trials)),
            ", ".join(str(trial.number) for trial in trials),
            str(sum(trial.number in retried for trial in trials)),
        ]
        for trials in sorted(groups.values(), key=len, reverse=True)
    ]
    table = markdown.table(["reason (of the first)", "failed", "trials", "tried again"], rows)
    return ["## Failed trials", "Reasons that differ in numbers alone are one.", table]


def _onwards(search: SearchStudy, commands: Sequence[str]) -> list[str]:
    digest = "" if search.space_digest is None else f" ({search.space_digest})"
    lines = [
        f"- More trials: start the search again under the name `{search.name}`; it goes on from these "
        f"{_trials(len(search.trials))}. It takes the same space{digest}: another one is another study."
    ]
    best = search.best
    if best is not None and any(best.edge(knob) for knob in best.point):
        lines.append(
            "- Parameters at the end of their domain: widen it in a space of your own, as a new study."
        )
    if best is not None and search.final is None:
        lines.append("- A number to quote: train the best point again with fresh seeds, and test it.")
    parts = ["\n".join(lines)]
    if commands:
        parts.append(_block(commands))
    if best is not None and best.point:
        settings = [f"{key}={_setting(value)}" for key, value in search.settings(best.point).items()]
        parts += [f"Settings of trial {best.number}:", _block(settings)]
    return parts


def _block(lines: Sequence[str]) -> str:
    return "\n".join(["```", *lines, "```"])


# Numbers and values as text.


def _spread(search: SearchStudy, trial: SearchTrial) -> str:
    value = search.value(trial)
    if trial.spread is None:
        return _score(value)
    spread = f"{trial.spread:.2f}" if 1 <= abs(value) < 1000 else _score(trial.spread)
    return f"{_score(value)} ± {spread}"


def _score(value: float) -> str:
    if abs(value) >= 1e12:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"


def _cell(point: Mapping[str, Any], knob: str) -> str:
    return _value(point[knob]) if knob in point else _UNKNOWN


def _value(value: Any) -> str:
    return (
        f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    )


def _setting(value: Any) -> str:
    """Return a value as `section.key=value` settings take it, which are YAML."""
    if isinstance(value, float):
        # YAML 1.1 takes 1e-05 for text.
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, str) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value)


def _domain(domain: Any) -> str:
    if isinstance(domain, CategoricalDistribution):
        return ", ".join(_value(choice) for choice in domain.choices)
    if isinstance(domain, FloatDistribution | IntDistribution):
        return f"{_value(domain.low)} to {_value(domain.high)}{', logarithmic' if domain.log else ''}"
    return _UNKNOWN


def _trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"
