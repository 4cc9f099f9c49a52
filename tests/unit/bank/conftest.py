"""A small bank, the facts its versions carry, and processes that die on request."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attempt_ray.bank import BackboneRecord, Bank, Facts, MetricRecord, MixtureRecord

WIDTH = 8


@pytest.fixture
def backbone() -> BackboneRecord:
    return BackboneRecord(
        name="nano", revision="main", weights_sha256="a" * 64, tokenizer_sha256="b" * 64, width=WIDTH
    )


@pytest.fixture
def facts(backbone: BackboneRecord) -> Facts:
    return Facts(
        backbone=backbone,
        tasks=("rte",),
        config_digest="0123456789ab",
        data_sha256={"rte": "c" * 64},
        metrics={"accuracy": MetricRecord(value=81.25, n=160, split="test")},
        parents=("source/mnli@v1", "attention/rte@v2"),
        mixture=MixtureRecord(
            sources=("source/mnli@v1",),
            attention="attention/rte@v2",
            divisor=21.7,
            pooling="masked",
            authors_width=256,
            weights="learned",
            target="trained",
        ),
        recipe={"training": {"steps": 300}},
    )


@pytest.fixture
def prompt() -> Callable[[int], dict[str, np.ndarray[Any, Any]]]:
    """Return a maker of prompts [3, 8] that differ by their seed."""

    def make(seed: int) -> dict[str, np.ndarray[Any, Any]]:
        return {"prompt": np.random.default_rng(seed).standard_normal((3, WIDTH), dtype=np.float32)}

    return make


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(str(tmp_path / "bank"))


@pytest.fixture(params=["local", "file", "memory"])
def any_bank(request: pytest.FixtureRequest, tmp_path: Path) -> Bank:
    places = {
        "local": str(tmp_path / "bank"),
        "file": f"file://{tmp_path}/bank",
        "memory": f"fsspec+memory://{tmp_path.name}/bank",
    }
    return Bank(places[request.param])


@pytest.fixture
def fork() -> Callable[[Callable[[], Any]], Callable[..., Any]]:
    """Return a starter of child processes; what it returns waits for the child's result, or its exit code."""

    def start(work: Callable[[], Any]) -> Callable[..., Any]:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.write(writing, pickle.dumps(work()))
                code = 0
            finally:
                os._exit(code)
        os.close(writing)

        def finish(kill: int | None = None) -> Any:
            if kill is not None:
                os.kill(child, kill)
            with os.fdopen(reading, "rb") as pipe:
                data = pipe.read()
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return pickle.loads(data) if status == 0 and data else status

        return finish

    return start


@pytest.fixture
def flips() -> Callable[[Path], Iterator[bytes]]:
    """Return an iterator that flips one bit of each byte of a file, yields what it holds then, and puts it back."""

    def work(path: Path) -> Iterator[bytes]:
        whole = path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            for place, byte in enumerate(whole):
                flipped = bytes([byte ^ (1 << place % 8)])
                os.pwrite(file.fileno(), flipped, place)
                yield whole[:place] + flipped + whole[place + 1 :]
                os.pwrite(file.fileno(), bytes([byte]), place)

    return work
