from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attempt_ray.errors import DataError
from serve_app.strict_json import check_json

_MIB = 2**20


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b" ", "not JSON"),
        (b"{", "not JSON: .* line 1, column 2"),
        (b"{'a': 1}", "not JSON"),
        (b"[1,]", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b"[01]", "not JSON"),
        (b"[+1]", "not JSON"),
        (b"[.5]", "not JSON"),
        (b'["\t"]', "not JSON"),
        (b'["\\x41"]', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'["\xff"]', "not UTF-8: .* at byte 2"),
        (b'["\xc0\xaf"]', "not UTF-8"),
        (b'["\xed\xa0\x80"]', "not UTF-8"),
        (b"[NaN]", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "1e999, which is beyond float64"),
        (b"[-1E+400]", "beyond float64"),
        (b"[" + b"9" * 400 + b"]", "beyond float64"),
        (b"[" + b"9" * 5000 + b"]", "beyond float64"),
        (b'{"a": 1, "b": 2, "a": 3}', "key 'a' twice"),
        (b'{"x": [{"a": 1, "\\u0061": 2}]}', "key 'a' twice"),
        (b'["\\ud83d"]', r"\\ud83d, at character 2"),
        (b'["\\ude00\\ud83d"]', r"half of a surrogate pair, \\ude00"),
        (b'["\\\\\\udFFF"]', r"\\udFFF"),
        (b'{"\\uD800": 1}', r"\\uD800"),
        (b"[" * 33 + b"]" * 33, "nested deeper than 32"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "nested deeper than 32"),
        (b"[" * _MIB, "nested deeper than 32"),
    ],
)
def test_what_parsers_read_differently_is_refused_with_its_place(body, words):
    with pytest.raises(DataError, match=words) as caught:
        check_json(body, max_depth=32)
    assert len(str(caught.value)) < 200 and str(caught.value).isascii()


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"null",
        b' [1, -0.5, 1e5, 1E-999, true, "x"]\r\n',
        b"[" + b"9" * 300 + b"]",
        b"[" * 32 + b"]" * 32,
        b'["' + b"[" * 100 + b'"]',
        b'["\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["]',
        b'["\\\\", "' + b"{" * 100 + b'"]',
        b'["\\ud83d\\ude00", "\\\\ud83d", "\xf0\x9f\x98\x80"]',
        b'[{"a": 1}, {"a": 1}, {"A": 1, "a": 2}]',
    ],
)
def test_sound_bodies_pass(body):
    check_json(body, max_depth=32)
    json.loads(body)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\\\"[{}]'", max_size=3), inner),
    max_leaves=10,
)


@given(_VALUES, st.booleans())
def test_whatever_json_writes_passes(value, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    check_json(body, max_depth=32)


@given(st.binary(max_size=60) | st.text('[]{}",:\\ud8c0123eE.+-NaIfity ', max_size=60).map(str.encode))
def test_any_bytes_pass_or_are_refused_and_what_passes_parses(body):
    try:
        check_json(body, max_depth=5)
    except DataError:
        return
    json.dumps(json.loads(body), allow_nan=False).encode()


@pytest.mark.parametrize(
    "piece",
    [b'\\"', b'"', b"\\", b"[],", b"{},", b"1e1,", b"1,", b"\\u0041", b"[", b'"\\', b'"a":1,', b"9"],
)
def test_the_time_grows_with_the_length_alone(piece):
    body = b'["' + piece * ((_MIB - 2) // len(piece))
    for each in (body, b"[" + body[2:]):
        began = time.process_time()
        with suppress(DataError):
            check_json(each, max_depth=32)
        assert time.process_time() - began < 2.0  # 0.3 s measured
