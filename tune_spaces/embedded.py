"""The embedded targets, whose nano backbone has every skill: few steps decide."""

from tune_spaces.common import (
    ATTENTION_RATE,
    PROMPT_RATE,
    START,
    TEMPERATURE,
    paper_point,
    prior_and_bottleneck,
)
from tune_spaces.space import Choice, Knob, Space

SPACE = Space(
    name="embedded",
    knobs=(
        ATTENTION_RATE,
        PROMPT_RATE,
        *TEMPERATURE,
        *prior_and_bottleneck(16, 32, 64),
        START,
        Knob(key="training.steps", domain=Choice(values=(10, 20, 40))),
    ),
    # Scoring the dev rows takes longer than the steps between; the rungs of ASHA are then 5, 15 and 45 steps.
    fixed={"training.eval_steps": 5},
    known=(
        paper_point(attention_rate=0.3, steps=20),
        {
            "training.attention_learning_rate": 0.1,
            "training.prompt_learning_rate": 0.3,
            "temperature": "auto",
            "attention.auto_logit": 3.0,
            "study.prior": True,
            "attention.start": "normal",
            "training.steps": 10,
        },
    ),
)
