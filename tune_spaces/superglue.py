"""SuperGLUE targets but MultiRC; the paper's rate of G is lower here."""

from tune_spaces.common import group_space

SPACE = group_space(
    "superglue", "SuperGLUE", steps=(250, 500, 1000, 2000), attention_rate=0.1, paper_steps=1000
)
