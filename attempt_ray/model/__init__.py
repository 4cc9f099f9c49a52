"""Soft prompts, the attention over them, and the frozen backbone that reads them.

Read in this order: `soft_prompt`, `attention`, `mixture`, `backbone`, `methods`; `interop` is apart.

Tensor names end in their shape, here and in `training`:

    B  rows of a batch                 T  input tokens
    P  prompt positions (paper: m)     H  model width (paper: d)
    S  source prompts (paper: t)       K  candidates: the sources in order, then the target
    N  tasks of a run                  R  bottleneck of G (paper: r)
    L  label or answer tokens          C  closed-label candidates
    V  vocabulary

Prompts, G, its softmax and every loss are float32 whatever the backbone's type.

Source of the method: Asai et al. (2022), "ATTEMPT: Parameter-Efficient Multi-task Tuning via Attentional Mixtures of
Soft Prompts", https://arxiv.org/abs/2205.11961.
"""
