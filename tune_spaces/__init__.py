"""Search spaces as data: one module for each task group, in the vocabulary of `space`."""

SPACES = ("glue", "superglue", "multirc", "mrqa", "others", "embedded")
"""Names of the package's own spaces."""
