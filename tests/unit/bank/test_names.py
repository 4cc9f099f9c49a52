from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from attempt_ray.bank.names import (
    Reference,
    Version,
    check_alias,
    check_kind,
    check_name,
    directory_name,
    is_name,
    number_of,
)
from attempt_ray.errors import BankError

HOSTILE = [
    "", ".", "..", "../x", "x/..", "x/../y", "..x", "x..y", "a..", "/etc", "//host/x", "\\\\host\\x", "..\\x", "x\\y",
    "%2e%2e", "%252e", "x%00", "x\0", "x\0y", "x\n", "\nx", "x\r", "x\t", " x", "x ", "x y", "#x", "x#y", "x?y", "x*", "~",
    "~root", "$HOME", "`id`", "x;y", "x|y", "x&y", "x@y", "x:y", "C:x", "file://x", "s3://x", "-x", "_x", ".x", ".lock",
    ".v000001.tmp-1-a", "X", "xY", "CON", "\uff41", "\uff0e\uff0e", "\u2025", "\u202ex", "\u200bx", "caf\u00e9",
    "cafe\u0301", "\u0661", "\ud800", "x" * 65, "x" * 300, "x/" * 50, None, 1, b"x", ("x",), "\u2215x", "x\u2044y",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_are_refused(name):
    for check in (check_name, check_alias, check_kind):
        with pytest.raises(BankError) as caught:
            check(name)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300
    for text in (name, f"source/{name}/x", f"{name}/x", f"source/x@{name}", f"source/{name}@v1"):
        if isinstance(name, str) and text != "source/x@y@v1":
            with pytest.raises(BankError):
                Reference.parse(text)


@pytest.mark.parametrize("name", ["rte", "superglue-rte", "prior_text", "a.b", "0", "x" * 64, "v1", "con"])
def test_ordinary_names_are_accepted(name):
    assert check_name(name) == name


def test_no_accepted_name_leaves_its_directory():
    draw = random.Random(0)
    texts = ("".join(draw.choices("ab0.-_/\\%~\0\nZ", k=draw.randint(0, 5))) for _ in range(5000))
    accepted = [text for text in texts if is_name(text)]
    assert len(accepted) > 100
    assert {str(Path(os.path.normpath(f"/bank/source/{name}")).parent) for name in accepted} == {
        "/bank/source"
    }


def test_references():
    assert Reference.parse("source/mnli") == Reference("source", "mnli")
    assert Reference.parse("target/rte@champion") == Reference("target", "rte", alias="champion")
    assert Reference.parse("attention/prior-text@v12") == Reference("attention", "prior-text", number=12)
    assert Reference.parse("source/x@v000012").number == 12


@pytest.mark.parametrize(
    "text", ["source", "source/", "/x", "source/x@", "source/x@@a", "source/x@v0", "source/x@v1@v2", ""]
)
def test_malformed_references_are_refused(text):
    with pytest.raises(BankError):
        Reference.parse(text)


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(BankError, match="no kind of prompt 'sorce'; did you mean 'source'"):
        Reference.parse("sorce/x")


def test_an_alias_does_not_read_as_a_version():
    with pytest.raises(BankError, match="version number"):
        check_alias("v1")


def test_directories_of_versions():
    version = Version("source", "mnli", 3)
    assert (version.directory, version.reference, str(version)) == (
        "source/mnli/v000003",
        "source/mnli@v3",
        "source/mnli@v3",
    )
    assert [number_of(directory_name(number)) for number in (1, 999_999, 1_000_000)] == [
        1,
        999_999,
        1_000_000,
    ]
    assert [number_of(name) for name in ("v1", "v0000001", "v000000", "x000001", "v-00001")] == [None] * 5
