from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from attempt_ray.config import BackboneConfig
from attempt_ray.model import backbone as module
from attempt_ray.model.backbone import PACKAGED, Backbone, load_backbone

NANO = BackboneConfig(name="nano", dtype="float32")
IDS = torch.tensor([[5, 6, 7, 1]])


@pytest.fixture
def shipped_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGED / "nano", tmp_path / "nano"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoints that were read themselves."""
    names: list[str] = []
    read = module._read_model

    def counted(name: str, *rest: object) -> object:
        names.append(name)
        return read(name, *rest)

    monkeypatch.setattr(module, "_read_model", counted)
    return names


def logprobs(backbone: Backbone) -> torch.Tensor:
    mask = torch.ones_like(IDS, dtype=torch.bool)
    with torch.no_grad():
        (memory,) = backbone.eval().encode_inputs(
            [(torch.zeros(1, 2, backbone.width), backbone.embed(IDS), mask)]
        )
        candidates = backbone.encode_candidates(("a", "b"))[None]
        (scores,) = backbone.score_candidates([memory], [candidates])
    return scores.logprob_BC


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_weights_are_those_of_the_checkpoint(tmp_path: Path, reads: list[str], dtype: str) -> None:
    config = BackboneConfig(name="nano", dtype=dtype)
    plain = load_backbone(config)
    first = load_backbone(config, cache=tmp_path)
    second = load_backbone(config, cache=tmp_path)
    assert len(reads) == 2
    assert plain.identity == first.identity == second.identity
    for backbone in (first, second):
        weights = dict(backbone.model.named_parameters())
        for name, weight in plain.model.named_parameters():
            assert torch.equal(weights[name], weight), name
        assert not any(weight.requires_grad for weight in weights.values())
        assert torch.equal(logprobs(backbone), logprobs(plain))


def test_types_and_changed_checkpoints_are_kept_apart(
    tmp_path: Path, reads: list[str], shipped_copy: Path
) -> None:
    config = BackboneConfig(name=str(shipped_copy), dtype="float32")
    load_backbone(config, cache=tmp_path / "cache")
    load_backbone(config.model_copy(update={"dtype": "bfloat16"}), cache=tmp_path / "cache")
    os.utime(shipped_copy / "model.safetensors", ns=(1, 1))
    load_backbone(config, cache=tmp_path / "cache")
    assert len(reads) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("file", ["weights.safetensors", "record.json"])
def test_damage_is_found_and_the_checkpoint_read(tmp_path: Path, reads: list[str], file: str) -> None:
    plain = load_backbone(NANO, cache=tmp_path)
    (path,) = tmp_path.glob(f"*/{file}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = load_backbone(NANO, cache=tmp_path)
    assert len(reads) == 2
    assert torch.equal(logprobs(again), logprobs(plain))
    load_backbone(NANO, cache=tmp_path)
    assert len(reads) == 2


def test_a_disk_that_refuses_costs_only_time(
    tmp_path: Path, reads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "file"
    place.write_text("no directory")
    load_backbone(NANO, cache=place)
    assert "weights are not kept" in caplog.text
    load_backbone(NANO, cache=place)
    assert len(reads) == 2


def test_weights_are_mapped_not_copied(tmp_path: Path) -> None:
    load_backbone(NANO, cache=tmp_path)
    kept = load_backbone(NANO, cache=tmp_path)
    (path,) = tmp_path.glob("*/weights.safetensors")
    address = kept.model.shared.weight.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= address < end:
            assert line.endswith(str(path))
            return
    pytest.fail("the address is not mapped")
