from __future__ import annotations

from html.parser import HTMLParser

from attempt_ray.reporting.study.grid import Entry, Grid, as_html, as_latex, as_markdown, latex, row

GRID = Grid(
    name="tiny",
    caption="Tiny & small",
    header=("method", "RTE", "Avg."),
    rows=(
        row("metric", "accuracy", "", faint=True),
        row("a|b", Entry("70.0 \u00b1 1.5", bold=True), "\u22120.5 [\u22121.0, 0.0]", above=True),
    ),
    notes=("5% of <all>.",),
)


def test_markdown_layout() -> None:
    assert as_markdown(GRID) == (
        "**Tiny & small**\n\n"
        "| method | RTE | Avg. |\n"
        "| --- | ---: | ---: |\n"
        "| *metric* | accuracy |  |\n"
        "| a\\|b | **70.0 \u00b1 1.5** | \u22120.5 [\u22121.0, 0.0] |\n\n"
        "5% of <all>."
    )


def test_latex_layout() -> None:
    assert as_latex(GRID) == "\n".join(
        [
            r"\begin{table}[!htbp]",
            r"\centering",
            r"\caption{Tiny \& small}",
            r"\label{tab:tiny}",
            r"\resizebox*{!}{\ifdim\totalheight>0.75\textheight 0.75\textheight\else\totalheight\fi}{%",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            r"\begin{tabular}{lrr}",
            r"\toprule",
            r"method & RTE & Avg. \\",
            r"\midrule",
            r"\textcolor{gray}{metric} & \textcolor{gray}{accuracy} &  \\",
            r"\midrule",
            r"a|b & \textbf{70.0 $\pm$ 1.5} & $-$0.5 [$-$1.0, 0.0] \\",
            r"\bottomrule",
            r"\end{tabular}}}",
            r"\par\smallskip\begin{minipage}{\linewidth}\footnotesize 5\% of <all>.\end{minipage}",
            r"\end{table}",
        ]
    )


def test_latex_takes_nothing_for_a_command_and_has_a_letter_for_everything() -> None:
    assert latex(r"a_b 5% \x{y} #1 ~^") == (
        r"a\_b 5\% \textbackslash{}x\{y\} \#1 \textasciitilde{}\textasciicircum{}"
    )
    assert latex("caf\u00e9 \u4f60 \u201cx\u201d") == "caf\u00e9 ? ``x''"


def test_html_is_escaped_and_has_a_field_for_every_column() -> None:
    fields: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            fields.append(tag)

    text = as_html(GRID)
    Reader().feed(text)
    assert fields.count("th") == 3
    assert fields.count("td") == 6
    assert "<b>70.0 \u00b1 1.5</b>" in text
    assert "Tiny &amp; small" in text
    assert "&lt;all&gt;" in text
    assert '<tr class="faint">' in text
    assert '<tr class="above">' in text
