from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.config import METHODS, carries_secret, load, parse
from attempt_ray.errors import ConfigError

SECRET = [
    "s3://user:hunter2@bucket/x",
    "s3://user:hun/ter2@bucket/x",
    "s3://user:hun?ter2@bucket/x",
    "s3://bucket/x?region=eu-west-1&Secret_Key=hunter2",
    "s3://bucket/x?session_token=hunter2",
    "abfs://container@account/x?sas_token=hunter2",
    "s3://bucket/x?endpoint_override=http://user:hunter2@host:9000",
]
PLAIN = [
    "runs",
    "C:/runs@home",
    "file:///runs",
    "s3://bucket/x?region=eu-west-1&endpoint_override=localhost:9000&scheme=http",
    "abfs://container@account.dfs.core.windows.net/x",
    "hdfs://user@host:8020/x",
    "gs://bucket/monkeys?retry_limit_seconds=3",
]


@pytest.mark.parametrize("uri", SECRET)
@pytest.mark.parametrize("key", ["runs", "bank"])
def test_a_uri_with_a_password_is_refused_without_repeating_it(key, uri):
    assert carries_secret(uri)
    with pytest.raises(
        ConfigError, match=rf"^{key} got a URI that carries a password.*AWS_ACCESS_KEY_ID"
    ) as caught:
        parse([{key: uri}])
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize("uri", PLAIN)
def test_a_uri_without_one_is_taken(uri):
    config = parse([{"runs": uri, "bank": uri}])
    assert (config.runs, config.bank) == (uri, uri)


def test_a_study_storage_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError, match=r"search\.storage got a URL that carries a password") as refused:
        parse([{"search": {"storage": "postgresql://me:hidden@host/db", "trials": 3}}])
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"objectives": ["parameters"]}, "name dev first"),
        ({"objectives": ["dev", "dev"]}, "each one once"),
        ({"seeds": [1, 2], "final_seeds": [2, 3]}, "to be tested with fresh ones"),
    ],
)
def test_a_search_that_would_mislead_is_refused(search: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse([{"search": search}])


def test_a_file_extends_presets_and_files_that_come_before_it(tmp_path: Path) -> None:
    base, page = tmp_path / "base.yaml", tmp_path / "page.yaml"
    base.write_text("extends: embedded\ntraining: {steps: 7, prompt_learning_rate: 0.2}\n")
    page.write_text(f"extends: [{base}, size/t5-small]\ntraining: {{steps: 8}}\n")
    config = load([page])
    assert config.data.origin == "embedded"
    assert (config.training.steps, config.training.prompt_learning_rate) == (8, 0.2)
    assert config.backbone.name == "google-t5/t5-small"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: no-such", "no preset or YAML file 'no-such'"),
        ("extends: 3", "extends got 3; wanted the name of a preset or YAML file, or a list"),
        ("extends: {path}", "extends itself"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path: Path, text: str, message: str) -> None:
    page = tmp_path / "page.yaml"
    page.write_text(text.format(path=page))
    with pytest.raises(ConfigError) as caught:
        load([page])
    assert message in str(caught.value)


def test_sections_of_other_methods_do_not_name_a_run():
    here, there = {"lora": {"rank": 3}}, {"adapter": {"reduction": 4}, "dept": {"rank": 9}}
    plain = parse([{"method": "lora"}]).digest()
    assert parse([{"method": "lora"}, there]).digest() == plain
    assert parse([{"method": "lora"}, here]).digest() != plain


def test_what_is_shared_by_sources_has_a_name_of_its_own():
    tasks = {"tasks": ["mnli", "squad"]}
    assert parse([{"method": "mpt"}, tasks]).source_name == "mpt-mnli-squad"
    assert (
        parse([{"method": "prompt_tuning", "prompt": {"shared": True}}, tasks]).source_name
        == "shared-mnli-squad"
    )
    assert parse([{"method": "prompt_tuning", "tasks": ["mnli"]}]).source_name == "mnli"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "lroa"}, "no method 'lroa'; did you mean 'lora'"),
        ({"prompt": {"shared": True}}, "prompt.shared got method 'attempt'"),
        ({"adapter": {"reductoin": 4}}, "did you mean 'reduction'"),
        ({"dept": {"rank": 0}}, "dept.rank: got 0"),
        ({"mpt": {"distill": -1}}, "mpt.distill: got -1"),
    ],
)
def test_settings_of_methods_that_cannot_be(changes, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        parse([changes])
    assert "\n" not in str(caught.value)


def test_inputs_open_with_as_many_positions_as_the_method_has():
    lengths = {name: parse([{"method": name, "prompt": {"length": 7}}]).prompt_length for name in METHODS}
    assert lengths == {
        "finetune": 0,
        "adapter": 0,
        "bitfit": 0,
        "lora": 0,
        "prompt_tuning": 7,
        "attempt": 7,
        "mpt": 7,
        "dept": 40,
    }
