"""MultiRC, whose inputs are long."""

from tune_spaces.common import group_space

SPACE = group_space("multirc", "MultiRC", steps=(1000, 2000, 4000), attention_rate=0.3, paper_steps=4000)
