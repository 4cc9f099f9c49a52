"""What is learned: the paper's 6 source tasks and 19 targets, users' own tasks, and their metrics.

Source and target tasks follow Asai et al. 2022, section 4.1: its 17 targets with results, and COPA and CoLA,
which it names only. SuperGLUE's version of RTE is there besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from attempt_ray.config import TaskGroup
from attempt_ray.errors import ConfigError, unknown_name
from attempt_ray.tasks.glue import GLUE_TASKS
from attempt_ray.tasks.metrics import headline, score
from attempt_ray.tasks.pairs import PAIR_TASKS
from attempt_ray.tasks.qa import QA_TASKS
from attempt_ray.tasks.spec import Example, Row, Task, TemplateOptions
from attempt_ray.tasks.superglue import SUPERGLUE_TASKS
from attempt_ray.tasks.user import load_user_task

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (*GLUE_TASKS, *QA_TASKS, *SUPERGLUE_TASKS, *PAIR_TASKS)}
)
"""Every built-in task."""

SOURCE_TASKS = ("mnli", "sst2", "qnli", "qqp", "squad", "record")
"""Tasks whose prompts are the mixture's candidates, in the order of `AttentionConfig.sources`."""

GROUPS: Mapping[TaskGroup, tuple[str, ...]] = MappingProxyType(
    {
        "sources": SOURCE_TASKS,
        "GLUE": ("wnli", "stsb", "mrpc", "rte"),
        "SuperGLUE": ("boolq", "wic", "wsc", "cb"),
        "MultiRC": ("multirc",),
        "MRQA": ("nq", "hotpotqa", "searchqa", "newsqa"),
        "Others": ("winogrande", "yelp", "scitail", "paws"),
    }
)
"""Tasks the paper trains together (section 4.3); MultiRC is trained alone."""

TARGET_TASKS = (
    *GROUPS["GLUE"],
    "cola",
    *GROUPS["MultiRC"],
    *GROUPS["SuperGLUE"],
    "copa",
    *GROUPS["MRQA"],
    *GROUPS["Others"],
)
"""The paper's target tasks, in the order of its tables."""


def all_tasks(user_tasks: tuple[str, ...] = ()) -> Mapping[str, Task]:
    """Return the built-in tasks and those of the given YAML files, by name.

    Raises:
        ConfigError: A file cannot be used, or its name is taken.
    """
    tasks = dict(TASKS)
    for path in user_tasks:
        task = load_user_task(path)
        if task.name in tasks:
            raise ConfigError(
                f"task file {path}: name '{task.name}' is taken by another task; choose another name"
            )
        tasks[task.name] = task
    return tasks


def get_task(name: str, user_tasks: tuple[str, ...] = ()) -> Task:
    """Return the task of that name, built in or from one of the given YAML files.

    Raises:
        ConfigError: No task has that name, or a file cannot be used.
    """
    tasks = all_tasks(user_tasks)
    if name not in tasks:
        raise ConfigError(unknown_name("task", name, tasks))
    return tasks[name]


__all__ = [
    "GROUPS",
    "SOURCE_TASKS",
    "TARGET_TASKS",
    "TASKS",
    "Example",
    "Row",
    "Task",
    "TemplateOptions",
    "all_tasks",
    "get_task",
    "headline",
    "load_user_task",
    "score",
]
