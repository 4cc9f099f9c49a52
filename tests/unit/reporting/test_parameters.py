from __future__ import annotations

import json
from pathlib import Path

import pytest

from attempt_ray.errors import ConfigError
from attempt_ray.reporting.parameters import BACKBONES, parameter_table, render_markdown


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("t5-small", 60_506_624),
        ("t5-base", 222_903_552),
        ("t5-large", 737_668_096),
        ("t5-3b", 2_851_598_336),
        ("t5-11b", 11_307_321_344),
    ],
)
def test_shapes_give_the_published_totals(name: str, total: int) -> None:
    assert BACKBONES[name].parameters(vocabulary=32_128) == total


@pytest.mark.parametrize(
    ("method", "per_task"),
    [
        ("FT", 222_882_048),
        ("Adapter", 1_855_104),
        ("BitFit", 282_496),
        ("LoRA", 884_736),
        ("PT", 76_800),
        ("SPoT", 76_800),
        ("ATTEMPT-ST", 231_936),
        ("MPT", 77_668),
        ("DePT", 76_800),
        ("FT-MT", 55_720_512),
        ("Adapter-MT", 463_776),
        ("SPoT-MT", 19_200),
        ("MPT-MT", 20_068),
        ("ATTEMPT-MT", 115_584),
    ],
)
def test_t5_base_counts_are_the_papers(method: str, per_task: int) -> None:
    (entry,) = parameter_table("google-t5/t5-base").backbones
    assert entry.per_task(method) == per_task


def test_mpt_over_eight_tasks_is_what_later_papers_print() -> None:
    (entry,) = parameter_table("t5-base", num_tasks=8).backbones
    assert entry.per_task("MPT-MT") == 10_468  # "10.5k"


def test_attempt_over_eight_tasks_is_the_96k_of_the_second_version() -> None:
    (entry,) = parameter_table("t5-base", num_tasks=8).backbones
    assert entry.per_task("ATTEMPT-MT") == 96_192
    assert next(count.printed for count in entry.counts if count.method == "ATTEMPT-MT") == "96k"


def test_the_papers_figures_stand_beside_base_alone() -> None:
    table = parameter_table(None)
    printed = {
        entry.shape.name: next(count.printed for count in entry.counts if count.method == "ATTEMPT-ST")
        for entry in table.backbones
    }
    assert printed == {"t5-small": None, "t5-base": "232k", "t5-large": None, "t5-3b": None, "t5-11b": None}
    (other,) = parameter_table("t5-base", prompt_length=20).backbones
    assert all(count.printed is None for count in other.counts)
    assert other.per_task("PT") == 20 * 768


def test_markdown_and_dict_hold_the_same_counts() -> None:
    table = parameter_table("t5-base")
    text = render_markdown(table)
    assert "| ATTEMPT-ST | m d + 2 d r + 2 d | 231,936 | 0.104% | 232k |" in text
    assert "embeddings cut to the tokenizer's 32,100 rows" in text
    content = json.loads(json.dumps(table.as_dict()))
    assert content["backbones"]["t5-base"]["methods"]["ATTEMPT-ST"]["per_task"] == 231_936


def test_a_directory_with_a_t5_config_is_read(tmp_path: Path) -> None:
    config: dict[str, object] = {
        "d_model": 512,
        "d_kv": 64,
        "num_heads": 6,
        "d_ff": 1_024,
        "num_layers": 8,
        "vocab_size": 32_128,
    }
    config |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (entry,) = parameter_table(str(tmp_path)).backbones
    assert entry.per_task("FT") == 76_961_152  # T5 v1.1 small


@pytest.mark.parametrize("content", ["{", "[]", '{"d_model": 8}'])
def test_a_directory_with_another_config_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="does not describe a T5-family model"):
        parameter_table(str(tmp_path))


def test_an_unknown_backbone_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="no backbone 't5-bass'; did you mean 't5-base'"):
        parameter_table("t5-bass")


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_tasks: got 0; wanted 1 or more"):
        parameter_table("t5-base", num_tasks=0)
