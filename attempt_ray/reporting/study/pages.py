"""A page of headings, text, tables and pictures, written as Markdown, LaTeX and HTML."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable
from dataclasses import dataclass

from attempt_ray.reporting.study.figures import Picture
from attempt_ray.reporting.study.grid import Grid, as_html, as_latex, as_markdown, latex


@dataclass(frozen=True)
class Heading:
    """The beginning of a section."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """Points, a line each."""

    lines: tuple[str, ...]


Block = Heading | Bullets | Grid | Picture | str
"""What a page is made of; a string is a paragraph."""

_CSS = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --faint: #6a6a6a; --rule: #d8d8d8; --shade: #f6f6f4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #17181a; --faint: #9a9a9a; --rule: #3a3b3e; --shade: #1f2023; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 2rem 1.5rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
p, li { max-width: 52rem; }
nav { columns: 3 14rem; margin: 1.2rem 0 0; font-size: .92rem; }
nav a { display: block; color: inherit; text-decoration: none; border-bottom: 1px dotted var(--rule); padding: .15rem 0; }
nav a:hover { border-bottom-color: currentColor; }
figure { margin: 1.4rem 0 2rem; }
figcaption { font-weight: 600; margin-bottom: .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums;
  border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink); }
th, td { padding: .28rem .6rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { border-bottom: 1px solid var(--ink); font-weight: 600; }
.left { text-align: left; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
td.left:not(:first-child) { white-space: normal; min-width: 9rem; max-width: 30rem; }
tr.above td { border-top: 1px solid var(--rule); }
tr.faint td { color: var(--faint); }
tbody tr:hover td { background: var(--shade); }
.note { font-size: .86rem; color: var(--faint); margin: .5rem 0 0; }
img { max-width: 100%; height: auto; background: #fff; padding: .4rem; border: 1px solid var(--rule); }
"""


def markdown_page(title: str, blocks: Iterable[Block], *, pictures: str) -> str:
    """Return the page as Markdown, its pictures as PNG files in the directory `pictures` beside it."""
    parts = [f"# {title}"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"## {text}")
            case Bullets(lines):
                parts.append("\n".join(f"- {line}" for line in lines))
            case Grid():
                parts.append(as_markdown(block))
            case Picture():
                parts.append(f"![{block.caption}]({pictures}/{block.name}.png)")
            case _:
                parts.append(block)
    return "\n\n".join(parts) + "\n"


def latex_page(title: str, blocks: Iterable[Block], *, pictures: str) -> str:
    r"""Return the page as a document for pdflatex, its pictures as files in the directory `pictures` beside it."""
    parts = [
        "\\documentclass{article}\n\\usepackage[utf8]{inputenc}\n\\usepackage[T1]{fontenc}\n"
        "\\usepackage[a4paper,landscape,margin=2cm]{geometry}\n\\usepackage{booktabs,graphicx,xcolor}\n"
        f"\\title{{{latex(title)}}}\n\\date{{}}\n\\begin{{document}}\n\\maketitle"
    ]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"\\clearpage\n\\section*{{{latex(text)}}}")
            case Bullets(lines):
                items = "\n".join(f"\\item {latex(line)}" for line in lines)
                parts.append(f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}")
            case Grid():
                parts.append(as_latex(block))
            case Picture():
                parts.append(
                    f"\\begin{{figure}}[!htbp]\n\\centering\n\\includegraphics[width=\\linewidth,height=0.8\\textheight,"
                    f"keepaspectratio]{{{pictures}/{block.name}}}\n\\caption{{{latex(block.caption)}}}\n\\end{{figure}}"
                )
            case _:
                parts.append(latex(block))
    return "\n\n".join([*parts, "\\end{document}"]) + "\n"


def html_page(title: str, blocks: Iterable[Block]) -> str:
    """Return the page as one file that reads nothing else; its pictures are SVG inside it."""
    blocks = tuple(blocks)
    links = "".join(
        f'<a href="#{_anchor(block.text)}">{html.escape(block.text)}</a>'
        for block in blocks
        if isinstance(block, Heading)
    )
    parts = []
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f'<h2 id="{_anchor(text)}">{html.escape(text)}</h2>')
            case Bullets(lines):
                parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>")
            case Grid():
                parts.append(as_html(block))
            case Picture():
                data = base64.b64encode(block.svg).decode()
                caption = html.escape(block.caption)
                parts.append(
                    f'<figure><figcaption>{caption}</figcaption><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
                    "</figure>"
                )
            case _:
                parts.append(f"<p>{html.escape(block)}</p>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_CSS}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def _anchor(text: str) -> str:
    return "s-" + re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
