from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from attempt_ray.config import AttentionConfig
from attempt_ray.errors import ConfigError
from attempt_ray.tasks import GROUPS, SOURCE_TASKS, TARGET_TASKS, TASKS, all_tasks, get_task
from attempt_ray.tasks.metrics import METRICS

# name: (hub id, hub config, split rule, dev split, test split, group, headline), after the method's table
TABLE = {
    "mnli": (
        "nyu-mll/glue",
        "mnli",
        "native",
        "validation_mismatched",
        "validation_matched",
        "sources",
        "accuracy",
    ),
    "sst2": ("nyu-mll/glue", "sst2", "large", "validation", "validation", "sources", "accuracy"),
    "qnli": ("nyu-mll/glue", "qnli", "large", "validation", "validation", "sources", "accuracy"),
    "qqp": ("nyu-mll/glue", "qqp", "large", "validation", "validation", "sources", "f1"),
    "squad": ("rajpurkar/squad", "plain_text", "large", "validation", "validation", "sources", "squad_f1"),
    "record": ("aps/super_glue", "record", "large", "validation", "validation", "sources", "squad_f1"),
    "wnli": ("nyu-mll/glue", "wnli", "small", "validation", "validation", "GLUE", "accuracy"),
    "stsb": ("nyu-mll/glue", "stsb", "small", "validation", "validation", "GLUE", "pearson"),
    "mrpc": ("nyu-mll/glue", "mrpc", "small", "validation", "test", "GLUE", "accuracy"),
    "rte": ("nyu-mll/glue", "rte", "small", "validation", "validation", "GLUE", "accuracy"),
    "cola": ("nyu-mll/glue", "cola", "small", "validation", "validation", "GLUE", "matthews"),
    "multirc": ("aps/super_glue", "multirc", "small", "validation", "validation", "MultiRC", "f1"),
    "boolq": ("aps/super_glue", "boolq", "small", "validation", "validation", "SuperGLUE", "accuracy"),
    "wic": ("aps/super_glue", "wic", "small", "validation", "validation", "SuperGLUE", "accuracy"),
    "wsc": ("aps/super_glue", "wsc.fixed", "small", "validation", "validation", "SuperGLUE", "accuracy"),
    "cb": ("aps/super_glue", "cb", "small", "validation", "validation", "SuperGLUE", "accuracy"),
    "copa": ("aps/super_glue", "copa", "small", "validation", "validation", "SuperGLUE", "accuracy"),
    "superglue-rte": ("aps/super_glue", "rte", "small", "validation", "validation", "SuperGLUE", "accuracy"),
    "nq": (
        "lucadiliello/naturalquestionsshortqa",
        None,
        "large",
        "validation",
        "validation",
        "MRQA",
        "squad_f1",
    ),
    "hotpotqa": ("lucadiliello/hotpotqa", None, "large", "validation", "validation", "MRQA", "squad_f1"),
    "searchqa": ("lucadiliello/searchqa", None, "large", "validation", "validation", "MRQA", "squad_f1"),
    "newsqa": ("lucadiliello/newsqa", None, "large", "validation", "validation", "MRQA", "squad_f1"),
    "winogrande": (
        "allenai/winogrande",
        "winogrande_xl",
        "large",
        "validation",
        "validation",
        "Others",
        "accuracy",
    ),
    "yelp": ("fancyzhx/yelp_polarity", "plain_text", "large", "test", "test", "Others", "accuracy"),
    "scitail": ("allenai/scitail", "snli_format", "small", "validation", "test", "Others", "accuracy"),
    "paws": (
        "google-research-datasets/paws",
        "labeled_final",
        "native",
        "validation",
        "test",
        "Others",
        "accuracy",
    ),
}


def test_there_are_6_sources_and_19_targets_and_superglue_rte() -> None:
    assert len(SOURCE_TASKS) == 6
    assert len(TARGET_TASKS) == 19
    assert set(TASKS) == {*SOURCE_TASKS, *TARGET_TASKS, "superglue-rte"} == set(TABLE)
    assert set(AttentionConfig().sources) == set(SOURCE_TASKS)


@pytest.mark.parametrize("name", TABLE)
def test_task_is_the_row_of_the_table(name: str) -> None:
    task = TASKS[name]
    facts = (task.hub_id, task.hub_config, task.split_rule, task.dev_split, task.test_split, task.group)
    assert (*facts, task.metrics[0]) == TABLE[name]
    assert task.name == name


def test_lengths_are_the_papers() -> None:
    lengths = {name: task.max_source_tokens for name, task in TASKS.items()}
    long = ("squad", "record", "nq", "hotpotqa", "searchqa", "newsqa")
    assert {name: length for name, length in lengths.items() if length != 256} == {
        "multirc": 348,
        **dict.fromkeys(long, 512),
    }
    assert {name for name, task in TASKS.items() if task.max_target_tokens == 128} == set(long)
    assert {name: task.max_train_rows for name, task in TASKS.items() if task.max_train_rows} == {
        "yelp": 100_000
    }


def test_groups_are_the_papers_multi_task_runs() -> None:
    assert GROUPS == {
        "sources": ("mnli", "sst2", "qnli", "qqp", "squad", "record"),
        "GLUE": ("wnli", "stsb", "mrpc", "rte"),
        "SuperGLUE": ("boolq", "wic", "wsc", "cb"),
        "MultiRC": ("multirc",),
        "MRQA": ("nq", "hotpotqa", "searchqa", "newsqa"),
        "Others": ("winogrande", "yelp", "scitail", "paws"),
    }
    assert all(TASKS[name].group == group for group, names in GROUPS.items() for name in names)


@pytest.mark.parametrize("name", TABLE)
def test_labels_are_distinct_words_where_the_set_is_closed(name: str) -> None:
    task = TASKS[name]
    if task.kind != "classification":
        assert task.labels == {}
        return
    digits, words = task.labels["digits"], task.labels["words"]
    assert digits == tuple(str(class_id) for class_id in range(len(words)))
    assert len(set(words)) == len(words) >= 2
    assert all(word == word.strip() and " " not in word for word in words)


@pytest.mark.parametrize("name", TABLE)
def test_every_metric_is_known_and_of_the_tasks_kind(name: str) -> None:
    task = TASKS[name]
    assert task.metrics
    assert {METRICS[metric].kind for metric in task.metrics} == {task.kind}


@pytest.mark.parametrize("name", TABLE)
def test_a_task_survives_the_trip_to_a_worker(name: str) -> None:
    task = TASKS[name]
    assert pickle.loads(pickle.dumps(task)).fields == task.fields
    assert len({task, task}) == 1


def test_an_unknown_task_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"^no task 'boolQ'; did you mean 'boolq'\?$"):
        get_task("boolQ")
    assert get_task("boolq") is TASKS["boolq"]
    assert all_tasks() == TASKS


def test_describing_tasks_loads_no_heavy_library() -> None:
    code = "import sys, attempt_ray.tasks; print([m for m in ('torch','datasets','sklearn','scipy','ray') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
