"""The deployment that answers requests with prompts of the bank."""
