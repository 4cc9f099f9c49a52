"""How prompts and G are learned, in one plain process: no Ray.

Read in this order: `optimizer`, `loop`, `evaluation`, `selection`, `course`, `run`. What makes a run a directory that survives
its process is in `checkpoint` and `directory`; `ingredients` gathers what a run reads, `publishing` and `report` what
it leaves behind. `pretraining` makes backbones and stands apart.
"""
