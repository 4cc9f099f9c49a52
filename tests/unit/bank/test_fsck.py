from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from attempt_ray.bank import Bank
from attempt_ray.bank.aliases import Aliases, write_aliases
from attempt_ray.bank.durable import temporary_name
from attempt_ray.bank.local import LocalStorage
from attempt_ray.bank.remote import CLAIM


@pytest.fixture
def root(bank, facts, prompt, tmp_path_factory):
    """A bank with two versions of one prompt, another prompt, a module G and aliases."""
    whole = tmp_path_factory.getbasetemp() / "whole-bank"
    if not whole.exists():
        shelf = Bank(str(whole))
        for seed in (1, 2):
            shelf.publish("source", "mnli", prompt(seed), facts)
        shelf.publish("target", "rte", prompt(3), facts)
        shapes = {"down.weight": (2, 8), "up.weight": (8, 2), "norm.weight": (8,), "norm.bias": (8,)}
        shelf.publish(
            "attention", "rte", {name: np.ones(shape, np.float32) for name, shape in shapes.items()}, facts
        )
        shelf.promote("source/mnli@v1")
        shelf.set_alias("source", "mnli", "candidate", 2)
    return shutil.copytree(whole, Path(bank.place))


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def swap(one: Path, other: Path) -> None:
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def stale(root: Path) -> None:
    write_aliases(LocalStorage(root), Aliases(kind="source", name="mnli").moved("champion", 7, action="set"))


def edit_manifest(path: Path) -> None:
    content = json.loads(path.read_bytes())
    content["metrics"]["accuracy"]["value"] = 99.9
    path.write_text(json.dumps(content))


V1, V2, RTE = "source/mnli/v000001", "source/mnli/v000002", "target/rte/v000001"
FAULTS = {
    "flipped tensors": (lambda root: flip(root / V1 / "tensors.safetensors"), V1, "damaged"),
    "flipped header": (lambda root: flip(root / V1 / "tensors.safetensors", 9), V1, "damaged"),
    "flipped manifest": (lambda root: flip(root / V1 / "manifest.json"), V1, "damaged"),
    "flipped record": (lambda root: flip(root / V1 / "manifest.sha256"), V1, "damaged"),
    "edited manifest": (lambda root: edit_manifest(root / V1 / "manifest.json"), V1, "damaged"),
    "truncated tensors": (lambda root: os.truncate(root / V1 / "tensors.safetensors", 50), V1, "damaged"),
    "empty manifest": (lambda root: os.truncate(root / V1 / "manifest.json", 0), V1, "damaged"),
    "empty record": (lambda root: os.truncate(root / V1 / "manifest.sha256", 0), V1, "damaged"),
    "longer tensors": (lambda root: os.truncate(root / V1 / "tensors.safetensors", 999), V1, "damaged"),
    "no tensors": (lambda root: (root / V1 / "tensors.safetensors").unlink(), f"{V1}/tensors.safetensors", "missing"),
    "no manifest": (lambda root: (root / V1 / "manifest.json").unlink(), f"{V1}/manifest.json", "missing"),
    "no record": (lambda root: (root / V1 / "manifest.sha256").unlink(), f"{V1}/manifest.sha256", "missing"),
    "swapped versions": (lambda root: swap(root / V1, root / V2), V1, "damaged"),
    "swapped prompts": (lambda root: swap(root / V1, root / RTE), RTE, "damaged"),
    "swapped tensors": (
        lambda root: swap(root / V1 / "tensors.safetensors", root / V2 / "tensors.safetensors"), V2, "damaged",
    ),
    "copied version": (lambda root: shutil.copytree(root / V1, root / "source/mnli/v000003"), "source/mnli/v000003", "damaged"),
    "renamed prompt": (lambda root: (root / "target/rte").rename(root / "target/cb"), "target/cb/v000001", "damaged"),
    "other kind": (lambda root: (root / "source/mnli").rename(root / "target/mnli"), "target/mnli/v000001", "damaged"),
    "extra file": (lambda root: (root / V1 / "notes.txt").touch(), f"{V1}/notes.txt", "extra"),
    "pickle": (lambda root: (root / V1 / "prompt.pt").touch(), f"{V1}/prompt.pt", "extra"),
    "extra in prompt": (lambda root: (root / "source/mnli/old").mkdir(), "source/mnli/old", "extra"),
    "extra in kind": (lambda root: (root / "source/file").touch(), "source/file", "extra"),
    "extra in root": (lambda root: (root / "checkpoints").mkdir(), "checkpoints", "extra"),
    "case collision": (lambda root: shutil.copytree(root / "source/mnli", root / "source/MNLI"), "source/MNLI", "extra"),
    "short number": (lambda root: shutil.copytree(root / V1, root / "source/mnli/v1"), "source/mnli/v1", "extra"),
    "lock directory": (lambda root: ((root / ".lock").unlink(), (root / ".lock").mkdir()), ".lock", "extra"),
    "linked version": (lambda root: (root / "source/mnli/v000003").symlink_to(root / V1), "source/mnli/v000003", "link"),
    "linked prompt": (lambda root: (root / "source/qnli").symlink_to(root / "source/mnli"), "source/qnli", "link"),
    "linked kind": (
        lambda root: ((root / "attention").rename(root / "../a"), (root / "attention").symlink_to("../a")), "attention", "link",
    ),
    "linked tensors": (
        lambda root: (
            (root / V1 / "tensors.safetensors").rename(root / "../t"),
            (root / V1 / "tensors.safetensors").symlink_to(root / "../t"),
        ), f"{V1}/tensors.safetensors", "link",
    ),
    "pipe": (lambda root: os.mkfifo(root / V1 / "pipe"), f"{V1}/pipe", "link"),
    "torn directory": (lambda root: (root / "source/mnli/.v000003.tmp-9-a").mkdir(), "source/mnli/.v000003.tmp-9-a", "unfinished"),
    "torn aliases": (
        lambda root: (root / "source/mnli/.aliases.json.tmp-9-a").touch(), "source/mnli/.aliases.json.tmp-9-a", "unfinished",
    ),
    "left claim": (lambda root: (root / V1 / f"{CLAIM}0").touch(), f"{V1}/{CLAIM}0", "unfinished"),
    "stale alias": (stale, "source/mnli/aliases.json", "stale alias"),
    "lost version": (lambda root: shutil.rmtree(root / V2), "source/mnli/aliases.json", "stale alias"),
    "flipped aliases": (lambda root: flip(root / "source/mnli/aliases.json"), "source/mnli/aliases.json", "damaged"),
    "empty aliases": (lambda root: os.truncate(root / "source/mnli/aliases.json", 0), "source/mnli/aliases.json", "damaged"),
    "empty version": (lambda root: (root / "source/mnli/v000009").mkdir(), "source/mnli/v000009/manifest.json", "missing"),
}  # fmt: skip


