"""Knobs that most spaces share, and the paper's point among them."""

from __future__ import annotations

from typing import Any

from attempt_ray.config import TaskGroup
from tune_spaces.space import Choice, Floats, Knob, Space, Value

PROMPT_RATE = Knob(key="training.prompt_learning_rate", domain=Floats(low=0.03, high=1.0, log=True))
ATTENTION_RATE = Knob(key="training.attention_learning_rate", domain=Floats(low=0.003, high=1.0, log=True))
TEMPERATURE = (
    Knob(
        key="temperature",
        domain=Choice(values=("auto", "absolute")),
        sets={"auto": {"attention.temperature": "auto"}, "absolute": {}},
    ),
    Knob(
        key="attention.auto_logit",
        domain=Floats(low=0.5, high=8.0, log=True),
        when={"temperature": ("auto",)},
    ),
    Knob(key="attention.temperature", domain=Floats(low=-4.0, high=2.0), when={"temperature": ("absolute",)}),
)
"""K itself, whose effect depends on the spread of the pooled prompts, or the largest logit that it shall come to."""
START = Knob(key="attention.start", domain=Choice(values=("source", "vocab", "normal")))


def prior_and_bottleneck(*widths: int) -> tuple[Knob, ...]:
    """Return whether G starts from the prior, and its width where it does not: a prior has its own."""
    return (
        Knob(key="study.prior", domain=Choice(values=(True, False))),
        Knob(key="attention.bottleneck", domain=Choice(values=widths), when={"study.prior": (False,)}),
    )


def group_space(
    name: str, group: TaskGroup, *, steps: tuple[int, ...], attention_rate: float, paper_steps: int
) -> Space:
    """Return the space of one of the paper's task groups.

    Args:
        name: Name of the space.
        group: The task group.
        steps: Optimizer steps to choose from.
        attention_rate: The paper's learning rate of G (section 4.3).
        paper_steps: Of `steps`, what the paper's epochs come closest to.
    """
    return Space(
        name=name,
        groups=(group,),
        knobs=(
            ATTENTION_RATE,
            PROMPT_RATE,
            *TEMPERATURE,
            *prior_and_bottleneck(25, 50, 100, 200),
            START,
            Knob(key="training.steps", domain=Choice(values=steps)),
        ),
        known=(paper_point(attention_rate=attention_rate, steps=paper_steps),),
    )


def paper_point(*, attention_rate: float, steps: int) -> dict[str, Value]:
    """Return the paper's settings (sections 3.2, 3.3 and 4.3): K = 1, both rates, the prior, a source's prompt."""
    point: dict[str, Any] = {
        "training.attention_learning_rate": attention_rate,
        "training.prompt_learning_rate": 0.3,
        "temperature": "absolute",
        "attention.temperature": 1.0,
        "study.prior": True,
        "attention.start": "source",
        "training.steps": steps,
    }
    return point
