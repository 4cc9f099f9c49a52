"""A study's report: the paper's tables and figures from the runs that study.json names, with intervals and warnings.

`lines` names what is compared, `cells` reads study.json and its runs, `resampling` computes a metric on resampled rows, `bootstrap` makes intervals of it;
`tables`, `ablations`, `leave_one_out`, `ordering`, `instances`, `mind` and `figures` say what was found, `grid` and `pages`
write it as Markdown, LaTeX and HTML, and `report` puts it together. `paper` holds the paper's printed numbers.
"""
