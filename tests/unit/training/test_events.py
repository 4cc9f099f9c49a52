from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from attempt_ray.errors import StorageError
from attempt_ray.training.directory import History
from attempt_ray.training.events import EventFile
from attempt_ray.training.run import execute


def read_events(directory):
    """The events of the one event file, every checksum checked."""
    (path,) = directory.glob("events.out.tfevents.*")
    data, events = path.read_bytes(), []
    while data:
        length, checked = struct.unpack("<QI", data[:12])
        assert checked == masked_crc32c(data[:8])
        record = data[12 : 12 + length]
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(record)
        events.append(Event.FromString(record))
        data = data[16 + length :]
    return events


def scalars(directory):
    """Step and values of every event that has some."""
    return [
        (event.step, {value.tag: value.simple_value for value in event.summary.value})
        for event in read_events(directory)
        if event.HasField("summary")
    ]


def interrupt_after(step):
    def on_progress(progress):
        if getattr(progress, "step", None) == step:
            raise RuntimeError

    return on_progress


def test_events_hold_what_the_history_holds(make_config):
    directory = execute(make_config(training={"tensorboard": True})).directory
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in scalars(directory)] == [line["step"] for line in lines]
    for line, (_, values) in zip(lines, scalars(directory), strict=True):
        numbers = {name: value for name, value in line.items() if name not in ("step", "seconds")}
        assert values == pytest.approx(numbers)


def test_a_resumed_run_has_no_step_twice(make_config):
    config = make_config(training={"tensorboard": True})
    with pytest.raises(RuntimeError):
        execute(config, on_progress=interrupt_after(5))  # the last checkpoint is the one after step 4
    directory = execute(config).directory
    assert [step for step, values in scalars(directory) if "loss" in values] == [1, 2, 3, 4, 5, 6]
    assert [step for step, values in scalars(directory) if "dev/mean" in values] == [2, 4, 6]


def test_a_run_that_is_asked_for_events_later_has_them_from_the_start(make_config):
    with pytest.raises(RuntimeError):
        execute(make_config(), on_progress=interrupt_after(3))
    result = execute(make_config(training={"tensorboard": True}))
    assert [step for step, values in scalars(result.directory) if "loss" in values] == [1, 2, 3, 4, 5, 6]


def test_events_are_not_written_unasked(make_config):
    directory = execute(make_config()).directory
    assert not list(directory.glob("events*"))


def test_events_do_not_name_the_run(make_config):
    plain, asked = make_config(), make_config(training={"tensorboard": True})
    assert plain.digest() == asked.digest()


def test_the_session_starts_anew_and_times_follow_the_lines(tmp_path):
    lines = [
        {"step": 1, "loss": 1.0, "seconds": 2.0},
        {"step": 1, "dev/mean": 3.0},
        {"step": 2, "seconds": 7.0},
    ]
    EventFile(tmp_path, lines=lines).close()
    version, session, *rest = read_events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (session.step, session.session_log.status) == (0, SessionLog.START)
    assert [event.wall_time - rest[0].wall_time for event in rest] == pytest.approx([0.0, 0.0, 5.0], abs=0.01)


def test_a_refusing_disk_is_told_like_any_other(tmp_path):
    history = History(tmp_path / "metrics.jsonl", through=0, tensorboard=True)
    history._events._file.close()
    with Path("/dev/full").open("wb", buffering=0) as full:
        history._events._file = full
        with pytest.raises(StorageError, match="events"):
            history.add({"step": 1, "loss": 0.5})
        history.close()
