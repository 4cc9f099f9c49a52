from __future__ import annotations

import pytest

from attempt_ray.errors import ConfigError, DataError
from jobs.predict import read_rows


def test_fields_make_one_row() -> None:
    assert read_rows(["sentence=a = b", " idx =1"], []) == [{"sentence": "a = b", "idx": "1"}]


def test_lines_of_json_make_rows_and_blank_ones_none() -> None:
    assert read_rows([], ['{"a": "x"}', "  ", '{"a": "y"}']) == [{"a": "x"}, {"a": "y"}]


def test_what_is_no_field_or_no_object_is_refused() -> None:
    with pytest.raises(ConfigError, match="--field got 'sentence'; wanted name=value"):
        read_rows(["sentence"], [])
    with pytest.raises(DataError, match="line 2 of the rows is no JSON object"):
        read_rows([], ['{"a": "x"}', "[1]"])
