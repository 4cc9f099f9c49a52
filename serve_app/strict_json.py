"""Whether a body is JSON that every parser reads alike: RFC 8259 without what it leaves open, and I-JSON's (RFC 7493) rules.

The nesting is counted before anything descends into it, and each check takes time in proportion to the body's length.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from attempt_ray.errors import DataError

_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""Strings, and what has begun as one: were the end not optional, every quote would be searched from anew."""
_LARGE = re.compile(rb"[0-9][eE]|[0-9]{309}")
"""What a number beyond float64 cannot do without."""
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
_ESCAPES = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair, which is one character
    r"|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
_SHOWN = 40
"""Characters of a request that a message repeats at most."""


def check_json(body: bytes, *, max_depth: int) -> None:
    """Return if a body is sound.

    Args:
        body: The text, as it arrived.
        max_depth: Deepest nesting of arrays and objects.

    Raises:
        DataError: It is not UTF-8 or not JSON, has a key twice in one object, a number beyond float64 or none at all (NaN,
            Infinity), half of a surrogate pair, or is nested deeper.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    bare = _STRINGS.sub(b"", body)
    _check_depth(bare, max_depth)
    check = _check_number if _LARGE.search(bare) else None
    try:
        json.loads(
            text,
            object_pairs_hook=_check_keys,
            parse_constant=_refuse_constant,
            parse_float=check,
            parse_int=check,
        )
    except json.JSONDecodeError as error:
        raise DataError(
            f"the body is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from None
    if "\\u" in text:
        for found in _ESCAPES.finditer(text):
            if found["lone"]:
                raise DataError(
                    f"the body has half of a surrogate pair, {found['lone']}, at character {found.start()}; send whole "
                    "characters"
                )


def _check_depth(bare: bytes, max_depth: int) -> None:
    depth = 0
    for bracket in bare.translate(None, _OTHERS):
        depth += 1 if bracket in b"[{" else -1
        if depth > max_depth:
            raise DataError(f"the body is nested deeper than {max_depth}; send it flat")


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) < 2 or len(dict(pairs)) == len(pairs):
        return
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise DataError(f"the body has the key {key[:_SHOWN]!a} twice in one object; send it once")
        seen.add(key)


def _check_number(text: str) -> None:
    if math.isinf(float(text)):
        raise DataError(
            f"the body has the number {text[:_SHOWN]}, which is beyond float64; send a smaller one"
        )


def _refuse_constant(text: str) -> NoReturn:
    raise DataError(f"the body has {text}, which is not JSON; send a finite number or null")
