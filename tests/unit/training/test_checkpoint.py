from __future__ import annotations

import random
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attempt_ray.errors import IntegrityError, NonFiniteError, StorageError
from attempt_ray.training.checkpoint import (
    KEEP,
    Checkpoint,
    checkpoints,
    load_checkpoint,
    optimizer_tensors,
    read_checkpoint,
    remove_checkpoints,
    restore_optimizer,
    save_checkpoint,
)


def make(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        trainable={"prompts": torch.full((2, 3), float(step))},
        optimizer={"0/exp_avg": torch.ones(2, 3), "0/step": torch.tensor(float(step))},
        best={f"{step}/prompts": torch.zeros(2, 3)},
        facts={"tokens": 7, "seconds": 0.1 + 0.2},
    )


def test_round_trip_is_exact(tmp_path):
    save_checkpoint(tmp_path, make(5))
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.facts) == (5, make(5).facts)
    for group in ("trainable", "optimizer", "best"):
        wanted = getattr(make(5), group)
        assert getattr(found, group).keys() == wanted.keys()
        assert all(torch.equal(getattr(found, group)[name], wanted[name]) for name in wanted)


def test_nothing_saved_is_nothing_found(tmp_path):
    assert load_checkpoint(tmp_path / "absent") is None


def test_the_newest_two_stay(tmp_path):
    for step in (1, 20, 3):
        save_checkpoint(tmp_path, make(step))
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000020", "step-00000003"]
    assert len(checkpoints(tmp_path)) == KEEP


def test_every_flipped_byte_and_every_torn_end_is_found(tmp_path):
    path = save_checkpoint(tmp_path, make(5))
    rng = random.Random(0)
    cases = 0
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for place in range(len(whole)):
            flipped = []
            for bit in rng.sample(range(8), k=2):
                damaged = bytearray(whole)
                damaged[place] ^= 1 << bit
                flipped.append(bytes(damaged))
            for content in (*flipped, whole[:place]):
                file.write_bytes(content)
                with pytest.raises(IntegrityError, match="expected"):
                    read_checkpoint(path)
                cases += 1
        file.write_bytes(whole)
    assert read_checkpoint(path).step == 5
    assert cases >= 2000


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing", "manifest"])
def test_damaged_newest_gives_way_to_the_one_before(tmp_path, damage):
    save_checkpoint(tmp_path, make(5))
    newest = save_checkpoint(tmp_path, make(10))
    file = newest / ("manifest.json" if damage == "manifest" else "state.safetensors")
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        changed = {
            "flip": data[:-1] + bytes([data[-1] ^ 1]),
            "cut": data[:20],
            "empty": b"",
            "manifest": b"{}",
        }
        file.write_bytes(changed[damage])
    told: list[str] = []
    found = load_checkpoint(tmp_path, on_damage=told.append)
    assert found is not None
    assert found.step == 5
    assert len(told) == 1
    assert str(file) in told[0]
    assert "expected" in told[0]
    assert "found" in told[0]
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000005"]


def test_no_whole_checkpoint_is_none(tmp_path):
    (save_checkpoint(tmp_path, make(5)) / "manifest.json").unlink()
    assert load_checkpoint(tmp_path) is None


def test_non_finite_state_is_never_written(tmp_path):
    bad = replace(make(5), trainable={"prompts": torch.tensor([1.0, torch.nan])})
    with pytest.raises(NonFiniteError, match="'prompts' holds NaN or infinity after step 5"):
        save_checkpoint(tmp_path, bad)
    assert checkpoints(tmp_path) == []


def test_what_a_killed_writer_left_is_removed(tmp_path):
    save_checkpoint(tmp_path, make(5))
    (tmp_path / ".step-00000010.tmp-1-aaaa").mkdir()
    assert load_checkpoint(tmp_path) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_refused_write_keeps_what_was_there(tmp_path):
    save_checkpoint(tmp_path, make(5))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(StorageError, match="File too large"):
            save_checkpoint(tmp_path, make(10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 5
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_same_step_twice_is_left_alone(tmp_path: Path):
    first = save_checkpoint(tmp_path, make(5))
    stamp = (first / "manifest.json").stat().st_mtime_ns
    save_checkpoint(tmp_path, make(5))
    assert (first / "manifest.json").stat().st_mtime_ns == stamp


def test_all_are_removed_in_the_end(tmp_path):
    save_checkpoint(tmp_path, make(5))
    remove_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_optimizer_round_trip_goes_on_alike():
    def stepped(optimizer, parameter):
        parameter.grad = parameter.detach() * 0.5 + 1
        optimizer.step()
        return parameter.detach().clone()

    first = torch.nn.Parameter(torch.arange(3.0))
    optimizer = torch.optim.AdamW([first], lr=0.1)
    stepped(optimizer, first)
    saved, value = optimizer_tensors(optimizer), first.detach().clone()
    expected = stepped(optimizer, first)
    second = torch.nn.Parameter(value.clone())
    other = torch.optim.AdamW([second], lr=0.1)
    restore_optimizer(other, saved)
    assert torch.equal(stepped(other, second), expected)
    third = torch.nn.Parameter(value.clone())
    assert not torch.equal(stepped(torch.optim.AdamW([third], lr=0.1), third), expected)
