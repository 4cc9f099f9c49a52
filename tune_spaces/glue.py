"""GLUE targets."""

from tune_spaces.common import group_space

SPACE = group_space("glue", "GLUE", steps=(500, 1000, 2000, 4000), attention_rate=0.3, paper_steps=2000)
