"""From rows to batches: where rows come from, how they are split, encoded once, and dealt out by (seed, step)."""
