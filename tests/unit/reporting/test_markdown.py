from __future__ import annotations

from attempt_ray.reporting.markdown import span, table


def test_a_table_aligns_and_escapes() -> None:
    assert table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_a_span_is_one_number_or_its_ends() -> None:
    assert span([2_560.0, 2_560.0]) == "2,560"
    assert span([300, 100, 200]) == "100 to 300"
    assert span([]) == "-"
