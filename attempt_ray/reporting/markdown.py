"""Markdown written from rows of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return a pipe table whose first `left` columns are flush left and whose others are flush right."""
    rule = ["---" if column < left else "---:" for column in range(len(header))]
    return "\n".join(_line(row) for row in (header, rule, *rows))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def span(values: Iterable[float], *, unit: str = "") -> str:
    """Return one number, or the smallest and largest of several, with thousands separated."""
    numbers = sorted({round(value) for value in values})
    if not numbers:
        return "-"
    ends = numbers if len(numbers) == 1 else (numbers[0], numbers[-1])
    return " to ".join(f"{number:,}" for number in ends) + unit
