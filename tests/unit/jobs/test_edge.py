from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.errors import ConfigError, DataError
from jobs import edge


def perform(call: Any) -> int:
    with pytest.raises(SystemExit) as left:
        edge.perform(call)
    assert isinstance(left.value.code, int)
    return left.value.code


def raising(error: BaseException) -> Any:
    def call() -> None:
        raise error

    return call


def test_a_result_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert perform(lambda: {"job": "x", "failed": []}) == 0
    assert capsys.readouterr().out == '{"job": "x", "failed": []}\n'


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("no rows;\n give some"), "error: no rows; give some\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: cannot go on: No space left on device"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_2(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert perform(raising(error)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(line)
    assert told.err.count("\n") == 1


def test_a_bug_shows_its_traceback_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert perform(raising(RuntimeError("a bug"))) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_tells_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert perform(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("user_error", "code"), [(True, 2), (False, 1)])
def test_runs_that_were_set_aside_decide_the_exit_code(user_error: bool, code: int) -> None:
    assert perform(lambda: {"failed": [{"run": "a", "error": "no", "user_error": user_error}]}) == code


def test_presets_and_files_are_layers_and_settings_win(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("prompt: {length: 5}\ntraining: {steps: 7}\n")
    config = edge.load_config(["embedded", str(own)], ["training.steps=9"])
    assert (config.backbone.name, config.prompt.length, config.training.steps) == ("nano", 5, 9)


def test_an_unknown_preset_gets_a_suggestion() -> None:
    with pytest.raises(
        ConfigError, match=r"no preset or YAML file 'paper/t5-bse'; did you mean 'paper/t5-base'\?"
    ):
        edge.load_config(["paper/t5-bse"])
    with pytest.raises(ConfigError, match=r"cannot read config nowhere\.yaml"):
        edge.load_config(["nowhere.yaml"])
