from __future__ import annotations

import hashlib
import json
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from attempt_ray.bank.local import LocalStorage
from attempt_ray.bank.manifest import Manifest, TensorRecord
from attempt_ray.bank.names import Version
from attempt_ray.bank.versions import (
    FILES,
    MANIFEST,
    RECORD,
    TENSORS,
    assemble,
    encode_manifest,
    encode_tensors,
    names,
    numbers,
    read_manifest,
    read_manifest_of,
    read_tensors,
    sha256,
    taken_numbers,
)
from attempt_ray.errors import BankError, IntegrityError

VERSION = Version("source", "mnli", 1)


@pytest.fixture
def write(tmp_path, facts, prompt):
    """Return a writer of a version whose tensors' file is given, or made from a prompt, and its digests right."""

    def work(data: bytes | None = None, **changes) -> Path:
        made, records = encode_tensors(prompt(0))
        data = made if data is None else data
        manifest = Manifest(
            **{
                **dict(facts),
                "kind": "source",
                "name": "mnli",
                "number": 1,
                "created": "2026-11-22T10:00:00Z",
                "tensors": records,
                "files": {TENSORS: sha256(data)},
                **changes,
            },
        )
        directory = tmp_path / VERSION.directory
        directory.mkdir(parents=True)
        for name, content in assemble(tensors=data, manifest=encode_manifest(manifest)).items():
            (directory / name).write_bytes(content)
        return directory

    return work


def read(tmp_path):
    storage = LocalStorage(tmp_path)
    manifest, _ = read_manifest_of(storage, VERSION)
    return read_tensors(storage, VERSION.directory, manifest)[0]


def test_what_is_written_is_read(write, prompt, tmp_path):
    directory = write()
    assert read(tmp_path)["prompt"].tobytes() == prompt(0)["prompt"].tobytes()
    assert read(tmp_path)["prompt"].flags.writeable
    assert tuple(assemble(tensors=b"", manifest=b"")) == FILES
    assert FILES[-1] == MANIFEST
    subprocess.run(["sha256sum", "--check", "--status", RECORD], cwd=directory, check=True)


def test_equal_tensors_give_equal_bytes(prompt):
    tensors = {"b": prompt(1)["prompt"], "a": prompt(2)["prompt"].T}
    data, records = encode_tensors(tensors)
    again, _ = encode_tensors(dict(reversed(tensors.items())))
    assert data == again
    assert records["a"].shape == (8, 3)


@pytest.mark.parametrize("name", [MANIFEST, RECORD])
def test_a_flip_of_any_byte_is_found(write, flips, tmp_path, name):
    path = write() / name
    storage = LocalStorage(tmp_path)
    for _ in flips(path):
        with pytest.raises(
            IntegrityError, match=rf"{MANIFEST} .*expected sha256 .*, found [0-9a-f]{{64}}; nothing was"
        ):
            read_manifest(storage, VERSION.directory)


def test_a_flip_of_any_byte_of_the_tensors_is_found(write, flips, tmp_path):
    path = write() / TENSORS
    whole = path.read_bytes()
    storage = LocalStorage(tmp_path)
    manifest, _ = read_manifest(storage, VERSION.directory)
    for damaged in flips(path):
        with pytest.raises(
            IntegrityError, match=f"{TENSORS}: expected sha256 {sha256(whole)}, found {sha256(damaged)}"
        ):
            read_tensors(storage, VERSION.directory, manifest)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "longer", "huge", "directory"])
def test_other_damage_is_found(write, tmp_path, name, damage):
    path = write() / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage == "huge":
        path.touch()
        with path.open("r+b") as file:
            file.truncate(2**40)
    elif damage != "missing":
        path.write_bytes({"empty": b"", "truncated": whole[:-1], "longer": whole + b"\0"}[damage])
    with pytest.raises(IntegrityError, match=str(path.parent)):
        read(tmp_path)


def test_a_version_in_the_place_of_another_is_refused(write, tmp_path):
    write(number=2)
    with pytest.raises(IntegrityError, match=r"expected source/mnli@v1, found source/mnli@v2"):
        read(tmp_path)


def header(content: dict, data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype="F32", shape=(3, 8), offsets=(0, 96)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04]\x94.",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 60_000) + b"{" * 60_000,
        header({}),
        header({"prompt": tensor()}),
        header({"prompt": tensor()}, bytes(95)),
        header({"prompt": tensor()}, bytes(97)),
        header({"prompt": tensor(), "other": tensor()}, bytes(96)),
        header({"other": tensor()}, bytes(96)),
        header({"prompt": tensor(shape=(4, 8), offsets=(0, 128))}, bytes(128)),
        header({"prompt": tensor(shape=(3, 0), offsets=(0, 0))}),
        header({"prompt": tensor(shape=(2**62, 2**62), offsets=(0, 96))}, bytes(96)),
        header({"prompt": tensor(dtype="F64", shape=(3, 4))}, bytes(96)),
        header({"prompt": tensor(dtype="BF16", shape=(6, 8))}, bytes(96)),
        header({"prompt": tensor(dtype="F8_E4M3", shape=(12, 8))}, bytes(96)),
        header({"prompt": tensor(dtype="NOPE")}, bytes(96)),
        header({"prompt": tensor(offsets=(96, 0))}, bytes(96)),
        header({"prompt": tensor()}, np.full(24, np.nan, np.float32).tobytes()),
        header({f"t{number}": tensor(shape=(0,), offsets=(0, 0)) for number in range(900)}),
    ],
)
def test_hostile_tensors_with_right_digests_are_refused(write, tmp_path, data):
    write(data)
    with pytest.raises(IntegrityError, match=TENSORS):
        read(tmp_path)


def test_a_manifest_that_asks_for_too_much_memory_is_refused(write, tmp_path):
    write(tensors={"prompt": TensorRecord(shape=(2**40, 8), dtype="float32")})
    with pytest.raises(IntegrityError, match="tells of"):
        read(tmp_path)


def test_shapes_must_be_those_of_the_manifest(write, tmp_path):
    write(tensors={"prompt": TensorRecord(shape=(4, 8), dtype="float32")})
    with pytest.raises(IntegrityError, match="its shapes"):
        read(tmp_path)


def test_a_manifest_must_name_the_tensors_and_nothing_else(write, tmp_path):
    write(files={TENSORS: "0" * 64, "other": "0" * 64})
    with pytest.raises(IntegrityError, match=f"wanted the digest of {TENSORS}"):
        read(tmp_path)


def test_what_is_no_manifest_is_refused(write, tmp_path):
    directory = write()
    (directory / MANIFEST).write_bytes(b"{}")
    (directory / RECORD).write_text(f"{hashlib.sha256(b'{}').hexdigest()}  {MANIFEST}\n")
    with pytest.raises(IntegrityError, match=f"{MANIFEST}: backbone: "):
        read(tmp_path)


def test_a_recipe_can_be_too_long(write):
    with pytest.raises(BankError, match="shorten the recipe"):
        write(recipe={"text": "x" * 2**20})


def test_only_what_is_named_like_a_version_counts(tmp_path):
    for path in (
        "source/mnli/v000002",
        "source/mnli/v1",
        "source/mnli/.v000003.tmp-1-a",
        "source/X",
        "source/a..b",
    ):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "source" / "mnli" / "v000009").touch()
    storage = LocalStorage(tmp_path)
    assert names(storage, "source") == ["mnli"]
    assert numbers(storage, "source", "mnli") == taken_numbers(storage, "source", "mnli") == [2]
    storage.commits_whole = False
    assert numbers(storage, "source", "mnli") == []