def test_a_good_bank_has_no_problems(root, bank):
    assert bank.verify() == []
    assert bank.verify("source/mnli") == []
    assert Bank(str(root.parent / "none")).verify() == []


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_where_it_is(root, bank, fault):
    damage, path, word = FAULTS[fault]
    damage(root)
    before = sorted(str(found) for found in root.rglob("*"))
    problems = bank.verify()
    assert (path, word) in [(problem.path, problem.fault) for problem in problems]
    assert all(problem.detail and str(problem).startswith(problem.path) for problem in problems)
    assert sorted(str(found) for found in root.rglob("*")) == before


def test_one_version_is_checked_alone(root, bank):
    flip(root / V1 / "tensors.safetensors")
    assert [problem.path for problem in bank.verify("source/mnli@v1")] == [V1]
    assert bank.verify("source/mnli@v2") == []


def test_a_writer_at_work_is_no_problem(root, bank, fork):
    reading, writing = os.pipe()
    temporary = root / "source" / "mnli" / temporary_name("v000003")

    def work():
        with LocalStorage(root).lock():
            temporary.mkdir()
            os.write(writing, b"x")
            time.sleep(0.1)  # the check lists the directory and waits for the lock
            temporary.rmdir()

    finish = fork(work)
    os.read(reading, 1)
    assert bank.verify() == []
    finish()
    os.close(reading)
    os.close(writing)


def test_what_cannot_be_read_is_told(root, bank, monkeypatch):
    real = os.open

    def refuse(path, *args, **kwargs):
        if path == "tensors.safetensors":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    assert {problem.fault for problem in bank.verify()} == {"unreadable"}
    assert len(bank.verify()) == 4


def test_an_unfinished_publication_on_an_object_store(facts, prompt, tmp_path):
    from pyarrow import fs

    uri = f"fsspec+memory://{tmp_path.name}"
    bank = Bank(uri)
    bank.publish("source", "mnli", prompt(1), facts)
    memory, base = fs.FileSystem.from_uri(uri)
    with memory.open_output_stream(f"{base.rstrip('/')}/source/mnli/v000002/tensors.safetensors") as stream:
        stream.write(b"half")
    assert [(problem.path, problem.fault) for problem in bank.verify()] == [
        ("source/mnli/v000002", "unfinished")
    ]
    assert [version.number for version in bank.list()] == [1]
    assert bank.publish("source", "mnli", prompt(2), facts).number == 3
