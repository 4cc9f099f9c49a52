"""ATTEMPT on Ray: attentional mixtures of soft prompts for a frozen T5 (Asai et al. 2022)."""

__version__ = "0.1.0"
