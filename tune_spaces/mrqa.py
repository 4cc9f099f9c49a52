"""MRQA targets: large, so that even the paper passes few times over their rows."""

from tune_spaces.common import group_space

SPACE = group_space("mrqa", "MRQA", steps=(2000, 4000, 8000, 16000), attention_rate=0.3, paper_steps=16000)
