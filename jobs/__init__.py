"""The verbs of the platform: each module is one job, runnable as ``python -m jobs.NAME``."""
