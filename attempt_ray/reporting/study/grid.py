"""A table of text, and how it is written as Markdown, LaTeX (booktabs) and HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass

from attempt_ray.reporting import markdown


@dataclass(frozen=True)
class Entry:
    """One field of a table."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Rule:
    """A row, and how it stands among others."""

    entries: tuple[Entry, ...]
    faint: bool = False
    """Facts that are not of the study: the paper's numbers, metrics, sizes."""
    above: bool = False
    """A line is drawn above it."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table that is ready to be written."""

    name: str
    """Short and unique in a report; LaTeX label and HTML anchor."""
    caption: str
    header: tuple[str, ...]
    rows: tuple[Rule, ...]
    left: int = 1
    """Columns that are flush left."""
    notes: tuple[str, ...] = ()


def row(*texts: str | Entry, faint: bool = False, above: bool = False) -> Rule:
    """Return a row of fields."""
    entries = tuple(text if isinstance(text, Entry) else Entry(text) for text in texts)
    return Rule(entries, faint=faint, above=above)


def as_markdown(grid: Grid) -> str:
    """Return caption, pipe table and notes; faint rows in italics."""
    rows = [
        [_marked(entry, faint=line.faint and place < grid.left) for place, entry in enumerate(line.entries)]
        for line in grid.rows
    ]
    parts = [f"**{grid.caption}**", markdown.table(grid.header, rows, left=grid.left)]
    return "\n\n".join([*parts, *grid.notes])


def _marked(entry: Entry, *, faint: bool) -> str:
    mark = "**" if entry.bold else "*" if faint else ""
    return f"{mark}{entry.text}{mark}" if entry.text else ""


def as_latex(grid: Grid) -> str:
    r"""Return a `table` environment that needs the packages booktabs, graphicx and xcolor."""
    lines = [
        r"\begin{table}[!htbp]",
        r"\centering",
        rf"\caption{{{latex(grid.caption)}}}",
        rf"\label{{tab:{grid.name}}}",
        r"\resizebox*{!}{\ifdim\totalheight>0.75\textheight 0.75\textheight\else\totalheight\fi}{%",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{'l' * grid.left}{'r' * (len(grid.header) - grid.left)}}}",
        r"\toprule",
        _latex_line(latex(name) for name in grid.header),
        r"\midrule",
    ]
    for line in grid.rows:
        if line.above:
            lines.append(r"\midrule")
        lines.append(_latex_line(_latex_entry(entry, faint=line.faint) for entry in line.entries))
    lines += [r"\bottomrule", r"\end{tabular}}}"]
    lines += [
        rf"\par\smallskip\begin{{minipage}}{{\linewidth}}\footnotesize {latex(note)}\end{{minipage}}"
        for note in grid.notes
    ]
    return "\n".join([*lines, r"\end{table}"])


def _latex_line(fields: Iterable[str]) -> str:
    return " & ".join(fields) + r" \\"


def _latex_entry(entry: Entry, *, faint: bool) -> str:
    text = latex(entry.text)
    if entry.bold:
        return rf"\textbf{{{text}}}"
    return rf"\textcolor{{gray}}{{{text}}}" if faint and text else text


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u00b1": r"$\pm$",
    "\u2212": r"$-$",
    "\u0394": r"$\Delta$",
    "\u2264": r"$\leq$",
    "\u03c1": r"$\rho$",
    "\u2020": r"\dag{}",
    "\u2013": "--",
    "\u2014": "---",
    "\u2018": "`",
    "\u2019": "'",
    "\u201c": "``",
    "\u201d": "''",
    "\u2026": r"\ldots{}",
}
_SPECIAL = re.compile("|".join([*map(re.escape, _LATEX), r"[^\x00-\xff]"]))


def latex(text: str) -> str:
    """Return text with what LaTeX takes for commands spelled out, our signs as mathematics, and `?` for what it has no letter of."""
    return _SPECIAL.sub(lambda match: _LATEX.get(match.group(), "?"), text)


def as_html(grid: Grid) -> str:
    """Return a `figure` with caption, table and notes."""
    head = "".join(
        f"<th{_side(place, grid)}>{html.escape(name)}</th>" for place, name in enumerate(grid.header)
    )
    body = "\n".join(_html_row(line, grid) for line in grid.rows)
    notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in grid.notes)
    return (
        f'<figure id="{html.escape(grid.name)}"><figcaption>{html.escape(grid.caption)}</figcaption>'
        f"<div class=wide><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>{notes}</figure>"
    )


def _html_row(line: Rule, grid: Grid) -> str:
    kinds = " ".join(name for name, on in (("faint", line.faint), ("above", line.above)) if on)
    cells = "".join(
        f"<td{_side(place, grid)}>{_html_entry(entry)}</td>" for place, entry in enumerate(line.entries)
    )
    return f'<tr class="{kinds}">{cells}</tr>' if kinds else f"<tr>{cells}</tr>"


def _html_entry(entry: Entry) -> str:
    text = html.escape(entry.text)
    return f"<b>{text}</b>" if entry.bold else text


def _side(place: int, grid: Grid) -> str:
    return " class=left" if place < grid.left else ""
