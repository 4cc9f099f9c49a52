"""The other targets: WinoGrande, Yelp-2, SciTail, PAWS."""

from tune_spaces.common import group_space

SPACE = group_space("others", "Others", steps=(1000, 2000, 4000, 8000), attention_rate=0.1, paper_steps=8000)
